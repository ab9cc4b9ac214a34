"""Products on tensor cores: where fragments lie, how factors are rounded, how exact float32 is."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import activations, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.precision import round_factor
from host_cuda.backend import BackendRuntime
from host_cuda.runtime import SOURCES, HostRuntime, LaunchFailed
from machine import needs_compiler

CUTE = json.loads((Path(__file__).parents[1] / "data" / "cute_layouts.json").read_text())
#: Steps of the sum that each takes.
STEPS = {"mma_tf32": 8, "mma_bf16": 16}
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _compiler() -> None:
    needs_compiler()


# -- the primitives ---------------------------------------------------------------------------


def offsets(shape: Any, strides: Any) -> np.ndarray:
    """Where a CuTe mode's indices lie, the first of nested modes fastest."""
    if isinstance(shape, int):
        return np.arange(shape) * strides
    found = np.zeros(1, int)
    for mode, stride in zip(shape, strides, strict=True):
        found = (offsets(mode, stride)[:, None] + found[None]).ravel()
    return found


def places(layout: str) -> np.ndarray:
    """(32, values): the index in the matrix of each lane's numbers."""
    (threads, values), (across, along) = (
        json.loads(part.replace("(", "[").replace(")", "]")) for part in layout.split(":")
    )
    return offsets(threads, across)[:, None] + offsets(values, along)[None]


@pytest.mark.parametrize("name", STEPS)
def test_fragments_lie_where_cute_says(name: str) -> None:
    K = STEPS[name]
    lie = {matrix: places(CUTE[name][matrix]) for matrix in "ABC"}
    for matrix, size in (("A", 16 * K), ("B", 8 * K), ("C", 128)):
        assert np.array_equal(np.sort(lie[matrix].ravel()), np.arange(size))
    a, b = (RNG.integers(-64, 65, (rows, K)).astype("f4") for rows in (16, 8))
    c = RNG.integers(-1000, 1000, (16, 8)).astype("f4")
    d = np.ascontiguousarray(c.ravel(order="F")[lie["C"]])
    given = (
        np.ascontiguousarray(x.ravel(order="F")[lie[matrix]]) for matrix, x in (("A", a), ("B", b))
    )
    runtime = HostRuntime(sources=SOURCES)
    runtime.launch("primitives.cu", f"{name}_of_warp", (1, 1, 1), (32, 1, 1), (*given, d))
    got = np.empty(128, "f4")
    got[lie["C"]] = d
    np.testing.assert_array_equal(got.reshape(8, 16).T, c + a @ b.T)


def test_matrices_are_loaded_as_cute_says() -> None:
    x = RNG.permutation(256).astype(np.uint16)
    out, turned = np.zeros(256, np.uint16), np.zeros(256, np.uint16)
    runtime = HostRuntime(sources=SOURCES)
    runtime.launch("primitives.cu", "load_of_warp", (1, 1, 1), (32, 1, 1), (x, out, turned))
    for name, got in (("load_matrices", out), ("load_transposed", turned)):
        np.testing.assert_array_equal(got.reshape(32, 8), x[places(CUTE[name])], name)


def test_loading_orders_nothing() -> None:
    out = np.zeros(32, np.uint32)
    with pytest.raises(LaunchFailed, match="data race"):
        HostRuntime("tsan", sources=SOURCES).launch(
            "primitives.cu", "load_too_early", (1, 1, 1), (32, 1, 1), (out,)
        )


def test_a_row_is_at_a_multiple_of_16_bytes() -> None:
    out = np.zeros(32, np.uint32)
    with pytest.raises(LaunchFailed, match="load_matrices: a row is at a multiple of 16 bytes"):
        HostRuntime(sources=SOURCES).launch(
            "primitives.cu", "load_from_between", (1, 1, 1), (32, 1, 1), (out,)
        )


