"""The planner's constants from a record: from one that was made with known ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backprop_gpu import planning, records
from backprop_gpu.benchmarks import gpu_constants
from backprop_gpu.planning import residency

CARD = planning.Device("A card", (9, 0), 100, 1.5e9, 2e12, 227 * 1024)
KNOWN = gpu_constants.current_constants() | {
    "LAUNCH": 1.5e-6, "SUM_STEP": 0.3e-6, "LIBRARY_LAUNCH": 3e-6, "LIBRARY_EFFICIENCY": 0.7,
    "PHASE": 200.0, "EFFICIENCY": 0.5, "EXCHANGE": 1500.0, "LETTERS": 1500.0, "LETTER_BYTES": 48.0,
    "tile 128x128x8": 0.5, "tile 64x64x16": 0.45,
    "tile 32x32x32": 0.35, "tile 16x32x32": 0.2,
}  # fmt: skip


def untimed() -> list[dict[str, Any]]:
    common: dict[str, Any] = {"gpu": CARD.name, "properties": asdict(CARD)}
    found = []
    for op in ("forward", "hidden_error", "weight_gradient"):
        for shape in ((10, 30, 784), (512, 512, 784), (4096, 512, 512), (2048, 2048, 2048)):
            about = common | {"op": op, "shape": shape, "dtype": "float32"}
            plans = [f"tiled {tile} split 1" for tile in planning.TILES]
            plans += ["fused 32x32x32 split 4 planned"] if op == "weight_gradient" else []
            found += [about | {"plan": plan} for plan in (*plans, "cublas and a map")]
    for sizes in ((784, 30, 10), (64, 32, 32, 10)):
        for members in (1, 100):
            ways: list[dict[str, Any]] = [{"clusters": (n,)} for n in (1, 2, 4, 8)]
            for way in (*ways, *({"apart": (n,)} for n in residency.APART)):
                cut = residency.choose(sizes, 10, 4, 0, CARD, members, 4, **way)
                if not isinstance(cut, str):
                    apart = {"apart": cut.blocks} if cut.apart else {}
                    found.append(
                        common | apart
                        | {"op": "resident", "shape": (*sizes, 10), "dtype": "float32",
                           "plan": str(cut), "members": members, "cluster": cut.cluster,
                           "stored": "float32"}
                    )  # fmt: skip
    return found


def as_measured(constants: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    with gpu_constants.instead(constants):
        for record in untimed():
            (one,) = gpu_constants.timed([record | {"median_us": 1e6}], CARD)
            found.append(record | {"median_us": 1e6 * one.predict(constants)})
    return found


def test_known_constants_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, found = gpu_constants.current_constants(), as_measured(KNOWN)
    slow = [record | {"median_us": 1e5} for record in found]
    other = [record | {"gpu": "another card"} for record in slow]
    wrong = [{"gpu": CARD.name, "op": "forward", "failed": "error above 0.001; not timed"}]
    records.append(tmp_path / "gpu.jsonl", slow + other + found + wrong)  # the newest counts
    read = records.read(tmp_path / "gpu.jsonl")
    measurements = gpu_constants.timed(read, gpu_constants.of_gpu(read, CARD.name))
    assert len(measurements) == len(found)
    new = gpu_constants.fitted(measurements)
    assert new == pytest.approx(KNOWN, rel=0.05)
    assert abs(gpu_constants.errors(measurements, new)).max() < 0.02
    assert gpu_constants.main([str(tmp_path / "gpu.jsonl"), "--gpu", CARD.name]) == 0
    shown = capsys.readouterr().out
    assert f"LAUNCH                    {before['LAUNCH']:>12.4g}" in shown
    assert "tiled, median" in shown
    assert gpu_constants.current_constants() == before


def test_what_nothing_depends_on_stays(tmp_path: Path) -> None:
    found = [r for r in as_measured(KNOWN) if r["op"] != "resident" and "cublas" not in r["plan"]]
    new = gpu_constants.fitted(gpu_constants.timed(found, CARD))
    old = gpu_constants.current_constants()
    for name in ("LIBRARY_LAUNCH", "LIBRARY_EFFICIENCY", "PHASE", "EXCHANGE", "EFFICIENCY"):
        assert new[name] == old[name]
    assert new["LAUNCH"] == pytest.approx(KNOWN["LAUNCH"], rel=0.05)


def test_a_gpu_that_no_record_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.append(tmp_path / "gpu.jsonl", [{"gpu": "a card", "op": "forward"}])
    assert gpu_constants.main([str(tmp_path / "gpu.jsonl")]) == 2
    assert "no record describes 'a card'" in capsys.readouterr().err
