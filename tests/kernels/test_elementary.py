"""elementary.cuh: error against references, edges, and equal bits from two compilers."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess

import numpy as np
import pytest
import scipy.special

from backprop_gpu.kernels.cpu.build import KERNELS
from machine import SUPPORT, needs_compiler

FLAGS = [
    "-O3",
    "-std=c++20",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
]
#: `cpu_slips.py` has them broken.
HEADERS = os.environ.get("ELEMENTARY_HEADERS", str(KERNELS / "cuda"))
FMA = ["-mavx2", "-mfma"]
NAMES = ["exp", "expm1", "log", "log1p", "tanh", "erfc"]
BOUND = {"exp": 1.5, "expm1": 1.5, "log": 1.5, "log1p": 1.5, "tanh": 2, "erfc": 3}
TYPES = {"float": np.float32, "double": np.float64}


def bound(name, kind):
    """In ulp, with the error of the reference."""
    return BOUND[name] + 4 * (name == "erfc" and kind == "double")


class Library:
    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def __call__(self, name, x):
        x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        kind = {np.dtype(t): k for k, t in TYPES.items()}[x.dtype]
        function = getattr(self.library, f"{name}_{kind}")
        function(
            ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(x.size)
        )
        return y


def build(folder, compiler, flags):
    path = folder / ("-".join([compiler, *flags]) + ".so")
    subprocess.run(
        [
            compiler,
            *FLAGS,
            *flags,
            str(SUPPORT / "elementary.cpp"),
            f"-I{HEADERS}",
            "-o",
            str(path),
        ],
        check=True,
    )
    return Library(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    needs_compiler()
    return tmp_path_factory.mktemp("elementary")


@pytest.fixture(scope="module")
def library(folder):
    return build(folder, "g++", FMA)


def some_floats(step=97):
    """Every step-th bit pattern."""
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def some_doubles(n=200_000, seed=0):
    """Near 1, in exp's range, over all exponents, and close to 1 and to the edges of the ranges."""
    random = np.random.default_rng(seed)
    k = n // 5
    logarithmic = np.exp2(random.uniform(-1074, 1023.99, k)) * random.choice([-1, 1], k)
    middle = np.exp2(random.uniform(-60, 11, k)) * random.choice([-1, 1], k)
    return np.concatenate(
        [
            random.uniform(-3, 3, k),
            random.uniform(-760, 760, k),
            logarithmic,
            middle,
            random.uniform(0.5, 2, k // 2),
            random.uniform(-30, 30, k - k // 2),
        ]
    )


def special(dtype):
    limits = np.finfo(dtype)
    positive = [
        0,
        limits.smallest_subnormal,
        limits.smallest_normal,
        limits.eps,
        0.5,
        1,
        2,
        40,
        100,
        800,
        limits.max,
        np.inf,
        88.7,
        88.8,
        103.9,
        104,
        709.7,
        709.8,
        745.1,
        745.2,
        10.05,
        27.2,
    ]
    with np.errstate(over="ignore"):
        return np.array([s * v for v in positive for s in (1, -1)] + [np.nan], dtype)


def reference(name, x):
    """In the next wider type."""
    with np.errstate(all="ignore"):
        if x.dtype == np.float32:
            wide = x.astype(np.float64)
            return scipy.special.erfc(wide) if name == "erfc" else getattr(np, name)(wide)
    if name != "erfc":
        with np.errstate(all="ignore"):
            return getattr(np, name)(x.astype(np.longdouble))
    # By SciPy's e^(x²) erfc x, which is right to 4 ulp; its erfc is not, in the tail.
    wide, size = x.astype(np.longdouble), np.abs(x)
    with np.errstate(all="ignore"):
        tail = np.exp(-(np.minimum(np.abs(wide), 40) ** 2)) * scipy.special.erfcx(size)
    tail = np.where(size < 0.5, 1 - scipy.special.erf(size).astype(np.longdouble), tail)
    return np.where(wide < 0, 2 - tail, tail)


def ulps(y, exact):
    """The error in units of the exact value's last place; NaN where only one of them is NaN."""
    limits = np.finfo(y.dtype)
    with np.errstate(all="ignore"):
        rounded = exact.astype(y.dtype)
        _, exponent = np.frexp(exact)
        unit = np.ldexp(
            np.ones_like(exact), np.maximum(exponent, limits.minexp + 1) - 1 - limits.nmant
        )
        error = np.abs(y.astype(exact.dtype) - exact) / unit
    # Also inf for what is past the greatest finite number.
    same = ((y == rounded) & ~np.isfinite(rounded)) | (np.isnan(y) & np.isnan(rounded))
    return np.where(same, 0, error)


def points(name, kind):
    if kind == "float":
        return some_floats()
    if name != "erfc":
        return some_doubles()
    x = some_doubles(4000)
    tail = np.random.default_rng(1).uniform(-7, 27.3, 4000)
    return np.concatenate([x, tail])


@functools.cache
def points_and_reference(name, kind):
    x = points(name, kind)
    return x, reference(name, x)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_error(library, name, kind):
    x, exact = points_and_reference(name, kind)
    error = ulps(library(name, x), exact)
    worst = np.argmax(error)  # the first NaN, if there is one
    print(f"{name} {kind}: {error[worst]:.3f} ulp at {x[worst]!r}")
    assert error[worst] <= bound(name, kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(library, name, kind):
    x = special(TYPES[kind])
    y = library(name, x)
    with np.errstate(all="ignore"):
        expected = reference(name, x).astype(x.dtype)
    exact = (x == 0) | ~np.isfinite(expected) | ~np.isfinite(x)
    np.testing.assert_array_equal(y[exact], expected[exact])
    assert np.all(ulps(y, reference(name, x)) <= bound(name, kind))
    if name not in ("log", "erfc", "exp"):
        np.testing.assert_array_equal(np.signbit(y[x == 0]), np.signbit(x[x == 0]))  # -0 stays -0


@pytest.mark.parametrize("kind", TYPES)
def test_tanh_is_odd(library, kind):
    x = points("tanh", kind)
    np.testing.assert_array_equal(library("tanh", -x), -library("tanh", x))


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("g++", ["-march=x86-64-v3", "-O1"]),
        ("g++", ["-ffp-contract=fast", *FMA]),
        ("clang++", FMA),
        ("clang++", ["-march=x86-64-v3", "-fno-vectorize", "-fno-slp-vectorize"]),
    ],
)
@pytest.mark.parametrize("kind", TYPES)
def test_same_bits(library, folder, compiler, flags, kind):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    other = build(folder, compiler, flags)
    x = np.concatenate(
        [special(TYPES[kind]), some_floats(97 * 31) if kind == "float" else some_doubles()]
    )
    for name in NAMES:
        a, b = library(name, x), other(name, x)
        differ = (a.view(np.uint8).reshape(x.size, -1) != b.view(np.uint8).reshape(x.size, -1)).any(
            axis=1
        )
        assert not np.any(differ & ~(np.isnan(a) & np.isnan(b))), name


@pytest.fixture(scope="module")
def library_without_fma(folder):
    return build(folder, "g++", ["-march=x86-64-v2"])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_without_fma(library_without_fma, name, kind):
    x, exact = points_and_reference(name, kind)
    error = ulps(library_without_fma(name, x), exact)
    print(f"{name} {kind} without fma: {error.max():.3f} ulp")
    assert error.max() <= bound(name, kind) + 2 * (name == "erfc")


@pytest.mark.parametrize(
    ("compiler", "report", "text"),
    [
        ("g++", "-fopt-info-vec", "loop vectorized"),
        ("clang++", "-Rpass=loop-vectorize", "vectorized loop"),
    ],
)
@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_every_loop_is_vectorized(folder, compiler, report, text, level):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    done = subprocess.run(
        [
            compiler,
            *FLAGS,
            f"-march=x86-64-{level}",
            report,
            str(SUPPORT / "elementary.cpp"),
            f"-I{HEADERS}",
            "-o",
            str(folder / "level.so"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = {}
    for line in done.stderr.splitlines():
        if text in line:
            lines[line.split(":")[1]] = lines.get(line.split(":")[1], 0) + 1
    assert len(lines) == len(NAMES) + 1, done.stderr
    assert min(lines.values()) >= 2, done.stderr
