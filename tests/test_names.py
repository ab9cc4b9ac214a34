"""One name, one meaning: no two classes share one, but for those that other libraries gave."""

from __future__ import annotations

import ast
from collections import defaultdict

from machine import ROOT

#: Names that others have given, and the reason why several classes bear them.
SHARED = {
    "Network": "ours, and the book's two",
    "MLPClassifier": "ours, and what `accel` hands to a script in scikit-learn's place",
    "MLPRegressor": "as MLPClassifier",
}


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for folder in ("backprop_gpu", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.is_relative_to(ROOT / "backprop_gpu" / "benchmarks"):
                continue  # a link
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(path.relative_to(ROOT).as_posix())
    shared = {name: found for name, found in homes.items() if len(found) > 1}
    assert set(shared) == set(SHARED), shared
