"""The book's ``network2``: a choice of costs, L2, narrow weights, monitors, files (chapter 3)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import validation
from ..files import write_whole
from .network import draw
from .samples import Samples
from .trainer import BookNetwork, sigmoid, sigmoid_prime

__all__ = [
    "CrossEntropyCost",
    "Network",
    "QuadraticCost",
    "load",
    "sigmoid",
    "sigmoid_prime",
    "vectorized_result",
]

PENALTIES = ("port", "book")


class QuadraticCost:
    """C_x = ½ ‖a - y‖² (chapter 1, eq. 6)."""

    @staticmethod
    def fn(a: Any, y: Any) -> float:
        """Compute C_x of an output and its target.

        Parameters
        ----------
        a : (n_L, 1) array
            Output.
        y : (n_L, 1) array
            Target.

        Returns
        -------
        float
            C_x.
        """
        difference = np.subtract(a, y)
        return float(0.5 * np.vdot(difference, difference))

    @staticmethod
    def delta(z: Any, a: Any, y: Any) -> Any:
        """Compute BP1, δ^L = (a - y) ⊙ σ'(z).

        Parameters
        ----------
        z, a : (n_L, m) arrays
            Weighted inputs and activations of the output layer.
        y : (n_L, m) array
            Targets.

        Returns
        -------
        (n_L, m) array
            Errors δ^L.
        """
        return np.subtract(a, y) * sigmoid_prime(z)


class CrossEntropyCost:
    """C_x = -Σ_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)] (chapter 3, eq. 63)."""

    @staticmethod
    def fn(a: Any, y: Any) -> float:
        """Compute C_x of an output and its target; 0 ln 0 is 0, -ln 0 the largest number.

        Parameters
        ----------
        a : (n_L, 1) array
            Output.
        y : (n_L, 1) array
            Target.

        Returns
        -------
        float
            C_x.
        """
        return float(_cross_entropy(np.asarray(a), np.asarray(y), None))

    @staticmethod
    def delta(z: Any, a: Any, y: Any) -> Any:
        """Compute BP1, δ^L = a - y.

        Parameters
        ----------
        z : (n_L, m) array
            Not needed.
        a : (n_L, m) array
            Outputs.
        y : (n_L, m) array
            Targets.

        Returns
        -------
        (n_L, m) array
            Errors δ^L.
        """
        return np.subtract(a, y)


def _cross_entropy(a: np.ndarray, y: np.ndarray, axis: int | None) -> np.ndarray:
    """Its sum along an axis: a term that is no number is 0, one that is infinite the largest."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        terms = np.nan_to_num(-y * np.log(a) - (1.0 - y) * np.log(1.0 - a))
        return np.asarray(np.sum(terms, axis=axis))


#: The costs by the names in a file, and what the engine calls them. Nothing else is looked up.
_COSTS: dict[str, type[Any]] = {
    "QuadraticCost": QuadraticCost,
    "CrossEntropyCost": CrossEntropyCost,
}
ENGINE_NAMES: dict[Any, str] = {
    QuadraticCost: "quadratic",
    CrossEntropyCost: "binary_cross_entropy",
}


