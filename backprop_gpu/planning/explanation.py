"""What a step of training would run here, why, and how near it comes to what the machine allows.

The floor is the time that no program can beat: a step's operations at the rate of a large matrix
product, or its least bytes at the bandwidth of a large copy, whichever takes longer. Rates are the
device's own, or, for a CPU, those that `backprop-gpu bench --record` measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import html
from .cpu import step_flops
from .device import Device
from .plan import Plan, Work, least_bytes, step_work

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Rates:
    """What a machine can do at most.

    Parameters
    ----------
    product : float
        Of a large matrix product, in FLOP/s.
    bandwidth : float
        Of a large copy, in bytes/s.
    on_chip : int
        Bytes that stay on the chip.
    source : str
        Where these come from.
    """

    product: float
    bandwidth: float
    on_chip: int
    source: str


@dataclass(frozen=True)
class Explanation:
    """The work of one step, equation by equation; ``str`` of it is meant to be read.

    Parameters
    ----------
    sizes : tuple of int
        Neurons per layer, (n_0, …, n_L).
    batch_size : int
        Rows m of the mini-batch.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic.
    plan : Plan
        What runs, and why.
    work : tuple of Work
        Each equation's kernel, operations and bytes.
    flops, bytes : int
        Of the step: operations of its products, bytes that it has to move.
    rates : Rates or None
        Of this machine, where they are known.
    measured : float or None
        Seconds a step in the newest record of this shape and engine on such a machine.
    measured_when : str or None
        The day of that record.
    last_fit : str or None
        Where the time of the network's last `fit` went.
    """

    sizes: tuple[int, ...]
    batch_size: int
    dtype: str
    plan: Plan
    work: tuple[Work, ...]
    flops: int
    bytes: int
    rates: Rates | None
    measured: float | None
    measured_when: str | None
    last_fit: str | None = None

    @property
    def floor(self) -> float | None:
        """Seconds that a step takes at least; None where this machine's rates are not known."""
        if self.rates is None:
            return None
        return max(self.flops / self.rates.product, self.bytes / self.rates.bandwidth)

    @property
    def share(self) -> float | None:
        """Share of the floor that was reached: 1 is as fast as this machine can be."""
        if self.floor is None or self.measured is None:
            return None
        return self.floor / self.measured

    def __str__(self) -> str:
        lines = [f"{list(self.sizes)}, batch {self.batch_size}, {self.dtype}", str(self.plan), ""]
        width = 2 + max(len(work.kernel) for work in self.work)
        lines.append(f"{'equation':<18}{'kernel':<{width}}{'MFLOP':>10}{'MB':>10}")
        for work in self.work:
            lines.append(
                f"{work.label:<18}{work.kernel:<{width}}{work.flops / 1e6:>10,.3f}"
                f"{work.bytes / 1e6:>10,.3f}"
            )
        lines.append("")
        lines.append(
            f"a step: {self.flops / 1e6:,.3f} MFLOP in its products, "
            f"{self.bytes / 1e6:,.3f} MB at least"
        )
        if self.rates is None or self.floor is None:
            lines.append("floor: not known here; `backprop-gpu bench --record` measures the rates")
        else:
            arithmetic = self.flops / self.rates.product >= self.bytes / self.rates.bandwidth
            rate = (
                f"{self.rates.product / 1e9:,.0f} GFLOP/s"
                if arithmetic
                else f"{self.rates.bandwidth / 1e9:,.0f} GB/s"
            )
            lines.append(f"floor: {self.floor * 1e6:,.2f} µs, at {rate} ({self.rates.source})")
        if self.measured is None:
            lines.append("measured: no record of this shape on such a machine")
        else:
            share = "" if self.share is None else f", {self.share:.0%} of the floor"
            lines.append(
                f"measured: {self.measured * 1e6:,.2f} µs{share} (record of {self.measured_when})"
            )
        if self.last_fit is not None:
            lines.append(f"the last fit took {self.last_fit}")
        return "\n".join(lines)

    def least(self, work: Work) -> float | None:
        """Find the seconds that an equation takes at least, alone.

        Of what it reads and writes nothing moves where it fits on the chip, or where one kernel is
        the whole step.

        Parameters
        ----------
        work : Work
            One of ``self.work``.

        Returns
        -------
        float or None
            None where the rates of the device are not known.
        """
        if self.rates is None:
            return None
        together = self.plan.backend != "numpy" and self.plan.engine != "layered"
        stays = together or work.bytes <= self.rates.on_chip
        moving = 0.0 if stays else work.bytes / self.rates.bandwidth
        return max(work.flops / self.rates.product, moving)

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw how long each equation of a step takes, and the share of the floor.

        Predicted are the products that run as CUDA kernels of their own, each with the share of
        that which it takes at least (see `least`). Where neither a prediction nor the machine's
        rates are known, operations are drawn, and the axis says so. The title has the floor of
        the whole step, and the share of it that was measured.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With a bar an equation.

        Raises
        ------
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        from .. import pictures

        predicted = {label: product.seconds for label, product in self.plan.products}
        title = f"{list(self.sizes)}, batch {self.batch_size}, {self.dtype}, {self.plan.engine}"
        return pictures.step(
            ax,
            [work.label for work in self.work],
            [work.kernel for work in self.work],
            [work.flops for work in self.work],
            [predicted.get(work.label) for work in self.work],
            [self.least(work) for work in self.work],
            f"{title}\n{self._whole_step()}",
            "Explanation.plot()",
        )

    def _whole_step(self) -> str:
        """What is known of the whole step's time."""
        parts = [] if self.floor is None else [f"at least {self.floor * 1e6:,.3g} µs"]
        if self.plan.one_launch is not None:
            parts.append(f"predicted {self.plan.one_launch * 1e6:,.3g} µs")
        if self.measured is not None:
            share = "" if self.share is None else f", {self.share:.0%} of the floor"
            parts.append(f"measured {self.measured * 1e6:,.3g} µs{share}")
        return f"a step: {'; '.join(parts) or 'the rates of this machine are not known'}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the equations of a step, the floor, and the plan."""
        rows = [
            [work.label, work.kernel, f"{work.flops / 1e6:,.3f}", f"{work.bytes / 1e6:,.3f}"]
            for work in self.work
        ]
        found = "" if self.rates is None else f" ({self.rates.source})"
        last = [] if self.last_fit is None else [f"the last fit took {self.last_fit}"]
        return html.block(
            f"{list(self.sizes)}, batch {self.batch_size}, {self.dtype}: engine {self.plan.engine}",
            html.line(f"{self._whole_step()}{found}"),
            html.long_table(["equation", "kernel", "MFLOP", "MB"], rows),
            *map(html.line, last),
            html.details("plan", html.pre(self.plan, 1000)),
        )


