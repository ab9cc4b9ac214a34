"""Forty trainings give what the record says: to the bit on a machine like the record's."""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import pytest

import recorded_trainings
from recorded_trainings import PARTS, TRAININGS, Training, differences, enough_cores, other_parts

RECORD = recorded_trainings.read()


def marked(training: Training) -> Any:
    marks = [pytest.mark.gpu] if "cuda" in training.parts else []
    return pytest.param(training, marks=marks, id=training.name)


def needs(part: str) -> None:
    if part in ("torch", "numba") and importlib.util.find_spec(part) is None:
        pytest.skip(f"{part} is not installed")
    if part == "numba" and os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        pytest.skip("NUMBA_DISABLE_JIT is set, and without it there is no resident loop")


@pytest.mark.parametrize("training", [marked(training) for training in TRAININGS])
def test_training_gives_what_it_gave(training: Training) -> None:
    for part in training.parts:
        needs(part)
    if not enough_cores(training):
        pytest.skip(f"it needs {training.cores} cores")
    bits = not other_parts(training.parts, RECORD)
    found = recorded_trainings.run(training)
    differ = differences(RECORD["trainings"][training.name], found, bits)
    assert not differ, "\n".join(differ)


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.gpu if part == "cuda" else ()) for part in PARTS]
)
def test_bits_are_compared(part: str) -> None:
    """Skips, and so says why, where trainings are held to a bound alone."""
    needs(part)
    if others := other_parts([part], RECORD):
        count = sum(part in training.parts for training in TRAININGS)
        pytest.skip(f"{count} trainings were held to a bound and not to their bits: {others[0]}")


def test_record_has_the_trainings_of_the_list() -> None:
    assert list(RECORD["trainings"]) == [training.name for training in TRAININGS]
    assert len(TRAININGS) == 41


def test_another_bit_and_another_number_are_told() -> None:
    recorded = RECORD["trainings"]["layered: momentum, steps of η, float64"]
    assert not differences(recorded, recorded, bits=True)

    other = copy.deepcopy(recorded)
    other["sha256"]["parameters"] = "another"
    assert differences(recorded, other, bits=True) == ["other bits of parameters"]
    assert not differences(recorded, other, bits=False)

    for what in ("parameters", "outputs", "history"):
        for factor, told in ((1.0 + 1e-15, False), (1.0 + 1e-10, True)):
            other = copy.deepcopy(recorded)
            if what == "history":
                *others, last = other["history"]["loss 0"].split()
                others.append((factor * float.fromhex(last)).hex())
                other["history"]["loss 0"] = " ".join(others)
            else:
                other[what][0]["norm"] = (factor * float.fromhex(other[what][0]["norm"])).hex()
            assert bool(differences(recorded, other, bits=False)) == told

    other = copy.deepcopy(recorded)
    other["history"]["loss 0"] += " 0x1p+0"
    assert differences(recorded, other, bits=False) == ["loss 0: 7 numbers, not 6"]
