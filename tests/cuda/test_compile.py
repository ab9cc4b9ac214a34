"""Every CUDA C++ kernel compiles for every architecture, with no device: no spill, no stack.

Here each kernel meets each tile, activation, cost and rule, though not all combinations of them:
`backprop-gpu compile`, which CI runs, builds all.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Activation, activations, cache, costs, optimizers, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.cuda import catalogue, compiler
from backprop_gpu.cuda.catalogue import Catalogue, Kernel
from backprop_gpu.parameters import Layout, Parameters
from backprop_gpu.philox import Draws
from host_cuda.backend import HostArray


def _sample(device: planning.Device) -> list[Kernel]:
    """All but the products, which appear with each tile, and with each activation, once."""
    products = ("forward<", "hidden_error<")
    kernels = [k for k in catalogue.everything() if not k.expression.startswith(products)]
    for dtype in (np.float32, np.float64):
        c = Catalogue(np.dtype(dtype))
        for tile in planning.TILES:
            kernels += [c.forward(activations.get("gelu"), tile)]
            kernels += [c.hidden_error(activations.get("gelu"), tile)]
        for name in catalogue.SIGMAS:
            kernels += [c.forward(activations.get(name), planning.TILES[-1])]
            kernels += [c.hidden_error(activations.get(name), planning.TILES[-1])]
    for precision, tiles in planning.TENSOR_TILES.items():
        c = Catalogue(np.dtype("float32"), precision)
        for tile in tiles if device.multiplies_rounded else ():
            gelu = activations.get("gelu")
            kernels += [c.forward(gelu, tile), c.hidden_error(gelu, tile), c.weight_gradient(tile)]
    return list(dict.fromkeys(kernels))


@pytest.fixture(scope="module", autouse=True)
def _compiler_installed() -> None:
    try:
        compiler.version()
    except compiler.CompilerNotFoundError as error:
        if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
def test_what_kernels_take(arch: str) -> None:
    files: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in _sample(compiler.example(arch)):
        files[kernel.file].append(kernel)
    for file, kernels in files.items():
        cubin = compiler.compile_kernels(kernels, arch)
        threads = {kernel.expression: kernel.threads for kernel in kernels}
        assert {r.kernel: r.threads for r in cubin.reports} == threads
        for report in cubin.reports:
            assert report.spills == 0, report
            assert report.stack == 0, report
            assert report.shared_memory <= 48 * 1024, report
            assert report.registers <= 255, report
            assert report.occupancy is not None
            assert report.occupancy.blocks > 0, report
            if "float, " in report.kernel and "Tile<128, 128" in report.kernel:
                assert report.occupancy.blocks >= 2, report  # one computes while the other waits
            if "TensorTile" in report.kernel:
                assert report.occupancy.blocks >= 2, report
        assert cubin.code[:4] == b"\x7fELF", file


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
def test_what_resident_kernels_take(arch: str) -> None:
    """Every third; the same count of shared memory in planning and in the source, or no build."""
    device = compiler.example(arch)
    kernels = list(catalogue.residents(device))
    assert any(kernel.cluster > 1 for kernel in kernels) == (device.compute_capability >= (9, 0))
    for part in np.array_split(np.array(kernels[::3], object), 2):
        for report in compiler.compile_kernels(list(part), arch).reports:
            assert report.spills == report.stack == 0, report
            assert report.shared_memory <= device.shared_memory, report
            assert report.occupancy is not None
            assert report.occupancy.blocks > 0, report


@pytest.mark.parametrize(("number", "arch"), list(enumerate(compiler.ARCHITECTURES)))
def test_what_fused_kernels_take(number: int, arch: str) -> None:
    """Some on each; all of them on an H100 as planning counts blocks on a multiprocessor."""
    device = compiler.example(arch)
    kernels = [k for k in catalogue.fusions(device) if "FusedForm" in k.expression]
    assert bool(kernels) == device.multiplies_rounded
    for part in np.array_split(np.array(kernels[number::5], object), 2):
        for report in compiler.compile_kernels(list(part), arch).reports if len(part) else ():
            assert report.spills == report.stack == 0, report
            assert report.shared_memory <= device.shared_memory, report
            assert report.occupancy is not None
            (blocks,) = re.findall(r"FusedForm<\d+, \d+, \d+, (\d+)", report.kernel)
            assert report.occupancy.blocks >= int(blocks), report


@pytest.mark.parametrize(("number", "arch"), list(enumerate(compiler.ARCHITECTURES)))
def test_what_persistent_kernels_take(number: int, arch: str) -> None:
    """Some on each."""
    device = compiler.example(arch)
    kernels = list(catalogue.persistents(device))
    assert bool(kernels) == device.multiplies_rounded
    for kernel in kernels[number::5]:
        (report,) = compiler.compile_kernels([kernel], arch).reports
        assert report.spills == report.stack == 0, report
        assert report.shared_memory <= device.shared_memory, report
        assert report.occupancy is not None
        assert report.occupancy.blocks >= 1, report


def test_the_cluster_is_in_the_kernel() -> None:
    """Its size is part of the code, so that an ordinary launch makes clusters of it."""
    kernels = {kernel.cluster: kernel for kernel in catalogue.residents(planning.H200)}
    for cluster in (1, 2, 16):
        ptx = _ptx(kernels[cluster])
        assert re.findall(r"\.reqnctapercluster (\d+)", ptx) == [str(cluster)] * (cluster > 1)
        assert ("mapa" in ptx) == ("barrier.cluster" in ptx) == (cluster > 1)
        assert "cp.async.cg.shared.global" in ptx


def _ptx(kernel: Kernel) -> str:
    from cuda.bindings import nvrtc

    def result(answer: tuple[Any, ...]) -> Any:
        assert int(answer[0]) == 0, answer
        return answer[1] if len(answer) > 1 else None

    source = (compiler.folder() / kernel.file).read_bytes()
    program = result(nvrtc.nvrtcCreateProgram(source, kernel.file.encode(), 0, [], []))
    result(nvrtc.nvrtcAddNameExpression(program, kernel.expression.encode()))
    options = [b"-arch=compute_90", b"-std=c++17", f"-I{compiler.folder()}".encode()]
    result(nvrtc.nvrtcCompileProgram(program, len(options), options))
    text = b" " * result(nvrtc.nvrtcGetPTXSize(program))
    result(nvrtc.nvrtcGetPTX(program, text))
    return text.decode()


@pytest.mark.parametrize("rounded", [True, False])
def test_the_resident_kernel_rounds_as_a_cpu(
    rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assembler fuses no .rn, and nothing is approximate or flushed to 0."""
    from cuda.bindings import nvrtc
    from cuda.core import ProgramOptions

    if not rounded:
        monkeypatch.setattr(catalogue, "ROUNDED", ())
    kernels = list(catalogue.residents(compiler.example("sm_90a")))
    rules = {name: [k for k in kernels if f", {name}," in k.expression] for name in ("Adam", "Sgd")}
    options = ProgramOptions(**compiler.options_of("resident.cu", "sm_90a"))
    source = (compiler.folder() / "resident.cu").read_text("utf-8")
    names = [found[0].expression for found in rules.values()]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"resident.cu", 0, [], [])
    for name in names:
        nvrtc.nvrtcAddNameExpression(program, name.encode())
    words = options.as_bytes("nvrtc")
    assert nvrtc.nvrtcCompileProgram(program, len(words), words)[0] == 0
    ptx = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
    nvrtc.nvrtcGetPTX(program, ptx)
    text = ptx.decode()
    assert re.search(r"\bfma\.rn\.f32", text)
    assert re.search(r"\bdiv\.rn\.f32", text)
    assert re.search(r"\bsqrt\.rn\.f32", text)
    assert not re.search(r"\.approx|\.ftz|\.full", text)
    assert bool(re.search(r"\b(add|sub|mul)\.f(32|64)", text)) != rounded


