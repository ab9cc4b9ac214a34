"""Forty seeded trainings and the record of what they gave: to the bit, or to within rounding.

They use public names alone, so that one list runs on any version of the package:

    python tests/support/recorded_trainings.py --stand-in H100 [NAME ...]      # compares
    python tests/support/recorded_trainings.py --stand-in H100 --write [PATH]  # records anew

On a machine with a GPU leave the stand-in out. With neither, the trainings on CUDA do not run.

Bits depend on the CPU and on the libraries that compute, so the record names those. Where they are
others, losses and weights are compared within a bound.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import (
    SGD,
    Activation,
    Adam,
    AdamW,
    Callback,
    Cost,
    EarlyStopping,
    MLPClassifier,
    MLPRegressor,
    Network,
    Population,
    schedules,
    sweep,
)
from backprop_gpu.nielsen import network, network2

RECORD = Path(__file__).with_suffix(".json")

#: How much further apart than eps · √widest · steps two machines may be. With other kernels of
#: OpenBLAS, no SIMD in NumPy and no AVX in Numba it was a twentieth of that at most.
MARGIN = 1.0


@dataclass
class Outcome:
    """What a training gave.

    ``steps`` is how many there were, at most, in a network; ``widest`` the largest sum in a
    product, and with eps of ``dtype`` they are what a bound on rounding goes by.
    """

    engine: str
    parameters: list[np.ndarray]
    outputs: list[np.ndarray]
    history: dict[str, list[float]]
    steps: int
    widest: int


@dataclass(frozen=True)
class Training:
    """A training by its name, with the parts of a machine (`machine`) that its bits depend on."""

    name: str
    parts: tuple[str, ...]
    run: Callable[[], Outcome]
    cores: int = 1
    #: How much more than in the others rounding grows.
    growth: float = 1.0


# -- data, made without a sum or function that a machine could round in its own way ---------------


@dataclass(frozen=True)
class Data:
    """Rows near the centre of their class: X (n, inputs), labels, one-hot rows and values."""

    X: np.ndarray
    labels: np.ndarray
    one_hot: np.ndarray
    #: (n, 2) in [0, 2).
    values: np.ndarray


def data(rows: int, inputs: int, classes: int, seed: int) -> Data:
    """Of one seed the centres are the same, and the rows as many others."""
    centres = np.random.default_rng(seed).random((classes, inputs))
    rng = np.random.default_rng([seed, rows])
    labels = rng.integers(classes, size=rows)
    X = 0.6 * centres[labels] + 0.4 * rng.random((rows, inputs))
    values = np.stack([X[:, 0] * X[:, 1] + X[:, 2], 2.0 * X[:, 1] * X[:, 2]], axis=1)
    return Data(X, labels, np.eye(classes)[labels], values)


def in_bytes(X: np.ndarray, largest: int = 255) -> np.ndarray:
    return (largest * X).astype(np.uint8)


# fmt: off

# -- Network.fit ----------------------------------------------------------------------------------


def histories(found: Iterable[Any]) -> dict[str, list[float]]:
    """Of `History` objects, all but the seconds."""
    read = {}
    for i, each in enumerate(found):
        for name in ("loss", "val_loss", "val_accuracy"):
            read[f"{name} {i}"] = [float(value) for value in getattr(each, name)]
        read[f"restored {i}"] = [] if each.restored is None else [float(each.restored)]
    return read


def outcome(
    nets: Sequence[Network], X: np.ndarray, batch: int, past: Sequence[Any] = ()
) -> Outcome:
    """Of trained networks; `past` are the histories of earlier calls of `fit`."""
    told = [*past, *(net.history for net in nets)]
    epochs = max(sum(map(len, past)) + len(net.history) for net in nets)
    return Outcome(
        nets[0].plan.engine,
        [array for net in nets for pair in zip(net.weights, net.biases, strict=True)
         for array in pair],
        [net.predict(X[:32]) for net in nets],  # so few that BLAS takes one thread
        histories(told),
        epochs * math.ceil(len(X) / batch),
        max(n for net in nets for n in net.sizes),
    )


def fitted(
    sizes: list[int],
    X: np.ndarray,
    Y: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    times: int = 1,
    says: str = "",
    make: dict[str, Any],
    **fit: Any,
) -> Outcome:
    """A `Network` made with `make`, fitted so many times; its plan has to say `says`."""
    net = Network(sizes, seed=seed, **{"backend": "numpy"} | make)
    past = []
    for _ in range(times):
        past.append(net.fit(X, Y, batch_size=batch_size, **fit))
    assert says in str(net.plan), f"the plan should say {says!r}:\n{net.plan}"
    return outcome([net], X, batch_size, past[:-1])


class NoisyBatches(Callback):
    """Adds to the first bias after every third step, and stops after the fourth epoch."""

    def on_batch_end(self, network: Network, batch: int) -> None:
        if batch % 3 == 2:
            first, *others = network.biases
            network.biases = [first + 2.0**-7, *others]

    def on_epoch_end(self, network: Network, history: Any) -> bool:
        return len(history) == 4


cube = Activation("cube", lambda z: z * z * z + z, lambda z: 3 * z * z + 1)
quartic = Cost(
    "quartic",
    lambda a, y: ((a - y) ** 2 * (a - y) ** 2).sum(axis=1),
    lambda a, y: 4 * (a - y) * (a - y) * (a - y),
)


def layered_sgd() -> Outcome:
    d = data(103, 12, 4, 1)
    return fitted(
        [12, 8, 4], d.X, d.labels, seed=1, batch_size=10, epochs=5, learning_rate=2.0,
        engine="layered", make={},
    )


def layered_penalties() -> Outcome:
    d, v = data(90, 10, 3, 2), data(40, 10, 3, 2)
    return fitted(
        [10, 9, 3], d.X, d.one_hot, seed=2, batch_size=16, epochs=5, learning_rate=0.5,
        optimizer=SGD(l1=1e-3, l2=1e-2), validation_data=(v.X, v.one_hot), engine="layered",
        make={"cost": "binary_cross_entropy", "dtype": "float64"},
    )


def layered_momentum() -> Outcome:
    d = data(80, 8, 3, 3)
    return fitted(
        [8, 10, 6, 2], d.X, d.values, seed=3, batch_size=12, epochs=6,
        learning_rate=schedules.StepDecay(0.05, every=2), optimizer="momentum", engine="layered",
        make={"activation": ["tanh", "sigmoid", "identity"], "dtype": "float64"},
    )


def layered_nesterov() -> Outcome:
    d, v = data(100, 9, 5, 4), data(33, 9, 5, 4)
    return fitted(
        [9, 14, 5], d.X, d.labels, seed=4, batch_size=20, epochs=6,
        learning_rate=schedules.ExponentialDecay(0.1, 0.8), optimizer="nesterov",
        validation_data=(v.X, v.labels), engine="layered",
        make={"activation": ["relu", "softmax"], "cost": "categorical_cross_entropy"},
    )


def layered_adam() -> Outcome:
    d = data(70, 11, 4, 5)
    return fitted(
        [11, 12, 4], d.X, d.one_hot, seed=5, batch_size=8, epochs=5,
        learning_rate=schedules.CosineDecay(0.02, epochs=5, final=0.001),
        optimizer=Adam(clip_norm=0.3, l2=1e-3), engine="layered",
        make={"activation": ["gelu", "softmax"], "cost": "categorical_cross_entropy",
              "dtype": "float64", "initial_weights": "xavier"},
    )


def layered_adamw() -> Outcome:
    d = data(75, 7, 3, 6)
    return fitted(
        [7, 10, 8, 2], d.X, d.values, seed=6, batch_size=10, epochs=5,
        learning_rate=schedules.Warmup(2, schedules.CosineDecay(0.03, epochs=5)),
        optimizer=AdamW(clip_value=0.05, weight_decay=0.1), engine="layered",
        make={"activation": ["silu", "elu", "identity"]},
    )


def layered_poisson() -> Outcome:
    d = data(60, 6, 3, 7)
    return fitted(
        [6, 9, 7, 2], d.X, d.values, seed=7, batch_size=7, epochs=5, learning_rate=0.02,
        optimizer=SGD(momentum=0.5, nesterov=True, clip_norm=1.0, clip_value=0.5, l1=1e-4),
        engine="layered",
        make={"activation": ["leaky_relu", "softplus", "exponential"], "cost": "poisson",
              "dtype": "float64"},
    )


def layered_one_by_one() -> Outcome:
    d = data(25, 6, 2, 8)
    return fitted(
        [6, 5, 1], d.X, d.labels, seed=8, batch_size=1, epochs=2, times=3,
        learning_rate=lambda t: 0.5 / (1.0 + t), optimizer="adam", engine="layered",
        make={"cost": "binary_cross_entropy"},
    )


def layered_bytes() -> Outcome:
    d = data(50, 16, 3, 9)
    return fitted(
        [16, 6, 3], in_bytes(d.X, 7), d.labels, seed=9, batch_size=50, epochs=8, learning_rate=0.5,
        engine="layered", make={"activation": ["tanh", "sigmoid"]},
    )


def layered_early_stopping() -> Outcome:
    d, v = data(60, 8, 4, 10), data(40, 8, 4, 11)  # of other centres: it gets worse
    return fitted(
        [8, 10, 4], d.X, d.labels, seed=10, batch_size=10, epochs=60, learning_rate=0.1,
        validation_data=(v.X, v.labels), callbacks=[EarlyStopping(patience=3)], engine="layered",
        make={"activation": ["tanh", "softmax"], "cost": "categorical_cross_entropy"},
    )


def layered_callbacks() -> Outcome:
    d = data(47, 7, 3, 12)
    return fitted(
        [7, 8, 3], d.X, d.one_hot, seed=12, batch_size=6, epochs=9, learning_rate=0.3,
        callbacks=[NoisyBatches(), lambda network, history: False], engine="layered",
        make={"dtype": "float64"},
    )


def own_functions(engine: str) -> Outcome:
    d = data(64, 5, 2, 13)
    return fitted(
        [5, 7, 2], d.X, d.values, seed=13, batch_size=9, epochs=5, learning_rate=0.02,
        optimizer=SGD(momentum=0.5, clip_norm=0.5), engine=engine,
        make={"activation": [cube, "identity"], "cost": quartic},
    )


def saturated(engine: str, **make: Any) -> Outcome:
    """Most outputs are 0 and 1 to the last bit, and BP1 divides by them or by 1 less them."""
    d = data(40, 6, 2, 14)
    return fitted(
        [6, 8, 2], 60.0 * d.X, d.one_hot, seed=14, batch_size=8, epochs=4, learning_rate=0.002,
        engine=engine,
        make={"activation": ["identity", "sigmoid"], "initial_weights": "book_large"} | make,
    )


def resident_sgd() -> Outcome:
    d = data(103, 12, 4, 1)
    return fitted(
        [12, 8, 4], d.X, d.labels, seed=1, batch_size=10, epochs=5, learning_rate=2.0,
        engine="resident", says="one thread", make={},
    )


def resident_momentum() -> Outcome:
    d, v = data(90, 10, 3, 15), data(45, 10, 3, 15)
    return fitted(
        [10, 9, 7, 3], d.X, d.one_hot, seed=15, batch_size=16, epochs=6,
        learning_rate=schedules.StepDecay(0.1, every=2),
        optimizer=SGD(momentum=0.8, l1=1e-3, l2=1e-2), validation_data=(v.X, v.one_hot),
        engine="resident",
        make={"activation": ["tanh", "gelu", "sigmoid"], "cost": "binary_cross_entropy",
              "dtype": "float64"},
    )


def resident_nesterov() -> Outcome:
    d = data(100, 9, 5, 16)
    return fitted(
        [9, 17, 5], d.X, d.labels, seed=16, batch_size=1, epochs=3,
        learning_rate=schedules.ExponentialDecay(0.02, 0.8),
        optimizer=SGD(momentum=0.9, nesterov=True, clip_norm=0.5), engine="resident",
        make={"activation": ["relu", "softmax"], "cost": "categorical_cross_entropy"},
    )


def resident_poisson() -> Outcome:
    d = data(60, 6, 3, 17)
    return fitted(
        [6, 9, 7, 5, 2], d.X, d.values, seed=17, batch_size=60, epochs=10,
        learning_rate=schedules.Warmup(3, 0.02), optimizer=AdamW(clip_norm=1.0, l2=1e-3),
        engine="resident",
        make={"activation": ["leaky_relu", "softplus", "silu", "exponential"], "cost": "poisson",
              "dtype": "float64"},
    )


def resident_bytes() -> Outcome:
    d, v = data(80, 16, 4, 18), data(40, 16, 4, 18)
    return fitted(
        [16, 12, 4], in_bytes(d.X), d.labels, seed=18, batch_size=15, epochs=40,
        learning_rate=0.001, validation_data=(in_bytes(v.X), v.labels),
        callbacks=[EarlyStopping("val_accuracy", patience=4)], engine="resident",
        make={"activation": ["elu", "softmax"], "cost": "categorical_cross_entropy"},
    )


def resident_large(says: str, **make: Any) -> Outcome:
    """Steps with enough to do for two threads, the last of an epoch on half a batch."""
    d = data(320, 64, 6, 19)
    return fitted(
        [64, 96, 80, 6], d.X, d.one_hot, seed=19, batch_size=128, epochs=4, learning_rate=0.005,
        optimizer=Adam(clip_value=0.01), engine="resident", says=says,
        make={"activation": ["tanh", "sigmoid", "identity"]} | make,
    )


# -- many networks at once ------------------------------------------------------------------------


def population_layered() -> Outcome:
    d, v = data(70, 8, 3, 20), data(30, 8, 3, 20)
    population = Population([8, 9, 3], members=4, seed=[3, 1, 4, 1], backend="numpy")
    population.fit(
        d.X, d.labels, epochs=[3, 5, 4, 5], batch_size=[10, 7, 70, 16],
        learning_rate=[0.5, schedules.ExponentialDecay(0.05, 0.9), 0.01, 0.01],
        optimizer=["sgd", "momentum", "adam", AdamW(clip_norm=0.1)],
        validation_data=(v.X, v.labels), engine="layered",
    )
    found = outcome(population.members, d.X, 7)
    found.outputs.append(population.predict(v.X, combine="mean"))
    return found


def population_resident() -> Outcome:
    d, v = data(64, 8, 4, 21), data(40, 8, 4, 22)
    make = {"activation": ["tanh", "softmax"], "cost": "categorical_cross_entropy"}
    population = Population.from_networks(
        Network([8, 10, 4], seed=seed, dtype="float64", backend="numpy", **make)
        for seed in (5, 6, 7)
    )
    population.fit(
        d.X, d.one_hot, epochs=30, batch_size=[9, 16, 64], learning_rate=[0.3, 0.5, 1.0],
        optimizer=["sgd", SGD(momentum=0.5, l2=1e-3), "nesterov"],
        validation_data=(v.X, v.one_hot), callbacks=[EarlyStopping(patience=3)],
        engine="resident",
    )
    return outcome(population.members, d.X, 9)


def sweep_resident() -> Outcome:
    d, v = data(66, 8, 3, 23), data(30, 8, 3, 23)
    result = sweep(
        d.X, d.labels,
        grid=[{"sizes": [[8, 6, 3], [8, 5, 4, 3]], "learning_rate": [0.1, 0.3]},
              {"sizes": [[8, 6, 3]], "learning_rate": [0.01], "optimizer": ["adam"],
               "l2": [0.01], "clip_value": [0.1]}],
        seeds=2, seed=9, backend="numpy", cost="binary_cross_entropy", epochs=4, batch_size=10,
        validation_data=(v.X, v.labels), progress=False, engine="resident",
    )
    found = outcome(result.networks, d.X, 10)
    found.history["ranking"] = [float(i) for i in result.ranking]
    return found


# -- scikit-learn's estimators --------------------------------------------------------------------


def estimated(model: Any, X: np.ndarray, batch: int) -> Outcome:
    history = {
        name: [float(value) for value in np.ravel(getattr(model, name))]
        for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_",
                     "best_validation_score_", "loss_", "best_loss_", "n_iter_", "t_")
        if getattr(model, name, None) is not None
    }
    outputs = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    engine = re.search("resident|layered|lbfgs|NumPy", model.plan_)
    assert engine is not None, model.plan_
    return Outcome(
        engine.group(),
        [array for pair in zip(model.coefs_, model.intercepts_, strict=True) for array in pair],
        [outputs],
        history,
        max(int(model.t_), len(X) * model.n_iter_) // min(batch, len(X)),
        max(len(w) for w in model.coefs_),
    )


def classifier_adam() -> Outcome:
    d = data(120, 9, 2, 24)
    model = MLPClassifier(
        (10, 6), "tanh", batch_size=25, learning_rate_init=0.01, max_iter=40, random_state=24,
        early_stopping=True, validation_fraction=0.25, n_iter_no_change=4, backend="numpy",
    )
    return estimated(model.fit(d.X, d.labels), d.X, 25)


def classifier_resident() -> Outcome:
    """So many epochs that the planner takes the resident engine; it stops long before."""
    d = data(90, 8, 3, 25)
    model = MLPClassifier(
        (11,), "relu", solver="sgd", batch_size=20, learning_rate="invscaling",
        learning_rate_init=0.1, power_t=0.2, momentum=0.7, max_iter=100_000, tol=0.02,
        n_iter_no_change=2, random_state=25, clip_norm=1.0, backend="numpy",
    )
    return estimated(model.fit(d.X.astype(np.float32), d.labels), d.X.astype(np.float32), 20)


def classifier_partial_fit() -> Outcome:
    d = data(60, 7, 3, 26)
    model = MLPClassifier(
        (8,), ["gelu"], solver="sgd", nesterovs_momentum=False, batch_size=16,
        learning_rate_init=0.05, random_state=26, class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        backend="numpy",
    )
    for part in (slice(0, 30), slice(30, 60), slice(10, 40)):
        weights = 0.5 + d.X[part, 0]
        model.partial_fit(d.X[part], d.labels[part], sample_weight=weights, classes=[0, 1, 2])
    return estimated(model, d.X, 16)


def classifier_warm_start() -> Outcome:
    """Several labels a row, batches that are larger than the data, as they are in order."""
    d = data(50, 7, 4, 27)
    labels = (d.X[:, :3] > 0.5).astype(int)
    model = MLPClassifier(
        (8,), "logistic", batch_size=400, shuffle=False, learning_rate_init=0.02, max_iter=6,
        alpha=0.1, warm_start=True, random_state=27, backend="numpy",
    )
    return estimated(model.fit(d.X, labels).fit(d.X, labels), d.X, 400)


def regressor_early_stopping() -> Outcome:
    d = data(110, 8, 3, 28)
    model = MLPRegressor(
        hidden_layer_sizes=(9, 7), activation=["tanh", "softplus"], solver="sgd", batch_size=30,
        learning_rate="adaptive", learning_rate_init=0.05, max_iter=60, tol=1e-3,
        early_stopping=True, n_iter_no_change=3, random_state=28, backend="numpy",
    )
    return estimated(model.fit(d.X, d.values), d.X, 30)


def regressor_lbfgs() -> Outcome:
    d = data(60, 6, 3, 29)
    model = MLPRegressor(
        hidden_layer_sizes=(8,), activation="tanh", solver="lbfgs", alpha=0.01, max_iter=15,
        random_state=29, backend="numpy",
    )
    return estimated(model.fit(d.X, d.values), d.X, 60)


def regressor_weighted() -> Outcome:
    d = data(60, 6, 3, 30)
    model = MLPRegressor(
        loss="absolute_error", hidden_layer_sizes=(10,), activation="elu", batch_size=13,
        learning_rate_init=0.02, max_iter=8, dropout=0.25, clip_value=0.2, random_state=30,
        backend="numpy",
    )
    model.fit(d.X.astype(np.float32), d.values[:, 0], sample_weight=d.X[:, 3])
    return estimated(model, d.X.astype(np.float32), 13)


# -- the book's networks --------------------------------------------------------------------------


def pairs(d: Data, labels: bool = False) -> list[tuple[np.ndarray, Any]]:
    """(x, y) columns, as the book has them; with `labels` (x, class)."""
    targets = [int(label) for label in d.labels] if labels else [y[:, None] for y in d.one_hot]
    return list(zip((x[:, None] for x in d.X), targets, strict=True))


@contextlib.contextmanager
def book_seeds(seed: int) -> Iterator[None]:
    """The global generators, which the book draws from, and back."""
    import random

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def booked(net: Any, d: Data, epochs: int, batch: int, history: dict[str, list[float]]) -> Outcome:
    rows = np.stack([net.feedforward(x[:, None])[:, 0] for x in d.X])
    return Outcome(
        net.plan.engine if net.plan is not None else "Python",
        [array for pair in zip(net.weights, net.biases, strict=True) for array in pair],
        [rows],
        history,
        epochs * math.ceil(len(d.X) / batch),
        max(net.sizes),
    )


def book_network() -> Outcome:
    d, test = data(58, 8, 3, 31), data(30, 8, 3, 31)
    printed = io.StringIO()
    with book_seeds(31), contextlib.redirect_stdout(printed):
        net = network.Network([8, 7, 3], backend="numpy")
        net.SGD(pairs(d), 4, 10, 1.0, test_data=pairs(test, labels=True))
    hits = [float(hit) for hit in re.findall(r": (\d+) / 30", printed.getvalue())]
    return booked(net, d, 4, 10, {"hits": hits})


def book_network2(
    cost: Any, epochs: int, batch: int, patience: int, narrow: bool = True, **sgd: Any
) -> Outcome:
    d, test = data(64, 8, 4, 32), data(40, 8, 4, 32)
    with book_seeds(32), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training is a Python loop", UserWarning)
        net = network2.Network([8, 9, 4], cost=cost, backend="numpy")
        if not narrow:
            net.large_weight_initializer()
        monitors = net.SGD(
            pairs(d), epochs, batch, 0.5, evaluation_data=pairs(test, labels=True),
            monitor_evaluation_cost=True, monitor_evaluation_accuracy=True,
            monitor_training_cost=True, monitor_training_accuracy=True,
            early_stopping_n=patience, **sgd,
        )
    names = ("evaluation cost", "evaluation hits", "training cost", "training hits")
    history = {
        name: [float(value) for value in values]
        for name, values in zip(names, monitors, strict=True)
    }
    return booked(net, d, len(monitors[0]), batch, history)


class FourthPower:
    """A cost that no engine has: C_x = ¼ Σ (a - y)⁴."""

    @staticmethod
    def fn(a: Any, y: Any) -> float:
        return float(0.25 * ((a - y) ** 2 * (a - y) ** 2).sum())

    @staticmethod
    def delta(z: Any, a: Any, y: Any) -> Any:
        return (a - y) * (a - y) * (a - y) * a * (1 - a)


# -- PyTorch's loop -------------------------------------------------------------------------------


def torch_mlp() -> Outcome:
    import torch

    from backprop_gpu.torch import MLP

    d = data(54, 8, 4, 33)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = MLP([8, 12, 10, 4], ["gelu", "tanh", "identity"], seed=33)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        X, y = torch.tensor(d.X, dtype=torch.float32), torch.tensor(d.labels)
        losses = []
        for _ in range(4):
            for rows in torch.arange(len(X)).split(10):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(X[rows]), y[rows])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        arrays = [parameter.detach().numpy().copy() for parameter in model.parameters()]
        with torch.no_grad():
            outputs = model(X).numpy()
    finally:
        torch.set_num_threads(threads)
    return Outcome("PyTorch", arrays, [outputs], {"loss": losses}, len(losses), 12)


# -- on a CUDA device, or a stand-in for one ------------------------------------------------------


def cuda_layered() -> Outcome:
    d, v = data(70, 12, 4, 34), data(30, 12, 4, 34)
    return fitted(
        [12, 20, 4], d.X, d.labels, seed=34, batch_size=16, epochs=3, learning_rate=0.01,
        optimizer=Adam(l2=1e-3, clip_value=0.1), validation_data=(v.X, v.labels),
        engine="layered",
        make={"activation": ["relu", "softmax"], "cost": "categorical_cross_entropy",
              "backend": "cuda"},
    )


def cuda_layered_float64() -> Outcome:
    d = data(50, 10, 3, 35)
    return fitted(
        [10, 9, 3], d.X, d.one_hot, seed=35, batch_size=12, epochs=3,
        learning_rate=schedules.ExponentialDecay(0.3, 0.7),
        optimizer=SGD(momentum=0.9, nesterov=True, clip_norm=0.2, l1=1e-4),
        callbacks=[NoisyBatches()], engine="layered",
        make={"cost": "binary_cross_entropy", "dtype": "float64", "backend": "cuda"},
    )


def cuda_resident() -> Outcome:
    d = data(70, 16, 4, 36)
    return fitted(
        [16, 12, 4], in_bytes(d.X, 7), d.labels, seed=36, batch_size=10, epochs=3,
        learning_rate=0.1, optimizer="momentum", engine="resident",
        make={"activation": ["tanh", "sigmoid"], "backend": "cuda"},
    )


def cuda_population() -> Outcome:
    d, v = data(48, 8, 3, 37), data(30, 8, 3, 37)
    population = Population(
        [8, 10, 3], members=3, seed=37, dtype="float64", activation=["silu", "softmax"],
        cost="categorical_cross_entropy", backend="cuda",
    )
    population.fit(
        d.X, d.labels, epochs=3, batch_size=[8, 10, 16], learning_rate=[0.01, 0.02, 0.03],
        optimizer=["adam", AdamW(weight_decay=0.1), Adam(l1=1e-3)],
        validation_data=(v.X, v.labels), engine="resident",
    )
    return outcome(population.members, d.X, 8)


# -- the list -------------------------------------------------------------------------------------

NUMPY = ("cpu", "numpy")
NUMBA = (*NUMPY, "numba")
SKLEARN = (*NUMPY, "scikit-learn")
CUDA = (*NUMPY, "cuda")

TRAININGS = (
    Training("layered: SGD, labels", NUMPY, layered_sgd),
    Training("layered: SGD with penalties, validated, float64", NUMPY, layered_penalties),
    Training("layered: momentum, steps of η, float64", NUMPY, layered_momentum),
    Training("layered: Nesterov, relu, softmax, decaying η", NUMPY, layered_nesterov),
    Training("layered: Adam, gelu, norm clipped, float64", NUMPY, layered_adam),
    Training("layered: AdamW, silu, elu, values clipped, warmup", NUMPY, layered_adamw),
    Training("layered: poisson, both clippings, float64", NUMPY, layered_poisson),
    Training("layered: batches of 1, own schedule, fitted thrice", NUMPY, layered_one_by_one),
    Training("layered: X of bytes, one batch an epoch", NUMPY, layered_bytes),
    Training("layered: early stopping", NUMPY, layered_early_stopping),
    Training("layered: callbacks of batches and epochs, float64", NUMPY, layered_callbacks),
    Training("layered: own activation and cost", NUMPY, lambda: own_functions("layered")),
    Training("resident: own activation and cost", NUMBA, lambda: own_functions("resident")),
    Training("layered: saturated, poisson", NUMPY, lambda: saturated("layered", cost="poisson")),
    Training("resident: SGD, labels", NUMBA, resident_sgd),
    Training("resident: momentum with penalties, validated, float64", NUMBA, resident_momentum),
    Training("resident: Nesterov, norm clipped, batches of 1", NUMBA, resident_nesterov),
    Training("resident: AdamW, poisson, one batch an epoch, float64", NUMBA, resident_poisson),
    Training("resident: X of bytes, early stopping by accuracy", NUMBA, resident_bytes),
    Training("resident: saturated, poisson, float64", NUMBA,
             lambda: saturated("resident", cost="poisson", dtype="float64")),
    Training("resident: two threads", NUMBA, lambda: resident_large("2 threads"), cores=2),
    Training("resident: two threads, float64", NUMBA,
             lambda: resident_large("2 threads", dtype="float64"), cores=2),
    Training("resident: one thread for the same", NUMBA, lambda: resident_large("one thread")),
    Training("Population, layered: all different", NUMPY, population_layered),
    Training("Population, resident: early stopping, float64", NUMBA, population_resident),
    Training("sweep, resident: two shapes", NUMBA, sweep_resident),
    Training("MLPClassifier: Adam, early stopping", SKLEARN, classifier_adam),
    Training("MLPClassifier: SGD, resident, float32", (*NUMBA, "scikit-learn"),
             classifier_resident),
    Training("MLPClassifier: partial_fit, weights of classes and samples", SKLEARN,
             classifier_partial_fit),
    Training("MLPClassifier: warm start, several labels", SKLEARN, classifier_warm_start),
    Training("MLPRegressor: adaptive, early stopping", SKLEARN, regressor_early_stopping),
    # It divides by differences of gradients.
    Training("MLPRegressor: lbfgs", SKLEARN, regressor_lbfgs, growth=100.0),
    Training("MLPRegressor: absolute error, dropout, weights, float32", SKLEARN,
             regressor_weighted),
    Training("nielsen.network", NUMPY, book_network),
    Training("nielsen.network2: λ, early stopping, resident", NUMBA,
             lambda: book_network2(network2.QuadraticCost, 100_000, 10, 3, lmbda=0.1)),
    Training("nielsen.network2: own cost, batch beyond the data", NUMPY,
             lambda: book_network2(FourthPower, 5, 100, 0, narrow=False, lmbda=0.2)),
    Training("torch.MLP", (*NUMPY, "torch"), torch_mlp),
    Training("cuda, layered: Adam, relu, softmax", CUDA, cuda_layered),
    Training("cuda, layered: Nesterov, norm clipped, callbacks, float64", CUDA,
             cuda_layered_float64),
    Training("cuda, resident: X of bytes, momentum", CUDA, cuda_resident),
    Training("cuda, Population: all different, float64", CUDA, cuda_population),
)

# fmt: on


# -- what bits depend on --------------------------------------------------------------------------


def _blas(module: str) -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    return [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture")}
        for pool in threadpool_info()
        if pool["user_api"] == "blas" and f"{os.sep}{module}" in pool["filepath"]
    ]


def _cpu() -> dict[str, Any]:
    import llvmlite.binding as llvm

    model = llvm.get_host_cpu_name()
    return {"machine": platform.machine(), "libc": platform.libc_ver(), "model": model}


def _numpy() -> dict[str, Any]:
    config: Any = np.show_config(mode="dicts")
    simd = config["SIMD Extensions"]
    found = sorted({*simd.get("baseline", ()), *simd.get("found", ())})
    return {"version": np.__version__, "simd": found, "blas": _blas("numpy")}


def _numba() -> dict[str, Any]:
    import llvmlite.binding as llvm
    from numba import config

    return {
        "version": version("numba"),
        "llvmlite": version("llvmlite"),
        "cpu": config.CPU_NAME or llvm.get_host_cpu_name(),
        "features": config.CPU_FEATURES,
    }


def _sklearn() -> dict[str, Any]:
    import scipy.linalg  # noqa: F401 - loads its BLAS

    return {"version": version("scikit-learn"), "scipy": version("scipy"), "blas": _blas("scipy")}


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def _cuda() -> dict[str, Any]:
    from cuda.core import Device

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    device = Device(0)
    found = {"device": device.name, "capability": list(device.compute_capability)}
    if "stand-in" in device.name:
        command = [str(compiler), "-dumpfullversion"]
        found["g++"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "cpu": _cpu,
    "numpy": _numpy,
    "numba": _numba,
    "scikit-learn": _sklearn,
    "torch": _torch,
    "cuda": _cuda,
}


@lru_cache
def machine(part: str) -> dict[str, Any]:
    """What is here of that part: as JSON gives it back, so that it equals a record's."""
    found: dict[str, Any] = json.loads(json.dumps(PARTS[part]()))
    return found


