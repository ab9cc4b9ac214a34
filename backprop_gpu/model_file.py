"""Saved networks: a safetensors file with w1, b1, …, wL, bL and a description in its header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import activations, costs, validation
from .files import write_whole
from .model import Model
from .parameters import Layout, Parameters
from .precision import resolve
from .preprocessing import Preprocessing

FORMAT = "backprop_gpu"
VERSION = 1
#: Where the header holds what is done to data before the network, if anything is.
PREPROCESSING = "backprop_gpu.preprocessing"


class Saved(NamedTuple):
    """What a file holds: arguments of `Network`, w[1] … w[L], b[1] … b[L], and preprocessing."""

    arguments: dict[str, Any]
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    preprocessing: Preprocessing | None


def save(
    path: Any, model: Model, parameters: Parameters, preprocessing: Preprocessing | None
) -> None:
    """Write the network, the whole file or none of it."""
    import safetensors.numpy

    path = Path(path)
    for activation in model.activations:
        if not activation.builtin:
            activations.check_name(activation.name)
    if not model.cost.builtin:
        costs.check_name(model.cost.name)
    tensors: dict[str, np.ndarray] = {}
    views = zip(*model.layout.views(model.read(parameters)), strict=True)
    for l, (w, b) in enumerate(views, start=1):
        tensors[f"w{l}"], tensors[f"b{l}"] = w, b
    description = {
        "version": VERSION,
        "sizes": model.sizes,
        "activations": [activation.name for activation in model.activations],
        "cost": model.cost.name,
        "dtype": model.dtype.name,
    }
    if model.precision != model.dtype.name:
        description["precision"] = model.precision
    metadata = {FORMAT: json.dumps(description)}
    if preprocessing is not None:
        metadata[PREPROCESSING] = preprocessing.to_json()
    write_whole(path, safetensors.numpy.save(tensors, metadata))


@contextmanager
def naming(path: Any) -> Iterator[None]:
    """Errors name the file; their text, and those behind it, may be as long as that."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {validation.brief(error)}") from None


def load(path: Any) -> Saved:
    """Read a file written by `save`, checking every part before anything is made of it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    with naming(path):
        return _load(path)


def _load(path: Path) -> Saved:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            layout, names, cost, dtype, precision = _describe(file)
            preprocessing = _preprocessing(file, layout)
            tensors = _read(file, layout, dtype)
    except safetensors.SafetensorError as error:
        raise ValueError(f"cut short or not a safetensors file: {error}") from error
    layers = range(1, len(layout.sizes))
    arguments = {
        "sizes": layout.sizes, "activation": names, "cost": cost, "dtype": dtype,
        "precision": precision,
    }  # fmt: skip
    weights, biases = ([tensors[f"{kind}{l}"] for l in layers] for kind in "wb")
    return Saved(arguments, weights, biases, preprocessing)


def _describe(file: Any) -> tuple[Layout, list[str], str, np.dtype[Any], str]:
    """What the header says of the network: sizes, activations, cost, dtype and precision."""
    metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise ValueError("a safetensors file, but not a model saved by backprop_gpu")
    try:
        description = json.loads(metadata[FORMAT])
        version = description["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"damaged description: {error!r}") from error
    if type(version) is not int or version != VERSION:
        raise ValueError(f"format version {version!r}; this backprop_gpu reads version {VERSION}")
    try:
        sizes, names, cost = (description[key] for key in ("sizes", "activations", "cost"))
        dtype = validation.dtype(description["dtype"])
        precision = resolve(description.get("precision"), dtype)
        if not isinstance(sizes, list) or not isinstance(names, list):
            raise TypeError("sizes and activations must be lists")
        # Counted before anything is done for each layer: a short text can claim a million of them.
        layers, tensors = len(sizes) - 1, len(file.keys())
        if layers > tensors or len(names) > max(layers, 1):
            raise ValueError(
                f"{len(sizes)} sizes and {len(names)} activations, but {tensors} tensors"
            )
        layout = Layout(validation.sizes(sizes))
        unknown = [name for name in names if name not in activations.names()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"damaged description: {error!r}") from error
    if unknown:
        raise ValueError(
            f"it uses activation {unknown[0]!r}, which is not registered here: call "
            "activations.register first"
        )
    if cost not in costs.names():
        raise ValueError(
            f"it uses cost {cost!r}, which is not registered here: call costs.register first"
        )
    return layout, names, cost, dtype, precision


def _preprocessing(file: Any, layout: Layout) -> Preprocessing | None:
    """What is done to data before the network, if anything is."""
    text = (file.metadata() or {}).get(PREPROCESSING)
    if text is None:
        return None
    try:
        return Preprocessing.from_json(text, layout.sizes)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged preprocessing: {error}") from error


def _read(file: Any, layout: Layout, dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    """w1, b1, …, wL, bL, and nothing else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for l, pair in enumerate(zip(layout.weight_shapes, layout.bias_shapes, strict=True), start=1):
        shapes[f"w{l}"], shapes[f"b{l}"] = pair
    held = set(file.keys())
    if held != set(shapes):
        missing, other = sorted(set(shapes) - held)[:1], sorted(held - set(shapes))[:1]
        wrong = f"lacks {missing[0]!r}" if missing else f"holds {other[0]!r}, too"
        raise ValueError(f"it should hold w and b of {len(shapes) // 2} layers, but {wrong}")
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise ValueError(
                f"{name} does not fit layer {name[1:]}: expected shape {shape}, got {found}"
            )
        try:
            tensors[name] = file.get_tensor(name)
        except (AttributeError, TypeError) as error:  # BF16 and the like
            raise ValueError(f"{name} is of a type unknown to NumPy: {error}") from error
        if tensors[name].dtype != dtype:
            raise ValueError(f"{name} should be {dtype}, but is {tensors[name].dtype}")
    return tensors