def test_every_source_is_in_the_catalogue() -> None:
    folder = compiler.folder()
    listed = set(catalogue.all_of(planning.H200))
    assert {path.name for path in folder.glob("*.cu")} == {kernel.file for kernel in listed}


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


def test_the_cache_is_used_and_whatever_is_wrong_with_it_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    kernel = Catalogue(np.dtype("float32")).hadamard()
    first = compiler.compile_kernels([kernel], "sm_80")
    (entry,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "build", lambda *_: pytest.fail("the cache was not used"))
        assert compiler.compile_kernels([kernel], "sm_80") == first

    kept = cache.read(entry.name)
    assert kept is not None
    head, _, code = kept.partition(b"\n")
    fields = json.loads(head)
    report = fields["reports"][0]
    renamed = {"other" if key == "registers" else key: value for key, value in report.items()}
    for description in (
        fields | {"symbols": {}},
        fields | {"symbols": {"another": "symbol"}},
        fields | {"symbols": dict.fromkeys(first.symbols, 3)},
        fields | {"symbols": None},
        fields | {"reports": [renamed]},  # written by a version whose reports had other fields
        fields | {"reports": [3]},
        fields | {"reports": 3},
        [],
        {},
    ):
        cache.write(entry.name, json.dumps(description).encode() + b"\n" + code)
        assert compiler.compile_kernels([kernel], "sm_80") == first
        assert cache.read(entry.name) == kept
    cache.write(entry.name, b"[" * 100_000 + b"\n" + code)
    assert compiler.compile_kernels([kernel], "sm_80") == first
    entry.write_bytes(entry.read_bytes()[:100])  # cut short by a full disk, say
    assert compiler.compile_kernels([kernel], "sm_80") == first
    assert cache.read(entry.name) == kept
    tmp_path.chmod(0o777)
    assert compiler.compile_kernels([kernel], "sm_80") == first
    tmp_path.chmod(0o700)

    compiler.compile_kernels([kernel], "sm_75")
    assert len(list(tmp_path.iterdir())) == 2
    smaller = compiler.compile_kernels([replace(kernel, block=(64, 1, 1))], "sm_80")
    assert [report.threads for report in smaller.reports] == [64]


