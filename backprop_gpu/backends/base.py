"""The interface between an engine and the arrays it works on.

Shapes, for a batch of m rows: a, z, δ of layer l are (m, n_l), w[l] is
(n_l, n_{l-1}), b[l] is (n_l,). Every method writes into the arrays it is given
and allocates nothing that outlives the call. All arrays are C-contiguous and of
the backend's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..activations import Activation
from ..costs import Cost
from ..optimizers import Optimizer
from ..parameters import Parameters
from ..philox import Draws
from ..planning import Product

Array = Any


class Epoch(Protocol):
    """What a step reads by its number: the shuffled order and the update coefficients.

    The step number itself lives where the arrays live, so that one captured step
    can be replayed for a whole epoch without the host.
    """

    def load(
        self,
        order: np.ndarray,
        coefficients: np.ndarray,
        weights: np.ndarray | None = None,
        draws: Draws | None = None,
    ) -> None:
        """Start an epoch at step 0. order (n,), coefficients (steps, 6), and the rows' weights (n,)
        in that order, all on the host."""

    def costs(self) -> np.ndarray:
        """The mean cost of every step so far, (steps,), float64, on the host."""


class Backend(Protocol):
    """One way to run the equations."""

    name: str
    dtype: np.dtype[Any]
    precision: str

    # memory
    def asarray(self, host: np.ndarray, dtype: Any = None) -> Array:
        """`dtype` is the backend's own unless another is asked for."""

    def to_numpy(self, array: Array) -> np.ndarray: ...
    def empty(self, shape: Sequence[int]) -> Array: ...
    def zeros(self, shape: Sequence[int]) -> Array: ...
    def copy(self, source: Array, out: Array) -> None: ...
    def all_finite(self, array: Array) -> bool: ...
    def sum_of_squares(self, array: Array) -> float: ...
    def fork(self) -> Backend:
        """The same backend, with scratch memory and captured steps of its own.

        One backend serves one use at a time. So each training, and each call that reads, takes a
        fork for itself, and what that has made goes with it. Arrays belong to all forks.
        """
        ...

    # the equations; `product` says how to form one, to a backend that has several ways
    def forward(
        self,
        w: Array,
        b: Array,
        a_prev: Array,
        activation: Activation,
        z: Array | None,
        a: Array,
        *,
        product: Product | None = None,
        mask: Array | None = None,
    ) -> None:
        """z = a_prev wᵀ + b, a = σ(z). With z None only a is kept.

        `mask` gets a bit for each a > 0, of a product with RELU_AUX_BIAS.
        """

    def output_error(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        out: Array,
        weights: Array | None = None,
    ) -> None:
        """BP1: out = w_x ∇_a C_x ⊙ σ'(z); w_x (a - y) where cost and activation collapse.

        `weights` (m,) are w; without them it is 1.
        """

    def hidden_error(
        self,
        w_next: Array,
        delta_next: Array,
        z: Array | None,
        a: Array,
        activation: Activation,
        out: Array,
        *,
        product: Product | None = None,
        mask: Array | None = None,
        biases: Array | None = None,
    ) -> None:
        """BP2: out = (δ_next w_next) ⊙ σ'(z).

        `mask` is what `forward` left, of a product with DRELU_BGRAD, and then BP3 goes to `biases`.
        """

    def bias_gradient(self, delta: Array, out: Array) -> None:
        """BP3: out = mean of δ over the rows."""

    def weight_gradient(
        self,
        delta: Array,
        a_prev: Array,
        out: Array,
        biases: Array | None = None,
        *,
        product: Product | None = None,
    ) -> None:
        """BP4: out = δᵀ a_prev / m; with `biases` BP3 too, which a device may do on the way."""

    def hadamard(self, s: Array, t: Array, out: Array) -> None:
        """out = s ⊙ t."""

    def cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        weights: Array | None = None,
    ) -> float:
        """C: the mean of w_x C_x over the rows, on the host."""

    # derivatives beyond those
    def multiply(self, u: Array, w: Array, out: Array) -> None:
        """out = u wᵀ: what `forward` does to a direction. BP2 of the identity is the way back."""

    # `slopes` are σ', σ'' … of a layer, each (m, n)
    def slopes(
        self, z: Array | None, a: Array, activation: Activation, outs: Sequence[Array]
    ) -> None:
        """outs = σ'(z), σ''(z), σ'''(z), as many as there are, of an elementwise σ."""

    def tangent(
        self,
        slope: Array,
        t: Array,
        more: Array | None,
        out: Array,
        bend: Array | None = None,
        error: Array | None = None,
    ) -> None:
        """t ← t + more; out = slope ⊙ t + bend ⊙ error. All of one shape."""

    def directions(self, slopes: Sequence[Array], u: Array, out: Array) -> None:
        """From directions of z to those of a: out_k = σ' ⊙ u_k, for every sample.

        u and out are (K, m, n), and may be one; u (K, 1, n) is every sample's. With σ'' the last is
        no direction but Σ_k ∂²z/∂x_k², and becomes Σ_k ∂²a/∂x_k² = σ'' ⊙ Σ_k u_k² + σ' ⊙ u_K.
        """

    def directions_error(self, slopes: Sequence[Array], u: Array, out: Array, error: Array) -> None:
        """Back through `directions` with σ', σ'', σ'''.

        out (K, m, n) has the derivatives of some L by what it gave, and gets those by u; error
        (m, n) has that by a, and gets that by z.
        """

    def row_norms(self, x: Array, out: Array) -> None:
        """out = ‖x_i‖ of every row i, (m,), also where a square is no normal number."""

    # one step of an epoch
    def epoch(self, rows: int, batch: int) -> Epoch: ...

    def gather(
        self, X: Array, Y: Array, epoch: Any, x: Array, y: Array, weights: Array | None = None
    ) -> None:
        """x, y = the rows of X and Y that this step's part of the order names; and their weights,
        where the epoch has some."""

    def record_cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        epoch: Any,
        weights: Array | None = None,
    ) -> None:
        """C of this step, into the epoch's costs."""

    def drop_out(
        self, source: Array, out: Array, layer: int, epoch: Any, first_row: int = 0
    ) -> None:
        """out = source ⊙ what this step's dropout makes of a^layer: 0, or 1 / (1 - rate).

        `source` (m, n_l) is of rows of the mini-batch from `first_row` on, and may be `out`.
        """

    def update(
        self,
        parameters: Parameters,
        gradients: Parameters,
        slots: tuple[Array, ...],
        optimizer: Optimizer,
        epoch: Any,
    ) -> None:
        """One step of the optimizer over all parameters. May use the gradients as scratch."""

    def mix(
        self,
        X: Array,
        Y: Array,
        rows: np.ndarray,
        partners: np.ndarray,
        shares: np.ndarray,
        x: Array,
        y: Array,
    ) -> None:
        """x_i = s_i X[rows_i] + (1 - s_i) X[partners_i], and y of Y likewise.

        rows, partners (m,) int and the shares s (m,) float64 are on the host; x and y may have more
        than m rows, and X may be of uint8.
        """

    def advance(self, epoch: Any) -> None:
        """The step is over."""

    def repeat(self, step: Callable[[], None], times: int, captured: bool = True) -> None:
        """Run a step that many times; `captured` allows a device to record and replay it."""