def other_parts(parts: Iterable[str], record: dict[str, Any]) -> list[str]:
    """In which parts this machine is not the record's; empty where bits can be compared."""
    return [
        f"{part} is {machine(part)} here and {record['machine'].get(part)} in the record"
        for part in parts
        if machine(part) != record["machine"].get(part)
    ]


# -- running and comparing ------------------------------------------------------------------------


def enough_cores(training: Training) -> bool:
    return len(os.sched_getaffinity(0)) >= training.cores


def run(training: Training) -> dict[str, Any]:
    """The training's entry in a record, on as many cores as it asks for."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[: training.cores])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")
            found = training.run()
    finally:
        os.sched_setaffinity(0, usable)
    history = (np.array([len(values), *values]) for values in found.history.values())
    eps = max(float(np.finfo(array.dtype).eps) for array in found.parameters)
    return {
        "engine": found.engine,
        "sha256": {
            "parameters": _digest(found.parameters),
            "outputs": _digest(found.outputs),
            "history": _digest(history),
        },
        "bound": MARGIN * training.growth * eps * math.sqrt(found.widest) * found.steps,
        "history": {
            name: " ".join(float.hex(value) for value in values)
            for name, values in found.history.items()
        },
        "parameters": [_summary(array) for array in found.parameters],
        "outputs": [_summary(array) for array in found.outputs],
    }


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _summary(array: np.ndarray) -> dict[str, Any]:
    numbers = array.astype(np.float64).ravel().tolist()
    norm = math.sqrt(math.fsum(number * number for number in numbers))
    return {"shape": list(array.shape), "sum": math.fsum(numbers).hex(), "norm": norm.hex()}


def differences(recorded: dict[str, Any], found: dict[str, Any], bits: bool) -> list[str]:
    """How a run differs from its entry in the record: in bits, or else beyond the entry's bound."""
    differ = []
    if found["engine"] != recorded["engine"]:
        differ.append(f"engine {found['engine']}, not {recorded['engine']}")
    if bits:
        differ += [
            f"other bits of {what}"
            for what, digest in recorded["sha256"].items()
            if found["sha256"][what] != digest
        ]
    bound = 0.0 if bits else recorded["bound"]
    for name, (value, expected, scale) in _numbers(recorded, found, differ):
        error = abs(value - expected) / scale if value != expected else 0.0
        if not (error <= bound or (math.isnan(value) and math.isnan(expected))):
            differ.append(f"{name}: {value!r}, not {expected!r}: by {error:.1e} of {scale:.2g}")
    return differ