def test_a_source_that_does_not_compile_shows_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.cu").write_text("template <class T> __global__ void broken(T* x) { y; }")
    monkeypatch.setattr(compiler, "folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match=r"broken\.cu does not compile for sm_80[\s\S]*\"y\""):
        compiler.compile_kernels([Kernel("broken.cu", "broken<float>", (1, 1, 1))], "sm_80")


# A product of 64 × 8, twice, with an accumulator that is changed while it is in use, or not.
WGMMA = """
__device__ void multiply(float (&c)[4], unsigned long long a, unsigned long long b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%0, %1, %2, %3}, %4, %5, 1, 1, 1;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "l"(a), "l"(b));
}

template <bool touched>
__global__ void twice(float* out, unsigned long long a, unsigned long long b) {
  float c[4] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  multiply(c, a, b);
  if (touched) c[0] += 1;
  multiply(c, a + 1, b + 1);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[i * 128 + threadIdx.x] = c[i];
}
"""


def test_serialised_matrix_instructions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(folder))
    monkeypatch.setattr(compiler, "folder", lambda: tmp_path)
    (tmp_path / "twice.cu").write_text(WGMMA)
    with pytest.raises(RuntimeError, match=r"twice\.cu for sm_90a: \(C75\d\d\) .* serialized"):
        compiler.compile_kernels([Kernel("twice.cu", "twice<true>", (128, 1, 1))], "sm_90a")
    assert not folder.exists()
    compiler.compile_kernels([Kernel("twice.cu", "twice<false>", (128, 1, 1))], "sm_90a")
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("code", ["C7510", "C7515"])
def test_every_code_of_serialised_matrix_instructions(code: str) -> None:
    warning = (
        f"ptxas info    : ({code}) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources in the function 'f'"
    )
    log = f"ptxas info    : 0 bytes gmem\n{warning}\nptxas info    : Used 30 registers"
    with pytest.raises(RuntimeError, match=rf"^gemm\.cu for sm_90a: \({code}\) .* 'f'$"):
        compiler.refuse_serialised(log, "gemm.cu", "sm_90a")


class Recorder:
    """A device that only notes which kernels it is asked to launch."""

    def __init__(self, device: planning.Device) -> None:
        self.device = device
        self.launched: set[Kernel] = set()

    def launch(self, kernel: Kernel, grid: Any, arguments: Any) -> None:
        self.launched.add(kernel)

    def empty(self, shape: Any, dtype: Any) -> HostArray:
        return np.empty(shape, dtype).view(HostArray)

    zeros = empty

    def array(self, host: np.ndarray, dtype: Any) -> HostArray:
        return self.empty(host.shape, dtype)

    def product(self, *_: Any, **how: Any) -> None: ...

    def round(self, array: HostArray, out: HostArray | None = None) -> None:
        if array.rounded is not None or out is not None:
            self.launched.add(catalogue.Catalogue(array.dtype).round())

    def upload(self, host: np.ndarray, out: np.ndarray) -> None: ...

    def clear(self, array: np.ndarray) -> None: ...

    def copy(self, source: np.ndarray, out: np.ndarray) -> None:
        self.launched.add(catalogue.Catalogue(out.dtype).convert(source.dtype.name))

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array


