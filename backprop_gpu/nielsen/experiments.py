"""The trainings behind the book's figures: each returns numbers, which `figures` draws.

With smaller data λ/n is the book's, n being the number of samples to train with, unless a function
says otherwise.
"""

from __future__ import annotations

import inspect
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .. import imports, validation
from . import expand_mnist, mnist_loader, network, network2, network3
from .mnist_pickle import Pair
from .samples import Samples

#: The book's.
SEED = 12345678

Numbers = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def shared_parameters(function: Callable[..., Any]) -> dict[str, tuple[str, ...]]:
    """What numpydoc's section says of the parameters that experiments, and figures, share."""
    parameters = inspect.signature(function).parameters
    default = parameters["epochs"].default if "epochs" in parameters else None
    described = {
        "data": (
            'path, "digits" or three pairs (X, y), optional',
            "As `mnist_loader.load_data`, whose choice is the default; where it finds nothing,",
            "scikit-learn's digits, with a warning. Of these each pixel is taken for 3 x 3: images",
            "of 24 x 24 train much as MNIST's, and those of 8 x 8 do not.",
        ),
        "epochs": ("int, optional", "By default the book's, or fewer with data smaller than MNIST.")
        if default is None
        else (f"int, default {default}", "How long to train."),
        "seed": (
            f"int, default {SEED}",
            "Of Python's and NumPy's generators, which are left where they were.",
        ),
    }
    return {name: text for name, text in described.items() if name in parameters}


