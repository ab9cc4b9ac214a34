"""Saved networks: a safetensors file with w1, b1, …, wL, bL and a description in its header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
#: Where the header of a checkpoint holds what else a training needs, and how the names of tensors
#: begin that are no network's parameters.
CHECKPOINT = "backprop_gpu.checkpoint"
TRAINING = "training."


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
    tensors = tensors_of(model.layout, model.read(parameters))
    write(path, tensors, metadata_of(model, preprocessing))


def metadata_of(model: Model, preprocessing: Preprocessing | None) -> dict[str, str]:
    """What a file's header says of a network: `load` makes it again by that.

    Raises
    ------
    ValueError
        For an activation or a cost with a name that no user's can have.
    """
    for activation in model.activations:
        if not activation.builtin:
            activations.check_name(activation.name)
    if not model.cost.builtin:
        costs.check_name(model.cost.name)
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
    return metadata


def tensors_of(layout: Layout, flat: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """w1, b1, …, wL, bL of a flat array, by their names in a file."""
    tensors: dict[str, np.ndarray] = {}
    for l, (w, b) in enumerate(zip(*layout.views(flat), strict=True), start=1):
        tensors[f"{prefix}w{l}"], tensors[f"{prefix}b{l}"] = w, b
    return tensors


def write(path: Any, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file, the whole file or none of it."""
    import safetensors.numpy

    write_whole(Path(path), safetensors.numpy.save(tensors, metadata))


@contextmanager
def naming(path: Any) -> Iterator[None]:
    """Errors name the file; their text, and those behind it, may be as long as that."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {validation.brief(error)}") from None


@contextmanager
def opened(path: Any, what: str) -> Iterator[Any]:
    """A safetensors file to read; errors name it.

    Raises
    ------
    FileNotFoundError
        With what it should be.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    with naming(path):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                yield file
        except safetensors.SafetensorError as error:
            raise ValueError(f"cut short or not a safetensors file: {error}") from error


def load(path: Any) -> Saved:
    """Read a file written by `save`, checking every part before anything is made of it.

    A checkpoint of a network is such a file, with tensors beside those of the network.
    """
    with opened(path, "model file") as file:
        layout, names, cost, dtype, precision = _describe(file)
        preprocessing = _preprocessing(file, layout, cost)
        held, shapes = set(file.keys()), shapes_of(layout)
        is_checkpoint = CHECKPOINT in (file.metadata() or {})
        if is_checkpoint:
            held = {name for name in held if not name.startswith(TRAINING)}
        if held != set(shapes):
            missing, other = sorted(set(shapes) - held)[:1], sorted(held - set(shapes))[:1]
            wrong = f"lacks {missing[0]!r}" if missing else f"holds {other[0]!r}, too"
            raise ValueError(
                f"it should hold w and b of {len(shapes) // 2} layers, but {wrong}"
                + (": a checkpoint of a population, for Population.fit" if is_checkpoint else "")
            )
        tensors = read_tensors(file, shapes, dtype)
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
    try:
        costs.get(cost)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"it uses cost {validation.brief(repr(cost))}, which is not registered here: call "
            "costs.register first"
        ) from error
    return layout, names, cost, dtype, precision


def _preprocessing(file: Any, layout: Layout, cost: str) -> Preprocessing | None:
    """What is done to data before the network, if anything is."""
    text = (file.metadata() or {}).get(PREPROCESSING)
    if text is None:
        return None
    *sizes, outputs = layout.sizes
    try:
        targets = costs.get(cost).targets_of(outputs)
        return Preprocessing.from_json(text, (*sizes, targets))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged preprocessing: {error}") from error


def shapes_of(layout: Layout, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of w1, b1, …, wL, bL."""
    shapes: dict[str, tuple[int, ...]] = {}
    for l, pair in enumerate(zip(layout.weight_shapes, layout.bias_shapes, strict=True), start=1):
        shapes[f"{prefix}w{l}"], shapes[f"{prefix}b{l}"] = pair
    return shapes


def read_tensors(
    file: Any, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]
) -> dict[str, np.ndarray]:
    """The tensors of these names, if they have these shapes and this dtype."""
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            l = name.rpartition(".")[2][1:]
            raise ValueError(f"{name} does not fit layer {l}: expected shape {shape}, got {found}")
        tensors[name] = read_tensor(file, name)
        if tensors[name].dtype != dtype:
            raise ValueError(f"{name} should be {dtype}, but is {tensors[name].dtype}")
    return tensors


def read_tensor(file: Any, name: str) -> np.ndarray:
    """The tensor of this name, if NumPy has its type."""
    try:
        tensor: np.ndarray = file.get_tensor(name)
    except (AttributeError, TypeError) as error:  # BF16 and the like
        raise ValueError(f"{name} is of a type unknown to NumPy: {error}") from error
    return tensor
