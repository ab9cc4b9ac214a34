"""The model of how training scales over ranks, and its picture.

    python -m backprop_gpu.benchmarks.scaling PICTURE.svg

A step of b rows on R ranks, each with P operations and B bytes a second:

    t(R) = F / (R P) + 2 (R-1)/R G / B + 2 L α        efficiency = F / P / (R t(R))

F are the step's operations (`planning.step_flops`), G the gradient's bytes, L the layers and α a
message's latency. F is about 6 b and G itemsize times the parameters: what counts is b / R, the
rows of a rank, against P / B, and not the network. Nothing here is measured, and that a layer's
gradients travel while those below are made is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from backprop_gpu import planning


@dataclass(frozen=True)
class RanksOf:
    """What ranks have.

    Attributes
    ----------
    flops : float
        Operations a second of one rank, in products of this size.
    bandwidth : float
        Bytes a second that a rank sends while it gets as many.
    latency : float
        Seconds of a message.
    """

    name: str
    flops: float
    bandwidth: float
    latency: float


#: Round numbers; the GPU's flops are those of 8.47 ms for 8,192 rows (`planning`'s, for tf32).
MACHINES = (
    RanksOf("cores of one machine, MPI", 6e10, 1e10, 3e-6),
    RanksOf("machines of 16 cores, 25 Gbit/s", 1e12, 3e9, 2e-5),
    RanksOf("H100s, by host memory", 3.55e14, 8e9, 5e-5),
    RanksOf("H100s with NVLink", 3.55e14, 4.5e11, 1e-5),
)


def seconds_a_step(
    machine: RanksOf, sizes: Sequence[int], batch: int, ranks: int, itemsize: int = 4
) -> float:
    """t(R) of the model.

    Parameters
    ----------
    sizes : n_0 … n_L
    batch : int
        b, rows of all ranks.
    itemsize : int
        Bytes of a number.
    """
    gradient = itemsize * sum(k * n + n for k, n in pairwise(sizes))
    computes = planning.step_flops(sizes, batch) / ranks / machine.flops
    if ranks == 1:
        return computes
    sends = 2 * (ranks - 1) / ranks * gradient / machine.bandwidth
    return computes + sends + 2 * (len(sizes) - 1) * machine.latency


def efficiency(machine: RanksOf, sizes: Sequence[int], batch: int, ranks: int) -> float:
    """How much of R ranks' speed is used."""
    alone = seconds_a_step(machine, sizes, batch, 1)
    return alone / (ranks * seconds_a_step(machine, sizes, batch, ranks))


SIZES = (4096, 4096, 4096, 4096, 4096)


def draw(path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    rows = [2**i for i in range(2, 18)]
    colors = ("#1f5fa8", "#2a8050", "#b03060", "#d1602b")
    for machine, color in zip(MACHINES, colors, strict=True):
        found = [efficiency(machine, SIZES, 8 * each, 8) for each in rows]
        axis.plot(rows, found, color=color, linewidth=1.8, label=machine.name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("rows of a mini-batch for each of 8 ranks")
    axis.set_ylabel("efficiency (model)")
    axis.set_ylim(0, 1)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("picture", nargs="?", help="where to draw it")
    given = parser.parse_args()
    batch, ranks = 65_536, 8
    print(f"predicted, {list(SIZES)}, {batch} rows on {ranks} ranks:")
    for machine in MACHINES:
        seconds = seconds_a_step(machine, SIZES, batch, ranks)
        share = efficiency(machine, SIZES, batch, ranks)
        print(f"  {machine.name:34} {seconds * 1e3:9.2f} ms a step, efficiency {share:.2f}")
    if given.picture:
        draw(given.picture)


if __name__ == "__main__":
    main()
