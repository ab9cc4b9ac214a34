"""The numba_cuda backend: run in Numba's simulator, and compiled to PTX without a device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from backprop_gpu import activations, costs
from backprop_gpu.activations import Activation
from machine import SUPPORT, obstacle

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed", exc_type=ImportError)

CASES = SUPPORT / "numba_cuda_cases.py"


def _run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=CASES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip().splitlines()[-1])


def test_every_equation_in_the_simulator():
    _run_cases(NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.gpu
def test_every_equation_on_a_device():
    if (reason := obstacle("numba_cuda")) is not None:
        pytest.skip(reason)
    _run_cases(NUMBA_ENABLE_CUDASIM="0")


# -- compiled, without a device ------------------------------------------------------


@pytest.fixture(scope="module")
def numba_cuda():
    """The backend's module, compiling as if a device of compute capability 9.0 were there."""
    from numba import config

    if config.ENABLE_CUDASIM:
        pytest.skip("NUMBA_ENABLE_CUDASIM=1: the simulator compiles nothing")
    from numba.cuda import dispatcher

    from backprop_gpu.backends import numba_cuda

    # A device function is compiled when a kernel calls it, for the current device.
    with pytest.MonkeyPatch.context() as patch:
        device = SimpleNamespace(compute_capability=(9, 0))
        patch.setattr(dispatcher, "get_current_device", lambda: device)
        yield numba_cuda


SWISH = Activation(
    "user_swish",
    lambda z: z / (np.float32(1) + np.exp(-z)),
    lambda z: np.where(z > 0, np.sqrt(np.square(z)), np.logaddexp(z, z)),
)
ELEMENTWISE = [s for s in map(activations.get, activations.names()) if s.elementwise]


def _kernels(module, dtype: str):
    """(name, kernel, argument types, whether it sums in float64) of every specialisation."""
    from importlib import import_module

    from numba import float64, int32, int64, uint32

    sigmas, terms, cost, forward, output_error, hidden_error = (
        import_module(f"backprop_gpu.kernels.numba_cuda.{name}")
        for name in ("activations", "costs", "cost", "forward", "output_error", "hidden_error")
    )
    bias_gradient, weight_gradient, hadamard, gather, update, dropout = (
        import_module(f"backprop_gpu.kernels.numba_cuda.{name}")
        for name in ("bias_gradient", "weight_gradient", "hadamard", "gather", "update", "dropout")
    )

    backend = module.NumbaCudaBackend(dtype)
    T = backend.T
    flat, matrix = T[::1], T[:, ::1]
    step, double = int32[::1], float64[::1]

    for sigma in (*ELEMENTWISE, SWISH):
        value, derivative = backend.device_functions(sigma)
        for keep_z in (True, False):
            kernel = forward.make_forward(value, T, keep_z)
            yield f"forward {sigma.name} {keep_z}", kernel, (matrix, flat, *[matrix] * 3), False
        kernel = hidden_error.make_hidden_error(derivative, T)
        yield f"hidden_error {sigma.name}", kernel, (matrix,) * 5, False
    # Any cost goes with any σ'; each once is enough.
    several = [costs.Quantile((0.1, 0.5, 0.9)), *map(costs.get, costs.names())]
    of_outputs = [each for each in several if not each.couples]
    errors = [(e.name, terms.functions(e.kernel, e.constants, T)) for e in of_outputs]
    errors.append(("of a user's cost", terms.given))
    for sigma in (*ELEMENTWISE, SWISH):
        _, derivative = backend.device_functions(sigma)
        for name, functions in errors if sigma.name == "sigmoid" else errors[1:2]:
            kernel = output_error.make_output_error(*functions, derivative)
            yield f"output_error {sigma.name} {name}", kernel, (matrix,) * 4, False
    for each in of_outputs:
        kernel = output_error.make_softmax_output_error(each.kernel, each.constants, T)
        yield f"softmax_output_error {each.name}", kernel, (matrix,) * 3, False
    for name in terms.OF_ROWS:
        yield f"row_gradient {name}", terms.make_row_gradient(name, T), (matrix,) * 3, False
    yield "scale_rows", output_error.scale_rows, (flat, matrix), False
    yield "softmax", sigmas.make_softmax(T), (matrix, matrix), False
    yield "softmax_pull_back", sigmas.make_softmax_pull_back(T), (matrix, matrix), False
    yield "bias_gradient", bias_gradient.make_bias_gradient(T), (matrix, flat), False
    yield "weight_gradient", weight_gradient.make_weight_gradient(T), (matrix,) * 3, False
    yield "hadamard", hadamard.hadamard, (flat,) * 3, False
    yield "gather", gather.gather, (matrix, int64[::1], step, int64, matrix), False
    yield "gather_weights", gather.gather_weights, (flat, step, int64, flat), False
    yield "advance", gather.advance, (step,), False
    for each in several:
        for from_z in (True, False) if each.partner else (False,):
            sample = terms.sample(each.kernel, each.constants, T, from_z)
            for weighted in (True, False):
                kernel = cost.make_cost(sample, weighted)
                name = f"cost {each.name} {from_z} {weighted}"
                yield name, kernel, (matrix,) * 3 + (flat, step, double), True
    yield "limit_norms", update.limit_norms, (matrix, float64), True
    words = (uint32,) * 3
    arguments = (matrix, matrix, step, *words, uint32, T, uint32, uint32)
    yield "dropout", dropout.make_dropout(T), arguments, False
    yield "add_noise", dropout.make_add_noise(T), (flat, matrix, step, *words, uint32), True
    yield "clip_value", update.clip_value, (flat, T), False
    yield "sum_of_squares", update.sum_of_squares, (flat, double), True
    yield "norm", update.norm, (double, double), True
    yield "clip_norm", update.make_clip_norm(T), (flat, double, float64), True
    for rule, slots, constants in (
        ("sgd", 0, 0), ("momentum", 1, 1), ("nesterov", 1, 1), ("adam", 2, 5), ("adamw", 2, 5),
    ):  # fmt: skip
        arguments = (flat,) * (2 + slots) + (matrix, step, int64) + (T,) * (1 + constants)
        yield f"update {rule}", update.make_update(rule, T), arguments, False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_compile_and_float32_stays_float32(numba_cuda, dtype):
    from numba import cuda

    names = set()
    for name, kernel, arguments, sums_in_float64 in _kernels(numba_cuda, dtype):
        ptx, returned = cuda.compile_ptx(kernel.py_func, arguments, cc=(9, 0))
        assert str(returned) == "none", name
        assert ".entry" in ptx, name
        doubles = re.findall(r".*\.f64.*", ptx)
        if dtype == "float32" and not sums_in_float64:
            assert not doubles, f"{name} computes in double precision: {doubles[:3]}"
        names.add(name)
    sigmas, named = len(ELEMENTWISE) + 1, len(costs.names()) + 1
    of_outputs, collapse = named - 2, 4
    errors = sigmas + of_outputs  # each σ' with one cost, and sigmoid's with all and a user's
    cost_kernels = 2 * (named + collapse)
    assert len(names) == 3 * sigmas + errors + of_outputs + 2 + 9 + cost_kernels + 12


