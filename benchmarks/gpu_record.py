"""What the kernels do on this machine's GPU.

    python -m backprop_gpu.benchmarks.gpu_record --out DIR

In one call of five minutes, with nothing to download, each stage in a process of its
own with a time limit of its own, most worth first: ``backprop-gpu check``, the GPU
tests, the floors (copy, cuBLAS, an empty launch, a cluster's barrier), whole training
steps and then populations beside other libraries (the suite of ``backprop-gpu bench``),
an epoch in one launch in each of its forms, and steps on the persistent and the fused
kernel, beside what was predicted, every kernel of a product at a range of shapes (of
epochs and products ``python -m backprop_gpu.benchmarks.gpu_constants`` makes the
planner's constants), Nsight Compute on three kernels, the other kernels, and
compute-sanitizer on small shapes.
Everything is checked against float64 before it is timed (rounded steps, against NumPy's
same rounding). One JSON line a measurement goes to ``DIR/gpu.jsonl``, also for a check or a stage
that failed; what other programs print goes to a .log beside it.

Times are of CUDA graph replays between events, so the gaps between launches are
those of a graph and not of Python; the data of small shapes stays in the L2 cache.

Compiling would take much of the five minutes. ``--prepare``, on a machine without a
GPU, does it beforehand: it fills the folder of ``BACKPROP_GPU_CACHE``, which then goes
along to the GPU's machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .. import Network, activations, costs, kernel_checks, optimizers, planning, records
from ..backends.cuda import CudaBackend
from ..backends.numpy import NumpyBackend
from ..cuda.arrays import DeviceArray
from ..cuda.blas import WORKSPACE, mask_bytes
from ..cuda.catalogue import Catalogue, Kernel
from ..cuda.compiler import compile_kernels
from ..cuda.runtime import runtime
from ..engines import Hyperparameters, Member
from ..engines.fused_cuda import FusedCudaEngine
from ..engines.persistent_cuda import PersistentCudaEngine
from ..engines.resident_cuda import ResidentCudaEngine
from ..parameters import Layout, Parameters
from ..planning import fusion, persistence, products, residency
from ..planning.residency import Residency
from ..records import Record
from . import suite
from .measure import CHECKED
from .peers.agreement import affordable, disagreement
from .peers.ours import Ours
from .peers.registry import PEERS
from .recorder import GraphTimer, Recorder
from .workloads import Workload, problem

#: How X lies in device memory, by the bytes of a number.
_STORED = {4: "float32", 1: "uint8"}
_BARRIERS = str(Path(__file__).with_name("barriers.cu"))

#: (m, n, k) of a product's result and sum.
PRODUCTS = (
    (10, 30, 784), (128, 128, 784), (128, 128, 128), (512, 512, 784), (1024, 512, 512),
    (4096, 512, 512), (1 << 16, 64, 64), (2048, 2048, 2048), (4096, 4096, 4096),
)  # fmt: skip


#: What of cuBLASLt's is timed beside a product and a map, by its layout.
TIMED_EPILOGUES: dict[planning.Transposes, tuple[planning.Epilogue, ...]] = {
    "NT": ("RELU_AUX_BIAS",), "NN": ("DRELU_BGRAD",), "TN": ("BGRADB",),
}  # fmt: skip

#: What products of rounded factors may be off by, a few of their rounding errors.
LIMITS = {"tf32": 2.0**-9, "bf16": 2.0**-6}


class GpuRecorder(Recorder):
    """Its methods are the stages, or parts of them."""

    # -- floors -------------------------------------------------------------------

    def floors(self, size: int = 1 << 28, product: int = 8192, barriers: int = 1000) -> None:
        self.waits(barriers)
        source = self.random((size // 4,), np.float32)
        target = self.runtime.empty(source.shape, source.dtype)
        seconds = self.clock(lambda: self.runtime.copy(source, target))
        self.timed("copy", (size,), np.float32, "cuMemcpy", seconds, nbytes=2 * size, error=0.0)
        if not self.runtime.device.library:
            self.write(op="matmul", absent="cuBLAS")
            return
        for dtype in (np.float32, np.float64):
            a, b = self.random((product, product), dtype), self.random((product, product), dtype)
            out = self.runtime.empty(a.shape, dtype)
            workspace = self.runtime.empty(WORKSPACE, np.uint8)
            multiply = partial(self.runtime.product, "NN", a, b, out, 1.0, workspace)
            multiply()
            error = self.product_error("NN", a, b, out, 1.0)
            seconds = self.clock(multiply)
            shape = (product, product, product)
            flops = 2 * product**3
            self.timed("matmul", shape, dtype, "cublas", seconds, flops=flops, error=error)

    def waits(self, barriers: int) -> None:
        """What a launch inside a graph and a barrier between blocks take, with nothing to do."""
        step = self.runtime.zeros(1, np.int32)
        advance = Catalogue(np.dtype(np.float32)).advance()
        seconds = self.clock(lambda: self.runtime.launch(advance, (1, 1, 1), (step,)))
        self.write(op="empty launch", **records.quantiles(seconds))
        for blocks in residency.CLUSTERS[1:]:
            if blocks > residency.largest_cluster(self.runtime.device):
                self.write(op="cluster barrier", cluster=blocks, absent="no such clusters here")
                continue
            kernel = Kernel(_BARRIERS, f"cluster_barriers<{blocks}>", (256, 1, 1), cluster=blocks)

            def run(count: int, blocks: int = blocks, kernel: Kernel = kernel) -> list[float]:
                grid, arguments = (blocks, 1, 1), (np.int32(count),)
                return self.clock(lambda: self.runtime.launch(kernel, grid, arguments))

            launch = float(np.median(run(0)))
            seconds = [(x - launch) / barriers for x in run(barriers)]
            self.write(op="cluster barrier", cluster=blocks, **records.quantiles(seconds))
        self.write(op="grid barrier", absent="no kernel of ours has one")

    def product_error(self, layout: str, a: Any, b: Any, out: Any, scale: float) -> float:
        """‖out - ref‖ / ‖ref‖ over a sample of rows, the reference in float64."""
        a, b, out = (self.runtime.to_numpy(x) for x in (a, b, out))
        left = a.T if layout == "TN" else a
        right = b.T if layout == "NT" else b
        rows = np.unique(np.linspace(0, len(left) - 1, 64).astype(int))
        reference = scale * (left[rows].astype(np.float64) @ right.astype(np.float64))
        return float(np.linalg.norm(out[rows] - reference) / np.linalg.norm(reference))

    # -- products -----------------------------------------------------------------

    def products(self, shapes: Any = PRODUCTS, dtypes: Any = (np.float32, np.float64)) -> None:
        """Forward, BP2 and BP4 with every tile and with cuBLAS, and what the planner takes."""
        for dtype in dtypes:
            for m, n, k in shapes:
                if time.perf_counter() > self.stop:
                    self.write(op="products", skipped="out of time", shape=(m, n, k))
                    return
                rounds = self.runtime.device.multiplies_rounded and dtype == np.float32
                for precision in (None, "tf32", "bf16") if rounds else (None,):
                    for op in ("forward", "hidden_error", "weight_gradient"):
                        self.product_kernels(op, m, n, k, dtype, precision)

    def product_kernels(
        self, op: str, m: int, n: int, k: int, dtype: Any, precision: str | None = None
    ) -> None:
        layout, result = as_product(op, m, n, k)
        item = np.dtype(dtype).itemsize
        device = self.runtime.device
        planned = planning.choose_product(layout, *result, item, device, device.library, precision)
        bias = self.random((n,), dtype)
        saved = self.runtime.array(self.rng.random((m, n)).astype(dtype))
        shapes = {"NT": ((m, k), (n, k)), "NN": ((m, k), (k, n)), "TN": ((m, n), (m, k))}[layout]
        # Scaled so that a sum is of order 1 and σ is not saturated.
        a, b = (self.random(shape, dtype, result[2] ** -0.25) for shape in shapes)
        out, z, nans = (self.runtime.array(np.full(result[:2], np.nan, dtype)) for _ in range(3))
        for choice, name in self.choices(layout, result, item, precision):
            backend = CudaBackend(
                dtype, self.runtime, lambda *_, choice=choice: choice, precision=precision
            )
            # As a step has it: the library finds its factors rounded, and its products are rounded
            # for the next; it, too, may take BP3 along.
            left, right, target = (
                backend.with_rounded(x) if choice.tile is None else x for x in (a, b, out)
            )
            backend.round(left)
            backend.round(right)
            self.runtime.copy(nans, target)
            sigma = activations.get("relu" if "RELU" in choice.epilogue else "sigmoid")
            biases = self.runtime.empty((n,), dtype)
            mask = self.relu_mask(saved) if "RELU" in choice.epilogue else None
            work: Callable[[], None]
            if op == "forward":
                kept = None if choice.epilogue else z
                work = partial(backend.forward, right, bias, left, sigma, kept, target, mask=mask)
            elif op == "hidden_error":
                work = partial(
                    backend.hidden_error, right, left, None, saved, sigma, target,
                    mask=mask, biases=biases,
                )  # fmt: skip
            else:
                beside = None if choice.tile is None and not choice.epilogue else biases
                work = partial(backend.weight_gradient, left, right, target, beside)
            work()
            error = self.epilogue_error(op, sigma, a, b, bias, saved, out)
            seconds = self.clock(work)
            reads = a.size + b.size + (bias.size if op == "forward" else 0)
            extra = saved.size if op == "hidden_error" else z.size if op == "forward" else 0
            chosen = "planned" if (choice.tile, choice.splits, choice.kernel) == (
                planned.tile, planned.splits, planned.kernel) else ""  # fmt: skip
            self.timed(
                op, (m, n, k), dtype, f"{name}{' ' + chosen if chosen else ''}", seconds,
                nbytes=(reads + out.size + extra) * item, flops=2 * m * n * k, error=error,
                limit=LIMITS.get(precision or "float32"),
            )  # fmt: skip

    def choices(
        self,
        layout: planning.Transposes,
        result: tuple[int, int, int],
        item: int,
        precision: str | None,
    ) -> Iterator[tuple[planning.Product, str]]:
        rounded = "" if precision is None else f", {precision}"
        for tile in planning.tiles(item, self.runtime.device, precision):
            best = min(
                (products.tiled(tile, s, *result, item, self.runtime.device, precision)
                 for s in (products.SPLITS if layout == "TN" else (1,))
                 if s == 1 or result[2] // s >= tile.bk),
                key=lambda c: c.seconds,
            )  # fmt: skip
            if best.seconds < 20e-3:  # a small tile on a huge product teaches nothing
                yield best, f"tiled {tile} split {best.splits}{rounded}"
        if self.runtime.device.library:
            library = planning.Product("cublas", None, 1, 0.0, "")
            yield library, f"cublas and a map{rounded}"
            dtype = np.dtype(np.float32 if item == 4 else np.float64)
            for epilogue in TIMED_EPILOGUES[layout]:
                if epilogue == "BGRADB" and planning.rounds(precision):
                    continue
                if self.runtime.algorithm(layout, *result, dtype, precision, epilogue) is None:
                    about = {"dtype": dtype.name, "precision": precision or dtype.name}
                    self.write(op=epilogue, shape=result, absent="cuBLASLt has none", **about)
                    continue
                yield replace(library, epilogue=epilogue), f"cublas with {epilogue}{rounded}"

    def relu_mask(self, saved: Any) -> Any:
        """A bit for each number above a half."""
        bits = np.packbits(self.runtime.to_numpy(saved) > 0.5, axis=1, bitorder="little")
        m, n = saved.shape
        whole = np.zeros((m, mask_bytes(n)), np.uint8)
        whole[:, : bits.shape[1]] = bits
        return self.runtime.array(whole)

    def epilogue_error(
        self, op: str, sigma: Any, a: Any, b: Any, bias: Any, saved: Any, out: Any
    ) -> float:
        a, b, bias, saved, out = (self.runtime.to_numpy(x) for x in (a, b, bias, saved, out))
        left = a.T if op == "weight_gradient" else a
        right = b.T if op == "forward" else b
        rows = np.unique(np.linspace(0, len(left) - 1, 64).astype(int))
        reference = left[rows].astype(np.float64) @ right.astype(np.float64)
        if op == "forward":
            z = reference + bias
            reference = np.maximum(z, 0.0) if sigma.name == "relu" else 1.0 / (1.0 + np.exp(-z))
        elif op == "hidden_error":
            s = saved[rows].astype(np.float64)
            reference *= s > 0.5 if sigma.name == "relu" else s * (1.0 - s)
        else:
            reference /= len(a)
        return float(np.linalg.norm(out[rows] - reference) / np.linalg.norm(reference))

    # -- the other kernels ----------------------------------------------------------

    def maps(self, shapes: Any = ((128, 128), (1 << 16, 64), (8192, 4096))) -> None:
        """BP3, s ⊙ t, norms of rows, directions of three inputs and C: limited by bytes."""
        for dtype in (np.float32, np.float64):
            backend = CudaBackend(dtype, self.runtime)
            item = np.dtype(dtype).itemsize
            for m, n in shapes:
                delta, out = self.random((m, n), dtype), self.runtime.empty((n,), dtype)
                backend.bias_gradient(delta, out)
                host = self.runtime.to_numpy(delta).astype(np.float64)
                error = _relative(
                    self.runtime.to_numpy(out), host.mean(axis=0), host.std() / m**0.5
                )
                seconds = self.clock(partial(backend.bias_gradient, delta, out))
                self.timed("bias_gradient", (m, n), dtype, "ours", seconds,
                           nbytes=(m * n + n) * item, flops=m * n, error=error)  # fmt: skip
                t, product = self.random((m, n), dtype), self.runtime.empty((m, n), dtype)
                backend.hadamard(delta, t, product)
                reference = host * self.runtime.to_numpy(t)
                error = _relative(self.runtime.to_numpy(product), reference, 1.0)
                seconds = self.clock(partial(backend.hadamard, delta, t, product))
                self.timed("hadamard", (m, n), dtype, "ours", seconds,
                           nbytes=3 * m * n * item, flops=m * n, error=error)  # fmt: skip
                norms = self.runtime.empty((m,), dtype)
                backend.row_norms(delta, norms)
                error = _relative(self.runtime.to_numpy(norms), np.linalg.norm(host, axis=1), 1.0)
                seconds = self.clock(partial(backend.row_norms, delta, norms))
                self.timed("row_norms", (m, n), dtype, "ours", seconds,
                           nbytes=m * n * item, flops=2 * m * n, error=error)  # fmt: skip
                u, out = self.random((4, m, n), dtype), self.runtime.empty((4, m, n), dtype)
                backend.directions((delta, t), u, out)
                given, slopes = (self.runtime.to_numpy(x).astype(np.float64) for x in (u, t))
                reference = host * given[-1] + slopes * (given[:-1] ** 2).sum(axis=0)
                error = _relative(self.runtime.to_numpy(out[-1]), reference, 1.0)
                seconds = self.clock(partial(backend.directions, (delta, t), u, out))
                self.timed("directions", (4, m, n), dtype, "ours", seconds,
                           nbytes=10 * m * n * item, flops=12 * m * n, error=error)  # fmt: skip
                epoch = backend.epoch(m, m)
                pair = activations.get("tanh"), costs.get("quadratic")
                record = partial(backend.record_cost, None, delta, t, *pair, epoch)
                record()
                reference = np.square(host - self.runtime.to_numpy(t)).sum(axis=1).mean() / 2
                error = _relative(self.runtime.to_numpy(epoch.step_costs), reference, 0.0)
                self.timed("cost", (m, n), dtype, "ours", self.clock(record),
                           nbytes=2 * m * n * item, flops=3 * m * n, error=error)  # fmt: skip

    def updates(self, sizes: Any = ((784, 30, 10), (4096, 4096, 4096))) -> None:
        for layers in sizes:
            layout = Layout(tuple(layers))
            for name in optimizers.names():
                optimizer = optimizers.get(name)
                backend = CudaBackend(np.float32, self.runtime)
                p = Parameters(layout, self.random((layout.length,), np.float32))
                g = Parameters(layout, self.random((layout.length,), np.float32))
                slots = tuple(backend.zeros((layout.length,)) for _ in range(optimizer.slots))
                epoch = backend.epoch(1, 1)
                epoch.load(np.zeros(1, int), optimizer.coefficients(np.array([1e-3]), 0))
                error = self.update_error(p, g, optimizer, backend, slots, epoch)
                seconds = self.clock(partial(backend.update, p, g, slots, optimizer, epoch))
                moved = (3 + 2 * optimizer.slots) * layout.length * 4
                self.timed("update", (layout.length,), np.float32, name, seconds,
                           nbytes=moved, flops=2 * layout.length, error=error)  # fmt: skip

    def update_error(
        self, p: Parameters, g: Parameters, optimizer: Any, backend: Any, slots: Any, epoch: Any
    ) -> float:
        host = NumpyBackend(np.float64)

        def to_host(array: DeviceArray) -> np.ndarray:
            return self.runtime.to_numpy(array).astype(np.float64)

        p64, g64 = Parameters(p.layout, to_host(p.flat)), Parameters(g.layout, to_host(g.flat))
        s64 = tuple(to_host(s) for s in slots)
        before = p64.flat.copy()
        epoch64 = host.epoch(1, 1)
        epoch64.load(np.zeros(1, int), optimizer.coefficients(np.array([1e-3]), 0))
        host.update(p64, g64, s64, optimizer, epoch64)
        backend.update(p, g, slots, optimizer, epoch)
        moved = float(np.abs(p64.flat - before).max())
        # A step moves p by far less than p itself, so p's own rounding is allowed for.
        error = np.abs(to_host(p.flat) - p64.flat).max() - 1e-6 * np.abs(before).max()
        return max(0.0, float(error)) / moved

    # -- the resident kernel ----------------------------------------------------------

    def residents(
        self,
        shapes: Any = (((784, 30, 10), 10),),
        members: Any = (1, 132),
        rows: int = 50_000,
        repeats: int = 5,
    ) -> None:
        """A step of an epoch in one launch, in each of its forms, beside what was predicted.

        Of each form, one that reads X as float32 and one that reads it as uint8.
        """
        ways: list[tuple[str, int]] = [("clusters", blocks) for blocks in residency.CLUSTERS]
        ways += [("apart", blocks) for blocks in residency.APART]
        for (sizes, batch), count, (way, blocks), stored in itertools.product(
            shapes, members, ways, (4, 1)
        ):
            cut = residency.choose(
                sizes, batch, 4, 0, self.runtime.device, count, stored,
                **{way: (blocks,)},
            )  # fmt: skip
            if isinstance(cut, str):
                plan = f"{blocks} blocks apart" if way == "apart" else f"{blocks} blocks"
                self.write(op="resident", shape=(*sizes, batch), plan=plan, members=count,
                           stored=_STORED[stored], absent=cut)  # fmt: skip
            else:
                try:
                    self.resident(sizes, batch, cut, count, rows, repeats)
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"
                    self.write(op="resident", shape=(*sizes, batch), plan=str(cut), members=count,
                               stored=_STORED[stored], failed=why)  # fmt: skip

    def resident(
        self, sizes: tuple[int, ...], batch: int, cut: Residency, count: int, rows: int,
        repeats: int,
    ) -> None:  # fmt: skip
        net = Network(sizes, backend="numpy", dtype="float64", seed=0)
        backend = CudaBackend(np.float32, self.runtime)
        by_plan = planning.Plan(
            "cuda", "recorded", "resident", "recorded", captured=False, sizes=sizes,
            batches=(planning.BatchPlan(batch, cuts=(cut,)),),
        )  # fmt: skip
        engine = ResidentCudaEngine(backend, net.sizes, net.activations, net.cost, by_plan)
        stored = _STORED[cut.stored]
        X = self.rng.random((rows, sizes[0]), np.float32)
        if stored == "uint8":
            X = (X < 0.5).astype(np.uint8)  # as large as they are otherwise
        Y = self.rng.random((rows, sizes[-1]), np.float32)
        sgd, order = optimizers.get("sgd"), self.rng.permutation(rows)
        flat = backend.asarray(np.tile(net.model.read(net.parameters), (count, 1)))

        def member(parameters: Parameters, steps: int) -> Member:
            settings = Hyperparameters(batch, sgd, sgd.coefficients(np.full(steps, 0.5), 0))
            return Member(parameters, (), order[: steps * batch], settings)

        def members(steps: int) -> list[Member]:
            return [member(Parameters(net.model.layout, row), steps) for row in flat]

        arrays = backend.asarray(X, X.dtype), backend.asarray(Y)
        exact = net.parameters.flat
        before = exact.copy()
        checked = min(4, rows // batch)
        engine.run_members(members(checked), *arrays)
        layered = net.model.engine(net.model.plan(planning.Run(rows, 1, batch, "layered")))
        layered.run_members(
            [member(net.parameters, checked)], X.astype(np.float64), Y.astype(np.float64)
        )
        got = self.runtime.to_numpy(flat)
        error = float(np.abs(got - exact).max() / np.abs(exact - before).max())
        steps = rows // batch
        epochs = [
            self._in_launches(partial(engine.run_members, members(steps), *arrays))
            for _ in range(repeats)
        ]
        self.timed(
            "resident", (*sizes, batch), np.float32, str(cut), [x / steps for x in epochs],
            flops=count * planning.step_flops(sizes, batch), error=error, members=count,
            cluster=cut.cluster, stored=stored, steps=steps,
            **({"apart": cut.blocks} if cut.apart else {}),
            expected_us=round(cut.seconds * 1e6, 3),
        )  # fmt: skip

    def _in_launches(self, run: Callable[[], Any]) -> float:
        """Seconds of all launches of `run`, and of nothing between them."""
        launch, total = self.runtime.launch, 0.0

        def timed(*arguments: Any) -> None:
            nonlocal total
            total += self.runtime.seconds(lambda: launch(*arguments))

        self.runtime.launch = timed  # type: ignore[method-assign, assignment]
        try:
            run()
        finally:
            del self.runtime.launch  # back to the method
        return total

    # -- the fused and the persistent kernel --------------------------------------------

    def fused(
        self,
        shapes: Any = (((64, 64, 64, 64, 64), 1 << 18), ((32, 64, 64, 64, 64, 16), 1 << 14)),
        repeats: int = 20,
    ) -> None:
        """A step of narrow networks in each precision, in a graph, beside what was predicted."""
        for (sizes, batch), precision in itertools.product(shapes, planning.TENSOR_TILES):
            net = self._relus(sizes, precision)
            slopes = fusion.kept_slopes(net.activations, precision)
            form = fusion.choose(sizes, batch, self.runtime.device, precision, slopes)
            self._step_of(net, batch, FusedCudaEngine, form, precision, repeats)

    def persistent(
        self,
        shapes: Any = (
            ((784, 128, 128, 10), 128),
            ((784, 30, 10), 128),
            ((784, 512, 512, 10), 256),
        ),
        repeats: int = 200,
    ) -> None:
        """A step of an epoch by all blocks, in each precision, beside what was predicted."""
        for (sizes, batch), precision in itertools.product(shapes, planning.TENSOR_TILES):
            form = persistence.choose(sizes, batch, self.runtime.device, precision)
            net = self._relus(sizes, precision)
            self._step_of(net, batch, PersistentCudaEngine, form, precision, repeats)

    def _relus(self, sizes: Sequence[int], precision: str) -> Network:
        """Of the same rounding as the kernel: beside float64 a step says little about that."""
        exact: Record = {"precision": precision}
        if precision == "float32":
            exact = {"dtype": "float64"}
        return Network(sizes, activation="relu", backend="numpy", seed=0, **exact)

    def _step_of(
        self,
        net: Network,
        m: int,
        kind: type[FusedCudaEngine] | type[PersistentCudaEngine],
        form: planning.Fusion | planning.Persistence | str,
        precision: str,
        repeats: int,
    ) -> None:
        about: Record = {"op": kind.name, "shape": (*net.sizes, m)}
        if isinstance(form, str):
            self.write(**about, plan=precision, absent=form)
            return
        try:
            self._time_step(net, m, kind, form, repeats)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self.write(**about, plan=f"{precision}, {form}", failed=why)

    def _time_step(
        self,
        net: Network,
        m: int,
        kind: type[FusedCudaEngine] | type[PersistentCudaEngine],
        form: planning.Fusion | planning.Persistence,
        repeats: int,
    ) -> None:
        sizes, device = form.sizes, self.runtime.device
        backend = CudaBackend(np.float32, self.runtime, precision=form.precision)
        by_plan = planning.Plan(
            "cuda", "recorded", kind.name, "recorded", captured=kind is FusedCudaEngine,
            sizes=sizes, precision=form.precision,
            batches=(
                planning.BatchPlan(m, fusion=form) if isinstance(form, planning.Fusion)
                else planning.BatchPlan(m, persistence=form),
            ),
        )  # fmt: skip
        engine = kind(backend, net.sizes, net.activations, net.cost, by_plan)
        X, Y = self.rng.random((m, sizes[0]), np.float32), self.rng.random((m, sizes[-1]))
        arrays = backend.asarray(X), backend.asarray(Y)
        sgd, order = optimizers.get("sgd"), self.rng.permutation(m)
        flat = backend.asarray(net.model.read(net.parameters))

        def member(parameters: Parameters, rows: int, steps: int = 1) -> Member:
            settings = Hyperparameters(m, sgd, sgd.coefficients(np.full(steps, 0.1), 0))
            return Member(parameters, (), np.resize(order, rows * steps), settings)

        # A short mini-batch tells as much, and NumPy's float64 has it soon.
        exact, few = net.parameters.flat, min(m, 4099)
        before, trained = exact.copy(), Parameters(net.model.layout, flat)
        engine.run_members([member(trained, few)], *arrays)
        layered = net.model.engine(net.model.plan(planning.Run(few, 1, few, "layered")))
        rows = X.astype(net.dtype), Y.astype(net.dtype)
        layered.run_members([member(net.parameters, few)], *rows)
        got = self.runtime.to_numpy(flat)
        error = float(np.abs(got - exact).max() / np.abs(exact - before).max())
        whole, seconds = member(trained, m, repeats), []
        engine.run_members([whole], *arrays)  # builds, or captures a step
        for _ in range(3):
            if isinstance(engine, FusedCudaEngine):
                bound = engine.bind([whole], *arrays)
                bound.load([whole])
                run = partial(bound.backend.repeat, bound.whole_step, repeats)
                seconds.append(self.runtime.seconds(run) / repeats)
            else:
                run = partial(engine.run_members, [whole], *arrays)
                seconds.append(self._in_launches(run) / repeats)
        self.timed(
            kind.name, (*sizes, m), np.float32, f"{form.precision}, {form}", seconds,
            flops=planning.step_flops(sizes, m), error=error,
            expected_us=round(form.seconds(device) * 1e6, 3),
        )  # fmt: skip

    # -- training -------------------------------------------------------------------

    def training(self, peers: Any = None, chosen: Any = None, device: Any = "cuda") -> None:
        """The suite of `backprop-gpu bench` on this device: whole steps beside other libraries."""
        budget = max(1.0, self.stop - time.perf_counter() - 10.0)
        settings = replace(suite.FULL, seconds=0.1, budget=budget, first_steps=False)
        for record in suite.run(
            list(PEERS.values()) if peers is None else peers,
            suite_cases() if chosen is None else chosen,
            device,
            settings,
            {},
            disagreement=disagreement,
        ):
            self.write(op="training", **record)

    # -- other programs -------------------------------------------------------------

    def check(self, card: str | None = None) -> None:
        report = self.path.with_name("check.json")
        command = [*_PYTHON, "backprop_gpu", "check", "--out", str(report)]
        command += [] if card is None else ["--stand-in", "--card", card]
        code, text = self.logged("check", command)
        self.write(op="check", code=code, result=text.splitlines()[-1:])

    def gpu_tests(self, card: str | None = None) -> None:
        # Most of the time goes into compiling, which several processes share.
        command = [
            *_PYTHON, "pytest", "-v", "-s", "--tell-at-once", "--tb=short", "-m", "gpu",
            "-p", "no:cacheprovider", "-n", "auto", "tests",
        ]  # fmt: skip
        code, text = self.logged("gpu tests", command + ([f"--stand-in={card}"] if card else []))
        outcomes = _OUTCOME.findall(text)
        counts = Counter(outcome for outcome, _ in outcomes)
        failures = [name for outcome, name in outcomes if outcome in ("FAILED", "ERROR")]
        self.write(op="gpu tests", code=code, **counts, failures=failures)

    def sanitizer(self, tool: str) -> None:
        name = f"compute-sanitizer {tool}"
        program = shutil.which("compute-sanitizer")
        if program is None:
            self.write(op=name, absent="not on the PATH")
            return
        watched = [*_PYTHON, f"{__package__}.gpu_record", "--case", "sanitized"]
        code, text = self.logged(name, [program, "--tool", tool, "--error-exitcode", "9", *watched])
        summary = [line for line in text.splitlines() if "SUMMARY" in line]
        self.write(op=name, code=code, result=summary[-1:])

    def ncu(self) -> None:
        """Nsight Compute on a product and on an epoch in one launch: how busy the units are."""
        program = shutil.which("ncu")
        if program is None:
            self.write(op="ncu", absent="not on the PATH")
            return
        command = [program, "--csv", "--metrics", ",".join(_METRICS), "--kernel-name",
                   "regex:^(forward|resident|resident_cluster)$", "--launch-count", "2",
                   *_PYTHON, f"{__package__}.gpu_record", "--case", "profiled"]  # fmt: skip
        code, text = self.logged("ncu", command)
        table = text[text.find('"ID"') :] if '"ID"' in text else ""
        kernels: dict[str, Record] = {}
        for row in csv.DictReader(table.splitlines()):
            number = (row["Metric Value"] or "").replace(",", "")
            kernels.setdefault(row["Kernel Name"], {})[row["Metric Name"]] = float(number)
        if not kernels:
            self.write(op="ncu", code=code, failed=" ".join(text.split())[-300:] or "no output")
        for kernel, metrics in kernels.items():
            self.write(op="ncu", code=code, kernel=kernel[:300], metrics=metrics)


def suite_cases(population: bool = False) -> list[suite.BenchCase]:
    """The suite's cases, those of populations or the others."""
    return [x for x in suite.cases() if (x.workload.name == "population") == population]


