"""Forward and backward pass of `backprop_gpu.torch.MLP` beside the same nn.Sequential.

    python -m backprop_gpu.benchmarks.bench_torch [--sizes 512,512,512,512] [--batch 512]
        [--rounds 200] [--activations sigmoid,relu] [--repeats 3] [--threads N] [--device cpu|cuda]

Outputs and gradients of both must agree before either is timed. Then they take turns, on random
data; a ratio is formed within a round, and its median over the rounds is what counts. The whole is
repeated, for a busy machine shows itself in ratios that differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: How far outputs and gradients may differ, of the largest: ulps of float32 times √k, k = 512.
BOUND = 30 * 2.0**-23 * 512**0.5


def modules(sizes: list[int], activation: str, device: str) -> tuple[Any, Any]:
    """An MLP and the nn.Sequential with the same parameters."""
    from ..torch import MLP, from_torch, to_torch

    mlp = MLP(sizes, activation, seed=1)
    return mlp.to(device), to_torch(from_torch(mlp)).to(device)


def step_of(module: Any, x: Any, error: Any) -> Callable[[], None]:
    """A forward and a backward pass; nothing else."""
    parameters = list(module.parameters())

    def step() -> None:
        for p in parameters:
            p.grad = None
        module(x).backward(error)

    return step


def disagreement(mlp: Any, twin: Any, x: Any, error: Any) -> float:
    """The largest difference of outputs and of each gradient, in parts of the largest value."""
    found = []
    for module in (mlp, twin):
        module.zero_grad()
        y = module(x)
        y.backward(error)
        found.append([y.detach(), *(p.grad for p in module.parameters())])
    return max(float((s - t).abs().max() / t.abs().max()) for s, t in zip(*found, strict=True))


def alternate(
    steps: Sequence[Callable[[], None]], rounds: int, wait: Callable[[], None]
) -> np.ndarray:
    """Seconds of each step in each round, (rounds, steps); who goes first alternates."""
    seconds = np.empty((rounds, len(steps)))
    for r in range(-5, rounds):  # five to warm up; the last rows are overwritten
        for i in (range(len(steps)), reversed(range(len(steps))))[r % 2]:
            start = time.perf_counter()
            steps[i]()
            wait()
            seconds[r, i] = time.perf_counter() - start
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="512,512,512,512")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--activations", default="sigmoid,relu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="as PyTorch likes, unless given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)

    import torch

    torch.set_float32_matmul_precision("highest")  # no TF32
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sizes = [int(n) for n in options.sizes.split(",")]
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    print(
        f"PyTorch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, "
        f"float32, {sizes}, batch {options.batch}; medians of {options.rounds} rounds"
    )
    for activation in options.activations.split(","):
        mlp, twin = modules(sizes, activation, options.device)
        x = torch.randn(options.batch, sizes[0], device=options.device)
        error = torch.randn(options.batch, sizes[-1], device=options.device)
        off = disagreement(mlp, twin, x, error)
        if not off <= BOUND:
            raise SystemExit(f"{activation}: outputs or gradients differ by {off:.2g}")
        steps = [step_of(module, x, error) for module in (mlp, twin)]
        for _ in range(options.repeats):
            seconds = alternate(steps, options.rounds, wait)
            ours, theirs = 1e3 * np.median(seconds, axis=0)
            ratio = np.median(seconds[:, 0] / seconds[:, 1])
            best = 1e3 * seconds.min(axis=0)
            print(
                f"{activation:12} MLP {ours:8.3f} ms   nn.Sequential {theirs:8.3f} ms   "
                f"ratio {ratio:.3f}   best {best[0]:.3f} / {best[1]:.3f} ms   differ by {off:.1g}"
            )


if __name__ == "__main__":
    main()
