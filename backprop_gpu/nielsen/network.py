"""The book's ``network``: quadratic cost, wide weights (chapters 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .samples import Samples
from .trainer import BookNetwork, sigmoid, sigmoid_prime

__all__ = ["Network", "sigmoid", "sigmoid_prime"]


class Network(BookNetwork):
    """A network of sigmoid neurons that learns by mini-batch gradient descent (chapter 1).

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer, n_0 … n_L, input first.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}, keyword only
        As in `backprop_gpu.Network`.

    Attributes
    ----------
    num_layers, sizes, weights, biases
        As in `trainer.BookNetwork`.

    Raises
    ------
    ValueError, TypeError
        For sizes or a backend that are none; nothing is drawn then.

    Notes
    -----
    Weights and biases are drawn from N(0, 1) by ``numpy.random.randn``, all biases first:
    `numpy.random.seed` and `random.seed` together repeat a training.
    """

    def __init__(self, sizes: Sequence[int], *, backend: str = "auto") -> None:
        super().__init__(sizes, backend)
        self.biases, self.weights = draw(self.sizes)

    def SGD(
        self,
        training_data: Iterable[Any],
        epochs: int,
        mini_batch_size: int,
        eta: float,
        test_data: Iterable[Any] | None = None,
    ) -> None:
        """Run mini-batch gradient descent, and print a line per epoch.

        With `test_data` the line says how many of them are right.

        Parameters
        ----------
        training_data : list or iterator of (x, y)
            Columns x (n_0, 1) and y (n_L, 1), one-hot for a class. A list is shuffled in place.
        epochs : int
            Or a whole float, which is what ``1500000 / size`` is in Python 3.
        mini_batch_size : int
            Samples m >= 1 of a step; the last mini-batch of an epoch may be shorter.
        eta : float
            The learning rate η.
        test_data : list or iterator of (x, label), optional
            Columns x (n_0, 1) and an int in [0, n_L).

        Raises
        ------
        ValueError, TypeError
            For data or numbers that do not fit, before anything has changed.
        FloatingPointError
            If weights turn NaN or infinite; they are then those of the epoch before.
        """
        test = None if test_data is None else self._read(test_data, "test_data", "labels")

        def after(j: int, data: Samples) -> bool:
            if test is None:
                self._say(f"Epoch {j} complete")
            else:
                self._say(f"Epoch {j} : {self.evaluate(test)} / {len(test)}")
            return False

        self._train(
            training_data, epochs, mini_batch_size, eta,
            lambda batch, n: self.update_mini_batch(batch, eta), after,
        )  # fmt: skip

    def update_mini_batch(self, mini_batch: Iterable[Any], eta: float) -> None:
        """Take one step, w ← w - η/m Σ_x ∂C_x/∂w and the same for b (chapter 1, eqs. 20 and 21).

        Parameters
        ----------
        mini_batch : list or iterator of (x, y)
            As in `SGD`.
        eta : float
            The learning rate η.

        Raises
        ------
        ValueError, TypeError
            For a mini-batch that does not fit, or that is empty.
        """
        self._update(mini_batch, eta, 1.0)

    def evaluate(self, test_data: Iterable[Any]) -> int:
        """Count the (x, label) pairs that have their largest output at the label.

        Parameters
        ----------
        test_data : list or iterator of (x, label)
            As in `SGD`.

        Returns
        -------
        int
            How many are right.

        Raises
        ------
        ValueError, TypeError
            For data that do not fit, or that are empty.
        """
        return self._hits(self._read(test_data, "test_data", "labels"))

    def cost_derivative(self, output_activations: Any, y: Any) -> Any:
        """Compute ∇_a C_x = a^L - y of the quadratic cost (chapter 2, BP1).

        Parameters
        ----------
        output_activations : (n_L, m) array
            Outputs a^L.
        y : (n_L, m) array
            Targets.

        Returns
        -------
        (n_L, m) array
            The gradient.
        """
        return np.subtract(output_activations, y)

    def _cost_name(self) -> str | None:
        return None if self._replaced("cost_derivative") else "quadratic"

    def _output_error(self, z: np.ndarray, a: np.ndarray, y: np.ndarray) -> Any:
        return self.cost_derivative(a, y) * sigmoid_prime(z)

    def _slow(self) -> str | None:
        if self._replaced("cost_derivative"):
            return "cost_derivative is not the library's"
        return super()._slow()


def draw(sizes: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Biases (n_l, 1), then weights (n_l, n_{l-1}), of N(0, 1) from NumPy's global generator."""
    biases = [np.random.randn(n, 1) for n in sizes[1:]]  # noqa: NPY002 - the book's draws
    weights = [
        np.random.randn(n, k)  # noqa: NPY002
        for k, n in pairwise(sizes)
    ]
    return biases, weights
