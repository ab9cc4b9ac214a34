"""Any call of `backprop_gpu.equations`: shapes, memory layouts, σ, cost, dtype, with `out` or not.

`test_fuzz.py` runs it on every backend that works on NumPy arrays, `numba_cuda_cases.py` in
Numba's simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import reference
from backprop_gpu import equations
from backprop_gpu.backends.base import Backend
from reference import assert_close, product_bound


def _strided(array: np.ndarray) -> np.ndarray:
    wide = np.full([2 * n for n in array.shape], np.nan, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _reversed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[::-1])[::-1]


def _behind_another(array: np.ndarray) -> np.ndarray:
    """Contiguous, but not where an allocation starts."""
    flat = np.full(array.size + 3, np.nan, array.dtype)
    view = flat[3:].reshape(array.shape)
    view[...] = array
    return view


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = (np.ascontiguousarray, np.asfortranarray, _strided, _reversed, _behind_another)


@dataclass(frozen=True)
class Problem:
    m: int
    n: int
    k: int
    dtype: str
    sigma: str
    cost: str
    single: bool
    with_out: bool
    seed: int
    layouts: tuple[Callable[[np.ndarray], np.ndarray], ...]


@st.composite
def problems(draw: Any, largest: int = 40) -> Problem:
    sizes = st.integers(1, largest)
    sigma, cost = draw(st.sampled_from(reference.COMMON_PAIRS))
    single = draw(st.booleans())
    return Problem(
        m=1 if single else draw(sizes),
        n=draw(sizes) + (sigma == "softmax"),
        k=draw(sizes),
        dtype=draw(st.sampled_from(("float32", "float64"))),
        sigma=sigma,
        cost=cost,
        single=single,
        with_out=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
        layouts=tuple(draw(st.sampled_from((*LAYOUTS, _read_only))) for _ in range(4))
        + tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(2)),
    )


class OnHostArrays:
    """A backend's equations on NumPy arrays, which are copied to it and back."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def asarray(self, host: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(host, self._backend.dtype)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, np.nan, self._backend.dtype)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def equation(*arguments: Any) -> None:
            backend = self._backend
            arrays = [x for x in arguments if isinstance(x, np.ndarray)]
            there = [backend.asarray(x) for x in arrays]
            copies = iter(there)
            getattr(backend, name)(
                *(next(copies) if isinstance(x, np.ndarray) else x for x in arguments)
            )
            for array, copy in zip(arrays, there, strict=True):
                if array.flags.writeable:
                    array[...] = backend.to_numpy(copy)

        return equation


def check(problem: Problem, backend: Backend) -> None:
    """All equations of one layer, k neurons to n and back, on this backend's kernels."""
    subject = backend if backend.name == "numpy" else OnHostArrays(backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "backend_of", lambda kind, dtype: subject)
        _check(problem)


def _check(p: Problem) -> None:
    rng = np.random.default_rng(p.seed)
    dtype, eps = np.dtype(p.dtype), float(np.finfo(p.dtype).eps)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    def given(which: int, array: np.ndarray) -> np.ndarray:
        return p.layouts[which](array[0] if p.single and len(array) == p.m == 1 else array)

    def rows(*arrays: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in arrays]

    def out(which: int, *shape: int, of_rows: bool = True) -> np.ndarray:
        shape = shape[1:] if p.single and of_rows else shape
        return p.layouts[4 + which](np.full(shape, np.nan, dtype))

    def result(
        function: Callable[..., np.ndarray], *arguments: Any, shape: tuple[int, ...]
    ) -> np.ndarray:
        if not p.with_out:
            return function(*arguments)
        means = function in (equations.bias_gradient, equations.weight_gradient)
        target = out(0, *shape, of_rows=not means)
        assert function(*arguments, out=target) is target
        return target

    m, n, k = p.m, p.n, p.k
    w, b, a_prev = normal(n, k), normal(n), normal(m, k)
    arguments = p.layouts[0](w), p.layouts[1](b), given(2, a_prev), p.sigma
    pair = (out(0, m, n), out(1, m, n)) if p.with_out else None
    z, a = rows(*equations.forward(*arguments, out=pair))
    z_exact, _ = reference.forward(w, b, a_prev, p.sigma)
    bound = product_bound("jk,xk->xj", w, a_prev, dtype) + 8 * eps * np.abs(b)
    assert_close(z, z_exact, bound, f"z, {p}")
    a_exact = reference.activate(p.sigma, z)
    assert_close(a, a_exact, 16 * eps * (1 + np.abs(z)) * (1 + np.abs(a_exact)), f"a, {p}")

    y = rng.uniform(0.05, 0.95, (m, n))
    y = (y / y.sum(axis=1, keepdims=True)).astype(dtype)
    z_given, a_given = (given(i, x.astype(dtype)) for i, x in enumerate((z, a)))
    arguments = z_given, a_given, given(2, y), p.sigma, p.cost
    (delta,) = rows(result(equations.output_error, *arguments, shape=(m, n)))
    largest = 1 - eps / 2 if p.cost == "binary_cross_entropy" else np.inf
    inside = np.clip(a, np.finfo(dtype).tiny, largest) if p.cost in reference.WITH_POLES else a
    slope = reference.COSTS[p.cost][1](inside, np.float64(y))
    exact = reference.pull_back(p.sigma, slope, z)
    size = (2 + np.abs(slope).max(axis=1, keepdims=True)) * (1 + np.abs(a) + np.abs(z))
    assert_close(delta, exact, 32 * n**0.5 * eps * size, f"BP1, {p}")

    w_next, delta_next = normal(k, n), normal(m, k)
    arguments = p.layouts[3](w_next), given(2, delta_next), z_given, a_given, p.sigma
    (delta,) = rows(result(equations.hidden_error, *arguments, shape=(m, n)))
    exact = reference.hidden_error(w_next, delta_next, z, p.sigma)
    bound = product_bound("jk,xj->xk", w_next, delta_next, dtype).max(axis=1, keepdims=True)
    assert_close(delta, exact, 8 * bound * (1 + np.abs(a) + np.abs(z)), f"BP2, {p}")

    delta = delta.astype(dtype)
    got = result(equations.bias_gradient, given(0, delta), shape=(n,))
    bound = product_bound("xj,x->j", delta, np.ones(m), dtype) / m
    assert_close(got, reference.bias_gradient(delta), bound, f"BP3, {p}")
    got = result(equations.weight_gradient, given(0, delta), given(1, a_prev), shape=(n, k))
    bound = product_bound("xj,xk->jk", delta, a_prev, dtype) / m
    assert_close(got, reference.weight_gradient(delta, a_prev), bound, f"BP4, {p}")
    got = result(equations.hadamard, given(0, delta), given(1, y), shape=(m, n))
    exact = np.float64(delta) * y
    assert_close(rows(got)[0], exact, eps * np.abs(exact) + np.finfo(dtype).tiny, f"⊙, {p}")
