"""The planner's constants for a recorded GPU.

    python -m backprop_gpu.benchmarks.gpu_constants gpu.jsonl

Those of `backprop_gpu.planning` (launches, the library, each tile) and of
`backprop_gpu.residency` are fitted to the times that `gpu_record` has measured: the squares of
log(predicted / measured) become least. Printed are the old and the new ones, and by which factor
predictions are off, before and after. Nothing is written into the sources.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from .. import planning, records
from ..planning import products, residency
from ..records import Record
from .gpu_record import as_product

Constants = dict[str, float]
_MODULES = {
    "LAUNCH": products, "SUM_STEP": products, "TENSOR_SUM_STEP": products,
    "LIBRARY_LAUNCH": products, "LIBRARY_EFFICIENCY": products,
    "LIBRARY_TENSOR_EFFICIENCY": products,
    "PHASE": residency, "EFFICIENCY": residency,
    "EXCHANGE": residency, "LETTERS": residency, "LETTER_BYTES": residency,
}  # fmt: skip
_TILES = {f"tile {tile}": tile for tile in planning.TILES} | {
    f"tile {tile}{'' if precision == 'float32' else f', {precision}'}": tile
    for precision, tiles in planning.TENSOR_TILES.items()
    for tile in tiles
}
#: Of a tiled product; "fused" is what records called it until there was an engine of that name.
_TILED = re.compile(r"(?:tiled|fused) (.+?) split (\d+)")
_EPILOGUE = re.compile(r"cublas with (\w+)")
_ROUNDED = re.compile(r", (tf32|bf16)\b")
_THREADS = re.compile(r"of (\d+) threads")


def current_constants() -> Constants:
    """By name; of a tile its efficiency."""
    constants = {name: float(getattr(module, name)) for name, module in _MODULES.items()}
    return constants | {name: tile.efficiency for name, tile in _TILES.items()}


@contextmanager
def instead(constants: Mapping[str, float]) -> Iterator[None]:
    """The modules have these constants meanwhile; those of tiles are the caller's."""
    before = current_constants()
    try:
        _set(constants)
        yield
    finally:
        _set(before)


def _set(constants: Mapping[str, float]) -> None:
    for name, module in _MODULES.items():
        setattr(module, name, constants[name])
    residency.choose_as_stored.cache_clear()
    products.choose_product.cache_clear()


@dataclass(frozen=True)
class Timed:
    """A measurement, and what `planning` predicts for it with given constants, in seconds."""

    kind: str
    measured: float
    predict: Callable[[Mapping[str, float]], float]


def of_gpu(found: Sequence[Record], name: str) -> planning.Device:
    """The GPU of that name, as its newest record describes it.

    Raises
    ------
    ValueError
        If no record does.
    """
    for record in reversed(found):
        if record.get("gpu") == name and "properties" in record:
            about = record["properties"]
            capability = tuple(about["compute_capability"])
            clusters = tuple(map(tuple, about.get("clusters", ())))
            return planning.Device(
                **about | {"compute_capability": capability, "clusters": clusters}
            )
    if name == planning.H200.name:  # recorded before records described it
        return planning.H200
    raise ValueError(f"no record describes {name!r}: record it again")


def timed(found: Sequence[Record], device: planning.Device) -> list[Timed]:
    """The newest measurement of each product and of each epoch in one launch."""
    newest = {}
    for record in found:
        if record.get("gpu") == device.name and "median_us" in record:
            keys = ("op", "shape", "dtype", "plan", "members", "stored")
            newest[str([record.get(key) for key in keys]).replace(" planned", "")] = record
    read = {"resident": _epoch} | dict.fromkeys(
        ("forward", "hidden_error", "weight_gradient"), _product
    )
    kinds = [read[r["op"]](r, device) for r in newest.values() if r["op"] in read]
    return [one for one in kinds if one is not None]


