"""`from_keras`: a file of Keras' as a `Network`, without Keras, and with nothing in it executed."""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .. import reading
from ..activations import LeakyRelu
from ..costs import Cost
from ..imports import optional
from ..model_file import naming
from ..network import Network
from .chain import Chain, Unsupported

Array = np.ndarray
Config = dict[str, Any]

#: The most bytes of the description of the layers.
_JSON = 2**24


def from_keras(
    path: Any, *, cost: str | Cost | None = None, backend: str = "auto", seed: int | None = None
) -> Network:
    """The network in a file of Keras', with a copy of its parameters.

    Parameters
    ----------
    path : path
        A ``.keras`` of Keras 3, or the older ``.h5`` of a whole model: a Sequential, or a
        Functional that is one layer after another. Dense with its activation; Activation, ReLU,
        LeakyReLU (of slope 0.01), ELU and Softmax as layers; Rescaling, Normalization and
        BatchNormalization become part of the Dense beside them; Dropout and other layers that only
        a training has, and a Flatten before the first Dense, are passed over.
    cost : str or Cost, optional
        Default: that which suits the last activation, such as "categorical_cross_entropy" for
        softmax.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        As in `Network`.
    seed : int, optional
        Makes the shuffling of training repeatable.

    Returns
    -------
    Network
        Of float64 where a weight is, else of float32. A Dense without bias has one of zeros.

    Raises
    ------
    ImportError
        Without the package h5py: ``pip install 'backprop_gpu[keras]'``.
    FileNotFoundError
    ValueError
        For what no `Network` is, a Lambda for instance, naming the layer; and for a file that is
        damaged, or would take more than 1 GiB.
    """
    h5py = optional("h5py", "keras", "from_keras")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {type(path).__name__}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of Keras' at {path}")
    with naming(path), _damage_told():
        if zipfile.is_zipfile(path):
            config, data = _unpacked(path)
            with _hdf5(h5py, data) as file:
                chain, precise = _read(config, _KerasWeights(h5py, file))
        else:
            if path.stat().st_size > reading.MAX_BYTES:
                raise ValueError(f"more than the {reading.MAX_BYTES:,} bytes that are read")
            data = path.read_bytes()
            _check_heaps(data)
            with _hdf5(h5py, data) as file:
                text = _text(file.attrs.get("model_config"), "model_config")
                chain, precise = _read(_parsed(text), _LegacyWeights(h5py, file))
        return chain.network(cost, backend, seed, precise)


@contextmanager
def _damage_told() -> Iterator[None]:
    """Whatever the libraries for zip and HDF5 make of damage becomes a ValueError."""
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except (
        OSError, EOFError, RuntimeError, KeyError, TypeError, AttributeError, IndexError,
        OverflowError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"damaged, or no model of Keras': {error}") from error


# -- the zip ------------------------------------------------------------------------------------


def _unpacked(path: Path) -> tuple[Config, bytes]:
    """The description of the layers, and the bytes of their weights."""
    with zipfile.ZipFile(path) as archive:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
            if ".." in parts or parts[:1] == ("/",):
                raise ValueError(f"it holds {entry.filename[:80]!r}, which leads out of it")
            if entry.filename in entries:
                raise ValueError(f"it holds {entry.filename[:80]!r} twice")
            entries[entry.filename] = entry
        config = _member(archive, entries, "config.json", _JSON)
        weights = _member(archive, entries, "model.weights.h5", reading.MAX_BYTES)
    return _parsed(_text(config, "config.json")), weights


def _member(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, limit: int
) -> bytes:
    if name not in entries:
        raise ValueError(f"it holds no {name}: no .keras of Keras 3")
    entry = entries[name]
    if entry.file_size > limit:
        raise ValueError(f"{name} would take {entry.file_size:,} bytes, more than {limit:,}")
    if entry.file_size > reading.INFLATION * (entry.compress_size + 1):
        raise ValueError(f"{name} cannot be as long as it says")
    with archive.open(entry) as file:
        data = file.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise ValueError(f"{name} is cut short")
    return data


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode()  # or UnicodeDecodeError, a ValueError
    if not isinstance(value, str):
        raise ValueError(f"no model of Keras': it has no {what}")
    if len(value) > _JSON:
        raise ValueError(f"{what} has {len(value):,} characters, more than {_JSON:,}")
    return value


