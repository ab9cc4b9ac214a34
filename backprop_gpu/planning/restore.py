"""Frozen dataclasses from what JSON holds of them, checked against their annotations."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def restored(kind: type[Kind], value: Any, where: str) -> Kind:
    """What ``dataclasses.asdict`` made `value` of. Nothing in it is executed.

    Parameters
    ----------
    kind : dataclass
        Of fields that are numbers, strings, booleans, None, tuples or such dataclasses.
    where : str
        What `value` is called, for the error.

    Raises
    ------
    ValueError
        Naming what does not fit, and what was expected.
    """
    found: Kind = _restored(kind, value, where)
    return found


def _restored(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError(f"{where} must hold {', '.join(names)}")
        hints = get_type_hints(kind)
        make: Any = kind
        return make(
            **{name: _restored(hints[name], value[name], f"{where}.{name}") for name in names}
        )
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r:.40}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{where} must hold {len(kinds)} values, got {len(value)}")
        return tuple(
            _restored(each, item, f"{where}[{i}]")
            for i, (each, item) in enumerate(zip(kinds, value, strict=True))
        )
    if get_origin(kind) is UnionType:  # of something and None
        (some,) = (each for each in arguments if each is not NoneType)
        return None if value is None else _restored(some, value, where)
    if get_origin(kind) is Literal:
        if value not in arguments:
            known = ", ".join(each or "an empty text" for each in arguments)
            raise ValueError(f"{where} must be one of {known}, got {value!r:.40}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r:.40}")
    return value
