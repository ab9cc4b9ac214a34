"""`from_onnx`: an ONNX model that is a chain of dense layers, as a `Network`.

Nodes are read, and none is run. Where one z goes into several nodes, as in z · sigmoid(z), they are
evaluated at a few numbers by the functions below, and the activation with those values is looked
for: exporters write gelu, silu and others in many ways.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import costs, model_file, reading
from ..costs import Cost
from ..imports import optional
from ..model_file import naming
from ..network import Network
from .chain import GRID, Chain, Unsupported, known_curve

Array = np.ndarray


def from_onnx(
    model: Any,
    *,
    output: str | None = None,
    cost: str | Cost | None = None,
    backend: str = "auto",
    seed: int | None = None,
) -> Network:
    """The network that an ONNX model is, with a copy of its parameters.

    Parameters
    ----------
    model : path or onnx.ModelProto
        One input (N, n_0), and a chain of Gemm, or MatMul and Add, with activations between them,
        as PyTorch, skl2onnx, Keras and `to_onnx` write it. Numbers that scale or shift columns or
        outputs (Add, Sub, Mul, Div, Scaler, BatchNormalization) become part of the layers beside
        them; Identity, Cast, Dropout, a Flatten before the first layer and, of classifiers, ZipMap
        and the pair [1 - p, p] are passed over. Constants may lie in other files of the same
        folder.
    output : str, optional
        Which output of the graph; default: the first whose elements are floating-point numbers.
    cost : str or Cost, optional
        Default: that of `to_onnx`'s network, else that which suits the last activation, such as
        "categorical_cross_entropy" for softmax.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        As in `Network`.
    seed : int, optional
        Makes the shuffling of training repeatable.

    Returns
    -------
    Network
        Of float64 where a weight is, else of float32. A layer without b has zeros.

    Raises
    ------
    ImportError
        Without the package onnx: ``pip install 'backprop_gpu[onnx]'``.
    FileNotFoundError
    ValueError
        For what is no such chain, naming the node; and for a file that is damaged, larger than
        1 GiB, or that refers to files outside of its folder. Nothing in it is executed.

    Warns
    -----
    UserWarning
        If the file was made of a table: what it says of the target is not in the network.
    """
    onnx = optional("onnx", "onnx", "from_onnx")
    folder = None
    if isinstance(model, onnx.ModelProto):
        name: Any = "the model"
    elif isinstance(model, (str, os.PathLike)):
        name = path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"no ONNX model at {path}")
        folder = path.parent
    else:
        raise TypeError(f"model must be a path or an onnx.ModelProto, got {type(model).__name__}")
    with naming(name):
        if folder is not None:
            model = _parsed(onnx, path)
        reader = _Reader(onnx, model, folder)
        chain = reader.chain(output)
        told = {entry.key: entry.value for entry in model.metadata_props}
        if cost is None and model_file.FORMAT in told:
            with suppress(ValueError, TypeError):  # of a user's that is not registered here
                cost = costs.get(told.get("cost", ""))
        network = chain.network(cost, backend, seed, reader.precise)
    if model_file.PREPROCESSING in told:
        warnings.warn(
            f"{name}: it was made of a table. The network read from it gives what is behind "
            "'outputs': a target of numbers is standardised, and classes have no names. Keep "
            "model.safetensors, which has both",
            UserWarning,
            stacklevel=2,
        )
    return network


def _parsed(onnx: Any, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if size > reading.MAX_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {reading.MAX_BYTES:,} that are read")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"cut short or not an ONNX model: {error}") from error
    if not model.graph.output:
        raise ValueError("cut short or not an ONNX model: it has no outputs")
    return model


@dataclass(frozen=True, eq=False)
class _Rows:
    """A value of the graph: what a chain gives, and a function of each of its numbers, perhaps.

    `curve` has that function's values at `GRID`, and `made` the place of the node that gave them;
    `flat`: whether a row is a row of numbers.
    """

    chain: Chain
    curve: Array | None = None
    flat: bool = True
    made: str = ""

    @property
    def values(self) -> Array:
        return GRID if self.curve is None else self.curve


class _Reader:
    """The nodes that lead to one output."""

    def __init__(self, onnx: Any, model: Any, folder: Path | None) -> None:
        self._onnx, self._folder, self._graph = onnx, folder, model.graph
        self.precise = False
        self._taken = 0
        self._opset = max(
            (each.version for each in model.opset_import if not each.domain), default=1
        )
        self._tensors = {each.name: each for each in self._graph.initializer}
        self._values: dict[str, Any] = {}
        self._consumers: dict[str, int] = {}
        self._floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
        if self._graph.sparse_initializer:
            raise ValueError("it has sparse constants")

    # -- the graph ------------------------------------------------------------------------------

    def chain(self, output: str | None) -> Chain:
        name = self._output(output)
        nodes = self._leading_to(name)
        for node in nodes:
            for given in node.input:
                self._consumers[given] = self._consumers.get(given, 0) + 1
        used = {given for node in nodes for given in node.input} | {name}
        inputs = [each for each in self._graph.input if each.name not in self._tensors]
        inputs = [each for each in inputs if each.name in used]
        if len(inputs) != 1:
            names = ", ".join(repr(each.name) for each in inputs[:4])
            raise ValueError(f"a Network has one input, and {name!r} depends on {names or 'none'}")
        self._values[inputs[0].name] = self._input(inputs[0])
        if inputs[0].type.tensor_type.elem_type not in (0, *self._floats):
            for node in nodes:
                if inputs[0].name in node.input and node.op_type != "Cast":
                    raise Unsupported(
                        _place(node), "it takes whole numbers: a Cast must come first"
                    )
        for node in nodes:
            value = self._evaluated(node)
            given = [each for each in node.output if each]
            if not given:
                raise Unsupported(_place(node), "it has no output")
            # Others, such as Dropout's mask, stay unknown.
            self._values[given[0]] = value
        value = self._values.get(name)
        if not isinstance(value, _Rows):
            raise ValueError(f"output {name!r} is no function of the input")
        return self._resolved(f"output {name!r}", value)

    def _output(self, wanted: str | None) -> str:
        outputs = {each.name: each for each in self._graph.output}
        if wanted is not None:
            if wanted not in outputs:
                listed = ", ".join(map(repr, list(outputs)[:8]))
                raise ValueError(f"it has no output {wanted!r}, but {listed}")
            return wanted
        kinds = self._onnx.TensorProto
        for name, each in outputs.items():
            kind = each.type.tensor_type.elem_type
            if each.type.HasField("sequence_type") or kind in (0, kinds.FLOAT, kinds.DOUBLE):
                return str(name)
        raise ValueError("it has no output of floating-point numbers")

    def _leading_to(self, name: str) -> list[Any]:
        """In the graph's order."""
        makers: dict[str, int] = {}
        for i, node in enumerate(self._graph.node):
            for made in node.output:
                if made and makers.setdefault(made, i) != i:
                    raise ValueError(f"two nodes make {made!r}")
        found: set[int] = set()
        waiting = [name]
        while waiting:
            i = makers.get(waiting.pop(), -1)
            if i >= 0 and i not in found:
                found.add(i)
                waiting += self._graph.node[i].input
        return [self._graph.node[i] for i in sorted(found)]

    def _input(self, info: Any) -> _Rows:
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type"):
            raise ValueError(f"input {info.name!r} is no tensor")
        if not kind.HasField("shape"):
            return _Rows(Chain())
        dims = [each.dim_value or None for each in kind.shape.dim]
        if len(dims) < 2 or any(dim is not None and dim < 0 for dim in dims):
            raise ValueError(f"input {info.name!r} must be rows (N, n_0), and its shape is {dims}")
        width = None if None in dims[1:] else math.prod(d for d in dims[1:] if d)
        return _Rows(Chain(width), flat=len(dims) == 2)

    # -- values -----------------------------------------------------------------------------------

    def _value(self, name: str, node: Any) -> Any:
        if name in self._tensors and name not in self._values:
            self._values[name] = self._array(self._tensors[name])
        if name not in self._values:
            raise Unsupported(_place(node), f"its input {name!r} is not known before it")
        return self._values[name]

    def _array(self, tensor: Any) -> Array:
        """The numbers of a constant, once its size is known to be what it says."""
        kinds = self._onnx.TensorProto
        types = {kinds.FLOAT: "<f4", kinds.DOUBLE: "<f8", kinds.INT64: "<i8", kinds.INT32: "<i4",
                 kinds.BOOL: "?", kinds.FLOAT16: "<f2"}  # fmt: skip
        what = f"constant {tensor.name[:80]!r}"
        if tensor.data_type not in types:
            raise ValueError(f"{what} is of type {tensor.data_type}, not float32 or float64")
        dtype = np.dtype(types[tensor.data_type])
        if any(dim < 0 for dim in tensor.dims):
            raise ValueError(f"{what} has shape {list(tensor.dims)}")
        size = math.prod(tensor.dims) * dtype.itemsize
        self._taken += size
        if self._taken > reading.MAX_BYTES:
            raise ValueError(f"{what} and those before take more than {reading.MAX_BYTES:,} bytes")
        if tensor.data_location == kinds.EXTERNAL:
            data = self._external(what, tensor, size)
            array = np.frombuffer(data, dtype).reshape(tensor.dims)
        else:
            stored = sum(
                len(field) for field in (
                    tensor.raw_data, tensor.float_data, tensor.double_data, tensor.int32_data,
                    tensor.int64_data,
                )
            )  # fmt: skip
            if stored < math.prod(tensor.dims):  # a number takes a byte at least
                raise ValueError(f"{what} of shape {list(tensor.dims)} has {stored} numbers")
            try:
                array = self._onnx.numpy_helper.to_array(tensor)
            except Exception as error:  # whatever it does with what does not fit
                raise ValueError(f"{what} is damaged: {error}") from error
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        return np.asarray(array)

    def _external(self, what: str, tensor: Any, size: int) -> bytes:
        """The bytes of a constant that lies in another file of the model's folder."""
        entries = {each.key: each.value for each in tensor.external_data}
        location = entries.get("location", "")
        if not isinstance(location, str):  # bytes that are no UTF-8
            raise ValueError(f"{what}: the place of its data is damaged")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(size)))
        except ValueError:
            raise ValueError(f"{what}: the place of its data is damaged") from None
        if self._folder is None:
            raise ValueError(f"{what} lies in another file: give the path of the model")
        if not location or "\0" in location:
            raise ValueError(f"{what} lies in {location!r}, outside of the model's folder")
        folder = Path(os.path.realpath(self._folder))
        path = Path(os.path.realpath(folder / location))
        if not path.is_relative_to(folder):
            raise ValueError(f"{what} lies in {location!r}, outside of the model's folder")
        if not path.is_file():
            raise ValueError(f"{what} lies in {location!r}, which is not there")
        if length != size or offset < 0 or offset + size > path.stat().st_size:
            raise ValueError(f"{what}: {location!r} is too short for it")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    # -- nodes ----------------------------------------------------------------------------------

    def _evaluated(self, node: Any) -> Any:
        kind, place = node.op_type, _place(node)
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
            raise Unsupported(place, f"its domain is {node.domain!r}")
        if kind == "Constant":
            return self._constant(node)
        attributes = self._attributes(node)
        values = [self._value(name, node) if name else None for name in node.input]
        if not values:
            raise Unsupported(place, "a Network has nothing like it")
        rows = [value for value in values if isinstance(value, _Rows)]
        if not rows:
            if kind == "Cast" and attributes.get("to") in self._floats:
                kind = "Identity"
            return _folded(place, kind, values, attributes)
        first = values[0]
        if kind in ("Identity", "ZipMap"):
            return first
        if kind == "Cast":
            if attributes.get("to") not in self._floats:
                raise Unsupported(place, "it makes other numbers than float32 or float64")
            return first
        if kind == "Dropout":
            training = values[2] if len(values) > 2 else None
            if isinstance(training, _Rows) or (training is not None and np.any(training)):
                raise Unsupported(place, "it drops activations: export the model for inference")
            return first
        if kind == "Concat":
            return self._pair(node)
        if kind in ("Flatten", "Reshape"):
            return self._reshaped(place, kind, values, attributes)
        if kind in ("Gemm", "MatMul"):
            return self._linear(place, kind, values, attributes)
        if kind in ("Scaler", "BatchNormalization"):
            return self._normalized(place, kind, values, attributes)
        if kind == "Softmax":
            axis = attributes.get("axis", -1 if self._opset >= 13 else 1)
            if axis not in (1, -1):
                raise Unsupported(place, f"its axis is {axis}, and a row's is 1")
            if not isinstance(first, _Rows) or not first.flat:
                raise Unsupported(place, "it does not take rows of numbers")
            before = self._resolved(place, first)
            return _Rows(before.activation(place, "softmax"))
        if kind in _CURVES:
            return self._elementwise(node, place, kind, values, attributes)
        raise Unsupported(place, "a Network has nothing like it")

    def _attributes(self, node: Any) -> dict[str, Any]:
        kinds = self._onnx.AttributeProto
        types = {"f": kinds.FLOAT, "i": kinds.INT, "s": kinds.STRING, "floats": kinds.FLOATS,
                 "ints": kinds.INTS}  # fmt: skip
        found = {}
        for each in node.attribute:
            field = _ATTRIBUTES.get(each.name)
            if field is not None:
                if each.type != types[field]:
                    raise Unsupported(_place(node), f"its {each.name} is of another type")
                found[each.name] = getattr(each, field)
        return found

    def _constant(self, node: Any) -> Array:
        for each in node.attribute:
            if each.name == "value":
                return self._array(each.t)
            if each.name in ("value_float", "value_floats"):
                of_one = each.name == "value_float"
                return np.array(each.f if of_one else list(each.floats), np.float32)
            if each.name in ("value_int", "value_ints"):
                of_one = each.name == "value_int"
                return np.array(each.i if of_one else list(each.ints), np.int64)
        raise Unsupported(_place(node), "it holds no numbers")

    def _resolved(self, place: str, rows: _Rows) -> Chain:
        """The chain, with the activation whose curve a value has."""
        if rows.curve is None:
            return rows.chain
        name = known_curve(rows.curve)
        if name is None:
            raise Unsupported(
                rows.made, "what it makes of a layer is none of a Network's activations"
            )
        return rows.chain.activation(place, name)

    def _weights(self, place: str, value: Any) -> Array:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise Unsupported(place, "its weights are no constant of floating-point numbers")
        self.precise |= value.dtype == np.float64
        return value

    def _linear(
        self, place: str, kind: str, values: list[Any], attributes: dict[str, Any]
    ) -> _Rows:
        rows = values[0]
        if not isinstance(rows, _Rows) or len(values) < 2:
            raise Unsupported(place, "rows must be its first factor, and weights its second")
        if not rows.flat:
            raise Unsupported(place, "its rows are not flat: a Flatten must come before it")
        weight = self._weights(place, values[1])
        if weight.ndim != 2:
            raise Unsupported(place, f"weights of shape {weight.shape}")
        chain = self._resolved(place, rows)
        if kind == "MatMul":
            return _Rows(chain.linear(place, weight.T))
        if attributes.get("transA", 0):
            raise Unsupported(place, "it takes the rows transposed")
        weight = weight if attributes.get("transB", 0) else weight.T
        bias = None
        if len(values) > 2 and values[2] is not None:
            bias = self._weights(place, values[2])
            if bias.shape not in ((), (1,), (1, 1), (weight.shape[0],), (1, weight.shape[0])):
                raise Unsupported(place, f"a bias of shape {bias.shape}")
            bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
            if (beta := attributes.get("beta", 1.0)) != 1.0:
                bias = bias * beta
        if (alpha := attributes.get("alpha", 1.0)) != 1.0:
            weight = weight * alpha
        return _Rows(chain.linear(place, weight, bias))

    def _normalized(
        self, place: str, kind: str, values: list[Any], attributes: dict[str, Any]
    ) -> _Rows:
        rows = values[0]
        if not isinstance(rows, _Rows) or not rows.flat:
            raise Unsupported(place, "it does not take rows of numbers")
        chain = self._resolved(place, rows)
        if kind == "Scaler":
            offset, scale = (
                np.array(attributes.get(name, [default]), np.float64)
                for name, default in (("offset", 0.0), ("scale", 1.0))
            )
            return _Rows(chain.affine(place, shift=-offset).affine(place, scale))
        if len(values) < 5 or attributes.get("training_mode", 0):
            raise Unsupported(place, "it is of training: export the model for inference")
        gamma, beta, mean, variance = (
            self._weights(place, value).astype(np.float64) for value in values[1:5]
        )
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return _Rows(chain.affine(place, scale, beta - mean * scale))

    def _reshaped(
        self, place: str, kind: str, values: list[Any], attributes: dict[str, Any]
    ) -> _Rows:
        rows = values[0]
        if kind == "Flatten" and isinstance(rows, _Rows) and attributes.get("axis", 1) == 1:
            return replace(rows, flat=True)
        wanted = values[1] if len(values) > 1 else None
        if kind == "Reshape" and isinstance(rows, _Rows) and isinstance(wanted, np.ndarray):
            shape = wanted.ravel().tolist()
            width = rows.chain.width
            if len(shape) == 2 and (
                shape[1] == width or (shape[0] in (0, 1, -1) and width is None and shape[1] > 0)
                or (shape == [0, -1])
            ):  # fmt: skip
                chain = rows.chain if shape[1] < 1 else replace(rows.chain, width=shape[1])
                return replace(rows, chain=chain, flat=True)
        raise Unsupported(place, "it makes something else than rows (N, n)")

    def _pair(self, node: Any) -> _Rows:
        """p of [1 - p, p], the probabilities of two classes."""
        place = _place(node)
        values = [self._value(name, node) for name in node.input]
        if len(values) == 2 and all(isinstance(value, _Rows) for value in values):
            other, p = values
            same = other.chain is p.chain and p.chain.width == 1
            if same and np.allclose(other.values, 1 - p.values, atol=1e-6):
                return p  # type: ignore[no-any-return]
        raise Unsupported(place, "rows are put together that are not [1 - p, p]")

    def _elementwise(
        self, node: Any, place: str, kind: str, values: list[Any], attributes: dict[str, Any]
    ) -> _Rows:
        rows = [value for value in values if isinstance(value, _Rows)]
        constants = [value for value in values if isinstance(value, np.ndarray)]
        if kind in ("Add", "Sub", "Mul", "Div") and len(rows) == len(constants) == 1:
            (row,), (constant,) = rows, constants
            first = values[0] is row
            alone = self._consumers[node.input[0 if first else 1]] == 1
            pure = row.curve is None and (alone or row.chain.weight is None)
            if constant.size > 1 or pure:
                self._weights(place, constant)
                return self._affine(place, kind, row, constant, first)
        if any(constant.size > 1 for constant in constants):
            raise Unsupported(place, "it takes a vector")
        if any(row.chain is not rows[0].chain for row in rows):
            raise Unsupported(place, "it takes rows of two layers")
        if rows[0].chain.weight is None:
            # One that was told by its name may be used in another.
            raise Unsupported(
                place,
                "a layer has one activation, and this is its second"
                if rows[0].chain.layers
                else "no layer comes before it",
            )
        given = [
            value.values
            if isinstance(value, _Rows)
            else None
            if value is None
            else value.astype(np.float64).reshape(())
            for value in values
        ]
        try:
            with np.errstate(all="ignore"):
                curve = np.asarray(_CURVES[kind](given, attributes))
        except (TypeError, ValueError, IndexError, KeyError):
            raise Unsupported(place, "a Network has nothing like it with these settings") from None
        return _Rows(rows[0].chain, np.broadcast_to(curve, GRID.shape), rows[0].flat, place)

    def _affine(self, place: str, kind: str, row: _Rows, constant: Array, first: bool) -> _Rows:
        if constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != 1):
            raise Unsupported(place, f"a constant of shape {constant.shape}")
        if not row.flat and constant.size > 1:
            raise Unsupported(place, "its rows are not flat: a Flatten must come before it")
        chain = self._resolved(place, row)
        constant = constant.reshape(-1)
        if kind == "Add" or (kind == "Sub" and first):
            chain = chain.affine(place, shift=constant if kind == "Add" else -constant)
        elif kind == "Sub":
            chain = chain.affine(place, np.array([-1.0]), constant)
        elif kind == "Mul":
            chain = chain.affine(place, constant)
        elif first:
            with np.errstate(all="ignore"):
                chain = chain.affine(place, 1.0 / constant.astype(np.float64))
        else:
            raise Unsupported(place, "it divides by the rows")
        return _Rows(chain, flat=row.flat)


