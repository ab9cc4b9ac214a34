"""The size of δ in each layer, epoch by epoch: `DeltaNorms`."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import validation
from .callbacks import Callback
from .history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..model import Model


class DeltaNorms(Callback):
    """Record the size of the errors δ^l of each layer after every epoch.

    In a deep network of sigmoids those of the first layers are smaller by orders of magnitude: the
    vanishing gradient. ∂C/∂b^l is the mean of δ^l, so this is how fast each layer learns.

    Parameters
    ----------
    X, Y : arrays, optional
        The samples, as in `fit`; by default the first of those that are trained on.
    rows : int, default 256
        How many of these, at most.

    Attributes
    ----------
    norms : (epochs, L) float64 array
        √(mean of (δ_xj^l)² over samples x and neurons j), of the last `fit`. Rows count alike,
        whatever their weights, and nothing is dropped out or mixed.

    Notes
    -----
    Of a `Population`, a `sweep` or trials each network has norms of its own:
    ``delta_norms.of(population.members[3])`` has them. On the workers of a cluster they would be
    lost, so with a client it is refused.

    References
    ----------
    Nielsen, *Neural Networks and Deep Learning*, chapter 5; Glorot & Bengio 2010, "Understanding
    the difficulty of training deep feedforward neural networks".

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import DeltaNorms, Network
    >>> X = np.random.default_rng(0).normal(size=(64, 4)); Y = (X[:, 0] > 0).astype(int)
    >>> norms = DeltaNorms()
    >>> net = Network([4, 8, 8, 8, 1], seed=0, backend="numpy")
    >>> history = net.fit(
    ...     X, Y, epochs=3, batch_size=8, learning_rate=0.5, callbacks=[norms]
    ... )
    >>> norms.norms.shape
    (3, 4)
    >>> bool(norms.norms[0, 0] < norms.norms[0, 3])
    True
    """

    def __init__(self, X: Any = None, Y: Any = None, *, rows: int = 256) -> None:
        if (X is None) != (Y is None):
            raise TypeError(
                f"{'X' if X is None else 'Y'} is missing: give both X and Y, or neither"
            )
        self.X, self.Y = X, Y
        self.rows = validation.integer("rows", rows, 1)
        #: For models of one kind each.
        self._samples: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._norms: list[np.ndarray] = []
        #: Those that hear of one network of several.
        self._others: weakref.WeakKeyDictionary[Any, DeltaNorms] = weakref.WeakKeyDictionary()
        #: The one network, where there are no several.
        self._heard: Callable[[], Any] = _nobody

    @property
    def norms(self) -> np.ndarray:
        """(epochs, L); see the class."""
        return np.array(self._norms) if self._norms else np.empty((0, 0))

    def of(self, network: Any) -> DeltaNorms:
        """Find what one network of a `Population` or a `sweep` has recorded.

        Parameters
        ----------
        network : Network
            Such as ``population.members[3]``, or ``result.best.network``.

        Returns
        -------
        DeltaNorms
            With its ``norms``.

        Raises
        ------
        ValueError
            If that network has not been trained with this callback, or is a copy.
        TypeError
            For what is no network.
        """
        if not hasattr(network, "parameters"):
            raise TypeError(f"network must be a Network, got {network!r}")
        found = self if network is self._heard() else self._others.get(network)
        if found is None:
            raise ValueError(
                f"{network!r} is none of the networks that this DeltaNorms has heard of"
            )
        return found

    def check_rows(
        self, model: Model, first: Callable[[int], tuple[np.ndarray, np.ndarray]] | None
    ) -> None:
        if self.X is not None:
            with validation.within("DeltaNorms"):
                X, Y = model.check_data(self.X, self.Y)
        elif first is not None:
            X, Y = model.check_data(*first(self.rows))
        else:
            raise ValueError(
                "DeltaNorms needs samples, DeltaNorms(X, Y): of batches nobody knows what is to "
                "come"
            )
        # Copies, lest views of a few rows keep all of them in memory.
        self._samples[_kind(model)] = X[: self.rows].copy(), Y[: self.rows].copy()

    def for_member(self, network: Any) -> DeltaNorms:
        own = self._others[network] = copy.copy(self)
        return own

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_others"}
        return kept | {"_heard": _nobody}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _others=weakref.WeakKeyDictionary())

    def on_fit_start(self, network: Any) -> None:
        self._norms = []
        self._heard = weakref.ref(network)

    def on_epoch_end(self, network: Any, history: History) -> None:
        model = network.model
        X, Y = self._samples[_kind(model)]
        norms, _ = model.derivatives.norms(
            network.parameters, X, model.cost.prepare(Y, model.sizes[-1])
        )
        # Of a row's ‖δ^l‖ in float64, whose squares are no 0 where float32's would be.
        squares = np.square(norms, dtype=np.float64).mean(axis=0) / np.array(model.sizes[1:])
        self._norms.append(np.sqrt(squares))

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        layers, norms = len(network.model.sizes) - 1, state.get("norms")
        if (
            not isinstance(norms, np.ndarray)
            or (norms.dtype, norms.ndim) != (np.float64, 2)
            or (norms.size and norms.shape[1] != layers)
        ):
            raise ValueError(f"DeltaNorms' norms must be of shape (epochs, {layers}) and float64")
        self._norms = list(norms)

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw the norms by epoch, a curve for each layer, on a logarithmic scale.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With a curve a layer.

        Raises
        ------
        ValueError
            If there has been no epoch.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        from .. import pictures

        if not self._norms and self._others:
            raise ValueError(
                "DeltaNorms.plot(): each network has norms of its own here: of(network).plot()"
            )
        return pictures.delta_norms(ax, self.norms)


def _nobody() -> None:
    """No network."""


def _kind(model: Model) -> tuple[Any, ...]:
    """What samples are checked and converted for."""
    return model.sizes[0], model.sizes[-1], model.activations[-1], model.cost, model.dtype
