"""The layered engine: one backend call an equation. Any shape, any option."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import costs
from ..activations import Activation
from ..backends.base import Backend, Epoch
from ..costs import Cost
from ..optimizers import Optimizer
from ..parameters import Layout, Parameters

Array = Any


@dataclass(frozen=True)
class Hyperparameters:
    """What an epoch of gradient descent needs beside data and parameters.

    ``coefficients`` is ``optimizer.coefficients(...)``, one row a step.
    """

    batch_size: int
    optimizer: Optimizer
    coefficients: np.ndarray
    #: Whether a device may capture a step and replay it.
    captured: bool = True
    #: (steps,) float64, takes Σ w² before each step: what a penalty on w adds to C.
    squares: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """One network's part in an epoch: what it trains with, beside the rows.

    Parameters
    ----------
    parameters : Parameters
        Updated in place, like the optimizer's `slots`.
    order : (n,) int array on the host
        The rows in the order they are taken, in mini-batches.
    """

    parameters: Parameters
    slots: tuple[Array, ...]
    order: np.ndarray
    hyperparameters: Hyperparameters


class Batch:
    """Activations and, for training, errors of m rows. Index l is layer l, 0 the input."""

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        keeps_z: tuple[bool, ...],
        rows: int,
        errors: bool = True,
    ) -> None:
        self.rows = rows
        self.a = [backend.empty((rows, n)) for n in sizes]
        self.z = [
            backend.empty((rows, n)) if keep else None
            for n, keep in zip(sizes, keeps_z, strict=True)
        ]
        self.y = backend.empty((rows, sizes[-1]))
        self.delta = [None, *(backend.empty((rows, n)) for n in sizes[1:])] if errors else []


@dataclass(frozen=True, eq=False)
class Run:
    """The buffers and bound steps of one `fit`, kept from epoch to epoch."""

    arguments: tuple[Any, ...]
    epoch: Epoch
    whole_step: Callable[[], None]
    last_step: Callable[[], None]


#: Overflow has its right answer in σ, and a diverging cost is reported by `fit`.
_quiet = np.errstate(all="ignore")


class LayeredEngine:
    """Forward, BP1–BP4 and the update as calls to a backend, layer by layer.

    An engine is for one training, or one call that reads, and for one thread.

    Parameters
    ----------
    backend : Backend
        The engine works on a fork of it.
    sizes : tuple of int
        (n_0, …, n_L).
    activations : tuple of Activation
        σ of layers 1 … L.
    cost : Cost
    """

    name = "layered"
    #: Whether X may be of uint8 in `run_epoch` and `run_members`.
    reads_bytes = False

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        activations: tuple[Activation, ...],
        cost: Cost,
    ) -> None:
        self.backend = backend.fork()
        self.sizes = sizes
        self.depth = len(sizes) - 1
        self.activations = activations
        self.output: Activation = activations[-1]
        self.cost = cost
        # σ' takes a where it can. The output layer's z serves the cost of a collapsing pair.
        self._keeps_z = (
            False,
            *(activation.derivative_from == "z" for activation in activations[:-1]),
            self.output.derivative_from == "z" or costs.collapses(self.output, cost),
        )
        self._run: Run | None = None
        self._turns: tuple[Parameters, dict[int, tuple[Array, ...]]] | None = None

    # -- an epoch ---------------------------------------------------------------

    @_quiet
    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Gradient descent over all rows once, in mini-batches.

        Parameters
        ----------
        member : Member
        X, Y : (n, n_0), (n, n_L) backend arrays
        on_step : callable, optional
            Called with the step's number after each step; costs the replay of captured steps.
        meanwhile : callable
            What the host may do while a device works: called, if at all, when all is queued.

        Returns
        -------
        (steps,) float64 array
            The mean cost of each mini-batch, before its update.
        """
        hyperparameters = member.hyperparameters
        whole, rest = divmod(len(member.order), hyperparameters.batch_size)
        run = self._prepare(member, X, Y)
        run.epoch.load(member.order, hyperparameters.coefficients)
        if hyperparameters.squares is not None:
            on_step = self._sums_squares(member.parameters, hyperparameters.squares, on_step)
        if on_step is None:
            self.backend.repeat(run.whole_step, whole, hyperparameters.captured)
            if rest:
                run.last_step()
        else:
            for number in range(whole + bool(rest)):
                (run.whole_step if number < whole else run.last_step)()
                on_step(number)
        meanwhile()
        return run.epoch.costs()

    def _sums_squares(
        self, parameters: Parameters, squares: np.ndarray, on_step: Callable[[int], None] | None
    ) -> Callable[[int], None]:
        """Fill `squares`, the first now and each other one when the step before it is over."""
        weights = parameters.flat[: parameters.layout.weights_end]
        squares[0] = self.backend.sum_of_squares(weights)

        def after(number: int) -> None:
            if number + 1 < len(squares):
                squares[number + 1] = self.backend.sum_of_squares(weights)
            if on_step is not None:
                on_step(number)

        return after

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """`run_epoch` for several networks of this engine's shape: the costs of each.

        What a member gets does not depend, to the bit, on which others are there.

        Parameters
        ----------
        X, Y : (n, n_0), (n, n_L) backend arrays
            The rows of all members; each takes them in its own order.
        on_member : callable
            Called on the caller's thread with a member's number when its epoch is over.
        meanwhile : callable
            As in `run_epoch`, perhaps more than once.
        """
        # Buffers and captured steps are made for one set of arrays. In these, members take turns:
        # a copy there and back is nothing beside an epoch. Only another rule or batch size needs
        # other buffers, so members that agree in both follow each other.
        alike: dict[tuple[Optimizer, int], list[int]] = {}
        for i, member in enumerate(members):
            settings = member.hyperparameters
            alike.setdefault((settings.optimizer, settings.batch_size), []).append(i)
        costs = [np.empty(0)] * len(members)
        for (optimizer, _), numbers in alike.items():
            for i in numbers:
                member = members[i]
                parameters, slots = self._turn(member.parameters.layout, len(member.slots))
                own = (member.parameters.flat, *member.slots)
                lent = (parameters.flat, *slots)
                for source, out in zip(own, lent, strict=True):
                    self.backend.copy(source, out)
                settings = replace(member.hyperparameters, optimizer=optimizer)
                turn = Member(parameters, slots, member.order, settings)
                costs[i] = self.run_epoch(turn, X, Y, meanwhile=meanwhile)
                for source, out in zip(lent, own, strict=True):
                    self.backend.copy(source, out)
                on_member(i)
        return costs

    def _turn(self, layout: Layout, slots: int) -> tuple[Parameters, tuple[Array, ...]]:
        """The parameters and optimizer state in which members take turns, always the same ones."""
        zeros = self.backend.zeros
        if self._turns is None:
            self._turns = Parameters(layout, zeros((layout.length,))), {}
        parameters, states = self._turns
        if slots not in states:
            states[slots] = tuple(zeros((layout.length,)) for _ in range(slots))
        return parameters, states[slots]

    def _prepare(self, member: Member, X: Array, Y: Array) -> Run:
        parameters, slots, rows = member.parameters, member.slots, len(member.order)
        m, optimizer = member.hyperparameters.batch_size, member.hyperparameters.optimizer
        arguments = (parameters, slots, X, Y, optimizer, m, rows)
        if self._run is not None and all(
            old is new or (isinstance(new, int) and old == new)
            for old, new in zip(self._run.arguments, arguments, strict=True)
        ):
            return self._run
        self._run = None
        self.backend = self.backend.fork()  # steps and scratch of the run before are of no use
        epoch = self.backend.epoch(rows, m)
        gradients = self._zeros_like(parameters)

        def step_of(size: int) -> Callable[[], None]:
            batch = Batch(self.backend, self.sizes, self._keeps_z, size)
            return lambda: self._step(parameters, gradients, slots, X, Y, batch, optimizer, epoch)

        whole = step_of(m)
        self._run = Run(arguments, epoch, whole, step_of(rows % m) if rows % m else whole)
        return self._run

    def _step(
        self,
        parameters: Parameters,
        gradients: Parameters,
        slots: tuple[Array, ...],
        X: Array,
        Y: Array,
        batch: Batch,
        optimizer: Optimizer,
        epoch: Epoch,
    ) -> None:
        self.backend.gather(X, Y, epoch, batch.a[0], batch.y)
        self._forward(parameters, batch)
        self.backend.record_cost(batch.z[-1], batch.a[-1], batch.y, self.output, self.cost, epoch)
        self._backward(parameters, gradients, batch)
        self.backend.update(parameters, gradients, slots, optimizer, epoch)
        self.backend.advance(epoch)

    def _forward(self, parameters: Parameters, batch: Batch) -> None:
        for l in range(1, self.depth + 1):
            self.backend.forward(
                parameters.weights[l - 1],
                parameters.biases[l - 1],
                batch.a[l - 1],
                self.activations[l - 1],
                batch.z[l],
                batch.a[l],
            )

    def _backward(self, parameters: Parameters, gradients: Parameters, batch: Batch) -> None:
        a, z, delta = batch.a, batch.z, batch.delta
        self.backend.output_error(z[-1], a[-1], batch.y, self.output, self.cost, delta[-1])
        for l in range(self.depth, 0, -1):
            self.backend.weight_gradient(
                delta[l], a[l - 1], gradients.weights[l - 1], gradients.biases[l - 1]
            )
            if l > 1:
                self.backend.hidden_error(
                    parameters.weights[l - 1],
                    delta[l],
                    z[l - 1],
                    a[l - 1],
                    self.activations[l - 2],
                    delta[l - 1],
                )

    # -- without training -------------------------------------------------------

    def predict(self, parameters: Parameters, X: np.ndarray, chunk: int) -> np.ndarray:
        """a^L of every row of a host array, (n, n_L), `chunk` rows at a time."""
        return self._outputs(parameters, X, None, chunk)[1]

    def evaluate(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray, chunk: int
    ) -> tuple[float, np.ndarray]:
        """(C, a^L) of the rows of host arrays."""
        return self._outputs(parameters, X, Y, chunk)

    def outputs(
        self, members: Sequence[Parameters], X: Array, Y: Array | None, chunk: int
    ) -> Iterator[tuple[int, slice, float, np.ndarray]]:
        """a^L of every row for each of several networks, `chunk` rows at a time.

        Parameters
        ----------
        X, Y : (n, n_0), (n, n_L) arrays, on the host or the backend's

        Yields
        ------
        (i, rows, C, a)
            Member i's a^L of some rows, (rows, n_L) on the host, and the mean cost over them
            (0.0 without Y). Every member's rows come in order.
        """
        batch: Batch | None = None
        for start in range(0, len(X), chunk):
            rows = slice(start, min(start + chunk, len(X)))
            if batch is None or batch.rows != rows.stop - start:
                size = rows.stop - start
                batch = Batch(self.backend, self.sizes, self._keeps_z, size, errors=False)
            self.backend.copy(self.backend.asarray(X[rows]), batch.a[0])
            if Y is not None:
                self.backend.copy(self.backend.asarray(Y[rows]), batch.y)
            for i, parameters in enumerate(members):
                with np.errstate(all="ignore"):
                    self._forward(parameters, batch)
                    a, z, y = batch.a[-1], batch.z[-1], batch.y
                    cost = 0.0 if Y is None else self.backend.cost(z, a, y, self.output, self.cost)
                yield i, rows, cost, self.backend.to_numpy(a)

    @_quiet
    def gradients(self, parameters: Parameters, X: np.ndarray, Y: np.ndarray) -> Parameters:
        """∂C/∂w and ∂C/∂b of the mean cost over all rows."""
        gradients = self._zeros_like(parameters)
        batch = Batch(self.backend, self.sizes, self._keeps_z, len(X))
        self.backend.copy(self.backend.asarray(X), batch.a[0])
        self.backend.copy(self.backend.asarray(Y), batch.y)
        self._forward(parameters, batch)
        self._backward(parameters, gradients, batch)
        return gradients

    def _outputs(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray | None, chunk: int
    ) -> tuple[float, np.ndarray]:
        total = 0.0
        out = np.empty((len(X), self.sizes[-1]), self.backend.dtype)
        for _, rows, cost, a in self.outputs([parameters], X, Y, chunk):
            total += len(a) * cost
            out[rows] = a
        return total / len(X), out

    # -- memory -----------------------------------------------------------------

    def _zeros_like(self, parameters: Parameters) -> Parameters:
        layout = parameters.layout
        return Parameters(layout, self.backend.zeros((layout.length,)))

    def release(self) -> None:
        """Forget the buffers of the last run."""
        self._run = self._turns = None
        self.backend = self.backend.fork()
