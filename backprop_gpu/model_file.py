"""Saved networks: a safetensors file with w1, b1, …, wL, bL and a description in its header."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, costs, validation
from .parameters import Layout
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from .network import Network

FORMAT = "backprop_gpu"
VERSION = 1
#: Where the header holds what is done to data before the network, if anything is.
PREPROCESSING = "backprop_gpu.preprocessing"


def save(network: Network, path: Any) -> None:
    """Write the network, the whole file or none of it."""
    import safetensors.numpy

    path = Path(path)
    for activation in network.activations:
        if not activation.builtin:
            activations.check_name(activation.name)
    if not network.cost.builtin:
        costs.check_name(network.cost.name)
    tensors: dict[str, np.ndarray] = {}
    for l, (w, b) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        tensors[f"w{l}"], tensors[f"b{l}"] = w, b
    description = {
        "version": VERSION,
        "sizes": network.sizes,
        "activations": [activation.name for activation in network.activations],
        "cost": network.cost.name,
        "dtype": network.dtype.name,
    }
    metadata = {FORMAT: json.dumps(description)}
    if network.preprocessing is not None:
        metadata[PREPROCESSING] = network.preprocessing.to_json()
    write_whole(path, safetensors.numpy.save(tensors, metadata))


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename: never a half-written file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp keeps the file to its owner
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(cls: type[Network], path: Any, backend: str, seed: int | None) -> Network:
    """Read a file written by `save`, checking every part before a network is made of it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    metadata, tensors = _read(path)
    if FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a model saved by backprop_gpu")
    try:
        description = json.loads(metadata[FORMAT])
        version = description["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a damaged description: {error!r}") from error
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this backprop_gpu reads version {VERSION}"
        )
    try:
        layout = Layout(validation.sizes(description["sizes"]))
        dtype = validation.dtype(description["dtype"])
        names, cost = description["activations"], description["cost"]
        unknown = [name for name in names if name not in activations.names()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a damaged description: {error!r}") from error
    if unknown:
        raise ValueError(
            f"{path} uses activation {unknown[0]!r}, which is not registered here: call "
            "activations.register first"
        )
    if cost not in costs.names():
        raise ValueError(
            f"{path} uses cost {cost!r}, which is not registered here: call costs.register first"
        )
    _check_tensors(path, tensors, layout, dtype)
    preprocessing = None
    if PREPROCESSING in metadata:
        try:
            preprocessing = Preprocessing.from_json(metadata[PREPROCESSING], layout.sizes)
        except ValueError as error:
            raise ValueError(f"{path} has a damaged preprocessing: {error}") from error
    layers = range(1, len(layout.sizes))
    try:
        network = cls(
            layout.sizes, activation=names, cost=cost, dtype=dtype, backend=backend, seed=seed
        )
        network.weights = [tensors[f"w{l}"] for l in layers]
        network.biases = [tensors[f"b{l}"] for l in layers]
        network.preprocessing = preprocessing
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return network


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and tensors of a safetensors file."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is cut short or not a safetensors file: {error}") from error
    except (AttributeError, TypeError) as error:  # BF16 and the like
        raise ValueError(f"{path} holds tensors of a type unknown to NumPy: {error}") from error


def _check_tensors(
    path: Path, tensors: dict[str, np.ndarray], layout: Layout, dtype: np.dtype[Any]
) -> None:
    """Refuse tensors that are not the parameters of such a network, before one is made."""
    shapes: dict[str, tuple[int, ...]] = {}
    for l, pair in enumerate(zip(layout.weight_shapes, layout.bias_shapes, strict=True), start=1):
        shapes[f"w{l}"], shapes[f"b{l}"] = pair
    if set(tensors) != set(shapes):
        raise ValueError(f"{path} should hold {sorted(shapes)}, but holds {sorted(tensors)}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{path}: {name} does not fit layer {name[1:]}: expected shape {shape}, "
                f"got {tensor.shape}"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{path}: {name} should be {dtype}, but is {tensor.dtype}")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