def _parsed(text: str) -> Config:
    try:
        config = json.loads(text)
    except RecursionError:
        raise ValueError("its description is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its description is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError("its description is no object")
    return config


# -- HDF5 ---------------------------------------------------------------------------------------


def _hdf5(h5py: Any, data: bytes) -> Any:
    """A file in memory, to read."""
    return h5py.File(h5py.h5f.open_file_image(data))


def _check_heaps(data: bytes) -> None:
    """Refuse heaps of texts that HDF5's library would go round in for ever.

    A global heap is "GCOL", its version, 1, three zeros and its size, and objects one after
    another: 8 bytes, the size of what follows and that, filled up to a multiple of 8; the last one
    has number 0, and its size counts its head (HDF5 File Format Specification, III.E). Attributes
    of variable length lie there: of a .keras none is read.
    """
    head = b"GCOL\x01\0\0\0"
    start = data.find(head)
    while start >= 0:
        end = start + int.from_bytes(data[start + 8 : start + 16], "little")
        at = start + 16
        while at + 16 <= end <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16], "little")
            is_last = data[at : at + 2] == b"\0\0"
            if is_last and size < 16:
                break
            at += size if is_last else 16 + -(-size // 8) * 8
        if not end - 16 < at <= end <= len(data):
            raise ValueError("damaged: a heap in it has no end")
        start = data.find(head, start + 8)


# -- weights ------------------------------------------------------------------------------------


class _Weights:
    """The arrays in an HDF5 file, each read only where it is what it should be."""

    def __init__(self, h5py: Any, file: Any) -> None:
        self._h5py, self._file, self._taken = h5py, file, 0

    def _found(self, group: Any, name: str) -> Any:
        """A member of a group, by hard links alone: others may lead out of the file."""
        for part in name.split("/"):
            if part in ("", ".", "..") or not isinstance(group, self._h5py.Group):
                raise ValueError(f"no weights at {name[:80]!r}")
            link = group.get(part, getlink=True)
            if link is None:
                raise ValueError(f"no weights at {name[:80]!r}")
            if not isinstance(link, self._h5py.HardLink):
                raise ValueError(f"{part[:80]!r} is a link to somewhere else")
            group = group[part]
        return group

    def _array(self, dataset: Any, what: str) -> Array:
        if not isinstance(dataset, self._h5py.Dataset):
            raise ValueError(f"{what} is no array")
        if dataset.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"{what} is of {dataset.dtype}, not of floating-point numbers")
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        self._taken += size
        if self._taken > reading.MAX_BYTES:
            raise ValueError(f"{what} and those before take more than {reading.MAX_BYTES:,} bytes")
        filters = dataset.id.get_create_plist().get_nfilters()
        if dataset.external or dataset.is_virtual or filters:
            raise ValueError(f"{what} does not lie in the file as it is")
        if dataset.id.get_storage_size() < size:
            raise ValueError(f"{what} of shape {dataset.shape} is not there as a whole")
        array = np.asarray(dataset[()])
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def of(self, kind: str, name: str) -> list[Array]:
        """Those of the next layer of a kind, which has this name."""
        raise NotImplementedError


class _KerasWeights(_Weights):
    """Of model.weights.h5: layers/dense_1/vars/0, the second Dense whatever its name."""

    def __init__(self, h5py: Any, file: Any) -> None:
        super().__init__(h5py, file)
        self._counts: dict[str, int] = {}

    def of(self, kind: str, name: str) -> list[Array]:
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        place = f"layers/{_GROUPS[kind]}{f'_{count}' if count else ''}/vars"
        group = self._found(self._file, place)
        names = sorted(group, key=lambda each: (len(each), each))
        if names != [str(i) for i in range(len(names))] or len(names) > 8:
            raise ValueError(f"{place} has other arrays than 0, 1, …")
        return [
            self._array(self._found(group, each), f"{place}/{each}")
            for each in names
            if kind != "Normalization" or each != "2"  # the count of its rows
        ]