DEVICES = (
    planning.H200,
    planning.Device("Tesla T4", (7, 5), 40, 1.59e9, 3.2e11),
    planning.Device("NVIDIA A100", (8, 0), 108, 1.41e9, 1.6e12),
    planning.Device("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.4e9, 1.8e12),
)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_the_planner_chooses_from_the_catalogue(device: planning.Device, library: bool) -> None:
    """At any shape, whatever a step launches is among the kernels that are compiled above."""
    runtime = Recorder(replace(device, library=library))
    shapes = np.exp(np.random.default_rng(0).uniform(0, np.log(4096), (300, 3))).astype(int)
    elementwise = [activations.get(name) for name in catalogue.SIGMAS]
    rounded = [p for p in ("tf32", "bf16") if device.multiplies_rounded]
    kinds = ((np.float32, None), (np.float64, None), *((np.float32, p) for p in rounded))
    for (dtype, precision), (m, n, k) in product(kinds, shapes.tolist()):
        backend = CudaBackend(dtype, runtime, precision=precision)
        x, w, z, b = (runtime.empty(shape, dtype) for shape in ((m, k), (n, k), (m, n), n))
        for sigma in (*elementwise, activations.get("softmax")):
            backend.forward(w, b, x, sigma, z, z)
            backend.hidden_error(w, z, x, x, sigma, x)
        backend.weight_gradient(z, x, w)
        backend.bias_gradient(z, b)
    _whole_steps(CudaBackend(np.float32, runtime))
    _whole_steps(CudaBackend(np.float64, runtime))
    compiled = {*catalogue.everything(), *catalogue.tensor_products(device)}
    # Not every tile on tensor cores is compiled with every σ.
    tiles = {re.sub(r"<float, \w+, Tensor", "<Tensor", kernel.expression) for kernel in compiled}
    for kernel in runtime.launched - compiled:
        assert "TensorTile" in kernel.expression
        assert re.sub(r"<float, \w+, Tensor", "<Tensor", kernel.expression) in tiles
    reading = {"derivatives.cu"}  # which is in no step
    assert {kernel.file for kernel in runtime.launched} == {
        kernel.file for kernel in catalogue.everything()
    } - reading


def _whole_steps(backend: CudaBackend) -> None:
    """What does not depend on the shape."""
    z, b = backend.empty((4, 3)), backend.empty((4,))
    epoch = backend.epoch(8, 4)
    every = set(activations.names())
    for number, c in enumerate(map(costs.get, costs.names())):
        # With every σ those of exponential families; the others when somebody asks for them.
        for name in sorted(every if number < 4 else {"sigmoid", "gelu", "softmax"}):
            sigma = activations.get(name)
            if c.name == "gaussian_nll" and name == "softmax":
                continue
            backend.output_error(z, z, z, sigma, c, z, weights=b)
            backend.record_cost(z, z, z, sigma, c, epoch)
    epoch.draws, epoch.key = Draws((0.5,), (1,)), backend.runtime.empty(3, np.uint32)
    backend.drop_out(z, z, 1, epoch)
    parameters = Parameters(Layout((4, 3)), backend.empty((Layout((4, 3)).length,)))
    for name in optimizers.names():
        optimizer = replace(optimizers.get(name), clip_norm=1.0, max_norm=1.0, gradient_noise=0.1)
        slots = (parameters.flat,) * optimizer.slots
        backend.update(parameters, parameters, slots, optimizer, epoch)
    backend.gather(z, z, epoch, z, z)
    rows, shares = np.arange(4), np.ones(4)
    backend.mix(z, z, rows, rows, shares, z, z)
    backend.hadamard(z, z, z)
    backend.advance(epoch)
    backend.all_finite(z)
    backend.copy(np.zeros(z.shape, np.uint8), z)
