"""``python -m benchmarks.gpu_record --out DIR``: what the kernels do on this machine's GPU.

In one call of under eight minutes, with nothing to download, each stage in a process
of its own with a time limit of its own: the GPU tests,
compute-sanitizer on small shapes, the machine's own ceilings (copy, cuBLAS),
every kernel of a product at a range of shapes, the other kernels, an epoch in one
launch in each of its forms beside what was predicted, and whole training steps
beside other libraries (the suite of ``backprop-gpu bench``). Everything is checked
against float64 before it is timed. One JSON line a measurement goes to
``DIR/gpu.jsonl``, also for a check or a stage that failed.

Times are of CUDA graph replays between events, so the gaps between launches are
those of a graph and not of Python; the data of small shapes stays in the L2 cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import Network, activations, optimizers, planning, residency
from backprop_gpu.backends.cublas import WORKSPACE
from backprop_gpu.backends.cuda import CudaBackend, CupyRuntime
from backprop_gpu.engines.layered import Hyperparameters, Member
from backprop_gpu.engines.resident_cuda import ResidentCudaEngine
from backprop_gpu.parameters import Layout, Parameters
from backprop_gpu.residency import Residency

from . import records

Record = dict[str, Any]
#: How X lies in device memory, by the bytes of a number.
_STORED = {4: "float32", 1: "uint8"}

#: (m, n, k) of a product's result and sum.
PRODUCTS = (
    (10, 30, 784), (128, 128, 784), (128, 128, 128), (512, 512, 784), (1024, 512, 512),
    (4096, 512, 512), (1 << 16, 64, 64), (2048, 2048, 2048), (4096, 4096, 4096),
)  # fmt: skip


class Clock:
    """Times device work with events around replays of a captured sequence."""

    def __init__(self, runtime: Any, budget: float) -> None:
        self.runtime = runtime
        self.budget = budget

    def __call__(self, work: Callable[[], None]) -> list[float]:
        """Seconds of one `work`, several samples within the budget."""
        xp = self.runtime.xp
        work()  # compiles, and makes scratch memory, which a capture must not
        once = self.once(work)
        inner = int(min(50, max(1, 2e-3 / max(once, 1e-7))))

        def several() -> None:
            for _ in range(inner):
                work()

        replay = self.runtime.capture(several)
        replay()
        samples = []
        stop = time.perf_counter() + self.budget
        while len(samples) < 5 or (len(samples) < 200 and time.perf_counter() < stop):
            samples.append(self.once(replay) / inner)
        xp.cuda.get_current_stream().synchronize()
        return samples

    def once(self, work: Callable[[], None]) -> float:
        """Seconds of one `work`, as it is."""
        cuda = self.runtime.xp.cuda
        start, end = cuda.Event(), cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) * 1e-3


class Recorder:
    """Runs the stages and writes a line for each measurement as it is made."""

    def __init__(
        self, runtime: Any, clock: Any, path: Path, common: Record, seconds: float
    ) -> None:
        self.runtime, self.clock, self.path, self.common = runtime, clock, path, common
        self.stop = time.perf_counter() + seconds
        self.rng = np.random.default_rng(0)

    def write(self, **record: Any) -> None:
        records.append(self.path, [self.common | record])
        shown = {k: v for k, v in record.items() if k not in ("q25_us", "q75_us", "samples")}
        print("  " + " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)

    def stage(self, name: str, run: Callable[[], None]) -> None:
        """A stage that fails is a record too, and the next one goes on."""
        print(f"{name}:", flush=True)
        if time.perf_counter() > self.stop:
            self.write(op=name, skipped="out of time")
            return
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            self.write(op=name, failed=f"{type(error).__name__}: {error}")
            traceback.print_exc()
        print(f"  ({time.perf_counter() - start:.1f} s)", flush=True)

    def random(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.runtime.xp.asarray(self.rng.standard_normal(shape).astype(dtype))

    # -- ceilings -----------------------------------------------------------------

    def ceilings(self, size: int = 1 << 28, product: int = 8192) -> None:
        source = self.random((size // 4,), np.float32)
        target = self.runtime.xp.empty_like(source)
        self.runtime.xp.copyto(target, source)
        seconds = self.clock(lambda: self.runtime.xp.copyto(target, source))
        self.timed("copy", (size,), np.float32, "cupy", seconds, nbytes=2 * size, error=0.0)
        if not self.runtime.library:
            self.write(op="matmul", absent="cuBLAS")
            return
        for dtype in (np.float32, np.float64):
            a, b = self.random((product, product), dtype), self.random((product, product), dtype)
            out = self.runtime.xp.empty_like(a)
            workspace = self.runtime.xp.empty(WORKSPACE, np.uint8)
            multiply = partial(self.runtime.product, "NN", a, b, out, 1.0, workspace)
            multiply()
            error = self.product_error("NN", a, b, out, 1.0)
            seconds = self.clock(multiply)
            shape = (product, product, product)
            flops = 2 * product**3
            self.timed("matmul", shape, dtype, "cublas", seconds, flops=flops, error=error)

    def product_error(self, layout: str, a: Any, b: Any, out: Any, scale: float) -> float:
        """‖out - ref‖ / ‖ref‖ over a sample of rows, the reference in float64."""
        a, b, out = (self.runtime.to_numpy(x) for x in (a, b, out))
        left = a.T if layout == "TN" else a
        right = b.T if layout == "NT" else b
        rows = np.unique(np.linspace(0, len(left) - 1, 64).astype(int))
        reference = scale * (left[rows].astype(np.float64) @ right.astype(np.float64))
        return float(np.linalg.norm(out[rows] - reference) / np.linalg.norm(reference))

    def timed(
        self, op: str, shape: tuple[int, ...], dtype: Any, plan: str, seconds: list[float], *,
        error: float, nbytes: int = 0, flops: int = 0, limit: float | None = None, **notes: Any,
    ) -> None:  # fmt: skip
        limit = limit if limit is not None else 1e-3 if dtype == np.float32 else 1e-11
        record = {"op": op, "shape": shape, "dtype": np.dtype(dtype).name, "plan": plan} | notes
        if not error <= limit:  # NaN too
            self.write(**record, error=error, failed=f"error above {limit:g}; not timed")
            return
        median = float(np.median(seconds))
        rates: Record = {"bytes": nbytes, "flops": flops, "error": error, "samples": len(seconds)}
        if nbytes:
            rates["gb_per_s"] = round(nbytes / median / 1e9, 1)
        if flops:
            rates["tflop_per_s"] = round(flops / median / 1e12, 3)
        self.write(**record, **records.quantiles(seconds), **rates)

    # -- products -----------------------------------------------------------------

    def products(self, shapes: Any = PRODUCTS, dtypes: Any = (np.float32, np.float64)) -> None:
        """Forward, BP2 and BP4 with every tile and with cuBLAS, and what the planner takes."""
        for dtype in dtypes:
            for m, n, k in shapes:
                if time.perf_counter() > self.stop:
                    self.write(op="products", skipped="out of time", shape=(m, n, k))
                    return
                for op in ("forward", "hidden_error", "weight_gradient"):
                    self.product_kernels(op, m, n, k, dtype)

    def product_kernels(self, op: str, m: int, n: int, k: int, dtype: Any) -> None:
        layout: planning.Layout = {"forward": "NT", "hidden_error": "NN", "weight_gradient": "TN"}[
            op
        ]
        item = np.dtype(dtype).itemsize
        # (rows of the result, columns, length of the sum); BP4 sums over the batch m
        result = (n, k, m) if layout == "TN" else (m, n, k)
        planned = planning.product(layout, *result, item, self.runtime.device)
        sigmoid = activations.get("sigmoid")
        xp = self.runtime.xp
        bias = self.random((n,), dtype)
        saved = xp.asarray(self.rng.random((m, n)).astype(dtype))
        shapes = {"NT": ((m, k), (n, k)), "NN": ((m, k), (k, n)), "TN": ((m, n), (m, k))}[layout]
        # Scaled so that a sum is of order 1 and σ is not saturated.
        a, b = (self.random(shape, dtype) / dtype(result[2] ** 0.25) for shape in shapes)
        a, b = a.astype(dtype), b.astype(dtype)
        out, z = xp.empty(result[:2], dtype), xp.empty(result[:2], dtype)
        for choice, name in self.choices(layout, result, item):
            backend = CudaBackend(dtype, self.runtime, lambda *_, choice=choice: choice)
            out.fill(np.nan)
            if op == "forward":

                def work(backend: CudaBackend = backend) -> None:
                    backend.forward(b, bias, a, sigmoid, z, out)
            elif op == "hidden_error":

                def work(backend: CudaBackend = backend) -> None:
                    backend.hidden_error(b, a, None, saved, sigmoid, out)
            else:

                def work(backend: CudaBackend = backend) -> None:
                    backend.weight_gradient(a, b, out)

            work()
            error = self.epilogue_error(op, a, b, bias, saved, out)
            seconds = self.clock(work)
            reads = a.size + b.size + (bias.size if op == "forward" else 0)
            extra = saved.size if op == "hidden_error" else z.size if op == "forward" else 0
            chosen = "planned" if (choice.tile, choice.splits, choice.kernel) == (
                planned.tile, planned.splits, planned.kernel) else ""  # fmt: skip
            self.timed(
                op, (m, n, k), dtype, f"{name}{' ' + chosen if chosen else ''}", seconds,
                nbytes=(reads + out.size + extra) * item, flops=2 * m * n * k, error=error,
            )  # fmt: skip

    def choices(
        self, layout: planning.Layout, result: tuple[int, int, int], item: int
    ) -> Iterator[tuple[planning.Product, str]]:
        for tile in planning.TILES:
            best = min(
                (planning._fused(tile, s, *result, item, self.runtime.device)
                 for s in (planning.SPLITS if layout == "TN" else (1,))
                 if s == 1 or result[2] // s >= tile.bk),
                key=lambda c: c.seconds,
            )  # fmt: skip
            if best.seconds < 20e-3:  # a small tile on a huge product teaches nothing
                yield best, f"fused {tile} split {best.splits}"
        if self.runtime.library:
            yield planning.Product("cublas", None, 1, 0.0, ""), "cublas and a map"

    def epilogue_error(self, op: str, a: Any, b: Any, bias: Any, saved: Any, out: Any) -> float:
        a, b, bias, saved, out = (self.runtime.to_numpy(x) for x in (a, b, bias, saved, out))
        left = a.T if op == "weight_gradient" else a
        right = b.T if op == "forward" else b
        rows = np.unique(np.linspace(0, len(left) - 1, 64).astype(int))
        reference = left[rows].astype(np.float64) @ right.astype(np.float64)
        if op == "forward":
            reference = 1.0 / (1.0 + np.exp(-(reference + bias)))
        elif op == "hidden_error":
            reference *= saved[rows].astype(np.float64) * (1.0 - saved[rows].astype(np.float64))
        else:
            reference /= len(a)
        return float(np.linalg.norm(out[rows] - reference) / np.linalg.norm(reference))

    # -- the other kernels ----------------------------------------------------------

    def maps(self, shapes: Any = ((128, 128), (1 << 16, 64), (8192, 4096))) -> None:
        """BP3, BP1, gather and the updates: limited by bytes."""
        for dtype in (np.float32, np.float64):
            backend = CudaBackend(dtype, self.runtime)
            item = np.dtype(dtype).itemsize
            for m, n in shapes:
                delta, out = self.random((m, n), dtype), self.runtime.xp.empty((n,), dtype)
                backend.bias_gradient(delta, out)
                host = self.runtime.to_numpy(delta).astype(np.float64)
                error = _relative(
                    self.runtime.to_numpy(out), host.mean(axis=0), host.std() / m**0.5
                )
                seconds = self.clock(lambda d=delta, o=out, b=backend: b.bias_gradient(d, o))
                self.timed("bias_gradient", (m, n), dtype, "fused", seconds,
                           nbytes=(m * n + n) * item, flops=m * n, error=error)  # fmt: skip
                t, product = self.random((m, n), dtype), self.runtime.xp.empty((m, n), dtype)
                backend.hadamard(delta, t, product)
                reference = host * self.runtime.to_numpy(t)
                error = _relative(self.runtime.to_numpy(product), reference, 1.0)
                seconds = self.clock(lambda d=delta, t=t, p=product, b=backend: b.hadamard(d, t, p))
                self.timed("hadamard", (m, n), dtype, "fused", seconds,
                           nbytes=3 * m * n * item, flops=m * n, error=error)  # fmt: skip

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
                seconds = self.clock(
                    lambda b=backend, p=p, g=g, s=slots, o=optimizer, e=epoch: b.update(
                        p, g, s, o, e
                    )
                )
                moved = (3 + 2 * optimizer.slots) * layout.length * 4
                self.timed("update", (layout.length,), np.float32, name, seconds,
                           nbytes=moved, flops=2 * layout.length, error=error)  # fmt: skip

    def update_error(
        self, p: Parameters, g: Parameters, optimizer: Any, backend: Any, slots: Any, epoch: Any
    ) -> float:
        from backprop_gpu.backends.numpy import NumpyBackend

        host = NumpyBackend(np.float64)
        to_host = lambda x: self.runtime.to_numpy(x).astype(np.float64)  # noqa: E731
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
        for (sizes, batch), count, cluster, stored in itertools.product(
            shapes, members, residency.CLUSTERS, (4, 1)
        ):
            cut = residency.fit(
                sizes, batch, 4, 0, self.runtime.device, count, stored, clusters=(cluster,)
            )
            if isinstance(cut, str):
                self.write(op="resident", shape=(*sizes, batch), plan=f"{cluster} blocks",
                           members=count, stored=_STORED[stored], absent=cut)  # fmt: skip
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
        engine = ResidentCudaEngine(backend, net.sizes, net.activations, net.cost)
        engine.cut = lambda *_: cut  # type: ignore[method-assign]
        stored = _STORED[cut.stored]
        X = self.rng.random((rows, sizes[0]), np.float32)
        if stored == "uint8":
            X = (X < 0.5).astype(np.uint8)  # as large as they are otherwise
        Y = self.rng.random((rows, sizes[-1]), np.float32)
        sgd, order = optimizers.get("sgd"), self.rng.permutation(rows)
        flat = backend.asarray(np.tile(net._get_flat(), (count, 1)))

        def member(parameters: Parameters, steps: int) -> Member:
            settings = Hyperparameters(batch, sgd, sgd.coefficients(np.full(steps, 0.5), 0))
            return Member(parameters, (), order[: steps * batch], settings)

        def members(steps: int) -> list[Member]:
            return [member(Parameters(net._layout, row), steps) for row in flat]

        arrays = backend.asarray(X, X.dtype), backend.asarray(Y)
        exact = net._parameters.flat
        before = exact.copy()
        checked = min(4, rows // batch)
        engine.run_members(members(checked), *arrays)
        net._reader().run_members(
            [member(net._parameters, checked)], X.astype(np.float64), Y.astype(np.float64)
        )
        got = self.runtime.to_numpy(flat)
        error = float(np.abs(got - exact).max() / np.abs(exact - before).max())
        launch, once, epochs = self.runtime.launch, getattr(self.clock, "once", _wall), []
        steps = rows // batch

        def timed(*arguments: Any) -> None:
            epochs.append(once(lambda: launch(*arguments)))

        self.runtime.launch = timed
        try:
            for _ in range(repeats):
                engine.run_members(members(steps), *arrays)
        finally:
            self.runtime.launch = launch
        self.timed(
            "resident", (*sizes, batch), np.float32, str(cut), [x / steps for x in epochs],
            flops=count * planning.step_flops(sizes, batch), error=error, members=count,
            cluster=cut.cluster, stored=stored, steps=steps,
            expected_us=round(cut.seconds * 1e6, 3),
        )  # fmt: skip

    # -- training -------------------------------------------------------------------

    def training(
        self, peers: Any = None, chosen: Any = None, device: Any = "cuda", budget: float = 150.0
    ) -> None:
        """The suite of `backprop-gpu bench` on this device: whole steps beside other libraries."""
        from . import suite
        from .peers.agreement import disagreement
        from .peers.registry import PEERS

        settings = replace(suite.FULL, seconds=0.1, budget=budget, first_steps=False)
        for record in suite.run(
            list(PEERS.values()) if peers is None else peers,
            suite.cases() if chosen is None else chosen,
            device,
            settings,
            {},
            disagreement=disagreement,
        ):
            self.write(op="training", **record)


def _wall(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
                    options = {"epochs": 1, "batch_size": 7, "learning_rate": 0.01}
                    net.fit(X, y, optimizer=optimizer, engine="resident", **options)


#: What is recorded, most worth first, and the seconds that each may take.
STAGES = {
    "gpu tests": 150, "ceilings": 30, "resident": 60, "training": 200, "maps": 30, "updates": 30,
    "compute-sanitizer memcheck": 60, "compute-sanitizer racecheck": 60, "products": 90,
}  # fmt: skip
_PYTHON = [sys.executable, "-m"]
#: A line that xdist writes for a test.
_OUTCOME = re.compile(r"\] (PASSED|FAILED|ERROR|SKIPPED) (\S+)")


def gpu_tests(recorder: Recorder) -> None:
    # Most of the time goes into compiling, which several processes share.
    log = recorder.path.with_name("gpu_tests.log")
    with log.open("w") as file:  # which holds what they printed, should they be stopped
        run = subprocess.Popen(
            [*_PYTHON, "pytest", "-v", "-s", "--tell-at-once", "--tb=short", "-m", "gpu",
             "-p", "no:cacheprovider", "-n", "auto", "tests"],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = run.wait(max(1.0, recorder.stop - time.perf_counter() - 3.0))
        except subprocess.TimeoutExpired:
            code = None  # and what is left of it ends with this process
    outcomes = _OUTCOME.findall(log.read_text(errors="replace"))
    counts = Counter(outcome for outcome, _ in outcomes)
    failures = [name for outcome, name in outcomes if outcome in ("FAILED", "ERROR")]
    recorder.write(op="gpu tests", code=code, **counts, failures=failures)


def sanitizer(recorder: Recorder, tool: str) -> None:
    program = shutil.which("compute-sanitizer")
    if program is None:
        recorder.write(op=f"compute-sanitizer {tool}", absent="not on the PATH")
        return
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", *_PYTHON,
         f"{__package__}.gpu_record", "--sanitized-case"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    recorder.write(op=f"compute-sanitizer {tool}", code=done.returncode, result=summary[-1:])
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])


def run_stage(name: str, path: Path, common: Record, seconds: float) -> None:
    """One of `STAGES`, in this process."""
    runtime = CupyRuntime()
    recorder = Recorder(runtime, Clock(runtime, budget=0.05), path, common, seconds)
    if name == "gpu tests":
        stage = partial(gpu_tests, recorder)
    elif name.startswith("compute-sanitizer"):
        stage = partial(sanitizer, recorder, name.split()[1])
    else:
        stage = getattr(recorder, "residents" if name == "resident" else name)
    recorder.stage(name, stage)


def in_a_child(name: str, path: Path, common: Record, seconds: float) -> None:
    """One of `STAGES` in a process of its own, so that no fault of it, an illegal address or a
    kernel that hangs, reaches the next. What it has recorded and printed stays, however it ends.
    """
    arguments = ["--stage", name, "--out", str(path.parent), "--minutes", str(seconds / 60)]
    # A group of its own: pytest's workers and what a sanitizer watches end with it.
    child = subprocess.Popen(
        [*_PYTHON, f"{__package__}.gpu_record", *arguments, "--common", json.dumps(common)],
        start_new_session=True,
    )
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="folder for gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=7.5, help="time for everything")
    parser.add_argument("--only", action="append", choices=STAGES, help="a stage; may be repeated")
    parser.add_argument("--commit", help="of this code, where git cannot tell")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--common", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--sanitized-case", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    path, seconds = arguments.out / records.GPU, arguments.minutes * 60
    if arguments.sanitized_case:
        sanitized_case()
        return 0
    if arguments.stage:
        run_stage(arguments.stage, path, arguments.common, seconds)
        return 0
    try:
        device = CupyRuntime().device
    except Exception as error:
        print(f"no usable CUDA device: {error}", file=sys.stderr)
        return 2
    import cupy

    common = records.environment() | {
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "driver": cupy.cuda.runtime.driverGetVersion(),
    }
    if arguments.commit:
        common |= {"commit": arguments.commit, "dirty": False}
    common["machine"]["gpu"] = device.name  # by which `explain` finds them
    for name in arguments.only or STAGES:
        left = begin + seconds - time.perf_counter()
        if left < 5:
            records.append(path, [common | {"op": name, "skipped": "out of time"}])
            continue
        in_a_child(name, path, common, min(left, STAGES[name]))
    print(f"{path}: {time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