def test_double_precision_would_be_seen(numba_cuda):
    """The check above has teeth: a bare literal does turn float32 into float64."""
    from numba import cuda, float32

    from backprop_gpu.kernels.numba_cuda import forward

    backend = numba_cuda.NumbaCudaBackend("float32")
    sigma, _ = backend.device_functions(
        Activation("careless", lambda z: 0.1 * z + 1, lambda z: 0.1)
    )
    kernel = forward.make_forward(sigma, float32, True)
    matrix = float32[:, ::1]
    ptx, _ = cuda.compile_ptx(
        kernel.py_func, (matrix, float32[::1], matrix, matrix, matrix), cc=(9, 0)
    )
    assert ".f64" in ptx


def test_kernels_are_made_once(numba_cuda):
    from backprop_gpu.kernels.numba_cuda import forward

    first, second = (numba_cuda.NumbaCudaBackend("float32") for _ in range(2))
    for sigma in (activations.get("tanh"), SWISH):
        values = [backend.device_functions(sigma)[0] for backend in (first, second)]
        assert values[0] is values[1]
        made = [forward.make_forward(value, first.T, True) for value in values]
        assert made[0] is made[1]


def _helper(z):
    return z


@pytest.mark.parametrize(
    ("function", "derivative", "role"),
    [
        (lambda z: _helper(z), lambda z: 1.0, "function"),
        (lambda z: z, lambda z: np.linalg.norm(z), "derivative"),
        (lambda z: str(z), lambda z: 1.0, "function"),
    ],
)
def test_an_activation_that_does_not_compile_is_named(numba_cuda, function, derivative, role):
    backend = numba_cuda.NumbaCudaBackend("float32")
    sigma = Activation("odd_one", function, derivative)
    with pytest.raises(TypeError, match=f"{role} of activation 'odd_one'"):
        backend.device_functions(sigma)


@pytest.mark.parametrize(
    "function",
    [
        np.tanh,
        np.exp,
        lambda z: np.maximum(z, 0),
        lambda z: np.clip(z, -1.0, 1.0) * np.pi,
        lambda z: np.sign(z) * np.log1p(np.abs(z)),
        lambda z: np.expm1(np.power(z, 2)) ** 2 + np.fabs(z),
        lambda z: np.logaddexp(z, 0) if z > 1 else 0,
    ],
)
def test_numpys_elementwise_functions_compile(numba_cuda, function):
    for dtype in ("float32", "float64"):
        backend = numba_cuda.NumbaCudaBackend(dtype)
        backend.device_functions(Activation("with_numpy", function, function))
