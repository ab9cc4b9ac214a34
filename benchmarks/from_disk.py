"""Rows on a disk against the same rows in memory: speed, and the most memory that is taken.

    python -m backprop_gpu.benchmarks.from_disk FOLDER --gigabytes 8

A process for each: one reads the rows by a memory map, the other has loaded them. The file is warm
in the system's page cache. Rounds take turns; printed are medians of rows a second, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from backprop_gpu import Network

FEATURES, ROUNDS = 784, 3


def make(path: Path, gigabytes: float) -> int:
    """Random rows of so many bytes; how many there are."""
    count = int(gigabytes * 1e9 / (4 * FEATURES))
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, FEATURES))
    rng = np.random.default_rng(0)
    for begin in range(0, count, 100_000):
        part = rows[begin : begin + 100_000]
        part[...] = rng.random(part.shape, np.float32)
    rows.flush()
    return count


def train(path: str, way: str, sizes: list[int], batch: int) -> None:
    """An epoch in this process: rows a second, and the peak of its memory in bytes."""
    X = np.load(path, mmap_mode="r" if way == "disk" else None)
    y = (np.arange(len(X)) % sizes[-1]).astype(np.uint8)
    network = Network(
        sizes, activation=["relu"] * (len(sizes) - 2) + ["softmax"],
        cost="categorical_cross_entropy", seed=1, backend="numpy",
    )  # fmt: skip
    network.fit(X[: 4 * batch], y[: 4 * batch], epochs=1, batch_size=batch, learning_rate=0.01)
    begin = time.perf_counter()
    network.fit(X, y, epochs=1, batch_size=batch, learning_rate=0.01)
    seconds = time.perf_counter() - begin
    text = Path("/proc/self/status").read_text()
    peak = int(text.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"rows": len(X) / seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[FEATURES, 128, 10])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return train(str(given.folder), given.way, given.sizes, given.batch)
    path = given.folder / "rows.npy"
    if not path.exists():
        print(f"{make(path, given.gigabytes):,} rows, {given.gigabytes:g} GB")
    found: dict[str, list[dict[str, float]]] = {"memory": [], "disk": []}
    sizes = list(map(str, given.sizes))
    for _ in range(given.rounds):
        for way, results in found.items():
            command = [sys.executable, "-m", "backprop_gpu.benchmarks.from_disk", str(path)]
            command += ["--way", way, "--batch", str(given.batch), "--sizes", *sizes]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(text))
    speed = {way: median(each["rows"] for each in results) for way, results in found.items()}
    for way, results in found.items():
        peak = max(each["peak"] for each in results) / 1e9
        ratio = speed[way] / speed["memory"]
        print(f"{way:7} {speed[way]:12,.0f} rows a second ({ratio:.2f}), {peak:.2f} GB at the most")


if __name__ == "__main__":
    main()