#: The attributes that are read, and the fields that hold them.
_ATTRIBUTES = {
    "alpha": "f", "beta": "f", "epsilon": "f", "min": "f", "max": "f", "axis": "i", "to": "i",
    "transA": "i", "transB": "i", "training_mode": "i", "approximate": "s", "axes": "ints",
    "perm": "ints", "offset": "floats", "scale": "floats",
}  # fmt: skip


def _place(node: Any) -> str:
    name = node.name or next((each for each in node.output if each), "")
    return f"node {name[:60]!r} ({node.op_type[:40]})"


def _folded(place: str, kind: str, values: list[Any], attributes: dict[str, Any]) -> Array:
    """What a node makes of constants, none of it larger than they are."""
    first = values[0]
    try:
        if not isinstance(first, np.ndarray):
            raise ValueError("it takes no constant")
        if kind == "Identity":
            return first
        if kind == "Transpose":
            return np.transpose(first, attributes.get("perm"))
        if kind == "Reshape":
            return first.reshape(values[1].ravel().tolist())
        if kind in ("Squeeze", "Unsqueeze"):
            axes = attributes.get("axes") or (values[1].tolist() if len(values) > 1 else None)
            if kind == "Squeeze":
                return np.squeeze(first, None if axes is None else tuple(axes))
            return np.expand_dims(first, tuple(axes or ()))
        if kind in ("Sqrt", "Neg", "Reciprocal"):
            with np.errstate(all="ignore"):
                return np.asarray(_CURVES[kind]([first], attributes))
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise Unsupported(place, f"{error}") from None
    raise Unsupported(place, "a Network has nothing like it")