def test_roundings_are_those_of_numpy() -> None:
    x = RNG.integers(0, 2**32, 4096, dtype=np.uint32)
    x[:64] = x[:64] >> 16 << 16 | 0x8000  # ties of bf16, then of TF32
    x[64:128] = x[64:128] >> 13 << 13 | 0x1000
    x = x.view(np.float32)
    x[128:134] = [0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45]
    bits = np.zeros((len(x), 2), np.uint32)
    runtime = HostRuntime(sources=SOURCES)
    runtime.launch(
        "primitives.cu", "round_factors", (1, 1, 1), (32, 1, 1), (x, bits, np.int32(len(x)))
    )
    with np.errstate(all="ignore"):
        tf32, bf16 = (round_factor(x, p, np.empty_like(x)) for p in ("tf32", "bf16"))
    lower, upper = bits[:, 1] << 16, bits[::-1, 1] & 0xFFFF0000
    for got, expected in ((bits[:, 0], tf32), (lower, bf16), (upper, bf16)):
        np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.float32), expected)


def test_sums_are_cut_off() -> None:
    """Of a 1 that is added nothing is left beside 2^24 and more, whatever the sign."""
    ones, sums = np.zeros((32, 4), "f4"), np.zeros((32, 4), "f4")
    a, b = places(CUTE["mma_tf32"]["A"]), places(CUTE["mma_tf32"]["B"])
    ones[a < 16] = 1  # k = 0
    b_of = np.zeros((32, 2), "f4")
    b_of[b < 8] = 1
    for start, end in ((2.0**24, 2.0**24), (2.0**24 + 2, 2.0**24 + 2), (-(2.0**24), -(2.0**24)),
                       (0.0, 1.0), (np.inf, np.inf), (-3.0e38, -3.0e38)):  # fmt: skip
        sums[:] = start
        runtime = HostRuntime(sources=SOURCES)
        runtime.launch(
            "primitives.cu", "mma_tf32_of_warp", (1, 1, 1), (32, 1, 1), (ones, b_of, sums)
        )
        np.testing.assert_array_equal(sums, np.full((32, 4), end, "f4"))


def test_a_product_needs_the_whole_warp() -> None:
    out = np.zeros(32, "f4")
    with pytest.raises(LaunchFailed, match=r"mma_tf32.*lanes only 0000ffff are there"):
        HostRuntime(sources=SOURCES).launch(
            "primitives.cu", "mma_of_half_a_warp", (1, 1, 1), (32, 1, 1), (out,)
        )


# -- products of float32 by three of TF32 ---------------------------------------------------------


@functools.cache
def runtime() -> BackendRuntime:
    return BackendRuntime()


def product(a: np.ndarray, w: np.ndarray, tile: planning.Tile, precision: str) -> np.ndarray:
    """a wᵀ, as the forward kernel makes it."""
    choice = planning.Product("tiled", tile, 1, 0.0, "forced by a test")
    backend = CudaBackend("float32", runtime(), lambda *_: choice, precision=precision)
    z, b = backend.empty((len(a), len(w))), backend.zeros((len(w),))
    w, a = map(backend.asarray, (w, a))
    backend.forward(w, b, a, activations.get("identity"), None, z)
    return backend.to_numpy(z)


def scaled(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) * 10 ** rng.uniform(-20, 20, shape)


def rows_scaled(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) * 10 ** rng.uniform(-18, 18, (shape[0], 1))