def as_product(op: str, m: int, n: int, k: int) -> tuple[planning.Transposes, tuple[int, int, int]]:
    """The layout, and (rows of the result, columns, length of the sum); BP4 sums over the batch."""
    if op == "weight_gradient":
        return "TN", (n, k, m)
    return ("NT" if op == "forward" else "NN"), (m, n, k)


def _relative(got: np.ndarray, reference: np.ndarray, scale: float) -> float:
    """The largest error, relative to the larger of |reference| and a natural scale."""
    return float((np.abs(got - reference) / np.maximum(np.abs(reference), scale)).max())


def sanitized_case() -> None:
    """Small and awkward shapes through every kernel, for compute-sanitizer to watch."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        for output, cost in (("softmax", "categorical_cross_entropy"), ("sigmoid", "quadratic")):
            for optimizer in (optimizers.SGD(clip_norm=0.1, l1=1e-3), optimizers.AdamW()):
                net = Network(
                    [33, 17, 9, 5], activation=["gelu", "tanh", output], cost=cost,
                    backend="cuda", dtype=dtype, seed=0,
                )  # fmt: skip
                X, y = rng.standard_normal((301, 33)), rng.integers(0, 5, 301)
                net.fit(X, y, epochs=1, batch_size=130, learning_rate=0.01, optimizer=optimizer)
                net.loss(X, y)
                if optimizer.clip_norm is None:
                    net.fit(X, y, epochs=1, batch_size=7, learning_rate=0.01,
                            optimizer=optimizer, engine="resident")  # fmt: skip


#: By products, by the persistent kernel and by the resident one.
PROFILED = (
    Workload("profiled", (2048, 2048), 4096, classes=False),
    Workload("profiled", (784, 128, 128, 10), 128, classes=True),
    Workload("profiled", (784, 30, 10), 10, classes=True),
)


def profiled_case() -> None:
    for load in PROFILED:
        Ours().start(problem(load, 100), "cuda").run()


#: What is recorded, most worth first, and the seconds that each may take of five minutes.
STAGES = {
    "check": 30, "gpu tests": 80, "floors": 30, "training": 90, "populations": 40, "resident": 25,
    "persistent": 25, "fused": 25,
    "products": 40, "ncu": 30, "maps": 20, "updates": 20,
    "compute-sanitizer memcheck": 40, "compute-sanitizer racecheck": 40,
}  # fmt: skip
_MINUTES = 5.0
_PYTHON = [sys.executable, "-m"]
#: A line that xdist writes for a test.
_OUTCOME = re.compile(r"\] (PASSED|FAILED|ERROR|SKIPPED) (\S+)")
_METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
#: What `--small` records: every stage, in seconds also on a CPU.
_SMALL: dict[str, Record] = {
    "floors": {"size": 4096, "product": 64, "barriers": 3},
    "resident": {"shapes": (((70, 5, 3), 4),), "members": (1, 3), "rows": 16, "repeats": 1},
    "persistent": {"shapes": (((20, 16, 5), 40),), "repeats": 2},
    "fused": {"shapes": (((20, 16, 5), 40),), "repeats": 2},
    "products": {"shapes": ((10, 30, 40),), "dtypes": (np.float32,)},
    "maps": {"shapes": ((5, 7),)},
    "updates": {"sizes": ((9, 7, 5),)},
}


def stages(
    recorder: GpuRecorder, small: bool = False, card: str | None = None
) -> dict[str, Callable[[], None]]:
    """By the names of `STAGES`; with ``card`` what other processes run is on a stand-in too."""
    run: dict[str, Callable[..., None]] = {
        "check": partial(recorder.check, card),
        "gpu tests": partial(recorder.gpu_tests, card),
        "floors": recorder.floors,
        "training": recorder.training,
        "populations": lambda: recorder.training(chosen=suite_cases(population=True)),
        "resident": recorder.residents,
        "persistent": recorder.persistent,
        "fused": recorder.fused,
        "products": recorder.products,
        "ncu": recorder.ncu,
        "maps": recorder.maps,
        "updates": recorder.updates,
        "compute-sanitizer memcheck": partial(recorder.sanitizer, "memcheck"),
        "compute-sanitizer racecheck": partial(recorder.sanitizer, "racecheck"),
    }
    return {name: partial(run[name], **_SMALL.get(name, {}) if small else {}) for name in STAGES}


def in_a_child(name: str, path: Path, common: Record, seconds: float, options: list[str]) -> None:
    """One of `STAGES` in a process of its own, so that no fault of it, an illegal address or a
    kernel that hangs, reaches the next. What it has recorded and printed stays, however it ends.
    """
    arguments = ["--stage", name, "--out", str(path.parent), "--minutes", str(seconds / 60)]
    # A group of its own: pytest's workers and what a sanitizer watches end with it.
    child = subprocess.Popen(
        [*_PYTHON, f"{__package__}.gpu_record", *arguments, *options, "--common",
         json.dumps(common)],
        start_new_session=True,
    )  # fmt: skip
    try:
        code = child.wait(seconds)
        ended = None if code == 0 else f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if ended:
        print(f"  {name}: {ended}", flush=True)
        records.append(path, [common | {"op": name, "failed": ended}])


#: The card whose stand-in asks for the cubins of an architecture.
CARDS = {"sm_75": "T4", "sm_80": "A100", "sm_89": "RTX 4090", "sm_90a": "H100"}


def compile_ahead(arch: str, names: Iterable[str], small: bool = False) -> None:
    """Compile, into the cache, what the stages would on a card of `arch`.

    The stages run on a stand-in whose launches do nothing, so what is compiled is what they ask
    for, with the same names in the cache, and what the library's check of itself launches; for
    the GPU tests it is every kernel of the catalogue, which is not all: resident kernels of the
    tests' own networks are left to them.

    Raises
    ------
    RuntimeError
        At the end, naming the stages that could not be followed.
    """
    from .. import self_check, testing
    from ..cuda.catalogue import all_of

    compile_kernels([Catalogue(np.dtype(np.float32)).advance()], arch)  # a missing compiler: now
    testing.start(CARDS[arch])
    os.environ[self_check.OFF] = "0"  # where nothing is launched nothing is right
    device, failed = runtime(), []
    wanted: dict[Kernel, None] = {}
    device.launch = lambda kernel, *_: wanted.update({kernel: None})  # type: ignore[method-assign]
    device.product = lambda *_, **how: None  # type: ignore[method-assign]

    def once(work: Callable[[], None]) -> list[float]:
        work()
        return [1e-6]

    # Processes of their own: a compiler in this one would see the stand-in.
    fresh = ProcessPoolExecutor(mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, fresh as pool:
        recorder = GpuRecorder(device, once, Path(folder, records.GPU), {}, float("inf"))
        recorder.write = lambda **_: None  # type: ignore[method-assign]
        chosen = stages(recorder, small) | {
            "training": partial(started, [case.workload for case in suite_cases()]),
            "populations": partial(
                started, [case.workload for case in suite_cases(population=True)]
            ),
            "ncu": partial(started, PROFILED),
        }
        if not small:  # of rows and repetitions a kernel knows nothing
            chosen["resident"] = partial(recorder.residents, rows=50, repeats=1)
        for name in names:
            if name == "check":
                for dtype in map(np.dtype, (np.float32, np.float64)):
                    wanted.update(dict.fromkeys(kernel_checks.launched(device.device, dtype)))
            elif name == "gpu tests":
                wanted.update(dict.fromkeys(all_of(device.device)))
            elif name.startswith("compute-sanitizer"):
                print(f"{name}: runs small shapes, and compiles what it lacks")
            else:
                print(f"{name}:", flush=True)
                try:
                    chosen[name]()
                except Exception:  # the others are worth having
                    traceback.print_exc()
                    failed.append(name)
            # Stage by stage: whoever stops this has what the stages until then need.
            for _ in pool.map(partial(_compile, arch), wanted):
                pass
            print(f"  {len(wanted)} kernels for {arch} so far", flush=True)
    if failed:
        raise RuntimeError(f"not all is compiled that these need: {', '.join(failed)}")


def _compile(arch: str, kernel: Kernel) -> None:
    compile_kernels([kernel], arch)


def started(workloads: Iterable[Workload]) -> None:
    """Let ours prepare for each workload as for a timed run, and for a check."""
    for workload in workloads:
        for load in {workload, affordable(workload, CHECKED)}:
            Ours().start(problem(load, 2), "cuda")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    option = parser.add_argument
    option("--out", type=Path, default=records.RESULTS, help="folder for gpu.jsonl")
    option("--minutes", type=float, default=_MINUTES, help="time for everything; default 5")
    option("--only", action="append", choices=STAGES, help="a stage; may be repeated")
    option("--commit", help="of this code, where git cannot tell")
    option("--prepare", action="store_true", help="compile what a record needs, and end")
    option("--arch", choices=CARDS, default="sm_90a", help="for --prepare; default %(default)s")
    option("--small", action="store_true", help="small shapes, to try the recorder itself")
    option("--stand-in", metavar="CARD", help="run on a stand-in for a card; times mean nothing")
    option("--stage", choices=STAGES, help=argparse.SUPPRESS)
    option("--common", type=json.loads, help=argparse.SUPPRESS)
    option("--case", choices=("sanitized", "profiled"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    path, seconds, card = arguments.out / records.GPU, arguments.minutes * 60, arguments.stand_in
    if arguments.case:
        sanitized_case() if arguments.case == "sanitized" else profiled_case()
        return 0
    if arguments.prepare:
        try:
            compile_ahead(arguments.arch, arguments.only or STAGES, arguments.small)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if card:
        from .. import testing

        testing.start(card)
    try:
        device = runtime()
    except Exception as error:
        print(f"no usable CUDA device: {error}", file=sys.stderr)
        return 2
    if arguments.stage:
        clock = GraphTimer(device, budget=0.0 if arguments.small else 0.05)
        recorder = GpuRecorder(device, clock, path, arguments.common, seconds)
        recorder.stage(arguments.stage, stages(recorder, arguments.small, card)[arguments.stage])
        return 0
    from cuda.bindings import driver

    about = device.device
    common = records.provenance() | {
        "gpu": about.name,
        "compute_capability": about.compute_capability,
        "properties": asdict(about),
        "driver": int(driver.cuDriverGetVersion()[1]),
    }
    if arguments.commit:
        common |= {"commit": arguments.commit, "dirty": False}
    if card:
        common |= {"stand_in": card}
    common["machine"]["gpu"] = about.name  # by which `explain` finds them
    options = (["--small"] if arguments.small else []) + (["--stand-in", card] if card else [])
    for name in arguments.only or STAGES:
        left = begin + seconds - time.perf_counter()
        if left < 5:
            records.append(path, [common | {"op": name, "skipped": "out of time"}])
            continue
        limit = STAGES[name] * max(1.0, arguments.minutes / _MINUTES)
        in_a_child(name, path, common, min(left, limit), options)
    print(f"{path}: {time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
