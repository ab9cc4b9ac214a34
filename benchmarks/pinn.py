"""A physics-informed network that solves Poisson's equation on a square; and PyTorch beside it.

    python -m backprop_gpu.benchmarks.pinn [--picture PICTURE.png]

Δu = f on (0, 1)², u = 0 on its boundary, with f such that u = sin πx sin 2πy. The network's loss is
the mean of (Δa - f)² over points inside and, weighed, of a² over points of the boundary (Raissi,
Perdikaris & Karniadakis 2019); SciPy's L-BFGS makes it small. L and its gradients are
`Network.laplacian_gradients`; in PyTorch `torch.autograd.grad`, ``create_graph=True``, twice, and
``backward()``; `torch.func.jvp` in `jvp` took three times as long. Both start from the same weights
and take the same number of steps, in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from backprop_gpu import Network, threads

SIZES = (2, 50, 50, 50, 50, 1)
#: How much the boundary counts beside the inside.
BOUNDARY = 100.0

#: w and b, flat -> L and its gradient.
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def solution(X: np.ndarray) -> np.ndarray:
    """u of points (m, 2), (m, 1)."""
    return np.sin(np.pi * X[:, :1]) * np.sin(2 * np.pi * X[:, 1:])


def source(X: np.ndarray) -> np.ndarray:
    """f = Δu."""
    return -5 * np.pi**2 * solution(X)


def points(inside: int, beside: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random points of the square, (inside, 2), and of each of its sides, (4 beside, 2)."""
    rng = np.random.default_rng(seed)
    t, ends = rng.random((4, beside)), np.repeat([0.0, 1.0], beside)
    sides = [np.stack([ends, t[:2].ravel()], 1), np.stack([t[2:].ravel(), ends], 1)]
    return rng.random((inside, 2)), np.concatenate(sides)


def network(seed: int = 1) -> Network:
    return Network(SIZES, activation=["tanh"] * 4 + ["identity"], dtype="float64", seed=seed,
                   backend="numpy", initial_weights="xavier")  # fmt: skip


def put(net: Network, flat: np.ndarray) -> None:
    """Replace w and b by those of a flat array."""
    shapes = [(n, k) for k, n in pairwise(net.sizes)] + [(n,) for n in net.sizes[1:]]
    parts = np.split(flat, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    depth = len(net.sizes) - 1
    net.weights, net.biases = arrays[:depth], arrays[depth:]


def flat_of(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in (*weights, *biases)])