class Network(BookNetwork):
    """A network of sigmoid neurons with a cost to choose and L2 regularisation (chapter 3).

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer, n_0 … n_L, input first.
    cost : class, default CrossEntropyCost
        `QuadraticCost`, `CrossEntropyCost`, or any with static ``fn(a, y)``, a number, and
        ``delta(z, a, y)``, δ^L, of columns (n_L, 1). With another than those two an epoch is a
        Python loop, and `SGD` warns that it is.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}, keyword only
        As in `backprop_gpu.Network`.
    penalty : {"port", "book"}, keyword only
        What `total_cost` and the monitors add for λ: "port", as the Python 3 port, λ/2 Σ w², added
        once per sample; "book", λ/2n Σ w² (chapter 3, eq. 87). Training is the same with both.

    Attributes
    ----------
    num_layers, sizes, weights, biases
        As in `trainer.BookNetwork`.
    cost : class
    penalty : str

    Raises
    ------
    ValueError, TypeError
        For sizes, a cost, a backend or a penalty that are none; nothing is drawn then.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        cost: Any = CrossEntropyCost,
        *,
        backend: str = "auto",
        penalty: str = "port",
    ) -> None:
        if penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}")
        self.cost = _check_cost(cost)
        self.penalty = penalty
        super().__init__(sizes, backend)
        self.default_weight_initializer()

    def default_weight_initializer(self) -> None:
        """Draw b from N(0, 1) and w from N(0, 1/n_{l-1}), all biases first (chapter 3)."""
        self.biases, wide = draw(self.sizes)
        self.weights = [w / np.sqrt(w.shape[1]) for w in wide]

    def large_weight_initializer(self) -> None:
        """Draw b and w from N(0, 1), all biases first, as in chapter 1."""
        self.biases, self.weights = draw(self.sizes)

    def SGD(
        self,
        training_data: Iterable[Any],
        epochs: int,
        mini_batch_size: int,
        eta: float,
        lmbda: float = 0.0,
        evaluation_data: Iterable[Any] | None = None,
        monitor_evaluation_cost: bool = False,
        monitor_evaluation_accuracy: bool = False,
        monitor_training_cost: bool = False,
        monitor_training_accuracy: bool = False,
        early_stopping_n: int = 0,
    ) -> tuple[list[float], list[int], list[float], list[int]]:
        """Run mini-batch gradient descent; print and return what is monitored after each epoch.

        As in the book a blank line ends what an epoch prints.

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
        lmbda : float
            Strength λ >= 0 of the penalty λ/2n Σ w² (eq. 87), n being the number of training
            samples.
        evaluation_data : list or iterator of (x, label), optional
            Columns x (n_0, 1) and an int in [0, n_L).
        monitor_evaluation_cost, monitor_evaluation_accuracy : bool
            What to print and return of the evaluation data.
        monitor_training_cost, monitor_training_accuracy : bool
            What to print and return of the training data.
        early_stopping_n : int
            Stop after this many epochs in a row without a new best accuracy, of the evaluation
            data if that is monitored, else of the training data; 0 never stops.

        Returns
        -------
        evaluation_cost : list of float
            As `total_cost` of each epoch; this list and the others are empty where not monitored.
        evaluation_accuracy : list of int
            Samples that are right, of each epoch.
        training_cost : list of float
            As `total_cost` of each epoch.
        training_accuracy : list of int
            Samples that are right, of each epoch.

        Raises
        ------
        ValueError, TypeError
            For data or numbers that do not fit, before anything has changed.
        FloatingPointError
            If weights turn NaN or infinite; they are then those of the epoch before.
        """
        patience = validation.integer("early_stopping_n", early_stopping_n, 0)
        if patience and not (monitor_evaluation_accuracy or monitor_training_accuracy):
            raise ValueError(
                "early_stopping_n needs an accuracy to watch: set monitor_evaluation_accuracy or "
                "monitor_training_accuracy"
            )
        evaluation = None
        if evaluation_data is not None:
            evaluation = self._read(evaluation_data, "evaluation_data", "labels")
        elif monitor_evaluation_cost or monitor_evaluation_accuracy:
            raise ValueError("monitors of evaluation data need evaluation_data, which is None")
        evaluation_cost: list[float] = []
        evaluation_accuracy: list[int] = []
        training_cost: list[float] = []
        training_accuracy: list[int] = []
        best, without = 0, 0

        def after(j: int, data: Samples) -> bool:
            nonlocal best, without
            self._say(f"Epoch {j} training complete")
            watched = 0
            if monitor_training_cost:
                cost = self.total_cost(data, lmbda)
                training_cost.append(cost)
                self._say(f"Cost on training data: {cost}")
            if monitor_training_accuracy:
                watched = self.accuracy(data, convert=True)
                training_accuracy.append(watched)
                self._say(f"Accuracy on training data: {watched} / {len(data)}")
            if evaluation is not None and monitor_evaluation_cost:
                cost = self.total_cost(evaluation, lmbda, convert=True)
                evaluation_cost.append(cost)
                self._say(f"Cost on evaluation data: {cost}")
            if evaluation is not None and monitor_evaluation_accuracy:
                watched = self.accuracy(evaluation)
                evaluation_accuracy.append(watched)
                self._say(f"Accuracy on evaluation data: {watched} / {len(evaluation)}")
            self._say("")
            best, without = (watched, 0) if watched > best else (best, without + 1)
            return bool(patience) and without == patience

        self._train(
            training_data, epochs, mini_batch_size, eta,
            lambda batch, n: self.update_mini_batch(batch, eta, lmbda, n), after, lmbda,
        )  # fmt: skip
        return evaluation_cost, evaluation_accuracy, training_cost, training_accuracy

    def update_mini_batch(
        self, mini_batch: Iterable[Any], eta: float, lmbda: float, n: int
    ) -> None:
        """Take one step, w ← (1 - ηλ/n) w - η/m Σ_x ∂C_x/∂w (chapter 3, eq. 93).

        Biases take it without the decay.

        Parameters
        ----------
        mini_batch : list or iterator of (x, y)
            As in `SGD`.
        eta, lmbda : float
            The learning rate η and the penalty's λ.
        n : int
            The number of all training samples.

        Raises
        ------
        ValueError, TypeError
            For a mini-batch that does not fit, or that is empty.
        """
        eta, lmbda = validation.finite("eta", eta), validation.finite("lmbda", lmbda, 0.0)
        self._update(mini_batch, eta, 1.0 - eta * lmbda / validation.integer("n", n, 1))

    def accuracy(self, data: Iterable[Any], convert: bool = False) -> int:
        """Count the samples of `data` that have their largest output at their class.

        Parameters
        ----------
        data : list or iterator of (x, label), or of (x, y) with `convert`
            As in `SGD`.
        convert : bool
            Whether y is a one-hot column (n_L, 1), as in training data.

        Returns
        -------
        int
            How many are right.

        Raises
        ------
        ValueError, TypeError
            For data that do not fit, or that are empty.
        """
        return self._hits(self._read(data, "data", "vectors" if convert else "labels"))

    def total_cost(self, data: Iterable[Any], lmbda: float, convert: bool = False) -> float:
        """Compute C: the mean of C_x over `data`, and what λ adds (chapter 3, eq. 87).

        What λ adds, `penalty` says.

        Parameters
        ----------
        data : list or iterator of (x, y), or of (x, label) with `convert`
            As in `SGD`.
        lmbda : float
            Strength λ >= 0.
        convert : bool
            Whether y is an int label, as in evaluation data.

        Returns
        -------
        float
            C with the penalty.

        Raises
        ------
        ValueError, TypeError
            For data that do not fit, or that are empty.
        """
        lmbda = validation.finite("lmbda", lmbda, 0.0)
        found = self._read(data, "data", "labels" if convert else "vectors")
        n = len(found)
        mean = float(np.sum(self._costs(found) / n))
        squares = sum(float(np.vdot(w, w)) for w in self._parameters()[0])
        return mean + 0.5 * lmbda * squares / (1 if self.penalty == "port" else n)

    def _costs(self, data: Samples) -> np.ndarray:
        """C_x of every sample, (n,)."""
        a, name = self._outputs(data), self._cost_name()
        if name == "quadratic":
            return np.asarray(0.5 * ((a - data.Y) ** 2).sum(axis=1))
        if name is not None:
            return _cross_entropy(a, data.Y, 1)
        pairs = zip(a, data.Y, strict=True)
        return np.array([float(self.cost.fn(a[:, None], y[:, None])) for a, y in pairs])

    def save(self, filename: Any) -> None:
        """Write a JSON file ``{"sizes", "weights", "biases", "cost"}``, replacing one in one step.

        Numbers are written so that `load` gives the same bits; the cost is its class's name.

        Parameters
        ----------
        filename : path
            The file.

        Raises
        ------
        ValueError, TypeError
            If weights and biases are not those of `sizes`.
        OSError
            If the file cannot be written; an older one is then as it was.
        """
        weights, biases = self._parameters()
        data = {
            "sizes": [int(n) for n in self.sizes],
            "weights": [w.tolist() for w in weights],
            "biases": [b.tolist() for b in biases],
            "cost": _name(_check_cost(self.cost)),
        }
        write_whole(Path(filename), json.dumps(data).encode())

    def _cost_name(self) -> str | None:
        return ENGINE_NAMES.get(_class(_check_cost(self.cost)))

    def _output_error(self, z: np.ndarray, a: np.ndarray, y: np.ndarray) -> Any:
        return self.cost.delta(z, a, y)

    def _slow(self) -> str | None:
        if self._cost_name() is None:
            return f"cost {_name(self.cost)} is neither QuadraticCost nor CrossEntropyCost"
        return super()._slow()


def load(filename: Any, *, cost: Any = None, backend: str = "auto") -> Network:
    """Load the network in a file written by `Network.save` or by the book.

    Nothing in the file is executed.

    Parameters
    ----------
    filename : path
        The file.
    cost : class, optional
        The user's own cost that the file names; the two built-in ones are known by name.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        As in `Network`.

    Returns
    -------
    Network
        With the weights, biases and cost of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        Naming the file and what was expected: JSON with sizes, weights, biases of matching
        shapes, all finite numbers, and the name of a cost.
    """
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut short or not JSON: {error}") from error
    keys = ("sizes", "weights", "biases", "cost")
    if not isinstance(data, dict) or not all(key in data for key in keys):
        holds = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{path} should hold an object with {', '.join(keys)}, but holds "
            f"{validation.brief(holds)}"
        )
    found = _file_cost(path, data["cost"], cost)
    try:
        sizes = validation.sizes(data["sizes"])
        weights = _arrays("weights", data["weights"], [(n, k) for k, n in pairwise(sizes)])
        biases = _arrays("biases", data["biases"], [(n, 1) for n in sizes[1:]])
    except (TypeError, ValueError) as error:  # its text may be as long as the file
        raise ValueError(f"{path}: {validation.brief(error)}") from None
    net = Network(sizes, found, backend=backend)
    net.weights, net.biases = weights, biases
    return net


def _file_cost(path: Path, name: Any, given: Any) -> Any:
    if given is not None:
        if _name(_check_cost(given)) != name:
            raise ValueError(
                f"{path} was saved with cost {validation.brief(name)!r}, not {_name(given)!r}"
            )
        return given
    if not isinstance(name, str) or name not in _COSTS:
        raise ValueError(
            f"{path} names cost {validation.brief(repr(name))}; known: {', '.join(_COSTS)}; give "
            "load a class of your own as cost="
        )
    return _COSTS[name]


def _arrays(name: str, value: Any, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Lists of rows of numbers, as arrays of these shapes."""
    if not isinstance(value, list) or len(value) != len(shapes):
        raise ValueError(f"{name} must be a list of {len(shapes)} arrays, one per layer")
    found = []
    for l, (rows, (n, k)) in enumerate(zip(value, shapes, strict=True), start=1):
        fits = isinstance(rows, list) and len(rows) == n
        if not fits or not all(isinstance(row, list) and len(row) == k for row in rows):
            raise ValueError(
                f"{name}[{l - 1}] does not fit layer {l}: expected {n} rows of {k} numbers"
            )
        for row in rows:
            for number in row:
                if type(number) not in (int, float) or not _finite(number):
                    raise ValueError(
                        f"{name}[{l - 1}] must hold finite numbers, got {str(number)[:40]!r}"
                    )
        found.append(np.array(rows, np.float64).reshape(n, k))
    return found


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer larger than any float
        return False


def _class(cost: Any) -> Any:
    return cost if isinstance(cost, type) else type(cost)


def _name(cost: Any) -> str:
    return str(_class(cost).__name__)


def _check_cost(cost: Any) -> Any:
    if not all(callable(getattr(cost, name, None)) for name in ("fn", "delta")):
        raise TypeError(
            "cost must be QuadraticCost, CrossEntropyCost or a class with static fn(a, y) and "
            f"delta(z, a, y), got {cost!r}"
        )
    return cost


def vectorized_result(j: int, classes: int = 10) -> np.ndarray:
    """Return the target of class j: 1 at j and 0 elsewhere.

    Parameters
    ----------
    j : int
        In [0, classes).
    classes : int
        Neurons n_L of the output layer.

    Returns
    -------
    (classes, 1) array
        A column of float64.

    Raises
    ------
    ValueError, TypeError
        For a label out of that range.
    """
    classes = validation.integer("classes", classes, 1)
    e = np.zeros((classes, 1))
    e[validation.integer("j", j, 0, classes - 1)] = 1.0
    return e