def section(described: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Lines of numpydoc's section of parameters, each its type and then its text."""
    lines = ["Parameters", "----------"]
    for name, (kind, *text) in described.items():
        lines += [f"{name} : {kind}", *(f"    {line}" for line in text)]
    return lines


def _experiment(function: _Function) -> _Function:
    """Complete the docstring by the parameters that it shares with the others."""
    if function.__doc__:  # which ``python -OO`` removes
        head, title, rest = inspect.cleandoc(function.__doc__).partition("Parameters\n----------\n")
        if not title:
            head, title, rest = head.partition("Returns\n-------\n")
            rest = f"\n{title}{rest}"
        lines = "\n".join(section(shared_parameters(function)))
        function.__doc__ = f"{head}{lines}\n{rest}\n"
    return function


@dataclass(frozen=True)
class Images:
    """Rows (X, y) to train with, to validate with, to test with."""

    training: Pair
    validation: Pair
    test: Pair

    @property
    def large(self) -> bool:
        """Whether there are as many as in the book."""
        return len(self.training[0]) >= 50_000

    @property
    def inputs(self) -> int:
        """n_0."""
        return int(self.training[0].shape[1])

    @property
    def side(self) -> int:
        """Pixels along a side of an image.

        Raises
        ------
        ValueError
            If they are no squares.
        """
        side = math.isqrt(self.inputs)
        if side**2 != self.inputs:
            raise ValueError(f"images must be squares, got {self.inputs} pixels")
        return side

    def first(self, n: int) -> Pair:
        """The first n rows to train with."""
        X, y = self.training
        return X[:n], y[:n]


Given = str | os.PathLike[str] | Sequence[Pair] | Images | None


def images(data: Given = None) -> Images:
    """The data of an experiment.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        As `mnist_loader.load_data`, or for what is not three pairs of arrays.
    """
    if isinstance(data, Images):
        return data
    if data is None or isinstance(data, (str, os.PathLike)):
        try:
            found = mnist_loader.load_data(data)
        except FileNotFoundError:
            if data is not None or os.environ.get(mnist_loader.VARIABLE):
                raise
            found = mnist_loader.load_data(mnist_loader.DIGITS)
        small = found[0][0].shape[1] == 64
        return Images(*((_enlarged(X) if small else X, y) for X, y in found))
    try:
        training, held, test = ((np.asarray(X), np.asarray(y)) for X, y in data)
    except (TypeError, ValueError):
        raise TypeError(
            f"data must be a path, 'digits' or three pairs (X, y), got {type(data).__name__}"
        ) from None
    for X, y in (training, held, test):
        if X.ndim != 2 or y.shape != (len(X),) or not len(X) or X.shape[1] != training[0].shape[1]:
            raise ValueError(
                f"data must be three pairs of X (n, n_0) and y (n,), got {X.shape} and {y.shape}"
            )
    return Images(training, held, test)


def _enlarged(X: np.ndarray) -> np.ndarray:
    """8 x 8 pixels as 24 x 24."""
    images = X.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    return images.reshape(len(X), -1)


class _Quiet(network2.Network):
    """With the book's penalty, and without its lines."""

    def __init__(self, sizes: Sequence[int], cost: Any = network2.CrossEntropyCost) -> None:
        super().__init__(sizes, cost, penalty="book")

    def _say(self, line: str) -> None:
        pass

    def mean_gradients(self, data: Samples) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """∇_b C and ∇_w C, the means over the data."""
        found = self._gradients(data.X, data.Y)
        return tuple([g / len(data) for g in each] for each in found)  # type: ignore[return-value]

    def samples(self, data: Pair) -> Samples:
        """Rows as `mean_gradients` takes them."""
        return self._read(mnist_loader.columns(data, self.sizes[-1]), "data", "vectors")


class _QuietNetwork(network.Network):
    def _say(self, line: str) -> None:
        pass


class _QuietLayers(network3.Network):
    def _say(self, text: str) -> None:
        pass


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The book's two generators, from a seed; afterwards they are where they were."""
    seed = validation.integer("seed", seed, 0, 2**32 - 1)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _epochs(epochs: int | None, book: int, small: int, large: bool) -> int:
    if epochs is None:
        return book if large else small
    return validation.integer("epochs", epochs, 1)


def _percent(hits: Sequence[float], of: int) -> list[float]:
    return [100.0 * each / of for each in hits]


# -- chapter 3 ------------------------------------------------------------------------


@_experiment
def learning_slowdown(
    epochs: int = 300,
    starts: Sequence[tuple[float, float]] = ((0.6, 0.9), (2.0, 2.0)),
    etas: tuple[float, float] = (0.15, 0.005),
) -> Numbers:
    """Train one sigmoid neuron that is to turn 1 into 0, from a good start and from a bad one.

    Parameters
    ----------
    starts : sequence of (w, b)
        What weight and bias are at first.
    etas : (float, float)
        Rates η with the quadratic cost and with the cross-entropy; both the book's.

    Returns
    -------
    dict
        "quadratic" and "cross-entropy": for each start the cost and the output before the first
        epoch and after each, (epochs + 1,) lists ``{"cost", "output"}``.
    """
    epochs = validation.integer("epochs", epochs, 1)
    x, y = np.ones((1, 1)), np.zeros((1, 1))
    found: Numbers = {"starts": [tuple(map(float, start)) for start in starts]}
    costs: dict[str, Any] = {
        "quadratic": network2.QuadraticCost,
        "cross-entropy": network2.CrossEntropyCost,
    }
    for (name, cost), eta in zip(costs.items(), etas, strict=True):
        curves = []
        for w, b in starts:
            with seeded(SEED):
                neuron = _Quiet([1, 1], cost)
            neuron.weights, neuron.biases = [np.array([[w]], float)], [np.array([[b]], float)]
            outputs = [float(neuron.feedforward(x)[0, 0])]
            for _ in range(epochs):
                neuron.update_mini_batch([(x, y)], eta, 0.0, 1)
                outputs.append(float(neuron.feedforward(x)[0, 0]))
            values = [float(cost.fn(np.array([[a]]), y)) for a in outputs]
            curves.append({"cost": values, "output": outputs})
        found[name] = curves
    return found


@_experiment
def overfitting(
    data: Given = None, epochs: int | None = None, seed: int = SEED, lmbda: float = 0.0
) -> Numbers:
    """Train 30 hidden neurons, 1000 samples, 400 epochs; else 300, 200.

    Parameters
    ----------
    lmbda : float, default 0
        The regularisation parameter λ.

    Returns
    -------
    dict
        Lists of a number an epoch: "training_cost", "test_cost", and in per cent
        "training_accuracy", "test_accuracy"; the "size" of the training data.
    """
    given = images(data)
    n = 1000 if given.large else min(300, len(given.training[0]))
    return _monitored(given, n, _epochs(epochs, 400, 200, given.large), seed, lmbda)


@_experiment
def overfitting_full(
    data: Given = None, epochs: int | None = None, seed: int = SEED, lmbda: float = 0.0
) -> Numbers:
    """Train as `overfitting`, with all samples, for 30 epochs.

    Parameters
    ----------
    lmbda : float, default 0
        The regularisation parameter λ.

    Returns
    -------
    dict
        As of `overfitting`.
    """
    given = images(data)
    n = len(given.training[0])
    return _monitored(given, n, _epochs(epochs, 30, 30, given.large), seed, lmbda)


@_experiment
def regularized(data: Given = None, epochs: int | None = None, seed: int = SEED) -> Numbers:
    """Train as `overfitting`, with λ = 0.1; else ten times the book's λ/n, for fewer steps.

    Returns
    -------
    dict
        As of `overfitting`.
    """
    given = images(data)
    n = 1000 if given.large else min(300, len(given.training[0]))
    return overfitting(given, epochs, seed, 1e-4 * n if given.large else 1e-3 * n)


@_experiment
def regularized_full(data: Given = None, epochs: int | None = None, seed: int = SEED) -> Numbers:
    """Train as `overfitting_full`, with λ = 5; else ten times the book's λ/n, for fewer steps.

    Returns
    -------
    dict
        As of `overfitting`.
    """
    given = images(data)
    n = len(given.training[0])
    return overfitting_full(given, epochs, seed, 1e-4 * n if given.large else 1e-3 * n)


def _monitored(given: Images, n: int, epochs: int, seed: int, lmbda: float) -> Numbers:
    with seeded(seed):
        net = _Quiet([given.inputs, 30, 10])
        net.large_weight_initializer()
        found = net.SGD(
            mnist_loader.columns(given.first(n)), epochs, 10, 0.5, lmbda,
            mnist_loader.labelled(given.test), True, True, True, True,
        )  # fmt: skip
    test_cost, test_hits, training_cost, training_hits = found
    return {
        "size": n,
        "test_cost": test_cost,
        "test_accuracy": _percent(test_hits, len(given.test[0])),
        "training_cost": training_cost,
        "training_accuracy": _percent(training_hits, n),
    }


@_experiment
def weight_initialization(
    data: Given = None,
    epochs: int | None = None,
    seed: int = SEED,
    hidden: Sequence[int] = (30, 100),
) -> Numbers:
    """Train from initial weights of N(0, 1) and of N(0, 1/n_in), η = 0.1, for 30 epochs.

    Parameters
    ----------
    hidden : sequence of int, default (30, 100)
        Numbers of hidden neurons.

    Returns
    -------
    dict
        For each number of hidden neurons the accuracies on the validation data in per cent,
        ``{"new", "old"}``, a number an epoch.
    """
    given = images(data)
    epochs = _epochs(epochs, 30, 30, given.large)
    training, held = mnist_loader.columns(given.training), mnist_loader.labelled(given.validation)
    found: Numbers = {}
    for n in hidden:
        with seeded(seed):
            net = _Quiet([given.inputs, n, 10])
            curves = {}
            for name in ("new", "old"):
                if name == "old":
                    net.large_weight_initializer()
                _, hits, _, _ = net.SGD(
                    training, epochs, 10, 0.1, 1e-4 * len(training), held,
                    monitor_evaluation_accuracy=True,
                )  # fmt: skip
                curves[name] = _percent(hits, len(held))
            found[str(n)] = curves
    return found


@_experiment
def multiple_eta(
    data: Given = None,
    epochs: int | None = None,
    seed: int = SEED,
    etas: Sequence[float] = (0.025, 0.25, 2.5),
) -> Numbers:
    """Find the cost on the training data with three learning rates, for 30 epochs.

    Parameters
    ----------
    etas : sequence of float
        Learning rates η.

    Returns
    -------
    dict
        For each η the cost after each epoch.
    """
    given = images(data)
    epochs = _epochs(epochs, 30, 30, given.large)
    training = mnist_loader.columns(given.training)
    found: Numbers = {}
    with seeded(seed):
        for eta in etas:
            net = _Quiet([given.inputs, 30, 10])
            _, _, costs, _ = net.SGD(
                training, epochs, 10, eta, 1e-4 * len(training), monitor_training_cost=True
            )
            found[str(eta)] = costs
    return found


@_experiment
def more_data(
    data: Given = None,
    epochs: int | None = None,
    seed: int = SEED,
    sizes: Sequence[int] | None = None,
) -> Numbers:
    """Find the accuracy by the number of samples, of a network and of a support vector machine.

    Epochs are over the largest training set, 30, else 40; smaller ones take as many steps.

    Parameters
    ----------
    sizes : sequence of int, optional
        By default the book's from 100 to 50,000, else from 20 to 1200.

    Returns
    -------
    dict
        "sizes", and in per cent on the validation data "network" and "svm".
    """
    svm = imports.optional("sklearn.svm", "sklearn", "experiments.more_data()")
    given = images(data)
    epochs = _epochs(epochs, 30, 40, given.large)
    if sizes is None:
        steps = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
        small = (20, 50, 100, 200, 500, 1200)
        sizes = steps if given.large else [n for n in small if n <= len(given.training[0])]
    most = len(given.training[0])
    sizes = [validation.integer("a size", n, 1, most) for n in sizes]
    training, held = mnist_loader.columns(given.training), mnist_loader.labelled(given.validation)
    X, y = given.validation
    found: Numbers = {"sizes": list(sizes), "network": [], "svm": []}
    with seeded(seed):
        net = _Quiet([given.inputs, 30, 10])
        for n in sizes:
            net.large_weight_initializer()
            net.SGD(training[:n], epochs * max(sizes) // n, 10, 0.5, 1e-4 * n)
            found["network"].append(100.0 * net.accuracy(held) / len(held))
    for n in sizes:
        rows, labels = given.first(n)
        if len(np.unique(labels)) < 2:
            raise ValueError(f"the first {n} samples are of one class")
        machine = svm.SVC(gamma="auto").fit(rows, labels)  # the default of then
        found["svm"].append(100.0 * float(np.mean(machine.predict(X) == y)))
    return found


@_experiment
def expanded_mnist(data: Given = None, epochs: int | None = None, seed: int = SEED) -> Numbers:
    """Train on few samples, and on the same with four displaced images of each, for as many steps.

    100 hidden neurons and 1000 samples, for 150 epochs; else 200 samples.

    Returns
    -------
    dict
        "image" and its four "displaced" (k, k), and the accuracies on the validation data in per
        cent, ``{"as they are", "expanded"}``, after every five epochs of the former.
    """
    given = images(data)
    n = 1000 if given.large else min(200, len(given.training[0]))
    rounds = max(1, _epochs(epochs, 150, 150, given.large) // 5)
    small, held = given.first(n), mnist_loader.labelled(given.validation)
    side = given.side
    found: Numbers = {"size": n}
    with seeded(seed):
        for name in ("as they are", "expanded"):
            net = _Quiet([given.inputs, 100, 10])
            rows = small if name == "as they are" else expand_mnist.expand(small)
            training = mnist_loader.columns(rows) * (5 if name == "as they are" else 1)
            _, hits, _, _ = net.SGD(
                training, rounds, 10, 0.5, 1e-4 * len(training), held,
                monitor_evaluation_accuracy=True,
            )  # fmt: skip
            found[name] = _percent(hits, len(held))
    found["image"] = small[0][0].reshape(side, side)
    with seeded(seed):
        moved, _ = expand_mnist.expand((small[0][:1], small[1][:1]))
    found["displaced"] = [
        each.reshape(side, side) for each in moved if not np.array_equal(each, small[0][0])
    ]
    return found


@_experiment
def dropout(
    data: Given = None,
    epochs: int | None = None,
    seed: int = SEED,
    rates: Sequence[float] = (0.0, 0.5),
) -> Numbers:
    """Train `network3` with 100 hidden ReLU, without and with dropout of what comes out of them.

    1000 samples, for 150 epochs; else 400 samples.

    Parameters
    ----------
    rates : sequence of float, default (0, ½)
        Probabilities to be dropped.

    Returns
    -------
    dict
        For each rate "validation", accuracies in per cent, a number an epoch, and "training", that
        on the training data at the end.
    """
    given = images(data)
    epochs = _epochs(epochs, 150, 150, given.large)
    training = given.first(1000 if given.large else min(400, len(given.training[0])))
    found: Numbers = {}
    for rate in rates:
        with seeded(seed):
            net = _QuietLayers(
                [
                    network3.FullyConnectedLayer(given.inputs, 100, network3.ReLU),
                    network3.SoftmaxLayer(100, 10, rate),
                ],
                10,
            )
        shares = net.SGD(training, epochs, 10, 0.1, given.validation, given.test)
        found[str(rate)] = {
            "validation": _percent(shares, 1),
            "training": 100.0 * net.accuracy(training),
        }
    return found


# -- chapters 1 and 5 -----------------------------------------------------------------


@_experiment
def misclassified(
    data: Given = None, epochs: int | None = None, seed: int = SEED, most: int = 18
) -> Numbers:
    """Find images that chapter 1's network takes for another digit, after 30 epochs.

    Parameters
    ----------
    most : int, default 18
        How many at most.

    Returns
    -------
    dict
        "accuracy" on the test data in per cent; of the first `most` that are wrong "images"
        (k, k), "labels" and "predictions".
    """
    given = images(data)
    epochs = _epochs(epochs, 30, 30, given.large)
    (X, y), side = given.test, given.side
    with seeded(seed):
        net = _QuietNetwork([given.inputs, 30, 10])
        net.SGD(mnist_loader.columns(given.training), epochs, 10, 3.0)
    predictions = net.feedforward(X.T).argmax(axis=0)
    wrong = np.flatnonzero(predictions != y)[:most]
    return {
        "accuracy": 100.0 * float(np.mean(predictions == y)),
        "images": [X[i].reshape(side, side) for i in wrong],
        "labels": [int(y[i]) for i in wrong],
        "predictions": [int(predictions[i]) for i in wrong],
    }


@_experiment
def initial_gradient(data: Given = None, seed: int = SEED, neurons: int = 6) -> Numbers:
    """Find the gradient of two hidden layers of 30 before any training, over 1000 samples.

    Parameters
    ----------
    neurons : int, default 6
        How many of each hidden layer.

    Returns
    -------
    dict
        "gradients": ∂C/∂b of the first neurons of each hidden layer; "norms": ‖∂C/∂b^l‖ of each.
    """
    given = images(data)
    with seeded(seed):
        net = _Quiet([given.inputs, 30, 30, 10])
    nabla_b, _ = net.mean_gradients(net.samples(given.first(1000)))
    return {
        "gradients": [g[:neurons, 0].tolist() for g in nabla_b[:-1]],
        "norms": [float(np.linalg.norm(g)) for g in nabla_b[:-1]],
    }


@_experiment
def training_speed(
    data: Given = None,
    epochs: int | None = None,
    seed: int = SEED,
    layers: Sequence[int] = (2, 3, 4),
) -> Numbers:
    """Find how fast each hidden layer learns.

    1000 samples in one mini-batch, for 500 epochs; else 300.

    Parameters
    ----------
    layers : sequence of int
        Numbers of hidden layers, of 30 neurons each.

    Returns
    -------
    dict
        For each number ``[‖∂C/∂b^1‖, ‖∂C/∂b^2‖, …]`` before each epoch.
    """
    given = images(data)
    epochs = _epochs(epochs, 500, 300, given.large)
    found: Numbers = {}
    with seeded(seed):
        for count in layers:
            net = _Quiet([given.inputs, *[30] * count, 10])
            samples = net.samples(given.first(1000))
            norms = []
            for _ in range(epochs):
                nabla_b, _ = net.mean_gradients(samples)
                norms.append([float(np.linalg.norm(g)) for g in nabla_b[:-1]])
                net.update_mini_batch(samples, 0.1, 0.005 * len(samples), len(samples))
            found[str(count)] = norms
    return found


@_experiment
def backprop_magnitude_nabla(data: Given = None, seed: int = SEED) -> Numbers:
    """Train five hidden layers of 30.

    Ten mini-batches of 100, of which the eighth to the tenth count.

    Returns
    -------
    dict
        "norms": for each of three mini-batches ‖∇_w C‖, summed over its samples, of the four
        layers that are between hidden ones.
    """
    given = images(data)
    with seeded(seed):
        net = _Quiet([given.inputs, *[30] * 5, 10])
    X, y = given.first(1000)
    found = []
    for k in range(10):
        rows = np.arange(100 * k, 100 * (k + 1)) % len(X)
        samples = net.samples((X[rows], y[rows]))
        _, nabla_w = net.mean_gradients(samples)
        found.append([float(np.linalg.norm(g)) * len(samples) for g in nabla_w[1:-1]])
        net.update_mini_batch(samples, 0.01, 0.05, 1000)
    return {"norms": found[7:]}
