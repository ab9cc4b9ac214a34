"""The book's ``network3`` without Theano: layers to choose, dropout, softmax (chapter 6).

Of its layers those that are fully connected are here. What Theano drew cannot be the same: which
activations dropout leaves out is another sequence, and sums are taken in another order. Initial
weights are those of the book for the same `numpy.random.seed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import planning, threads, validation
from ..activations import Activation
from ..engines import Engine, Hyperparameters, Member
from ..model import Model
from ..optimizers import SGD
from ..parameters import Parameters
from ..philox import Draws
from ..training import Course, RowsAtOnce, Session
from . import mnist_loader
from .mnist_pickle import Pair
from .trainer import sigmoid

__all__ = [
    "ConvPoolLayer",
    "FullyConnectedLayer",
    "Network",
    "ReLU",
    "SoftmaxLayer",
    "linear",
    "load_data_shared",
    "sigmoid",
    "size",
    "tanh",
]

tanh = np.tanh


def linear(z: Any) -> Any:
    """The identity, σ(z) = z.

    Parameters
    ----------
    z : array or float
        Weighted inputs.

    Returns
    -------
    array or float
        The same object.
    """
    return z


def ReLU(z: Any) -> Any:
    """The rectifier, σ(z) = max(0, z).

    Parameters
    ----------
    z : array or float
        Weighted inputs.

    Returns
    -------
    array or float
        Of the shape of z.
    """
    return np.maximum(0.0, z)


def _kept_sigmoid(kept: float) -> Activation:
    def function(z: Any) -> Any:
        return kept / (1.0 + np.exp(-z))

    def derivative(z: Any) -> Any:
        a = 1.0 / (1.0 + np.exp(-z))
        return kept * a * (1.0 - a)

    return Activation("kept_sigmoid", function, derivative)


def _kept_tanh(kept: float) -> Activation:
    return Activation(
        "kept_tanh", lambda z: kept * np.tanh(z), lambda z: kept * (1.0 - np.tanh(z) * np.tanh(z))
    )


def _kept_relu(kept: float) -> Activation:
    return Activation("kept_relu", lambda z: kept * np.maximum(z, 0.0), lambda z: kept * (z > 0.0))


def _kept_identity(kept: float) -> Activation:
    return Activation("kept_identity", lambda z: kept * z, lambda z: kept + 0.0 * z)


#: σ, what an engine calls it, and what makes kept · σ of it.
_ACTIVATIONS: dict[Any, tuple[str, Callable[[float], Activation]]] = {
    sigmoid: ("sigmoid", _kept_sigmoid),
    tanh: ("tanh", _kept_tanh),
    ReLU: ("relu", _kept_relu),
    linear: ("identity", _kept_identity),
}


class FullyConnectedLayer:
    """A layer of a = σ(a' w + b), a' being the layer before.

    Parameters
    ----------
    n_in, n_out : int
        Neurons of the layer before, and of this one; each at least 1.
    activation_fn : {sigmoid, tanh, ReLU, linear}
        σ, one of this module's functions.
    p_dropout : float in [0, 1)
        The share of the layer's *inputs* that a training step leaves out. The others stay as they
        are, and where nothing is trained all inputs are multiplied by 1 - p_dropout.

    Attributes
    ----------
    w : (n_in, n_out) float32 array
        Of N(0, 1/n_out), which is what the book's program draws (its text has 1/n_in).
    b : (n_out,) float32 array
        Of N(0, 1); both by `numpy.random.normal`, w first.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit; nothing is drawn then.
    """

    def __init__(
        self, n_in: int, n_out: int, activation_fn: Any = sigmoid, p_dropout: float = 0.0
    ) -> None:
        _describe(self, n_in, n_out, p_dropout)
        if not any(activation_fn is known for known in _ACTIVATIONS):
            raise TypeError(
                "activation_fn must be network3's sigmoid, tanh, ReLU or linear, got "
                f"{activation_fn!r}; backprop_gpu.Network takes others"
            )
        self.activation_fn = activation_fn
        normal = np.random.normal  # NumPy's global generator, as in the book
        scale = np.sqrt(1.0 / self.n_out)
        self.w = normal(0.0, scale, (self.n_in, self.n_out)).astype(np.float32)
        self.b = normal(0.0, 1.0, (self.n_out,)).astype(np.float32)

    n_in: int
    n_out: int
    p_dropout: float


class SoftmaxLayer:
    """The last layer: a_j = e^z_j / Σ_k e^z_k, with the log-likelihood cost -ln a_y (chapter 3).

    Parameters
    ----------
    n_in, n_out : int
        As of `FullyConnectedLayer`, but n_out is at least 2.
    p_dropout : float in [0, 1)
        As of `FullyConnectedLayer`.

    Attributes
    ----------
    w : (n_in, n_out) float32 array
    b : (n_out,) float32 array
        Zeros at first.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit.
    """

    def __init__(self, n_in: int, n_out: int, p_dropout: float = 0.0) -> None:
        _describe(self, n_in, n_out, p_dropout)
        validation.integer("n_out", n_out, 2)
        self.w = np.zeros((self.n_in, self.n_out), np.float32)
        self.b = np.zeros(self.n_out, np.float32)

    n_in: int
    n_out: int
    p_dropout: float


def _describe(layer: Any, n_in: int, n_out: int, p_dropout: float) -> None:
    layer.n_in = validation.integer("n_in", n_in, 1)
    layer.n_out = validation.integer("n_out", n_out, 1)
    layer.p_dropout = validation.number("p_dropout", p_dropout, "[0, 1)")


class ConvPoolLayer:
    """The book's convolutional layer, which this package does not have.

    Parameters
    ----------
    *arguments, **settings
        The book's.

    Raises
    ------
    NotImplementedError
        Always: it says what there is instead.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        raise NotImplementedError(
            "backprop_gpu trains fully connected networks: it has no convolution and no pooling. "
            "Take FullyConnectedLayer and SoftmaxLayer here, or for convolutions torch.nn.Conv2d "
            "and MaxPool2d with backprop_gpu.torch.MLP for what follows them"
        )


Layer = FullyConnectedLayer | SoftmaxLayer


class Network:
    """A network of layers that learns by mini-batch gradient descent (chapter 6).

    Parameters
    ----------
    layers : list of FullyConnectedLayer, the last a SoftmaxLayer
        The network trains their w and b.
    mini_batch_size : int
        The size m >= 1, the same as of `SGD`.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}, keyword only
    dtype : {"float32", "float64"}, keyword only
        Of the arithmetic; the book's is float32.

    Attributes
    ----------
    layers : list
    mini_batch_size : int
    params : list of arrays
        w and b of every layer.
    plan : planning.Plan
        What runs and why: the engine and kernels from the last `SGD`.

    Raises
    ------
    ValueError, TypeError
        For layers that do not fit each other.

    Notes
    -----
    One thread may train it, and a second `SGD` at the same time is refused. What dropout leaves
    out is drawn from a generator of the network's own with a fixed seed, as in the book.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        mini_batch_size: int,
        *,
        backend: str = "auto",
        dtype: Any = "float32",
    ) -> None:
        self.layers = _checked_layers(layers)
        self.mini_batch_size = validation.integer("mini_batch_size", mini_batch_size, 1)
        following = [layer.p_dropout for layer in self.layers[1:]]
        # An engine divides what it keeps by 1 - p. σ times 1 - p before that makes a training step,
        # where what is kept is as it was, and a prediction, where all is times 1 - p, the book's.
        hidden = [
            _scaled(layer.activation_fn, 1.0 - p)
            for layer, p in zip(self.layers[:-1], following, strict=True)
            if isinstance(layer, FullyConnectedLayer)
        ]
        self._model = Model(
            [self.layers[0].n_in, *(layer.n_out for layer in self.layers)],
            activation=[*hidden, "softmax"],
            cost="categorical_cross_entropy",
            dtype=dtype,
            backend=backend,
        )
        self._rates = tuple(following) if any(following) else ()
        self._generator = np.random.default_rng(0)
        self._test: np.ndarray | None = None
        self.plan = self._model.plan()

    @property
    def params(self) -> list[np.ndarray]:
        """The arrays w and b of every layer, as they are now."""
        return [array for layer in self.layers for array in (layer.w, layer.b)]

    def SGD(
        self,
        training_data: Pair,
        epochs: int,
        mini_batch_size: int,
        eta: float,
        validation_data: Pair,
        test_data: Pair,
        lmbda: float = 0.0,
    ) -> list[float]:
        """Mini-batch gradient descent; prints the accuracies as the book does.

        As in the book mini-batches are taken in the order of the rows, every epoch the same, and
        rows that do not fill one are left out, of all three data. The penalty is
        λ/2 Σ w² over the *number of mini-batches*.

        Parameters
        ----------
        training_data : (X, y)
            Rows X (n, n_in) and labels y (n,), as of `load_data_shared`.
        epochs : int
            Or a whole float.
        mini_batch_size : int
            That of the network.
        eta : float
            The learning rate η.
        validation_data, test_data : (X, y)
            As `training_data`.
        lmbda : float
            The penalty's λ >= 0.

        Returns
        -------
        list of float
            The validation accuracy after each epoch, which the book only prints.

        Raises
        ------
        ValueError, TypeError
            For data or numbers that do not fit, before anything has changed.
        FloatingPointError
            If weights turn NaN or infinite; they are then those of the epoch before.
        """
        if isinstance(epochs, (float, np.floating)) and float(epochs).is_integer():
            epochs = int(epochs)
        epochs = validation.integer("epochs", epochs, 0)
        m = validation.integer("mini_batch_size", mini_batch_size, 1)
        if m != self.mini_batch_size:
            raise ValueError(
                f"mini_batch_size must be the network's, {self.mini_batch_size}, got {m}"
            )
        eta, lmbda = validation.finite("eta", eta), validation.finite("lmbda", lmbda, 0.0)
        X, y = self._checked("training_data", training_data)
        held, test = (
            self._checked(name, data)
            for name, data in (("validation_data", validation_data), ("test_data", test_data))
        )
        Y = validation.one_hot("training_data", y, self.layers[-1].n_out, self._model.dtype)
        steps = len(X) // m
        optimizer = SGD(l2=lmbda / steps)
        run = planning.Run(
            len(X), epochs, m, rules=frozenset([optimizer.rule]), drops=bool(self._rates)
        )
        plan, parameters = self._model.plan(run), self._model.parameters()
        self._load(parameters)
        found: list[float] = []
        best, best_iteration, test_accuracy = 0.0, 0, 0.0

        def begin(epoch: int) -> None:
            for iteration in range(steps * epoch, steps * (epoch + 1)):
                if iteration % 1000 == 0:
                    self._say(f"Training mini-batch number {iteration}")

        def end(epoch: int) -> None:
            nonlocal best, best_iteration, test_accuracy
            self._take(parameters, epoch)
            accuracy = self._accuracy(parameters, *held)
            found.append(accuracy)
            self._say(f"Epoch {epoch}: validation accuracy {accuracy:.2%}")
            if accuracy >= best:
                self._say("This is the best validation accuracy to date.")
                best, best_iteration = accuracy, steps * (epoch + 1) - 1
                test_accuracy = self._accuracy(parameters, *test)
                self._say(f"The corresponding test accuracy is {test_accuracy:.2%}")

        with threads.alone("network", self):
            self._test = test[0]
            if epochs:
                self.plan = plan
                course = _LayersCourse(
                    parameters, len(X), m, epochs, optimizer, eta, self._rates, self._generator,
                    begin, end,
                )  # fmt: skip
                rows = _DroppedRows(
                    self._model.engine(plan), X, Y, self.layers[0].p_dropout, self._generator
                )
                Session(self._model, rows, [course]).run()
        self._say("Finished training network.")
        if epochs:
            self._say(
                f"Best validation accuracy of {best:.2%} obtained at iteration {best_iteration}"
            )
            self._say(f"Corresponding test accuracy of {test_accuracy:.2%}")
        return found

    def test_mb_predictions(self, i: int) -> np.ndarray:
        """Predict the classes of a mini-batch of the last `SGD`'s test data.

        Parameters
        ----------
        i : int
            Which mini-batch, from 0.

        Returns
        -------
        (m,) int array
            A class for each of its rows.

        Raises
        ------
        ValueError
            Before the first `SGD`, or for a mini-batch that is not there.
        """
        if self._test is None:
            raise ValueError("there are no test data before the first SGD")
        m = self.mini_batch_size
        i = validation.integer("i", i, 0, len(self._test) // m - 1)
        parameters = self._model.parameters()
        self._load(parameters)
        return self._classes(parameters, self._test[i * m : (i + 1) * m])

    def accuracy(self, data: Pair) -> float:
        """The share of rows whose largest output is at their label; not in the book.

        Parameters
        ----------
        data : (X, y)
            As of `SGD`; rows that do not fill a mini-batch are left out.

        Returns
        -------
        float
            The share, from 0 to 1.

        Raises
        ------
        ValueError, TypeError
            For data that do not fit.
        """
        X, y = self._checked("data", data)
        parameters = self._model.parameters()
        self._load(parameters)
        return self._accuracy(parameters, X, y)

    def _say(self, text: str) -> None:
        print(text)

    def _checked(self, name: str, data: Pair) -> tuple[np.ndarray, np.ndarray]:
        """X and its labels, as many as fill mini-batches."""
        try:
            X, y = data
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} must be a pair (X, y), as of load_data_shared, got {type(data).__name__}"
            ) from None
        X = validation.inputs(X, self.layers[0].n_in, self._model.dtype, f"X of {name}")
        y = validation.labels(y, len(X), self.layers[-1].n_out, f"y of {name}")
        rows = len(X) // self.mini_batch_size * self.mini_batch_size
        if not rows:
            raise ValueError(
                f"{name} must fill a mini-batch of {self.mini_batch_size}, got {len(X)} rows"
            )
        return X[:rows], y[:rows]

    def _load(self, parameters: Parameters) -> None:
        """Put the layers' w and b, checked, into parameters of the model."""
        model = self._model
        weights: list[np.ndarray] = []
        biases: list[np.ndarray] = []
        for l, layer in enumerate(self.layers):
            for name, shape in (("w", (layer.n_in, layer.n_out)), ("b", (layer.n_out,))):
                array = validation.numbers(f"layers[{l}].{name}", getattr(layer, name), model.dtype)
                if array.shape != shape:
                    raise ValueError(
                        f"layers[{l}].{name} must have shape {shape}, got {array.shape}"
                    )
                (weights if name == "w" else biases).append(array.T)
        model.write(model.layout.flat(weights, biases, model.dtype), parameters)

    def _take(self, parameters: Parameters, epoch: int) -> None:
        """Copy the parameters into the layers, if all are numbers."""
        flat = self._model.read(parameters)
        if not validation.all_finite(flat):
            raise FloatingPointError(
                f"weights turned NaN or infinite in epoch {epoch}: a smaller eta or lmbda may help"
            )
        weights, biases = self._model.layout.views(flat)
        for layer, w, b in zip(self.layers, weights, biases, strict=True):
            layer.w, layer.b = np.ascontiguousarray(w.T), b.copy()

    def _classes(self, parameters: Parameters, X: np.ndarray) -> np.ndarray:
        kept = X.dtype.type(1.0 - self.layers[0].p_dropout)
        outputs = self._model.passes().predict(parameters, X if kept == 1 else X * kept)
        return np.asarray(outputs.argmax(axis=1))

    def _accuracy(self, parameters: Parameters, X: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(self._classes(parameters, X) == y))


def _checked_layers(layers: Sequence[Layer]) -> list[Layer]:
    if not validation.is_ordered(layers):
        raise TypeError(f"layers must be a list of layers, got {type(layers).__name__}")
    if not len(layers):
        raise ValueError("layers must not be empty")
    for l, layer in enumerate(layers):
        last = l == len(layers) - 1
        if not isinstance(layer, SoftmaxLayer if last else FullyConnectedLayer):
            raise TypeError(
                f"layers[{l}] must be a {'SoftmaxLayer' if last else 'FullyConnectedLayer'}, got "
                f"{validation.brief(repr(layer))}: the last layer, and no other, has a cost"
            )
        if l and layer.n_in != layers[l - 1].n_out:
            raise ValueError(
                f"layers[{l}] has n_in={layer.n_in}, and the layer before it "
                f"n_out={layers[l - 1].n_out}"
            )
    return list(layers)


def _scaled(activation_fn: Any, kept: float) -> str | Activation:
    """σ, or `kept` times σ."""
    name, make = _ACTIVATIONS[activation_fn]
    return name if kept == 1.0 else make(kept)


class _LayersCourse(Course):
    """A network on its way through `SGD`: rows in their order, and `Network`'s printed lines."""

    def __init__(
        self,
        parameters: Parameters,
        rows: int,
        m: int,
        epochs: int,
        optimizer: SGD,
        eta: float,
        rates: tuple[float, ...],
        generator: np.random.Generator,
        begin: Callable[[int], None],
        end: Callable[[int], None],
    ) -> None:
        super().__init__(parameters)
        self.steps, self._number, self._epochs = rows // m, 0, epochs
        self._order, self._m, self._optimizer, self._eta = np.arange(rows), m, optimizer, eta
        self._rates, self._generator = rates, generator
        self._begin, self._end = begin, end

    def epoch(self) -> Member:
        self._begin(self._number)
        coefficients = self._optimizer.coefficients(
            np.full(self.steps, self._eta), self._number * self.steps
        )
        draws = None
        if self._rates:
            key = int(self._generator.integers(2**64, dtype=np.uint64))
            draws = Draws(self._rates, (key,))
        hyperparameters = Hyperparameters(self._m, self._optimizer, coefficients)
        return Member(self.parameters, (), self._order, hyperparameters, draws=draws)

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self._number += 1
        self._end(self._number - 1)

    def is_over(self) -> bool:
        return self._number >= self._epochs


class _DroppedRows(RowsAtOnce):
    """Rows of whose numbers a share is left out, in each epoch others."""

    def __init__(
        self, engine: Engine, X: np.ndarray, Y: np.ndarray, rate: float, generator: Any
    ) -> None:
        # An engine may read X where it is, and what is left out is not to be the caller's.
        super().__init__(engine, X.copy() if rate else X, Y)
        self._whole, self._rate, self._generator = X, rate, generator

    def run_epoch(
        self,
        member: Member,
        on_step: Callable[[int], None] | None,
        meanwhile: Callable[[], None],
        first: int = 0,
        piece: int = 0,
    ) -> Iterator[np.ndarray]:
        if self._rate:
            kept = self._generator.random(self._whole.shape, np.float32) >= self._rate
            backend = self.engine.backend
            backend.copy(backend.asarray(self._whole * kept), self.X)
        yield from super().run_epoch(member, on_step, meanwhile, first, piece)


def load_data_shared(
    filename: str | os.PathLike[str] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test data, as `Network.SGD` takes them.

    Arrays of NumPy's, where the book has Theano's shared variables: an engine puts them on a GPU.

    Parameters
    ----------
    filename : path or "digits", optional
        As of `mnist_loader.load_data`.

    Returns
    -------
    list of three pairs (X, y)
        Each X (n, n_0) float32, of MNIST (n, 784), and y (n,) int32.

    Raises
    ------
    FileNotFoundError, ValueError
        As `mnist_loader.load_data`.
    """
    return [(X, y.astype(np.int32)) for X, y in mnist_loader.load_data(filename)]


def size(data: Pair) -> int:
    """How many rows the data have.

    Parameters
    ----------
    data : (X, y)
        As of `load_data_shared`.

    Returns
    -------
    int
        Their number, n.
    """
    return len(data[0])
