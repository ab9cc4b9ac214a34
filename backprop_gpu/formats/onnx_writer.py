"""`to_onnx`: a network as an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import model_file, onnx_nodes, validation
from ..files import write_whole
from ..imports import optional
from ..network import Network
from ..preprocessing import Category, Number, Preprocessing
from ..version import __version__

#: Understood since 2022: by onnxruntime from 1.12 on.
OPSET = 17
#: The most bytes of a protobuf message.
_MESSAGE = 2**31 - 1


def to_onnx(
    net: Network, path: Any = None, *, opset: int | None = None, preprocessing: bool = True
) -> Any:
    """A network as an ONNX model: Gemm and activations, in the network's dtype.

    The batch axis is ``N``. Input ``X`` (N, n_0), output ``outputs`` (N, n_L): a^L, what `predict`
    gives. With the preprocessing of a table, see below.

    Parameters
    ----------
    net : Network
        Its activations must be built-in ones.
    path : path, optional
        Where to write it, too, the whole file or none of it.
    opset : int, optional
        Of ONNX's default domain, from 13 on; default 17. From 20 on gelu is one node.
    preprocessing : bool, default True
        Whether what the network's file says of a table's columns becomes part of the graph. Then
        the inputs are double: ``X`` (N, columns), where all columns are numbers, in the order of
        ``net.preprocessing.columns``; else one input (N, 1) a column, by the column's name, double
        or string. A gap is NaN, or the empty string, and where the training filled gaps it is
        filled alike; a text that is no category becomes zeros. Behind ``outputs`` stands
        ``prediction`` (N, 1), double, in the target's unit; or ``class`` (N,), its name, where the
        target is a category.

    Returns
    -------
    onnx.ModelProto
        Its ``metadata_props`` have the cost, the names of classes, as JSON, and what the header of
        a model file says.

    Raises
    ------
    ImportError
        Without the package onnx: ``pip install 'backprop_gpu[onnx]'``.
    ValueError
        For an activation that is Python of a user's, an opset out of range, and weights of more
        than 2 GiB, which no ONNX file holds.

    Notes
    -----
    Products are of the network's dtype, whatever its `precision`. onnxruntime has no Elu,
    LeakyRelu, Softplus and Erf for float64: there they are a few nodes each.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a Network, got {type(net).__name__}")
    with_table = validation.boolean("preprocessing", preprocessing)
    onnx_nodes.check_activations(net.activations)
    onnx = optional("onnx", "onnx", "to_onnx")
    newest = onnx.defs.onnx_opset_version()
    opset = validation.integer(
        "opset", OPSET if opset is None else opset, onnx_nodes.OLDEST_OPSET, newest
    )
    if net.model.layout.length * net.dtype.itemsize > _MESSAGE - 2**20:
        raise ValueError("weights of more than 2 GiB do not fit an ONNX file")
    graph = _Graph(onnx, opset)
    table = net.preprocessing if with_table else None
    x = _inputs(graph, net, table)
    names = [sigma.name for sigma in net.activations]
    a = onnx_nodes.layers(graph, x, net.weights, net.biases, names)
    a = graph.called("outputs", a)
    graph.outputs.append(graph.value("outputs", net.dtype, ["N", net.sizes[-1]]))
    if table is not None and table.target is not None:
        _target(graph, net, table.target, a)
    model = graph.model(_metadata(net, table))
    if path is not None:
        write_whole(Path(path), model.SerializeToString())
    return model


