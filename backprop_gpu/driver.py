"""Epochs in an order that the caller gives: the seam for trainers that shuffle, schedule and stop
as another library does (`estimators`, `nielsen`).

    driver = Driver(network, X, Y, epochs=…, batch_size=…, optimizer=…)
    for …:
        costs = driver.run(order, rates)     # one engine call, however many steps
    driver.close()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import planning, threads
from .engines.layered import Hyperparameters, Member
from .optimizers import Optimizer

if TYPE_CHECKING:
    from .network import Network

Array = Any


class Driver:
    """Trains `network` from its current weights, on data that lie with its backend throughout.

    Parameters
    ----------
    network : Network
    X, Y : (n, n_0), (n, n_L) arrays of the network's dtype
        Checked by the caller.
    epochs : int
        How many are expected: the choice of an engine depends on it.
    batch_size : int
        m.
    optimizer : Optimizer
        Its state lives in ``slots`` and its steps count from ``step``.
    engine : {"auto", "layered", "resident"}
    squares : bool
        Whether `run` will be asked for Σ w².

    Attributes
    ----------
    plan : planning.Plan
    slots : tuple of (length,) backend arrays
        The optimizer's state, all 0 at first.
    step : int
        Steps taken so far.
    """

    def __init__(
        self,
        network: Network,
        X: np.ndarray,
        Y: np.ndarray,
        *,
        epochs: int,
        batch_size: int,
        optimizer: Optimizer,
        engine: str = "auto",
        squares: bool = False,
    ) -> None:
        obstacle = network._resident_obstacle()
        if squares and network.backend != "numpy":
            obstacle = obstacle or "its kernel does not sum w² at every step"
        self.network, self.batch_size, self.optimizer = network, batch_size, optimizer
        self.plan = network.plan = network._make_plan(
            planning.Run(
                rows=len(X),
                epochs=epochs,
                batch_size=batch_size,
                engine=engine,
                obstacle=obstacle,
                user_cost=not network.cost.builtin,
                slots=optimizer.slots,
                rules=frozenset([optimizer.rule]),
                clips_norm=optimizer.clip_norm is not None,
            )
        )
        self._engine = network._engine_for(self.plan)
        backend, length = network._backend, network._layout.length
        self._X, self._Y = backend.asarray(X), backend.asarray(Y)
        self.slots = tuple(backend.zeros((length,)) for _ in range(optimizer.slots))
        self.step = 0

    def run(
        self,
        order: np.ndarray,
        rates: float | np.ndarray,
        *,
        optimizer: Optimizer | None = None,
        squares: np.ndarray | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Gradient descent over the rows that `order` names, once each, in mini-batches.

        Parameters
        ----------
        order : (rows,) int array
        rates : float or (steps,) array
            η of every step.
        optimizer : Optimizer, optional
            Of the same rule as the driver's, for these steps only: with another penalty, say.
        squares : (steps,) float64 array, optional
            Takes Σ w² before each step.

        Returns
        -------
        (steps,) float64 array
            The mean cost of each mini-batch, before its update and without penalties.

        Raises
        ------
        RuntimeError
            If the network is being trained elsewhere just now.
        """
        optimizer = optimizer or self.optimizer
        steps = -(-len(order) // self.batch_size)
        rates = np.broadcast_to(np.asarray(rates, np.float64), (steps,))
        member = Member(
            self.network._parameters,
            self.slots,
            order,
            Hyperparameters(
                self.batch_size,
                optimizer,
                optimizer.coefficients(rates, self.step),
                self.plan.captured,
                squares,
            ),
        )
        with threads.alone("network", self.network):
            costs = self._engine.run_epoch(member, self._X, self._Y, on_step)
        self.step += steps
        return costs

    def close(self) -> None:
        """Give back the engine's buffers."""
        self._engine.release()