def _product(record: Record, device: planning.Device) -> Timed | None:
    layout, result = as_product(record["op"], *record["shape"])
    sizes = (*result, np.dtype(record["dtype"]).itemsize, device)
    seconds = record["median_us"] * 1e-6
    match, rounded = _TILED.match(record["plan"]), _ROUNDED.search(record["plan"])
    precision = None if rounded is None else rounded[1]
    if match is None:
        found = _EPILOGUE.search(record["plan"])
        epilogue: Any = "" if found is None else found[1]
        return Timed(
            "cublas",
            seconds,
            lambda _: products.by_library(layout, *sizes, precision, epilogue).seconds,
        )
    name, splits = f"tile {match[1]}{rounded[0] if rounded else ''}", int(match[2])
    if name not in _TILES:  # of an older version
        return None

    def predict(constants: Mapping[str, float]) -> float:
        tile = replace(_TILES[name], efficiency=constants[name])
        return products.tiled(tile, splits, *sizes, precision).seconds

    return Timed("tiled", seconds, predict)


def _epoch(record: Record, device: planning.Device) -> Timed | None:
    *sizes, batch = record["shape"]
    stored = 1 if record["stored"] == "uint8" else 4
    threads = _THREADS.search(record["plan"])
    apart = record.get("apart")
    fit = partial(
        residency.choose, sizes, batch, 4, 0, device, record["members"], stored,
        clusters=None if apart else (record["cluster"],), apart=(apart,) if apart else None,
        threads=(int(threads[1]),) if threads else residency.THREADS,
    )  # fmt: skip
    if isinstance(fit(), str):
        return None

    def predict(_: Mapping[str, float]) -> float:
        cut = fit()
        assert not isinstance(cut, str)
        return cut.seconds

    return Timed("resident", record["median_us"] * 1e-6, predict)


def errors(measurements: Sequence[Timed], constants: Mapping[str, float]) -> np.ndarray:
    """log(predicted / measured)"""
    with instead(constants):
        return np.array([np.log(one.predict(constants) / one.measured) for one in measurements])


def fitted(measurements: Sequence[Timed]) -> Constants:
    """The constants with the least squared errors; those that nothing depends on stay."""
    old = current_constants()
    start = errors(measurements, old)
    moved = {name: errors(measurements, old | {name: 0.8 * old[name]}) for name in old}
    names = [name for name in old if (moved[name] != start).any()]

    def constants(x: np.ndarray) -> Constants:
        logs = zip(names, x - 1.0, strict=True)
        return old | {name: float(old[name] * np.exp(u)) for name, u in logs}

    # No efficiency is above 1. Cycles are rounded, so a step must be of whole ones.
    most = [np.log(1.0 / old[n]) if "EFFICIENCY" in n or "tile" in n else 5.0 for n in names]
    found = least_squares(
        lambda x: errors(measurements, constants(x)), np.ones(len(names)), jac="3-point",
        diff_step=0.03, bounds=(np.full(len(names), -5.0), 1.0 + np.array(most)),
    )  # fmt: skip
    return constants(found.x)


def report(measurements: Sequence[Timed], new: Constants) -> str:
    old = current_constants()
    lines = [f"{'constant':<26}{'now':>12}{'fitted':>12}"]
    lines += [f"{name:<26}{old[name]:>12.4g}{new[name]:>12.4g}" for name in old]
    lines += ["", f"{'off by a factor of':<22}{'now':>12}{'fitted':>12}{'records':>9}"]
    before, after = (abs(errors(measurements, constants)) for constants in (old, new))
    for kind in ("tiled", "cublas", "resident"):
        of_kind = np.array([one.kind == kind for one in measurements])
        if of_kind.any():
            for level in (50, 90):
                a, b = (np.exp(np.percentile(x[of_kind], level)) for x in (before, after))
                label = f"{kind}, {'median' if level == 50 else '90 %'}"
                lines.append(f"{label:<22}{a:>12.2f}{b:>12.2f}{of_kind.sum():>9}")
        else:
            lines.append(f"{kind}: no record, its constants stay")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("record", type=Path, nargs="?", default=records.RESULTS / records.GPU)
    parser.add_argument("--gpu", help="its name; default: that of the last record")
    arguments = parser.parse_args(argv)
    found: list[dict[str, Any]] = [r for r in records.read(arguments.record) if "gpu" in r]
    try:
        if not found:
            raise ValueError(f"{arguments.record} has no record of a GPU")
        device = of_gpu(found, arguments.gpu or found[-1]["gpu"])
        measurements = timed(found, device)
        if not measurements:
            raise ValueError(f"nothing that the constants predict was timed on {device.name}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{device.name}, {arguments.record}")
    print(report(measurements, fitted(measurements)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