class _Graph:
    """Nodes and constants, with names of their own."""

    def __init__(self, onnx: Any, opset: int) -> None:
        self.onnx, self.opset = onnx, opset
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        #: Of inputs and outputs, which nodes must not take.
        self.taken = {"outputs", "prediction", "class"}
        self._counts: dict[str, int] = {}

    def _name(self, kind: str) -> str:
        while True:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            name = f"{kind}_{self._counts[kind]}"
            if name not in self.taken:
                return name

    def constant(self, value: np.ndarray) -> str:
        name = self._name("constant")
        if value.dtype.kind in "UO":
            texts = [str(text).encode() for text in value.ravel()]
            kind = self.onnx.TensorProto.STRING
            tensor = self.onnx.helper.make_tensor(name, kind, value.shape, texts)
        else:
            tensor = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._constants.append(tensor)
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        domain = attributes.pop("domain", None)
        name = self._name(kind)
        make = self.onnx.helper.make_node
        self._nodes.append(make(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def called(self, name: str, value: str) -> str:
        """Give the last node's output another name, or an Identity of another value."""
        if not (self._nodes and self._nodes[-1].output[0] == value):
            value = self.node("Identity", value)
        self._nodes[-1].output[0] = name
        return name

    def value(self, name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        """The declaration of an input or output; texts have dtype str."""
        if dtype is str:
            kind = self.onnx.TensorProto.STRING
        else:
            kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def cast(self, value: str, dtype: Any) -> str:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", value, to=kind)

    def model(self, metadata: dict[str, str]) -> Any:
        helper = self.onnx.helper
        graph = helper.make_graph(
            self._nodes, "network", self.inputs, self.outputs, self._constants
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == _LEARNING for node in self._nodes):
            opsets.append(helper.make_opsetid(_LEARNING, 2))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="backprop_gpu",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        return model


_LEARNING = "ai.onnx.ml"


def _inputs(graph: _Graph, net: Network, table: Preprocessing | None) -> str:
    """The network's inputs (N, n_0), of the dtype."""
    if table is None or table.columns is None:
        graph.inputs.append(graph.value("X", net.dtype, ["N", net.sizes[0]]))
        return "X"
    columns = table.columns
    numbers = [column for column in columns if isinstance(column, Number)]
    if len(numbers) == len(columns):
        graph.inputs.append(graph.value("X", np.float64, ["N", len(columns)]))
        return graph.cast(_standardized(graph, "X", numbers), net.dtype)
    for column in columns:
        if column.name in graph.taken or not column.name:
            raise ValueError(
                f"no input can be called {column.name!r}, as a column is: rename it, or "
                "preprocessing=False"
            )
    graph.taken |= {column.name for column in columns}
    parts = []
    for column in columns:
        kind: Any = np.float64 if isinstance(column, Number) else str
        graph.inputs.append(graph.value(column.name, kind, ["N", 1]))
        if isinstance(column, Number):
            value = _standardized(graph, column.name, [column])
            parts.append(graph.cast(value, net.dtype))
        else:
            parts.append(graph.cast(_one_hot(graph, column), net.dtype))
    return parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=1)


def _standardized(graph: _Graph, x: str, columns: Sequence[Number]) -> str:
    """(x - mean) / deviation of columns (N, k), in float64, their gaps filled."""
    if any(column.fill is not None for column in columns):
        # What fills no gap is NaN, and stays one.
        fill = [np.nan if column.fill is None else column.fill for column in columns]
        x = graph.node("Where", graph.node("IsNaN", x), graph.constant(np.array([fill])), x)
    means = np.array([[column.mean for column in columns]])
    deviations = np.array([[column.deviation for column in columns]])
    if means.any():
        x = graph.node("Sub", x, graph.constant(means))
    if (deviations != 1.0).any():
        x = graph.node("Div", x, graph.constant(deviations))
    return x


def _one_hot(graph: _Graph, column: Category) -> str:
    """(N, 1) texts -> (N, levels) bool: a text that is no level has no place."""
    levels = list(column.levels)
    places = list(range(len(levels)))
    if column.fill is not None and "" not in levels:
        places.append(levels.index(column.fill))
        levels.append("")
    code = graph.node(
        "LabelEncoder", column.name, domain=_LEARNING, keys_strings=levels, values_int64s=places,
        default_int64=-1,
    )  # fmt: skip
    all_places = np.arange(len(column.levels), dtype=np.int64)[np.newaxis]
    return graph.node("Equal", code, graph.constant(all_places))


def _target(graph: _Graph, net: Network, target: Number | Category, a: str) -> None:
    """The output that is in the target's unit, or the name of the class."""
    outputs = net.sizes[-1]
    if isinstance(target, Number):
        # The columns of a^L that predict: all, or means or medians among others.
        columns = net.cost.predictions(np.arange(outputs)[np.newaxis])[0].astype(np.int64)
        if len(columns) < outputs:
            a = graph.node("Gather", a, graph.constant(columns), axis=1)
        a = graph.cast(a, np.float64)
        a = graph.node("Mul", a, graph.constant(np.array(target.deviation)))
        graph.called("prediction", graph.node("Add", a, graph.constant(np.array(target.mean))))
        graph.outputs.append(graph.value("prediction", np.float64, ["N", len(columns)]))
        return
    if outputs == 1:
        threshold = graph.constant(np.array(net.cost.threshold, net.dtype))
        below = graph.node("Less", a, threshold)
        place = graph.cast(graph.node("Not", below), np.int64)
        place = graph.node("Reshape", place, graph.constant(np.array([-1], np.int64)))
    else:
        place = graph.node("ArgMax", a, axis=1, keepdims=0)
    names = graph.constant(np.array(target.levels, object))
    graph.called("class", graph.node("Gather", names, place, axis=0))
    graph.outputs.append(graph.value("class", str, ["N"]))


def _metadata(net: Network, table: Preprocessing | None) -> dict[str, str]:
    metadata = {**model_file.metadata_of(net.model, table), "cost": net.cost.name}
    target = None if net.preprocessing is None else net.preprocessing.target
    if isinstance(target, Category):
        metadata["classes"] = json.dumps(target.levels, ensure_ascii=False)
    return metadata