def _special(name: str) -> Any:
    import scipy.special

    return getattr(scipy.special, name)


def _gelu(given: list[Any], attributes: dict[str, Any]) -> Array:
    z = given[0]
    if attributes.get("approximate", b"none") == b"tanh":
        return np.asarray(0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))))
    return np.asarray(z * _special("ndtr")(z))


def _clip(given: list[Any], attributes: dict[str, Any]) -> Array:
    ends = [*given[1:], None, None][:2]
    low, high = (attributes.get(name, end) for name, end in zip(("min", "max"), ends, strict=True))
    z = given[0] if low is None else np.maximum(given[0], low)
    return np.asarray(z if high is None else np.minimum(z, high))


def _elu(given: list[Any], attributes: dict[str, Any]) -> Array:
    z: Array = given[0]
    return np.where(z > 0, z, attributes.get("alpha", 1.0) * np.expm1(np.minimum(z, 0)))


def _unary(function: Callable[[Any], Any]) -> Callable[[list[Any], dict[str, Any]], Any]:
    return lambda given, attributes: function(given[0])


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[list[Any], dict[str, Any]], Any]:
    def apply(given: list[Any], attributes: dict[str, Any]) -> Any:
        left, right = given
        return function(left, right)

    return apply


#: By the names of operators: (values at `GRID`, attributes) -> values.
_CURVES: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Sigmoid": _unary(lambda z: 1.0 / (1.0 + np.exp(-z))),
    "Tanh": _unary(np.tanh),
    "Relu": _unary(lambda z: np.maximum(z, 0.0)),
    "LeakyRelu": lambda given, attributes: np.where(
        given[0] > 0, given[0], attributes.get("alpha", 0.01) * given[0]
    ),
    "Elu": _elu,
    "Gelu": _gelu,
    "Softplus": _unary(lambda z: np.logaddexp(z, 0.0)),
    "Swish": lambda given, attributes: (
        given[0] / (1.0 + np.exp(-attributes.get("alpha", 1.0) * given[0]))
    ),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Erf": _unary(lambda z: _special("erf")(z)),
    "Abs": _unary(np.abs),
    "Neg": _unary(np.negative),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(np.divide),
    "Pow": _binary(np.power),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Where": lambda given, attributes: np.where(given[0], given[1], given[2]),
    "Clip": _clip,
}
