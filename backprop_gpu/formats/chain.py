"""Layers as they are found, one after another, in another library's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import activations, costs
from ..costs import Cost
from ..network import Network

Array = np.ndarray


class Unsupported(ValueError):
    """A file holds what no `Network` is."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"{place} is not supported: {why}")


@dataclass(frozen=True)
class Layer:
    """w (n_l, n_{l-1}), b (n_l,) and the name of σ."""

    weight: Array
    bias: Array
    sigma: str


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers, and what has come behind them and belongs to the next: each step makes a new chain.

    Attributes
    ----------
    width : int or None
        How many numbers a row has here, if that is known.
    layers : tuple of Layer
    weight, bias : arrays, optional
        Of a layer that has no activation yet.
    scale, shift : (width,) arrays, optional
        Of a row that the next layer's weights take up: x ⊙ scale + shift.
    """

    width: int | None = None
    layers: tuple[Layer, ...] = ()
    weight: Array | None = None
    bias: Array | None = None
    scale: Array | None = None
    shift: Array | None = None

    def linear(self, place: str, weight: Array, bias: Array | None = None) -> Chain:
        """w a + b, w being (n_l, n_{l-1}); without b it is zeros."""
        if weight.ndim != 2 or 0 in weight.shape:
            raise Unsupported(place, f"weights of shape {weight.shape}")
        outputs, inputs = weight.shape
        if bias is None:
            bias = np.zeros(outputs, weight.dtype)
        if bias.shape != (outputs,):
            raise Unsupported(place, f"a bias of shape {bias.shape} for {outputs} outputs")
        before = self.closed(place)
        if before.width is not None and before.width != inputs:
            raise Unsupported(place, f"it takes {inputs} numbers, and gets {before.width}")
        if before.layers and not activations.get(before.layers[-1].sigma).elementwise:
            raise Unsupported(place, "it comes after a softmax")
        if before.shift is not None:
            bias = bias + weight.astype(np.float64) @ before.shift
        if before.scale is not None:
            weight = weight * before.scale
        return Chain(outputs, before.layers, weight, bias)

    def affine(self, place: str, scale: Array | None = None, shift: Array | None = None) -> Chain:
        """x ⊙ scale + shift: the weights before it take it up or, at the input, those behind it."""
        width = self.width
        for vector in (scale, shift):
            if vector is not None and vector.size != 1:
                width = vector.size if width is None else width
                if vector.shape != (width,) or not width:
                    raise Unsupported(place, f"a row has {width} numbers, not {vector.shape}")
        after = replace(self, width=width)
        if scale is not None:
            scale = scale.astype(np.float64)
            if self.weight is not None and self.bias is not None:
                weight = self.weight * np.broadcast_to(scale, self.bias.shape)[:, np.newaxis]
                after = replace(after, weight=weight, bias=self.bias * scale)
            else:
                after = replace(
                    after,
                    scale=scale if self.scale is None else self.scale * scale,
                    shift=None if self.shift is None else self.shift * scale,
                )
        if shift is not None:
            if after.bias is not None:
                # Of zeros it stays what it is, to the bit.
                return replace(after, bias=after.bias + shift)
            if width is None:
                raise Unsupported(place, "it shifts rows of unknown length")
            shift = np.broadcast_to(shift.astype(np.float64), (width,))
            after = replace(after, shift=shift if after.shift is None else after.shift + shift)
        return after

    def activation(self, place: str, name: str) -> Chain:
        """σ of the layer before it, by the name of a built-in activation."""
        if self.weight is None or self.bias is None:
            why = "a layer has one activation" if self.layers else "no layer comes before it"
            raise Unsupported(place, why)
        layer = Layer(self.weight, self.bias, name)
        return Chain(self.width, (*self.layers, layer))

    def closed(self, place: str) -> Chain:
        """With the identity behind a layer that has no activation."""
        return self if self.weight is None else self.activation(place, "identity")

    def network(
        self, cost: str | Cost | None, backend: str, seed: int | None, precise: bool
    ) -> Network:
        """The network of these layers; `precise`: of float64."""
        chain = self.closed("the output")
        if not chain.layers:
            raise ValueError("it has no layer with weights")
        if chain.scale is not None or chain.shift is not None:
            raise ValueError("its outputs are scaled or shifted behind the last activation")
        dtype = np.dtype(np.float64 if precise else np.float32)
        sigmas = [layer.sigma for layer in chain.layers]
        net = Network(
            [chain.layers[0].weight.shape[1], *(len(layer.bias) for layer in chain.layers)],
            activation=sigmas,
            cost=partner(sigmas[-1]) if cost is None else cost,
            dtype=dtype,
            backend=backend,
            seed=seed,
        )
        net.weights = [layer.weight for layer in chain.layers]
        net.biases = [layer.bias for layer in chain.layers]
        return net


def partner(sigma: str) -> str:
    """The cost whose partner an output activation is; of any other the quadratic cost."""
    for name, cost in costs.REGISTRY.items():
        if cost.builtin and cost.partner == sigma and name != "quadratic":
            return name
    return "quadratic"


#: Where activations are told apart by their values. At the ends a formula may overflow which the
#: function itself does not, ln(1 + e^z) for instance: what is not finite there tells nothing.
GRID = np.concatenate(
    [np.linspace(-12.0, 12.0, 193), [-1e-3, 1e-3, -50.0, 50.0], [-1e3, 1e3, -1e9, 1e9, -1e30, 1e30]]
)
_ENDS = 6


def known_curve(values: Array) -> str | None:
    """The name of the activation with these values at `GRID`, if there is one."""
    if np.shape(values) != GRID.shape or not np.isfinite(values[:-_ENDS]).all():
        return None
    told = np.isfinite(values)
    for name in activations.names():
        sigma: Any = activations.get(name)
        if sigma.builtin and sigma.elementwise:
            expected = sigma.function(GRID)
            if np.allclose(values[told], expected[told], rtol=1e-6, atol=1e-6):
                return name
    return None