def cancelling(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows whose second half is nearly the first: with `signs` as the other factor sums vanish."""
    half = rng.standard_normal((shape[0], shape[1] // 2))
    return np.concatenate([half, half * (1 + 1e-6 * rng.standard_normal(half.shape))], 1)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    half = rng.standard_normal((shape[0], shape[1] // 2))
    return np.concatenate([half, -half], 1)


Draw = Callable[..., np.ndarray]
KINDS: dict[str, tuple[Draw, Draw]] = {
    "normal": (np.random.Generator.standard_normal, np.random.Generator.standard_normal),  # type: ignore[dict-item]
    "positive": (lambda rng, *s: rng.random(s), lambda rng, *s: rng.random(s)),
    "badly scaled": (scaled, lambda rng, *s: rng.standard_normal(s)),
    "badly scaled rows": (rows_scaled, rows_scaled),
    "cancelling": (cancelling, signs),
    "denormal": (lambda rng, *s: 1e-39 * rng.standard_normal(s), lambda rng, *s: rng.random(s)),
    "nearly denormal": (
        lambda rng, *s: 1e-37 * rng.standard_normal(s),
        lambda rng, *s: rng.random(s),
    ),
    "denormal by large": (
        lambda rng, *s: 1e-42 * rng.random(s),
        lambda rng, *s: 1e20 * rng.random(s),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [planning.LONG_SUM, 100, 784, 3000])
def test_float32_is_as_exact_as_on_plain_cores(kind: str, k: int) -> None:
    """At most twice the plain kernel's error, beside Σ|a||w|, in root mean square and at worst.

    A denormal number may be taken for another that is two of the smallest steps from it.
    """
    rng = np.random.default_rng(k)
    draws = KINDS[kind]
    a, w = (
        (rng.standard_normal((n, k)) if draw is np.random.Generator.standard_normal
         else draw(rng, n, k)).astype("f4")
        for n, draw in zip((64, 40), draws, strict=True)
    )  # fmt: skip
    size = np.abs(a).astype("f8") @ np.abs(w.T).astype("f8")
    exact = a.astype("f8") @ w.T.astype("f8")
    steps = np.abs(a).sum(1, dtype="f8")[:, None] + np.abs(w).sum(1, dtype="f8")
    smallest = float(np.finfo("f4").smallest_subnormal)

    def error(tile: planning.Tile, allowed: Any = 0.0) -> np.ndarray:
        off = np.abs(product(a, w, tile, "float32") - exact) - allowed
        return np.maximum(off, 0) / (size + smallest * 2**23)

    plain = error(planning.TILES[1])
    for tile in planning.TENSOR_TILES["float32"]:
        ours = error(tile, 2 * smallest * steps)
        assert np.sqrt((ours**2).mean()) <= 2 * np.sqrt((plain**2).mean())
        assert ours.max() <= 2 * plain.max()


def test_what_is_not_finite_is_what_plain_cores_make_of_it() -> None:
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.0e38, 2e38, 0.0, 1.0, -1e-45], "f4")
    rng = np.random.default_rng(0)
    a, w = (rng.standard_normal((n, 24)).astype("f4") for n in (70, 33))
    for x in (a, w):
        at = rng.integers(0, x.size, 40)
        x.ravel()[at] = rng.choice(special, 40)
    plain = product(a, w, planning.TILES[1], "float32")
    assert {bool(np.isnan(plain).any()), bool(np.isinf(plain).any())} == {True}
    for tile in planning.TENSOR_TILES["float32"]:
        found = product(a, w, tile, "float32")
        finite = np.isfinite(plain)
        np.testing.assert_array_equal(found[~finite], plain[~finite])
        assert np.isfinite(found[finite]).all()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_are_rounded_as_on_numpy(precision: str) -> None:
    a, w = (RNG.standard_normal((n, 50)).astype("f4") for n in (33, 40))
    rounded = [round_factor(x, precision, np.empty_like(x)).astype("f8") for x in (a, w)]
    exact, size = rounded[0] @ rounded[1].T, np.abs(rounded[0]) @ np.abs(rounded[1].T)
    for tile in planning.TENSOR_TILES[precision]:
        error = np.abs(product(a, w, tile, precision) - exact)
        assert (error <= 2.0**-22 * size).all()


def test_every_precision_has_its_tiles() -> None:
    for precision, tiles in planning.TENSOR_TILES.items():
        assert all(tile.cores == "tensor" for tile in tiles)
        for larger, smaller in itertools.pairwise(tiles):
            assert larger.bm * larger.bn > smaller.bm * smaller.bn, precision
