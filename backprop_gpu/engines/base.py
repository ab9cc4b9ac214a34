"""What an engine is: it trains members of one model for an epoch, as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..activations import Activation
from ..backends.base import Backend
from ..communicators import ALONE, Communicator
from ..costs import Cost
from ..optimizers import Optimizer
from ..parameters import Parameters
from ..philox import Draws
from ..planning import Device, Plan, Run

Array = Any


@dataclass(frozen=True)
class Hyperparameters:
    """What an epoch of gradient descent needs besides data and parameters.

    ``coefficients`` is ``optimizer.coefficients(...)``, one row per step, where l2 may be another.
    """

    batch_size: int
    optimizer: Optimizer
    coefficients: np.ndarray
    #: (steps,) float64, takes Σ w² before each step: what a penalty on w adds to C.
    squares: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """One network's part in an epoch: what it trains with, besides the rows.

    Parameters
    ----------
    parameters : Parameters
        Updated in place, like the optimizer's `slots`.
    order : (n,) int array on the host
        The rows in the order they are taken, in mini-batches.
    weights : (n,) array of the dtype, optional
        By what C_x and δ of each row count, in the order they are taken. Their mean over a
        mini-batch is 1: so means of what they multiply are weighted means.
    draws : Draws, optional
        What is left out of the activations of hidden layers, and the noise of its gradients.
    mixup : (steps,) float64 array, optional
        λ of each mini-batch whose rows are to be mixed (`training/mixing.py`). An engine is given
        rows that have been: without.
    epochs : int
        It may be so many, one after another, as an engine's `epochs_at_once` says: `order` and
        `weights` are then (epochs n,), and what has a number for each step has them for all epochs.
    """

    parameters: Parameters
    slots: tuple[Array, ...]
    order: np.ndarray
    hyperparameters: Hyperparameters
    weights: np.ndarray | None = None
    epochs: int = 1
    draws: Draws | None = None
    mixup: np.ndarray | None = None

    @property
    def drops(self) -> bool:
        """Whether activations are left out: what is drawn may be noise alone."""
        return self.draws is not None and any(self.draws.rates)


class Described(Protocol):
    """What an engine has to know of a model."""

    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def activations(self) -> tuple[Activation, ...]: ...
    @property
    def cost(self) -> Cost: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> Device | None: ...


class Engine:
    """Trains members of one model, one epoch per call. For one training, and for one thread.

    Parameters
    ----------
    backend : Backend
        The engine works on a fork of it.
    sizes : tuple of int
        (n_0, …, n_L).
    activations : tuple of Activation
        σ of layers 1 … L.
    cost : Cost
    plan : Plan
        What the engine does as it is told.
    communicator : Communicator
        Of the ranks that share a mini-batch's shards.
    """

    name: ClassVar[str]
    #: Whether X may be of uint8.
    reads_bytes: ClassVar[bool] = False
    #: Whether it reads a sparse X as it is.
    reads_sparse: ClassVar[bool] = False
    #: Whether it sums gradients in shards, which ranks may share.
    shards: ClassVar[bool] = False

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        activations: tuple[Activation, ...],
        cost: Cost,
        plan: Plan,
        communicator: Communicator = ALONE,
    ) -> None:
        self.backend, self.communicator = backend.fork(), communicator
        self.sizes, self.activations, self.cost, self.plan = sizes, activations, cost, plan

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        """Why this engine cannot train the model so, if it cannot."""
        raise NotImplementedError

    def go_by(self, plan: Plan) -> None:
        """From the next epoch on, another plan of this engine: one that knows other batch sizes."""
        self.plan = plan

    def put(self, X: Any, Y: np.ndarray) -> tuple[Array, Array]:
        """Put host rows, as `Model.check_data` gives them, where the engine reads them."""
        Y = self.cost.prepare(Y, self.sizes[-1])
        stays = self.reads_bytes and X.dtype == np.uint8
        asarray = self.backend.asarray
        return asarray(X, X.dtype if stays else None), asarray(Y)

    def epochs_at_once(self, rows: int, batch_size: int) -> int:
        """Epochs that a member may have in a call of `run_epoch`, where nobody looks between."""
        return 1

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Gradient descent over all rows once, in mini-batches; or `member.epochs` times.

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
        raise NotImplementedError

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """`run_epoch` for several networks of the model, by default in turn: the costs of each.

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
        costs = []
        for i, member in enumerate(members):
            costs.append(self.run_epoch(member, X, Y, meanwhile=meanwhile))
            on_member(i)
        return costs

    def between(self) -> AbstractContextManager[Any]:
        """A context for what the host computes between two epochs."""
        return nullcontext()

    def release(self) -> None:
        """Forget the buffers of the last epoch."""
