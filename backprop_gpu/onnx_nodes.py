"""The layers of a network as nodes of an ONNX graph, for whoever writes one.

Of the operators of ONNX's default domain, opset 13 or newer, that onnxruntime has for the dtype:
for float64 it lacks LeakyRelu, Elu, Softplus, Erf and Gelu, and gets them in the operators that it
has. Their rounding is that of one number near 1: below it, digits of a left tail are lost, as
they are in ONNX's own definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .activations import Activation, LeakyRelu

#: The oldest opset that has these operators as they are used here.
OLDEST_OPSET = 13
#: The opset of the operator Gelu.
GELU_OPSET = 20


class NodeWriter(Protocol):
    """A graph that grows by nodes; values are called by their names."""

    opset: int

    def constant(self, value: np.ndarray) -> str:
        """A new constant of this shape and dtype."""

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new node."""


def check_activations(sigmas: Sequence[Activation]) -> None:
    """Refuse functions of a user's, which are Python.

    Raises
    ------
    ValueError
        Naming the activation and its layer.
    """
    for l, sigma in enumerate(sigmas, start=1):
        if not (sigma.builtin and sigma.name in OPERATORS):
            raise ValueError(
                f"activation {sigma.name!r} of layer {l} is Python of your own, and ONNX has no "
                f"operator for it; it has for {', '.join(OPERATORS)}"
            )


def layers(
    graph: NodeWriter,
    x: str,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    names: Sequence[str],
) -> str:
    """a^L of the rows x (N, n_0), all of the weights' dtype.

    Parameters
    ----------
    graph : NodeWriter
    x : str
    weights, biases : sequences of (n_l, n_{l-1}) and (n_l,) arrays
    names : sequence of str
        σ of layers 1 … L.
    """
    for w, b, name in zip(weights, biases, names, strict=True):
        z = graph.node("Gemm", x, graph.constant(w), graph.constant(b), transB=1)
        x = sigma(graph, z, name, w.dtype)
    return x


def layers_of_members(
    graph: NodeWriter,
    x: str,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    names: Sequence[str],
) -> str:
    """The mean of several networks' a^L: w^l is (members, n_l, n_{l-1}), b^l (members, n_l)."""
    for w, b, name in zip(weights, biases, names, strict=True):
        z = graph.node("MatMul", x, graph.constant(w.transpose(0, 2, 1)))  # (members, N, n_l)
        z = graph.node("Add", z, graph.constant(b[:, np.newaxis]))
        x = sigma(graph, z, name, w.dtype)
    if graph.opset < 18:
        return graph.node("ReduceMean", x, axes=[0], keepdims=0)
    return graph.node("ReduceMean", x, graph.constant(np.array([0], np.int64)), keepdims=0)


def sigma(graph: NodeWriter, z: str, name: str, dtype: np.dtype[Any]) -> str:
    """a = σ(z), by the name of a built-in activation."""
    return OPERATORS[name](_Scalars(graph, np.dtype(dtype)), z)


class _Scalars:
    """A graph, and numbers of one dtype in it."""

    def __init__(self, graph: NodeWriter, dtype: np.dtype[Any]) -> None:
        self.node, self.opset, self._graph, self._dtype = graph.node, graph.opset, graph, dtype
        #: Whether onnxruntime has all of ONNX's operators for the dtype.
        self.complete = dtype == np.float32
        self._known: dict[float, str] = {}

    def __call__(self, value: float) -> str:
        if value not in self._known:
            self._known[value] = self._graph.constant(np.array(value, self._dtype))
        return self._known[value]


def _operator(kind: str, **attributes: Any) -> Callable[[_Scalars, str], str]:
    return lambda graph, z: graph.node(kind, z, **attributes)


def _leaky_relu(graph: _Scalars, z: str) -> str:
    if graph.complete:
        return graph.node("LeakyRelu", z, alpha=LeakyRelu.slope)
    return graph.node("Max", z, graph.node("Mul", z, graph(LeakyRelu.slope)))


def _elu(graph: _Scalars, z: str) -> str:
    if graph.complete:
        return graph.node("Elu", z, alpha=1.0)
    grown = graph.node("Exp", graph.node("Min", z, graph(0.0)))
    return graph.node("Max", z, graph.node("Sub", grown, graph(1.0)))


def _silu(graph: _Scalars, z: str) -> str:
    return graph.node("Mul", z, graph.node("Sigmoid", z))


def _softplus(graph: _Scalars, z: str) -> str:
    if graph.complete:
        return graph.node("Softplus", z)
    # ln(1 + e^z) = max(z, 0) + ln(1 + e^-|z|), where nothing overflows
    shrunk = graph.node("Exp", graph.node("Neg", graph.node("Abs", z)))
    rest = graph.node("Log", graph.node("Add", shrunk, graph(1.0)))
    return graph.node("Add", graph.node("Max", z, graph(0.0)), rest)


def _gelu(graph: _Scalars, z: str) -> str:
    if graph.complete and graph.opset >= GELU_OPSET:
        return graph.node("Gelu", z)
    if graph.complete:
        erf = graph.node("Erf", graph.node("Mul", z, graph(math.sqrt(0.5))))
        both = graph.node("Mul", z, graph.node("Add", erf, graph(1.0)))
    else:
        both = graph.node("Mul", z, _erfc(graph, graph.node("Mul", z, graph(-math.sqrt(0.5)))))
    return graph.node("Mul", both, graph(0.5))


#: erf u = u P(u²) / Q(u²) for |u| <= 0.46875, and erfc u = e^(-u²) P(u) / Q(u) up to 4: W. J. Cody,
#: "Rational Chebyshev approximation for the error function", Math. Comp. 23 (1969). The latter's
#: error above 4 is far below the last digit of 1 - erfc u. The highest power stands first.
_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
     2.84423683343917062e3),
)  # fmt: skip
_FAR = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
     1.23033935480374942e3),
)  # fmt: skip
#: Beyond this erfc is 0, and no power below overflows.
_END = 28.0


def _erfc(graph: _Scalars, u: str) -> str:
    """erfc u, for float64 to about 1e-16."""

    def quotient(x: str, of: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
        found = []
        for first, *rest in of:
            value = graph(first)
            for coefficient in rest:
                value = graph.node("Add", graph.node("Mul", value, x), graph(coefficient))
            found.append(value)
        return graph.node("Div", *found)

    near = graph.node("Max", graph.node("Min", u, graph(0.46875)), graph(-0.46875))
    erf = graph.node("Mul", near, quotient(graph.node("Mul", near, near), _NEAR))
    far = graph.node("Min", graph.node("Abs", u), graph(_END))
    bell = graph.node("Exp", graph.node("Neg", graph.node("Mul", far, far)))
    tail = graph.node("Mul", bell, quotient(far, _FAR))
    is_left = graph.node("Less", u, graph(0.0))
    tail = graph.node("Where", is_left, graph.node("Sub", graph(2.0), tail), tail)
    is_far = graph.node("Less", graph(0.46875), far)
    return graph.node("Where", is_far, tail, graph.node("Sub", graph(1.0), erf))


#: By the names of activations, what makes the nodes of a from z.
OPERATORS: dict[str, Callable[[_Scalars, str], str]] = {
    "sigmoid": _operator("Sigmoid"),
    "tanh": _operator("Tanh"),
    "relu": _operator("Relu"),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "softplus": _softplus,
    "identity": lambda graph, z: z,
    "exponential": _operator("Exp"),
    "softmax": _operator("Softmax", axis=-1),
}