#: How model.weights.h5 calls the kinds of layers that have weights.
_GROUPS = {
    "Dense": "dense", "Normalization": "normalization",
    "BatchNormalization": "batch_normalization",
}  # fmt: skip


class _LegacyWeights(_Weights):
    """Of a model's .h5: model_weights/<layer>, and some groups below it kernel, or kernel:0."""

    def of(self, kind: str, name: str) -> list[Array]:
        group = self._found(self._file, f"model_weights/{name}")
        for _ in range(8):
            parts = list(group)
            if len(parts) != 1 or not isinstance(self._found(group, parts[0]), self._h5py.Group):
                break
            group = self._found(group, parts[0])
        names = {part.partition(":")[0]: part for part in group}
        if len(names) < len(group) or set(names) - {*_LEGACY[kind], "count"}:
            raise ValueError(f"layer {name[:80]!r} has other weights than {_LEGACY[kind]}")
        found = [names[each] for each in _LEGACY[kind] if each in names]
        return [self._array(self._found(group, each), f"{name[:80]}/{each}") for each in found]


#: How the older files call the weights of each kind of layer, in their order.
_LEGACY = {
    "Dense": ("kernel", "bias"),
    "Normalization": ("mean", "variance"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


# -- layers -------------------------------------------------------------------------------------


def _read(model: Config, weights: _Weights) -> tuple[Chain, bool]:
    """The chain of all layers, and whether one has weights of float64."""
    kind, config = model.get("class_name"), model.get("config")
    if kind not in ("Sequential", "Functional", "Model"):
        raise ValueError(f"a Sequential or a Functional is read, and it is {str(kind)[:80]!r}")
    # Keras 2.0 has the list of a Sequential's layers itself.
    layers = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("its description has no list of layers")
    if kind != "Sequential":
        _check_chain(config, layers)
    reader = _LayerReader(weights)
    for layer in layers:
        reader.take(layer)
    return reader.chain, reader.precise


def _check_chain(config: Any, layers: list[Config]) -> None:
    """Refuse a Functional that is more than one layer after another."""
    before = None
    for layer in layers:
        name = layer.get("name")
        given = list(_sources(layer.get("inbound_nodes")))
        if given != ([] if before is None else [before]):
            listed = ", ".join(str(each)[:40] for each in given[:4]) or "nothing"
            raise Unsupported(
                _place(layer), f"it takes {listed}, and not just what the layer before it gives"
            )
        before = name
    ends = config.get("output_layers")
    if [each for each in _flat(ends) if isinstance(each, str)] != [before]:
        raise ValueError("it has other outputs than those of its last layer")


def _sources(nodes: Any) -> Iterator[Any]:
    """The names of the layers whose outputs a layer takes, one for each that it takes."""
    if isinstance(nodes, dict):
        history = nodes.get("keras_history")
        if isinstance(history, list):
            yield history[0] if history else None
            return
        nodes = list(nodes.values())
    if isinstance(nodes, list):
        if len(nodes) in (3, 4) and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield nodes[0]  # of Keras 2: [name, node, tensor, keywords]
            return
        for each in nodes:
            yield from _sources(each)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _place(layer: Config) -> str:
    config = layer.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return f"layer {str(name)[:60]!r} ({str(layer.get('class_name'))[:40]})"


class _LayerReader:
    """Takes layer after layer."""

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights
        self.chain = Chain()
        self.precise = False
        #: Whether a row is known to be more than a row of numbers.
        self._deep = False

    def take(self, layer: Config) -> None:
        kind, place, config = layer.get("class_name"), _place(layer), layer.get("config")
        if not isinstance(kind, str) or not isinstance(config, dict):
            raise Unsupported(place, "it has no description")
        module = str(layer.get("module", "keras"))
        registered = layer.get("registered_name")
        if registered not in (None, kind) or module.partition(".")[0] != "keras":
            raise Unsupported(place, "it is a class of somebody's own")
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if isinstance(shape, list) and not self.chain.layers:
            self._deep = len(shape) != 2
        if kind in _OF_TRAINING:
            return
        if kind == "Flatten":
            if self._deep and config.get("data_format") == "channels_first":
                raise Unsupported(place, "it puts the channels last before")
            self._deep = False
            return
        take = _KINDS.get(kind)
        if take is None:
            raise Unsupported(place, "a Network has nothing like it")
        take(self, place, config)

    def _numbers(self, kind: str, place: str, config: Config, count: int) -> list[Array]:
        found = self._weights.of(kind, str(config.get("name")))
        if len(found) != count:
            raise Unsupported(place, f"it has {len(found)} weights, not {count}")
        self.precise |= any(array.dtype == np.float64 for array in found)
        return found

    def _check_flat(self, place: str) -> None:
        if self._deep:
            raise Unsupported(place, "its rows are not flat: a Flatten must come before it")

    def dense(self, place: str, config: Config) -> None:
        self._check_flat(place)
        biased = config.get("use_bias", True) is True
        found = self._numbers("Dense", place, config, 2 if biased else 1)
        if found[0].ndim != 2 or found[0].shape[1] != config.get("units"):
            raise Unsupported(place, f"weights of shape {found[0].shape}")
        self.chain = self.chain.linear(place, found[0].T, found[1] if biased else None)
        self.activation(place, config)

    def activation(self, place: str, config: Config) -> None:
        told = config.get("activation")
        if isinstance(told, dict):  # a layer, as Dense(activation=LeakyReLU(0.01))
            kind, inner = told.get("class_name"), told.get("config")
            take = _KINDS.get(kind) if isinstance(kind, str) else None
            if take not in _SIGMAS or not isinstance(inner, dict):
                raise Unsupported(place, f"activation {str(kind)[:40]!r} is not known here")
            take(self, place, inner)
            return
        if told in (None, "linear"):
            return
        if told == "leaky_relu":
            raise Unsupported(place, "its leaky_relu has slope 0.2, and a Network's has 0.01")
        if told not in _ACTIVATIONS:
            raise Unsupported(place, f"activation {str(told)[:40]!r} is not known here")
        self._activate(place, _ACTIVATIONS[told])

    def _activate(self, place: str, name: str) -> None:
        self.chain = self.chain.activation(place, name)

    def relu(self, place: str, config: Config) -> None:
        slope = config.get("negative_slope", 0.0) or 0.0
        if config.get("max_value") is not None or config.get("threshold", 0.0) not in (0.0, None):
            raise Unsupported(place, "it has a max_value or a threshold")
        self._sloped(place, slope) if slope else self._activate(place, "relu")

    def leaky_relu(self, place: str, config: Config) -> None:
        self._sloped(place, config.get("negative_slope", config.get("alpha", 0.3)))

    def _sloped(self, place: str, slope: Any) -> None:
        if not isinstance(slope, (int, float)) or not math.isclose(
            slope, LeakyRelu.slope, rel_tol=1e-6
        ):
            raise Unsupported(place, f"its slope is {str(slope)[:20]}, and a Network's is 0.01")
        self._activate(place, "leaky_relu")

    def elu(self, place: str, config: Config) -> None:
        if config.get("alpha", 1.0) != 1.0:
            raise Unsupported(place, f"its alpha is {str(config['alpha'])[:20]}, not 1")
        self._activate(place, "elu")

    def softmax(self, place: str, config: Config) -> None:
        if config.get("axis", -1) not in (-1, 1):
            raise Unsupported(place, f"its axis is {str(config['axis'])[:20]}, not -1")
        self._activate(place, "softmax")

    def rescaling(self, place: str, config: Config) -> None:
        scale, offset = (_vector(place, config.get(name)) for name in ("scale", "offset"))
        if self._deep and scale.size + offset.size > 2:
            self._check_flat(place)
        self.chain = self.chain.affine(place, scale)
        if offset.any():
            self._shift(place, offset)

    def _shift(self, place: str, offset: Array) -> None:
        if self.chain.width is None and self.chain.weight is None:
            # Its length is that of the weights to come.
            raise Unsupported(place, "it shifts rows whose length the file does not say")
        self.chain = self.chain.affine(place, shift=offset)

    def normalization(self, place: str, config: Config) -> None:
        self._check_flat(place)
        if config.get("invert"):
            raise Unsupported(place, "it inverts")
        if config.get("mean") is not None:
            mean, variance = (_vector(place, config.get(each)) for each in ("mean", "variance"))
        else:
            mean, variance = self._numbers("Normalization", place, config, 2)
        deviation = np.maximum(np.sqrt(variance.astype(np.float64)), 1e-7).ravel()
        self.chain = self.chain.affine(place, 1.0 / deviation)
        self._shift(place, -mean.astype(np.float64).ravel() / deviation)

    def batch_normalization(self, place: str, config: Config) -> None:
        self._check_flat(place)
        axis = config.get("axis", -1)
        if (axis[0] if isinstance(axis, list) and len(axis) == 1 else axis) not in (-1, 1):
            raise Unsupported(place, f"its axis is {str(axis)[:20]}, not -1")
        scaled, centred = (config.get(name, True) is True for name in ("scale", "center"))
        found = self._numbers("BatchNormalization", place, config, 2 + scaled + centred)
        *rest, mean, variance = (array.astype(np.float64) for array in found)
        with np.errstate(all="ignore"):
            scale = 1.0 / np.sqrt(variance + config.get("epsilon", 1e-3))
        scale = scale * rest[0] if scaled else scale
        shift = (rest[-1] if centred else 0.0) - mean * scale
        self.chain = self.chain.affine(place, scale)
        self._shift(place, shift)

    def input(self, place: str, config: Config) -> None:
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if isinstance(shape, list) and len(shape) > 1 and not self.chain.layers:
            dims = shape[1:]
            if all(isinstance(dim, int) and dim > 0 for dim in dims):
                self.chain = Chain(math.prod(dims))


def _vector(place: str, value: Any) -> Array:
    """A number, or numbers, of the description."""
    if isinstance(value, dict):  # an array of NumPy's, as Keras writes it
        value = value.get("config", {}).get("value") if isinstance(value.get("config"), dict) else 0
    array = np.array(value)
    if array.dtype.kind not in "if" or array.size > 2**20:
        raise Unsupported(place, "its numbers are none")
    return np.asarray(array, np.float64).ravel()


#: Layers that do nothing once a model is trained, and those that leave rows alone.
_OF_TRAINING = frozenset((
    "Dropout", "GaussianDropout", "GaussianNoise", "AlphaDropout", "SpatialDropout1D",
    "ActivityRegularization", "Identity",
))  # fmt: skip
_ACTIVATIONS = {
    "sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu", "elu": "elu", "gelu": "gelu",
    "silu": "silu", "swish": "silu", "softplus": "softplus", "exponential": "exponential",
    "softmax": "softmax",
}  # fmt: skip
_KINDS: dict[str, Callable[[_LayerReader, str, Config], None]] = {
    "InputLayer": _LayerReader.input,
    "Dense": _LayerReader.dense,
    "Activation": _LayerReader.activation,
    "ReLU": _LayerReader.relu,
    "LeakyReLU": _LayerReader.leaky_relu,
    "ELU": _LayerReader.elu,
    "Softmax": _LayerReader.softmax,
    "Rescaling": _LayerReader.rescaling,
    "Normalization": _LayerReader.normalization,
    "BatchNormalization": _LayerReader.batch_normalization,
}
_SIGMAS = (_LayerReader.relu, _LayerReader.leaky_relu, _LayerReader.elu, _LayerReader.softmax)
