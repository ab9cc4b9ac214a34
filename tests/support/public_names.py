"""The public names, as docs/reference.toml lists them."""

from __future__ import annotations

import functools
import importlib
import inspect
import tomllib
from typing import Any

from machine import ROOT

_REFERENCE = tomllib.loads((ROOT / "docs" / "reference.toml").read_text(encoding="utf-8"))
#: All that are listed.
NAMES: tuple[str, ...] = tuple(
    name for section in _REFERENCE["section"] for name in section["names"]
)
#: Where they are.
MODULES = tuple(dict.fromkeys(name.rpartition(".")[0] for name in NAMES))
#: Names in these modules that are for the library itself.
INTERNAL = tuple(
    f"{entry['module']}.{name}" for entry in _REFERENCE["internal"] for name in entry["names"]
)


def find(name: str) -> Any:
    """The object of a full name, "backprop_gpu.costs.Huber" say."""
    module, _, attribute = name.rpartition(".")
    found = importlib.import_module(module)
    if inspect.ismodule(getattr(found, attribute, None)) or not hasattr(found, attribute):
        raise AttributeError(f"{module} has no {attribute}")
    return getattr(found, attribute)


def offered(module: str) -> set[str]:
    """What a module has for others: `__all__`, or the classes and functions that it defines.

    Modules among them are left out: their names are listed under their own.
    """
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(found).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module
        ]
    return {
        name
        for name in names
        if not name.startswith("__") and not inspect.ismodule(getattr(found, name))
    }


def _function_of(member: Any) -> Any:
    """What a property, a method or the like is made of; None for any other attribute."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    if not inspect.isroutine(member):
        return None
    return getattr(member, "fn", member)  # scikit-learn's available_if


def _is_ours(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "backprop_gpu"


def members(kind: type) -> dict[str, type]:
    """Public methods and properties that our code defines, each with the class to read it in.

    That is the first in the order of inheritance in which it has a docstring: one that overrides
    another, and has none, does what that says.
    """
    found: dict[str, type] = {}
    documented = set()
    for owner in filter(_is_ours, kind.__mro__):
        for name, member in vars(owner).items():
            function = _function_of(member)
            if name.startswith("_") or function is None or not _is_ours(function):
                continue
            if name not in documented and (name not in found or function.__doc__):
                found[name] = owner
            if function.__doc__:
                documented.add(name)
    return found
