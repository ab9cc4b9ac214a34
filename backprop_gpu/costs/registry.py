"""The names of costs."""

from __future__ import annotations

from typing import Any

#: By name, the built-in costs and what `register` added.
REGISTRY: dict[str, Any] = {}


def check_name(name: str) -> None:
    """Refuse a name that a user's cost cannot have."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")
    if name in REGISTRY and REGISTRY[name].builtin:
        raise ValueError(f"{name!r} is a built-in cost; choose another name")