def _numbers(
    recorded: dict[str, Any], found: dict[str, Any], differ: list[str]
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """(name, (found, recorded, what a difference is measured by)); other shapes go to `differ`."""
    for name in recorded["history"]:
        expected, values = (
            [float.fromhex(text) for text in side["history"].get(name, "").split()]
            for side in (recorded, found)
        )
        if len(values) != len(expected):
            differ.append(f"{name}: {len(values)} numbers, not {len(expected)}")
        scale = max((abs(value) for value in expected if math.isfinite(value)), default=1.0) or 1.0
        for i, pair in enumerate(zip(values, expected, strict=False)):
            yield f"{name}[{i}]", (*pair, scale)
    for what in ("parameters", "outputs"):
        shapes = [[each["shape"] for each in side[what]] for side in (recorded, found)]
        if shapes[0] != shapes[1]:
            differ.append(f"{what} of shapes {shapes[1]}, not {shapes[0]}")
            continue
        norms = [float.fromhex(each["norm"]) for each in recorded[what]]
        scale = math.hypot(*norms) or 1.0
        for i, (expected, value) in enumerate(zip(recorded[what], found[what], strict=True)):
            count = math.prod(expected["shape"])
            for key, of in (("norm", scale), ("sum", scale * math.sqrt(count))):
                pair = float.fromhex(value[key]), float.fromhex(expected[key])
                yield f"{key} of {what}[{i}]", (*pair, of)


def read() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a training's name")
    parser.add_argument("--write", nargs="?", const=RECORD, type=Path, metavar="PATH")
    parser.add_argument("--bounds", action="store_true", help="within bounds, on any machine")
    parser.add_argument("--stand-in", metavar="CARD")
    options = parser.parse_args(arguments)
    if options.stand_in:
        from backprop_gpu import testing

        testing.start(options.stand_in)
    names = options.names or [""]
    asked = [training for training in TRAININGS if any(name in training.name for name in names)]
    found, failed = {}, {}
    for training in asked:
        try:
            if not enough_cores(training):
                raise RuntimeError(f"it needs {training.cores} cores")
            found[training.name] = run(training)
        except Exception as error:
            failed[training.name] = f"{type(error).__name__}: {error}"
    for name, reason in failed.items():
        print(f"{name}: did not run: {reason}")
    if options.write:
        if options.write == RECORD and len(found) < len(TRAININGS):
            print(f"not written: {len(found)} of {len(TRAININGS)} trainings ran")
            return 1
        parts = dict.fromkeys(p for t in asked if t.name in found for p in t.parts)
        record = {"machine": {part: machine(part) for part in parts}, "trainings": found}
        options.write.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return 0
    record, count = read(), 0
    for training in asked:
        if training.name not in found:
            continue
        others = other_parts(training.parts, record)
        recorded = record["trainings"][training.name]
        differ = differences(recorded, found[training.name], not (others or options.bounds))
        count += bool(differ)
        print(f"{training.name}: {'; '.join(differ) or 'as recorded'}", *others, sep="\n  ")
    print(f"{count} of {len(found)} differ")
    return 1 if count or failed else 0


if __name__ == "__main__":
    sys.exit(main())
