"""Every CUDA C++ kernel compiles for every architecture, with no device, and does not spill.

Here each kernel meets each tile, activation, cost and rule, though not all combinations of them:
`backprop-gpu compile`, which CI runs, builds all.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu import Activation, activations, catalogue, compiler, planning
from backprop_gpu.catalogue import Catalogue, Kernel


def _sample() -> list[Kernel]:
    """All but the products, which appear with each tile, and with each activation, once."""
    products = ("forward<", "hidden_error<")
    kernels = [k for k in catalogue.everything() if not k.expression.startswith(products)]
    for dtype in (np.float32, np.float64):
        c = Catalogue(np.dtype(dtype))
        for tile in planning.TILES:
            kernels += [c.forward(activations.get("gelu"), tile)]
            kernels += [c.hidden_error(activations.get("gelu"), tile)]
        for name in catalogue._SIGMAS:
            kernels += [c.forward(activations.get(name), planning.TILES[-1])]
            kernels += [c.hidden_error(activations.get(name), planning.TILES[-1])]
    return list(dict.fromkeys(kernels))


@pytest.fixture(scope="module", autouse=True)
def _compiler_installed() -> None:
    try:
        compiler._compiler_version()
    except compiler.CompilerNotFoundError as error:
        if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
def test_no_kernel_spills(arch: str) -> None:
    files: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in _sample():
        files[kernel.file].append(kernel)
    for file, kernels in files.items():
        cubin = compiler.compile_kernels(kernels, arch)
        assert {r.kernel for r in cubin.reports} == {k.expression for k in kernels}
        for report in cubin.reports:
            assert report.spills == 0, report
            assert report.stack == 0, report
            assert report.shared_memory <= 48 * 1024, report
            assert report.registers <= 255, report
        assert cubin.path.read_bytes()[:4] == b"\x7fELF", file


def test_every_source_is_in_the_catalogue() -> None:
    folder = compiler._folder()
    assert {path.name for path in folder.glob("*.cu")} == {k.file for k in catalogue.everything()}


def test_a_python_activation_is_linked_into_the_kernel() -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda compiles a user's activation")
    square = Activation("square", lambda z: z * z, lambda z: 2 * z)
    rooted = Activation("rooted", lambda z: np.sqrt(1 + z * z), lambda z: z / math.sqrt(1 + z * z))
    for activation in (square, rooted):
        for dtype in (np.float32, np.float64):
            kernel = Catalogue(np.dtype(dtype)).forward(activation, planning.TILES[1])
            cubin = compiler.compile_kernels([kernel], "sm_90a")
            (report,) = cubin.reports
            assert report.kernel == kernel.expression
            # A call that was not inlined would need a stack.
            assert report.spills == report.stack == 0


def test_an_activation_that_numba_cannot_compile_is_named() -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda compiles a user's activation")
    odd = Activation("odd", lambda z: sorted({z: 1}), lambda z: z)
    with pytest.raises(TypeError, match="activation 'odd'"):
        compiler.compile_kernels([Catalogue(np.dtype("float32")).pull_back(odd)], "sm_90a")


def test_cache_is_whole_or_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    kernel = Catalogue(np.dtype("float32")).hadamard()
    first = compiler.compile_kernels([kernel], "sm_80")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".cubin", ".json"]
    whole = first.path.read_bytes()

    monkeypatch.setattr(compiler, "_build", lambda *_: pytest.fail("the cache was not used"))
    assert compiler.compile_kernels([kernel], "sm_80") == first
    monkeypatch.undo()

    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    first.path.write_bytes(whole[:100])  # cut short by a full disk, say
    assert compiler.compile_kernels([kernel], "sm_80") == first
    assert first.path.read_bytes() == whole
    assert compiler.compile_kernels([kernel], "sm_75").path != first.path


def test_a_source_that_does_not_compile_shows_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.cu").write_text("template <class T> __global__ void broken(T* x) { y; }")
    monkeypatch.setattr(compiler, "_folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match=r"broken\.cu does not compile for sm_80[\s\S]*\"y\""):
        compiler.compile_kernels([Kernel("broken.cu", "broken<float>")], "sm_80")
