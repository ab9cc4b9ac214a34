"""The benchmark of dropout: what it trains, and what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu import SGD, Network, datasets
from backprop_gpu.benchmarks import dropout
from backprop_gpu.schedules import ExponentialDecay

HIDDEN = "12,7"


def test_what_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    arguments = ["--hidden", HIDDEN, "--epochs", "3", "--seeds", "2", "--results", str(results)]
    dropout.main([*arguments, "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert "handwritten digits" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(results.read_text())[HIDDEN]
    assert list(found) == list(dropout.WAYS)

    data = datasets.load(shuffle=0)
    X, X_val = (np.asarray(each, np.float32) for each in (data.X, data.X_val))
    for way, optimizer in (
        ("plain", SGD(momentum=0.9)),
        ("dropout", SGD(momentum=0.9)),
        ("dropout, max-norm", SGD(momentum=0.9, max_norm=3.0)),
    ):
        net = Network(
            [64, 12, 7, 10], activation=["relu", "relu", "softmax"], seed=1,
            cost="categorical_cross_entropy",
        )  # fmt: skip
        net.fit(
            X, data.y, epochs=3, batch_size=100, optimizer=optimizer,
            learning_rate=ExponentialDecay(dropout.RATES["800,800"][way], 0.95),
            dropout=0.0 if way == "plain" else 0.5, validation_data=(X_val, data.y_val),
        )  # fmt: skip
        assert net.history is not None
        assert found[way][1] == pytest.approx(net.history.val_accuracy, abs=0.01), way

    # What the file holds is not trained again.
    results.write_text(json.dumps({HIDDEN: {"plain": [[0.5, 0.75, 0.625]], "dropout": [[0.8]]}}))
    dropout.main(arguments)
    assert "| 12,7 | dropout | 80.00 (80.00 to 80.00) |" in capsys.readouterr().out


def test_table() -> None:
    found = {"9": {"plain": [[0.5, 0.9], [0.7, 0.6], [0.8, 0.8]], "dropout": [[0.95, 0.9]]}}
    lines = dropout.table(found).splitlines()
    assert lines[2] == "| 9 | plain | 80.00 (60.00 to 90.00) | 80.00 (70.00 to 90.00) | 100% |"
    assert lines[3] == "| 9 | dropout | 90.00 (90.00 to 90.00) | 95.00 (95.00 to 95.00) | 50% |"


def test_tuning_does_not_look_at_the_rows_that_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.load(shuffle=0)
    kept = dropout.without_test_rows(data)
    assert (len(kept.y), len(kept.y_val)) == (1151, 287)
    both = np.concatenate([kept.X_val, kept.X])
    np.testing.assert_array_equal(both, data.X)
    np.testing.assert_array_equal(np.concatenate([kept.y_val, kept.y]), data.y)

    monkeypatch.setattr(dropout, "TRIED", (1e-6, 0.1))
    dropout.main(["--tune", "--hidden", HIDDEN, "--epochs", "5", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 12,7 | 1e-06 | 0.1 |"
    ways = ["plain", "dropout", "dropout, max-norm 2", "dropout, max-norm 3"]
    for line, way in zip(lines[4:], ways, strict=True):
        name, slow, fast = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == way
        assert float(slow) < 30 < float(fast)