def explain(
    sizes: Sequence[int],
    batch_size: int,
    dtype: Any,
    plan: Plan,
    device: Device | None,
    slots: int = 0,
    records: Path | None = None,
    last_fit: str | None = None,
) -> Explanation:
    """The explanation of a plan. ``records`` is a folder; by default that of the benchmarks."""
    found = _records(records)
    rates = (
        _device_rates(device, dtype.itemsize, plan.precision)
        if device
        else _recorded_rates(found, dtype.name)
    )
    measured = None
    if plan.precision == "float32":  # what the benchmarks train in
        measured = _newest(
            [record for record in found if f"engine {plan.engine}:" in (record.get("plan") or "")],
            device, kind="step", peer="ours", sizes=list(sizes), batch=batch_size, members=1,
        )  # fmt: skip
    on_chip = 0 if rates is None else rates.on_chip
    if device is not None and plan.engine == "resident":  # the planner found room for everything
        on_chip = sys.maxsize
    return Explanation(
        tuple(sizes),
        batch_size,
        dtype.name,
        plan,
        step_work(sizes, batch_size, dtype.itemsize, slots, plan),
        step_flops(sizes, batch_size),
        least_bytes(sizes, batch_size, dtype.itemsize, on_chip),
        rates,
        None if measured is None else measured["median_us"] * 1e-6,
        None if measured is None else measured["date"][:10],
        last_fit,
    )


def _records(folder: Path | None) -> list[dict[str, Any]]:
    from .. import records  # which few who train ask for

    paths = [(folder or records.RESULTS) / name for name in (records.BENCH, records.GPU)]
    return [
        record
        for path in paths
        if path.exists()
        for record in records.read(path)
        if "kind" in record and "machine" in record
    ]


def _device_rates(device: Device, itemsize: int, precision: str) -> Rates:
    peak = device.peak_rate(itemsize, precision)
    return Rates(peak, device.bandwidth, 0, f"peak of {device.name}")


def _recorded_rates(found: Sequence[dict[str, Any]], dtype: str) -> Rates | None:
    newest = _newest(found, None, kind="rates")
    if newest is None:
        return None
    machine, date = newest["machine"], newest["date"][:10]
    source = f"{machine['processor']}, {machine['cores']} cores, measured on {date}"
    return Rates(newest["products"][dtype], newest["bandwidth"], newest["on_chip"], source)


def _newest(
    found: Sequence[dict[str, Any]], device: Device | None, **fields: Any
) -> dict[str, Any] | None:
    """The newest record with these fields of such a machine: the GPU, or CPU and cores."""
    from .. import records  # which few who train ask for

    if device is None:
        fields |= {"device": "cpu"}
        machine = {"processor": records.processor(), "cores": os.cpu_count()}
    else:
        fields |= {"device": "cuda"}
        machine = {"gpu": device.name}
    matching = [
        record
        for record in found
        if all(record.get(name) == value for name, value in fields.items())
        and all(record["machine"].get(name) == value for name, value in machine.items())
    ]
    return max(matching, key=lambda record: record["date"], default=None)