def ours(net: Network, inside: np.ndarray, boundary: np.ndarray) -> Objective:
    """By `Network.laplacian_gradients` inside, and `gradients` of ½ a² on the boundary."""
    f, zeros, weight = source(inside), np.zeros((len(boundary), 1)), 2 * BOUNDARY

    def loss(rows: slice, a: np.ndarray, s: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        residual = s - f[rows]
        return (residual**2).sum() / len(f), np.zeros_like(a), 2 / len(f) * residual

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        put(net, flat)
        value, gradients = net.laplacian_gradients(inside, loss)
        value += weight * net.loss(boundary, zeros)
        edge = flat_of(*zip(*net.gradients(boundary, zeros), strict=True))
        return value, flat_of(*zip(*gradients, strict=True)) + weight * edge

    return objective


def pytorchs(net: Network, inside: np.ndarray, boundary: np.ndarray) -> Objective:
    """By PyTorch's autograd."""
    import torch

    arrays = (*net.weights, *net.biases)
    parameters: list[Any] = [torch.tensor(array, requires_grad=True) for array in arrays]
    depth = len(net.sizes) - 1
    x, edge = torch.tensor(inside, requires_grad=True), torch.tensor(boundary)
    f = torch.tensor(source(inside))

    def outputs(a: Any) -> Any:
        for l in range(depth):
            z = torch.nn.functional.linear(a, parameters[l], parameters[depth + l])
            a = torch.tanh(z) if l < depth - 1 else z
        return a

    def laplacian() -> Any:
        (slope,) = torch.autograd.grad(outputs(x).sum(), x, create_graph=True)
        seconds = [torch.autograd.grad(slope[:, k].sum(), x, create_graph=True) for k in range(2)]
        return seconds[0][0][:, :1] + seconds[1][0][:, 1:]

    sizes = [array.size for array in arrays]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            for p, part in zip(parameters, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
                p.copy_(torch.from_numpy(part.reshape(p.shape)))
                p.grad = None
        loss = (laplacian() - f).square().mean() + BOUNDARY * outputs(edge).square().mean()
        loss.backward()
        gradient = np.concatenate([p.grad.numpy().ravel() for p in parameters])
        return float(loss.detach()), gradient

    return objective


def solve(objective: Objective, start: np.ndarray, steps: int) -> tuple[np.ndarray, list[float]]:
    """The parameters after so many steps of L-BFGS, and the seconds of each of its passes."""
    from scipy.optimize import minimize

    seconds: list[float] = []

    def timed(flat: np.ndarray) -> tuple[float, np.ndarray]:
        begin = time.perf_counter()
        found = objective(flat)
        seconds.append(time.perf_counter() - begin)
        return found

    options = {"maxiter": steps, "maxfun": 10 * steps, "maxcor": 50, "ftol": 0.0, "gtol": 0.0}
    with threads.one_blas_thread:  # SciPy's vectors are short
        objective(start)  # what is done once: compiling, the first use of memory
        return minimize(timed, start, jac=True, method="L-BFGS-B", options=options).x, seconds


def grid(side: int = 101) -> np.ndarray:
    t = np.linspace(0.0, 1.0, side)
    return np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2)


def error(net: Network) -> float:
    """‖a - u‖ / ‖u‖ on a grid."""
    X = grid()
    u = solution(X)
    return float(np.linalg.norm(net.predict(X) - u) / np.linalg.norm(u))


def draw(net: Network, path: str) -> None:
    """The solution and its error."""
    from matplotlib.figure import Figure

    X = grid()
    a, side = net.predict(X), 101
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, values, title, colours in zip(
        figure.subplots(1, 2), (a, np.abs(a - solution(X))), ("a", "|a - u|"),
        ("RdBu_r", "viridis"), strict=True,
    ):  # fmt: skip
        image = axes.imshow(values.reshape(side, side).T, origin="lower", extent=(0, 1, 0, 1),
                            cmap=colours)  # fmt: skip
        axes.set_title(title)
        figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--picture", metavar="PICTURE", help="draw the solution and its error")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--inside", type=int, default=1600, help="points in the square")
    parser.add_argument("--beside", type=int, default=40, help="points of each side")
    parser.add_argument("--threads", type=int, help="of each library; by default its own choice")
    options = parser.parse_args(arguments)
    with threads.at_most(options.threads):
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Print a line a way."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    inside, boundary = points(options.inside, options.beside)
    net = network()
    start = flat_of(net.weights, net.biases)
    ways = {
        "backprop_gpu": ours(net, inside, boundary),
        "PyTorch": pytorchs(net, inside, boundary),
    }
    values = {name: objective(start) for name, objective in ways.items()}
    exact = values["PyTorch"][1]
    for name, objective in ways.items():
        off = np.abs(values[name][1] - exact).max() / np.abs(exact).max()
        flat, seconds = solve(objective, start, options.steps)
        put(net, flat)
        print(
            f"{name:13}{sum(seconds):6.2f} s, a pass {1e3 * np.median(seconds):5.2f} ms, at best "
            f"{1e3 * min(seconds):5.2f}; error {error(net):.1e}, first gradient off by {off:.0e}",
            flush=True,
        )
        if options.picture and name == "backprop_gpu":
            draw(net, options.picture)


if __name__ == "__main__":
    main()
