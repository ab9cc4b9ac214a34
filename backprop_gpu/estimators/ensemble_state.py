"""What an ensemble has learnt, in plain types: a pickle or a skops file names no class but it."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from ..model import Model
from ..planning import Choice
from ..population import Population
from ..training import History
from ..training.time_spent import TimeSpent
from .resampling import MemberRows

#: The attributes that are of classes of ours.
_OURS = ("population_", "_rows")


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """An estimator's attributes, those of our classes as dictionaries."""
    found = {name: value for name, value in state.items() if name not in _OURS}
    if "population_" in state:
        found["population_"] = _of_population(state["population_"])
    if "_rows" in state:
        found["_rows"] = dict(vars(state["_rows"]))
    return found


def from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes again, also of what was pickled with our classes."""
    found = dict(state)
    if isinstance(state.get("population_"), dict):
        found["population_"] = _population(state["population_"])
    if isinstance(state.get("_rows"), dict):
        found["_rows"] = MemberRows(**state["_rows"])
    return found


def _of_population(population: Population) -> dict[str, Any]:
    model = population.model
    state = population.__getstate__()
    histories = [each and asdict(each) for each in state["histories"]]
    return {
        "sizes": list(model.sizes),
        "activations": [sigma.name for sigma in model.activations],
        "cost": model.cost.name,
        "dtype": model.dtype.name,
        "precision": model.precision,
        "backend": model.choice.backend,
        "reason": model.choice.reason,
        "requested": model.requested,
        "rows": state["rows"],
        "generators": state["generators"],
        "histories": histories,
        "failed": [[i, failure] for i, failure in state["failed"].items()],
    }


def _population(plain: dict[str, Any]) -> Population:
    model = Model(
        plain["sizes"],
        activation=plain["activations"],
        cost=plain["cost"],
        dtype=plain["dtype"],
        precision=plain["precision"],
        backend="numpy",
    )
    # Where it came from may have had a device, which is not here.
    state = model.__getstate__()
    state |= {"choice": Choice(plain["backend"], plain["reason"]), "requested": plain["requested"]}
    model = object.__new__(Model)
    model.__setstate__(state)
    population = object.__new__(Population)
    population.__setstate__(
        {
            "model": model,
            "rows": plain["rows"],
            "generators": copy.deepcopy(plain["generators"]),
            "histories": [each and _history(each) for each in plain["histories"]],
            "failed": {i: failure for i, failure in plain["failed"]},
        }
    )
    return population


def _history(plain: dict[str, Any]) -> History:
    lists = {name: list(each) for name, each in plain.items() if isinstance(each, list)}
    return History(**(plain | lists | {"time_spent": TimeSpent(**plain["time_spent"])}))
