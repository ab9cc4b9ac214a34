"""What the fused and the persistent engine have in common, run on the CPU, held against NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fused_cases
import persistent_cases
from backprop_gpu import Activation, Callback, MLPClassifier, Network, Population
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.engines import fused_cuda, persistent_cuda
from backprop_gpu.optimizers import SGD
from fused_cases import Run
from machine import device_runtime
from reference import same_bits

pytestmark = pytest.mark.parametrize("engine", ["fused", "persistent"])
CASES: dict[str, Any] = {"fused": fused_cases.FORMS, "persistent": persistent_cases.FORMS}


def _backend() -> CudaBackend:
    return CudaBackend("float32", device_runtime(), precision="bf16")


def _data(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.standard_normal((rows, inputs)), rng.uniform(size=(rows, outputs))


# -- what they compute ------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_users_activation(engine: Any) -> None:
    """Inside, beside another, and last."""
    squash = Activation(f"{engine}_squash", lambda z: z / (1 + z * z) ** 0.5,
                        lambda z: (1 + z * z) ** -1.5)  # fmt: skip
    X, Y = _data(90, 6, 3)
    for sigmas in (["relu", squash, "sigmoid"], [squash, "tanh", squash]):
        nets = []
        for backend, chosen in (("cuda", engine), ("numpy", "layered")):
            net = Network([6, 20, 9, 3], activation=sigmas, backend=backend, seed=3)
            net.fit(X, Y, epochs=2, batch_size=40, learning_rate=0.5, engine=chosen)
            nets.append(net)
        for got, expected in zip(nets[0].weights, nets[1].weights, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_factors_too_large_for_three_products_of_tf32(engine: Any) -> None:
    """Beyond 2^126 the smaller part overflows: such a sum is made again on the plain cores."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 64)).astype(np.float32)
    X[np.arange(64), rng.permutation(64)] = 3e38
    Y, found = np.zeros((64, 33), np.float32), []
    for backend, chosen, dtype in (("cuda", engine, "float32"), ("numpy", "layered", "float64")):
        net = Network([64, 33], activation="identity", backend=backend, seed=1, dtype=dtype)
        net.weights = [1e-36 * w for w in net.weights]
        net.fit(
            X, Y, epochs=1, batch_size=64, learning_rate=1e-38, engine=chosen,
            optimizer=SGD(clip_value=1.0),
        )  # fmt: skip
        assert net.history is not None
        found.append(net.history.loss[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_by_the_name_of_the_engine(engine: Any, precision: str) -> None:
    """One network and three, with a short last batch, and what the host looks at between epochs."""
    X, Y = _data(150, 6, 3)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 64, "learning_rate": 0.3}
    results = []
    for backend, chosen in (("cuda", engine), ("numpy", "layered")):
        options: dict[str, Any] = {"backend": backend, "precision": precision, "seed": 2}
        net = Network([6, 20, 3], **options)
        net.fit(X, Y, validation_data=(X[:9], Y[:9]), engine=chosen, **settings)
        many = Population([6, 20, 3], members=3, **options)
        many.fit(X, Y, engine=chosen, **settings)
        assert net.plan.engine == many.plan.engine == chosen
        results.append([net, *many])
    for got, expected in zip(*results, strict=True):
        for a, b in zip(got.weights, expected.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if precision == "float32" else 1e-3)
    np.testing.assert_allclose(
        results[0][0].history.val_loss, results[1][0].history.val_loss, rtol=1e-3
    )


@pytest.mark.gpu
def test_a_penalty_on_the_sum_weighs_more_in_a_short_batch(engine: Any) -> None:
    """scikit-learn's alpha."""
    X, Y = _data(70, 6, 3)
    labels = Y.argmax(1)
    fitted = [
        MLPClassifier(
            (12,), alpha=3.0, batch_size=48, max_iter=3, random_state=0, backend=backend,
            solver="sgd", learning_rate_init=0.1, engine=chosen,
        ).fit(X.astype(np.float32), labels)
        for backend, chosen in (("cuda", engine), ("numpy", "layered"))
    ]  # fmt: skip
    assert f"engine {engine}" in fitted[0].plan_
    for got, expected in zip(fitted[0].coefs_, fitted[1].coefs_, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


# -- bits -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_member_is_as_it_would_be_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one launch or in several."""
    form = CASES[engine]["one layer"]
    form = replace(form, optimizers=form.optimizers[:1] * 3)
    backend = _backend()
    together = Run(form, backend, "float32").train(form.engine(backend))
    alone = Run(form, backend, "float32")
    found = []
    for member in alone.members:
        alone.members = [member]
        found += alone.train(form.engine(backend))
    same_bits(together, found)
    monkeypatch.setattr(fused_cuda, "PARTS", 1)
    monkeypatch.setattr(persistent_cuda, "SCRATCH", 1)
    launches: list[Any] = []
    backend = _backend()
    launch = backend.runtime.launch
    monkeypatch.setattr(
        backend.runtime, "launch", lambda *args: (launches.append(args[0]), launch(*args))[1]
    )
    same_bits(together, Run(form, backend, "float32").train(form.engine(backend)))
    of_a_member = 2 * -(-form.rows // form.batch) if engine == "fused" else 2
    assert sum(f"{engine}<" in kernel.expression for kernel in launches) == 3 * of_a_member


@pytest.mark.gpu
def test_how_x_is_stored_changes_no_bit(engine: Any) -> None:
    form = CASES[engine]["bytes"]
    runs = [Run(form, _backend(), "float32") for _ in range(2)]
    X = runs[1].backend.to_numpy(runs[1].X)
    assert X.dtype == np.uint8
    runs[1].X = runs[1].backend.asarray(X)
    plain = replace(form, bytes=False)
    same_bits(*(r.train(f.engine(r.backend)) for r, f in zip(runs, (form, plain), strict=True)))


@pytest.mark.gpu
def test_rows_of_bytes_stay_bytes(engine: Any) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 4, (90, 20), np.uint8), rng.integers(0, 3, 90)
    nets = []
    for data in (X, X.astype(np.float32)):
        net = Network([20, 16, 3], backend="cuda", seed=1)
        net.fit(data, y, epochs=2, batch_size=32, learning_rate=0.1, engine=engine)
        assert ("uint8" in str(net.plan)) == (data is X)
        nets.append(net)
    same_bits(nets[0].weights, nets[1].weights)


# -- when they are refused --------------------------------------------------------------------


@pytest.mark.gpu
def test_what_needs_the_host_between_steps_is_refused(engine: Any) -> None:
    class WatchesBatches(Callback):
        def on_batch_end(self, *_: Any) -> None: ...

    X, Y = _data(64, 6, 3)
    net = Network([6, 20, 3], backend="cuda", seed=2)
    with pytest.raises(ValueError, match="a callback after every batch"):
        net.fit(X, Y, epochs=1, batch_size=64, learning_rate=0.3, engine=engine,
                callbacks=[WatchesBatches()])  # fmt: skip
    with pytest.raises(ValueError, match=f"backend numpy has no engine '{engine}'"):
        Network([6, 20, 3], backend="numpy").fit(
            X, Y, epochs=1, batch_size=64, learning_rate=0.3, engine=engine
        )
