"""A fully connected network: parameters, prediction, training, saving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import communicators, html, initializers, optimizers, planning, threads, validation
from .activations import Activation
from .arrays import as_given
from .costs import Cost
from .model import Model
from .optimizers import Optimizer
from .schedules import Schedule
from .training import Callback, History, fitting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .engines.derivatives import Loss
    from .gradient_check import GradientReport
    from .planning.explanation import Explanation
    from .preprocessing import Preprocessing


class Network:
    """A fully connected network a^l = σ(w^l a^{l-1} + b^l), trained by gradient descent.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer, (n_0, …, n_L), input first.
    activation : str, Activation or a sequence of them, default "sigmoid"
        Activation σ of every layer after the input, or one per layer. A name: sigmoid, tanh, relu,
        leaky_relu, elu, gelu, silu, softplus, identity, exponential, softmax (output
        layer only), or one that `activations.register` added.
    cost : str or Cost, default "quadratic"
        Cost C: "quadratic" (½‖y - a‖²), "binary_cross_entropy", "categorical_cross_entropy",
        "poisson", any other of `costs.names`, with its parameters if it has some
        ("huber(delta=2.0)"), or one that `costs.register` added.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic. float32 is strict: no TF32.
    precision : {"float32", "tf32", "bf16"}, optional
        What the factors of each product are rounded to before they are multiplied; sums, parameters
        and all else stay float32. By default nothing is rounded. A GPU from compute capability 8.0
        on multiplies rounded factors many times as fast; NumPy rounds them to show what becomes of
        a training, and is slower for it.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        "auto" takes cuda where a device is usable, else numpy; ``network.plan`` says
        which and why.
    seed : int, optional
        Makes initial weights and shuffling repeatable: same seed, machine and plan,
        same bits.
    initial_weights : str, default "auto"
        "book" (N(0, 1/n_in), chapter 3), "book_large" (N(0, 1), chapter 1), "xavier",
        "he"; "auto" takes he for layers of the relu family and book for the rest.

    Attributes
    ----------
    sizes : tuple of int
    plan : planning.Plan
        What runs and why: the backend from the start, kernels from the last `fit`.
    model : Model
        What it has in common with others of its shape: sizes, σ, C, dtype, precision, backend.
    parameters : Parameters
        w and b, where the backend keeps them.
    generator : numpy.random.Generator
        Draws the order of the rows.
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    preprocessing : preprocessing.Preprocessing or None
        What the command line does to a table's columns before this network, kept in its file;
        the methods here take rows as they are after it.

    Notes
    -----
    Any number of threads may read one network at once: `predict`, `loss`, `accuracy`,
    `gradients`, `weights`, `save`. One may train it, and a second that tries is refused. What is
    read while it trains, or while another thread assigns weights, may be a mixture of weights
    before and after a step.

    ``copy.copy`` and ``copy.deepcopy`` give a network that trains on independently: parameters,
    generator and history are its own. Only activations and cost are shared by the former.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import Network
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]); Y = np.array([0, 1, 1, 0])
    >>> net = Network([2, 8, 1], cost="binary_cross_entropy", seed=1, backend="numpy")
    >>> history = net.fit(X, Y, epochs=500, batch_size=4, learning_rate=2.0)
    >>> net.accuracy(X, Y)
    1.0
    """

    preprocessing: Preprocessing | None = None
    history: History | None
    plan: planning.Plan
    generator: np.random.Generator

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        cost: str | Cost = "quadratic",
        dtype: Any = "float32",
        precision: str | None = None,
        backend: str = "auto",
        seed: int | None = None,
        initial_weights: str = "auto",
    ) -> None:
        if seed is not None:
            seed = validation.seed(seed)
        validation.one_of("initial_weights", initial_weights, ("auto", *initializers.names()))
        model = Model(
            sizes, activation=activation, cost=cost, dtype=dtype, precision=precision,
            backend=backend,
        )  # fmt: skip
        # Drawn in float64, beside what it becomes.
        size = model.layout.length * (8 + model.dtype.itemsize)
        validation.room(f"a network of sizes {model.sizes}", size)
        self._start(model)
        self.generator = np.random.default_rng(seed)
        rules = initializers.rules(initial_weights, self.activations)
        self.weights, self.biases = initializers.draw(rules, self.sizes, self.generator)

    def _start(self, model: Model, flat: Any = None) -> None:
        self.model, self.history = model, None
        self.parameters = model.parameters(flat)
        self.plan = model.plan()

    @classmethod
    def of(cls, model: Model, flat: Any, generator: np.random.Generator) -> Network:
        """Make a network of a model, with parameters that the backend holds already.

        Parameters
        ----------
        model : Model
            What sizes, σ, C, dtype, precision and backend are.
        flat : (length,) array of the backend's
            All w and b, as `parameters.Layout` lays them out. It is kept, not copied.
        generator : numpy.random.Generator
            Draws the order of the rows.

        Returns
        -------
        Network
            One without a history.
        """
        network = object.__new__(cls)
        network._start(model, flat)
        network.generator = generator
        return network

    def __repr__(self) -> str:
        names = [activation.name for activation in self.activations]
        shown = names[0] if len(set(names)) == 1 else names
        rounded = self.precision != self.dtype.name
        precision = f"precision={self.precision!r}, " if rounded else ""
        return (
            f"Network({list(self.sizes)}, activation={shown!r}, cost={self.cost.name!r}, "
            f"dtype={self.dtype.name!r}, {precision}backend={self.backend!r})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the layers, the plan, and what training has come to."""
        layers = zip(self.sizes[1:], self.sizes, self.activations, strict=False)
        rows: list[list[object]] = [[0, self.sizes[0], "", "", ""]]
        rows += [
            [l, n, sigma.name, f"{n} × {k}", f"{n * (k + 1):,}"]
            for l, (n, k, sigma) in enumerate(layers, start=1)
        ]
        rounded = f", precision {self.precision}" if self.precision != self.dtype.name else ""
        history = self.history
        return html.block(
            f"Network {list(self.sizes)}: {self.model.layout.count:,} parameters",
            html.line(f"cost {self.cost.name}, {self.dtype.name}{rounded}, backend {self.backend}"),
            html.table(["layer", "neurons", "σ", "w", "parameters"], rows),
            html.line("not trained yet" if not history else f"trained: {history.summary()}"),
            html.details("plan", html.pre(self.plan)),
        )

    # -- what it shares with others of its shape ------------------------------------

    @property
    def sizes(self) -> tuple[int, ...]:
        """The layers' sizes (n_0, …, n_L)."""
        return self.model.sizes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters and arithmetic."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """What factors of products are rounded to: the dtype's name where they are not."""
        return self.model.precision

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Activations σ of layers 1 … L."""
        return self.model.activations

    @property
    def cost(self) -> Cost:
        """The cost C."""
        return self.model.cost

    @property
    def backend(self) -> str:
        """The backend in use; ``plan.backend_reason`` says why."""
        return self.model.choice.backend

    # -- parameters -----------------------------------------------------------------

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """Weights w[1] … w[L], each (n_l, n_{l-1}): read-only copies.

        Assign a sequence of such arrays to replace them; one that does not fit raises, and replaces
        none.
        """
        return _read_only(self._views()[0])

    @weights.setter
    def weights(self, value: Sequence[Any]) -> None:
        self._replace("weights", value, self.model.layout.weight_shapes)

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        """Biases b[1] … b[L], each (n_l,): read-only copies.

        Assign a sequence of such arrays to replace them; one that does not fit raises, and replaces
        none.
        """
        return _read_only(self._views()[1])

    @biases.setter
    def biases(self, value: Sequence[Any]) -> None:
        self._replace("biases", value, self.model.layout.bias_shapes)

    def _replace(self, name: str, value: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
        try:
            value = list(value)
        except TypeError:
            raise TypeError(f"{name} must be a sequence of arrays, got {value!r}") from None
        if len(value) != len(shapes):
            raise ValueError(
                f"{name} must be {len(shapes)} arrays, one per layer, got {len(value)}"
            )
        arrays = [
            validation.numbers(f"{name}[{i}]", array, self.dtype) for i, array in enumerate(value)
        ]
        for l, (array, shape) in enumerate(zip(arrays, shapes, strict=True), start=1):
            if array.shape != shape:
                raise ValueError(
                    f"{name}[{l - 1}] does not fit layer {l}: expected shape {shape}, "
                    f"got {array.shape}"
                )
        flat = self.model.read(self.parameters)
        views = self.model.layout.views(flat)[0 if name == "weights" else 1]
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        self.model.write(flat, self.parameters)

    def _views(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        return self.model.layout.views(self.model.read(self.parameters))

    # -- training -------------------------------------------------------------------

    def fit(
        self,
        X: Any = None,
        Y: Any = None,
        *,
        batches: Iterable[tuple[Any, Any]] | None = None,
        epochs: int,
        batch_size: int,
        learning_rate: float | Schedule,
        optimizer: str | Optimizer = "sgd",
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Iterable[Callback | Callable[[Network, History], bool | None]] = (),
        progress: bool = False,
        engine: str = "auto",
        plan: planning.Plan | None = None,
        resume_from: Any = None,
        communicator: Any = "auto",
        buffer_rows: int | None = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        dropout: float | Sequence[float] = 0.0,
        mixup: float = 0.0,
    ) -> History:
        """Run mini-batch gradient descent from the current weights.

        Parameters
        ----------
        X : (n, n_0) array, table or sparse matrix
            Rows x: of any library with ``__array_namespace__`` or DLPack, PyTorch's among them; a
            table of numbers of pandas, polars or Arrow; a sparse matrix of SciPy's, of which at
            most some 256 MiB of rows are dense at a time. Of uint8 it means its numbers, 0 to 255,
            and trains to the same bits as ``X.astype(dtype)``; on a GPU the resident engine keeps
            and reads it as the bytes it is, a quarter of float32's.
            Rows that stay on a disk are read as they are needed, in another thread: a NumPy memory
            map, an array of HDF5 (h5py), Zarr or Dask, a table of Arrow's or a ParquetFile
            (pyarrow) whose columns are numbers, or an object with ``shape``, ``dtype`` and
            ``__getitem__`` for ascending row numbers. Y, too, where it is not an array.
        Y : (n, n_L) array, or (n,) int array of labels
            Targets y, or a table; labels where the outputs are classes. Costs that predict more
            than one number of a target have fewer columns (`Cost.targets_of`). A NaN, or a null of
            a table, is a missing label: that
            output of that row counts neither in C nor in a gradient.
        batches : iterable of (X, Y), optional
            In place of X and Y, chunks of rows as they come, from a stream for example. A pass goes
            through it once, on another thread; each chunk's rows are taken in a random order, and
            its last mini-batch may be short. A schedule's learning rate is that of the pass's
            beginning. Not with a `Checkpoint`, resume_from, buffer_rows or several ranks.
        epochs : int
            Passes over the rows, each in a new random order; the last mini-batch of a
            pass may be shorter than the rest.
        batch_size : int
            Rows m of a mini-batch, in [1, n].
        learning_rate : float or callable
            Rate η, or a schedule (see `schedules`) of the time in epochs.
        optimizer : str or Optimizer
            "sgd", "momentum", "nesterov", "adam", "adamw", or one of `optimizers`' classes
            with its settings, penalties and clipping. It starts afresh in every `fit`.
        validation_data : (X, Y), optional
            Rows whose loss, and accuracy where they are classes, are taken after every epoch.
        callbacks : iterable of Callback or function (network, history) -> bool
            A true result stops training after that epoch.
        progress : bool
            Show a progress bar.
        engine : {"auto", "layered", "resident", "fused", "persistent"}
            What runs an epoch; "auto" takes what the planner expects to be faster, and
            ``network.plan`` says which and why.
        plan : planning.Plan, optional
            What to run, instead of what the planner would take: ``network.plan`` of an earlier
            `fit`, here or on a machine of the same kind, to have its results again.
        resume_from : path, optional
            The file of a `Checkpoint`, or its path with ``{epoch}``: go on from there, with the
            plan of then, instead of from the current weights. Everything else is given as it was,
            but for epochs, which may be more.
        communicator : {"auto", "none"}, Communicator or mpi4py.MPI.Intracomm
            Ranks, processes that all make this call with the same arguments, share each mini-batch,
            and all end with the same network, whose bits do not depend on how many there are; the
            weights to start from and the random order are those of rank 0. "auto" is the ranks of
            the MPI job that this process is part of, if any; with "none" it trains alone. Every
            rank calls its callbacks, and a true result of any of them stops all; rank 0 alone
            shows progress and writes checkpoints.
        buffer_rows : int, optional
            How many rows, of X and Y that are read from where they are, lie in memory at a time
            and are shuffled among themselves; twice as many while the next are read. They are
            blocks of rows that follow each other, 16 to a buffer, in a new random order each
            epoch. By default what 256 MiB hold, and of arrays in memory all; with all rows the
            order is the same for both.
        sample_weight : (n,) array, optional
            Weights w_x >= 0, by which C of a mini-batch is the weighted mean Σ w_x C_x / Σ w_x: 0
            leaves a row out, and 2 counts it twice.
        class_weight : "balanced" or dict of class numbers to weights, optional
            Multiplies the weights of a class's rows. "balanced" is n / (classes · rows of the
            class), so that all classes count alike.
        dropout : float in [0, 1), or a sequence of them, default 0
            The share of each hidden layer's activations, or of one layer after another, that a step
            leaves out, dividing the rest by what stays (Srivastava et al. 2014; Nielsen, chapter
            3).
            What is left out is drawn from the network's generator by counters (`philox`): the
            same on every engine, and for any number of threads, ranks and members.
        mixup : float >= 0, default 0
            With α > 0 a step trains on mixtures of its rows, x and targets, each with the next of
            its mini-batch, by shares λ and 1 - λ, λ ~ Beta(α, α) being one number a mini-batch
            (Zhang et al. 2018, who take 0.1 to 0.4 for images); ``loss`` in the history is of
            mixtures. Weights are mixed likewise; a target that is missing in either is missing. Not
            with a hinge cost, whose targets are classes.

        Returns
        -------
        History
            Loss and seconds of every epoch; also ``network.history``.

        Raises
        ------
        ValueError, TypeError
            For arguments that do not fit, or not the checkpoint, before anything has changed. Of a
            schedule some epochs are tried; where another fails, training ends there with the
            weights before it.
        FloatingPointError
            If the cost turns NaN or infinite, naming epoch and batch. The weights are
            then those at the end of the last good epoch. After Ctrl-C they are those at the end
            of the last whole one, or of one a few tenths of a second before: the CPU's resident
            engine runs epochs that short together, where nobody looks between them.
        RuntimeError
            If this network is being trained already: by another thread, or by the `fit`
            whose callback calls this one. Or if another rank was given what does not fit; an
            exception in the midst of training on several ranks ends their processes, since none
            could go on without it.
        """
        if (X is None) == (batches is None) or (batches is not None and Y is not None):
            raise TypeError("fit takes X and Y, or batches in place of both")
        shared: dict[str, Any] = {
            "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
            "optimizer": optimizer, "validation_data": validation_data, "callbacks": callbacks,
            "progress": progress, "engine": engine, "plan": plan, "dropout": dropout,
            "mixup": mixup,
        }  # fmt: skip
        with threads.alone("network", self):
            if batches is not None:
                self._check_alone(
                    resume_from, communicator, buffer_rows, sample_weight, class_weight
                )
                return fitting.fit_batches(self, batches, **shared)
            return fitting.fit(
                self, X, Y, resume_from=resume_from, communicator=communicator,
                buffer_rows=buffer_rows, sample_weight=sample_weight, class_weight=class_weight,
                **shared,
            )  # fmt: skip

    @staticmethod
    def _check_alone(resume_from: Any, communicator: Any, buffer_rows: Any, *weights: Any) -> None:
        """Refuse, with batches, what needs to know all rows."""
        with communicators.resolved(communicator) as ranks:
            several = ranks is not None and ranks.size > 1
        for name, given in (
            ("resume_from", resume_from is not None),
            ("buffer_rows", buffer_rows is not None),
            ("communicator", several),
            ("sample_weight", weights[0] is not None),
            ("class_weight", weights[1] is not None),
        ):
            if given:
                raise ValueError(f"{name} needs X and Y: of batches nobody knows what is to come")

    # -- without training -------------------------------------------------------------

    # What has a row for each of X's is an array of X's library, where X is: `arrays.as_given`.

    def predict(self, X: Any) -> Any:
        """Compute the outputs a^L of every row of X.

        Parameters
        ----------
        X : (m, n_0) array, table or sparse matrix
            Rows of finite numbers, converted to the network's dtype.

        Returns
        -------
        (m, n_L) array
            Outputs, of the network's dtype. In X's library and on its device, where X is a tensor
            of PyTorch, or an array of JAX, CuPy or another library with ``__array_namespace__``;
            else NumPy's.

        Raises
        ------
        ValueError, TypeError
            For an X that does not fit layer 0, or is not finite.

        Warns
        -----
        RuntimeWarning
            If outputs are NaN, naming the first row: z overflowed there.
        """
        found = self.model.predict_on_device(self.parameters, X)
        if found is not None:
            return found
        outputs = self.model.passes().predict(self.parameters, self.model.inputs(X))
        return as_given(validation.warn_of_nan(outputs), X)

    def loss(self, X: Any, Y: Any, sample_weight: Any = None) -> float:
        """Compute C, the mean cost over the rows, without penalties.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        Y : (m, n_L) array, or (m,) int array of labels
            Targets, as in `fit`.
        sample_weight : (m,) array, optional
            Weights w_x >= 0: C is then Σ w_x C_x / Σ w_x.

        Returns
        -------
        float
            The mean cost C.

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the network or each other.
        """
        X, Y, weights = self._checked(X, Y, sample_weight)
        return self.model.passes().evaluate(self.parameters, X, Y, weights)[0]

    def accuracy(self, X: Any, labels: Any, sample_weight: Any = None) -> float:
        """Compute the share of rows whose largest output is the label's.

        With one output the class is 1 where a >= ½, with a hinge cost where a >= 0. A row with an
        output that is NaN is never right.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        labels : (m,) array, or (m, n_L) array
            Class numbers, or one-hot rows of them.
        sample_weight : (m,) array, optional
            Weights of the rows.

        Returns
        -------
        float
            The share, in [0, 1].

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the network or each other.
        """
        X = self.model.inputs(X)
        classes = validation.labels(self.model.on_host(labels), len(X), self.sizes[-1])
        weights = self.model.mean_weights(sample_weight, len(X))
        outputs = self.model.passes().predict(self.parameters, X)
        return validation.accuracy(outputs, classes, weights, self.cost.threshold)

    def gradients(
        self, X: Any, Y: Any, sample_weight: Any = None, *, per_sample: bool = False
    ) -> list[tuple[Any, Any]]:
        """Compute the gradients of the mean cost over all rows (BP1–BP4), as of `loss`.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        Y : (m, n_L) array, or (m,) int array of labels
            Targets, as in `fit`.
        sample_weight : (m,) array, optional
            Weights of the rows, as in `loss`; not with `per_sample`.
        per_sample : bool
            Whether to return those of every row's own C_x.

        Returns
        -------
        list of (array, array)
            Pairs (∂C/∂w[l], ∂C/∂b[l]), layer by layer, of shapes (n_l, n_{l-1}) and (n_l,); with
            `per_sample` (m, n_l, n_{l-1}) and (m, n_l), in X's library (`predict`).

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the network or each other.
        MemoryError
            If the gradients of all rows would not fit into memory.
        """
        rows, Y, weights = self._checked(X, Y, sample_weight)
        if validation.boolean("per_sample", per_sample):
            if weights is not None:
                raise ValueError("per_sample and sample_weight exclude each other")
            validation.room("a gradient of every row", self._gradient_bytes(len(rows)))
            each = self.model.derivatives.per_sample(self.parameters, rows, Y)
            return [(as_given(w, X), as_given(b, X)) for w, b in each]
        found = self.model.passes().gradients(self.parameters, rows, Y, weights)
        return list(zip(*found, strict=True))

    def _checked(
        self, X: Any, Y: Any, sample_weight: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """X, Y and the rows' weights, as passes take them."""
        X, Y = self.model.check_data(X, Y, sparse_stays=True)
        weights = self.model.mean_weights(sample_weight, len(X))
        return X, self.cost.prepare(Y, self.sizes[-1]), weights

    def _gradient_bytes(self, rows: int) -> int:
        return rows * self.model.layout.count * self.dtype.itemsize

    # -- derivatives beyond those -------------------------------------------------------

    def gradient_norms(self, X: Any, Y: Any, *, of: str = "layers") -> Any:
        """Compute the norm of each row's own gradient, layer by layer.

        ∂C_x/∂w = δ a'ᵀ has the norm ‖δ‖ ‖a'‖, and ∂C_x/∂b = δ has ‖δ‖, so that no gradient is
        formed (Goodfellow 2015, arXiv:1510.01799).

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        Y : (m, n_L) array, or (m,) int array of labels
            Targets, as in `fit`.
        of : {"layers", "weights", "biases"}
            Of w and b together, √(‖δ‖² ‖a'‖² + ‖δ‖²), or of one of them.

        Returns
        -------
        (m, L) array
            Norms, one column a layer.
            In X's library, on its device (`predict`).
        """
        validation.one_of("of", of, ("layers", "weights", "biases"))
        rows, Y, _ = self._checked(X, Y)
        norms, inputs = self.model.derivatives.norms(self.parameters, rows, Y)
        if of != "biases":
            norms = norms * (inputs if of == "weights" else np.hypot(inputs, 1.0))
        return as_given(norms, X)

    def input_gradients(self, X: Any, Y: Any = None, *, output: int | None = None) -> Any:
        """Compute ∂C_x/∂x of each row's own cost, or ∂a^L_j/∂x of an output j.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        Y : (m, n_L) array, or (m,) int array of labels, optional
            Targets, as in `fit`, for the cost.
        output : int, optional
            Number j of an output, in [0, n_L), in place of Y. With neither, the one output of a
            network that has one.

        Returns
        -------
        (m, n_0) array
            Derivatives, row by row.
            In X's library, on its device (`predict`).

        Raises
        ------
        ValueError
            If both Y and `output` are given, or neither of a network with several outputs.
        """
        if Y is not None and output is not None:
            raise ValueError("input_gradients takes Y, for the cost, or output: not both")
        if Y is not None:
            rows, Y, _ = self._checked(X, Y)
            return as_given(self.model.derivatives.input_gradients(self.parameters, rows, Y), X)
        if output is None and self.sizes[-1] > 1:
            raise ValueError(
                f"input_gradients needs Y, for the cost, or output, one of {self.sizes[-1]}"
            )
        j = validation.integer("output", 0 if output is None else output, 0, self.sizes[-1] - 1)
        found = self.model.derivatives.jacobian(self.parameters, self.model.inputs(X), j)
        return as_given(found[:, 0], X)

    def jacobian(self, X: Any) -> Any:
        """Compute ∂a^L_j/∂x_k of every row.

        At a kink of σ the slope is that beside it.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.

        Returns
        -------
        (m, n_L, n_0) array
            The Jacobian of each row.
            In X's library, on its device (`predict`).
        """
        return as_given(self.model.derivatives.jacobian(self.parameters, self.model.inputs(X)), X)

    def hessian_vector_product(
        self, X: Any, Y: Any, v: Sequence[tuple[Any, Any]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Compute H v, H being the mean cost's second derivatives by w and b (Pearlmutter 1994).

        It takes about as long as two passes of `gradients`; H itself is never formed.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        Y : (m, n_L) array, or (m,) int array of labels
            Targets, as in `fit`.
        v : [(v_w, v_b), …]
            As `gradients` returns them: (n_l, n_{l-1}) and (n_l,) for each layer.

        Returns
        -------
        [(w, b), …]
            Of the same shapes.

        Raises
        ------
        ValueError
            For what does not fit, and if a σ of your own has no second derivative, or a C no
            curvature, naming it.

        Notes
        -----
        σ'' of relu and leaky_relu is 0, also at their kink: what is left is the Gauss–Newton part.
        """
        X, Y, _ = self._checked(X, Y)
        flat = self._flat("v", v)
        return self.model.derivatives.hessian_vector_product(self.parameters, X, Y, flat)

    def _flat(self, name: str, pairs: Any) -> np.ndarray:
        """[(w, b), …] as a flat array, checked."""
        layout = self.model.layout
        shapes = list(zip(layout.weight_shapes, layout.bias_shapes, strict=True))
        if not validation.is_ordered(pairs) or [len(pair) for pair in pairs] != [2] * len(shapes):
            raise ValueError(f"{name} must be {len(shapes)} pairs (w, b), one per layer")
        found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        for l, (pair, expected) in enumerate(zip(pairs, shapes, strict=True)):
            for i, shape in enumerate(expected):
                array = validation.numbers(f"{name}[{l}][{i}]", pair[i], self.dtype)
                if array.shape != shape:
                    raise ValueError(f"{name}[{l}][{i}] must be {shape}, got {array.shape}")
                found[i].append(array)
        return layout.flat(*found, self.dtype)

    def laplacian(self, X: Any) -> Any:
        """Compute Σ_k ∂²a^L_j/∂x_k² of every row.

        Forward through the layers, a, its derivatives along each input and the sum of the second
        ones go together (forward Laplacian; Li et al. 2023, arXiv:2307.08214).

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.

        Returns
        -------
        (m, n_L) array
            The Laplacian of each output.
            In X's library, on its device (`predict`).

        Raises
        ------
        ValueError
            If a σ of your own has no second derivative, naming it. σ'' of relu and leaky_relu is 0.
        """
        return as_given(self.model.derivatives.laplacian(self.parameters, self.model.inputs(X)), X)

    def laplacian_gradients(
        self, X: Any, loss: Loss
    ) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
        """Compute a loss of outputs and their Laplacians, and its gradients: a step of a PINN.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x.
        loss : callable
            Called as (rows, a, s), a slice of X's rows, their a^L and `laplacian`, (r, n_L) each,
            it returns (L, ∂L/∂a, ∂L/∂s). The whole L is the sum over such slices; several threads
            call it.

        Returns
        -------
        L : float
            The whole loss.
        gradients : list of (array, array)
            Pairs (∂L/∂w[l], ∂L/∂b[l]), layer by layer.

        Raises
        ------
        ValueError
            If a σ has no third derivative: softmax, or one of your own that was given none.
        """
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {loss!r}")
        X = self.model.inputs(X)
        return self.model.derivatives.laplacian_gradients(self.parameters, X, loss)

    def check_gradients(
        self, X: Any, Y: Any, *, tolerance: float = 1e-5, max_weights: int = 200
    ) -> GradientReport:
        """Compare backpropagation with the demon who nudges z (and w and b), in float64.

        So it tests the equations, and not what `precision` makes of them.

        Parameters
        ----------
        X : (m, n_0) array
            Rows x; a few, as the time that it takes grows with them.
        Y : (m, n_L) array, or (m,) int array of labels
            Targets, as in `fit`.
        tolerance : float
            The largest relative error that counts as agreement, > 0.
        max_weights : int
            Weights, and biases, nudged in each layer, spread evenly; z is nudged for every neuron.

        Returns
        -------
        GradientReport
            Whether they agree, and the worst neuron, weight and bias. ``print`` it.

        Raises
        ------
        ValueError, TypeError
            For arguments that do not fit, or if there is no row of which C can be told.
        """
        X, Y = self.model.check_data(X, Y)
        from . import gradient_check

        return gradient_check.check_gradients(
            self.model, self.parameters, X, Y, tolerance=tolerance, max_weights=max_weights
        )

    def explain(
        self,
        *,
        batch_size: int,
        optimizer: str | Optimizer = "sgd",
        rows: int = 50_000,
        epochs: int = 30,
        engine: str = "auto",
        dropout: float | Sequence[float] = 0.0,
    ) -> Explanation:
        """Tell what `fit` would run for a step, and how near that comes to what the machine allows.

        Parameters
        ----------
        batch_size : int
            Rows m of a mini-batch, in [1, rows].
        optimizer : str or Optimizer
            As in `fit`.
        rows, epochs : int
            Of the training in mind, by default the book's: the choice of an engine depends on
            how long it takes.
        engine : {"auto", "layered", "resident", "fused", "persistent"}
            As in `fit`.
        dropout : float, or a sequence of float
            As in `fit`.

        Returns
        -------
        Explanation
            Engine and kernels with their reasons; operations, bytes and the floor that follows;
            the newest recorded time of this shape on such a machine; where the time of the last
            `fit` went. ``print`` it.
        """
        rows = validation.integer("rows", rows, 1)
        batch_size = validation.integer("batch_size", batch_size, 1, rows)
        epochs = validation.integer("epochs", epochs, 1)
        optimizer = optimizers.get(optimizer)
        rates = validation.dropout(dropout, len(self.sizes) - 2)
        run = planning.Run(
            rows,
            epochs,
            batch_size,
            engine,
            slots=optimizer.slots,
            options=optimizer.options,
            drops=any(rates),
        )
        from .planning.explanation import explain

        return explain(
            self.sizes, batch_size, self.dtype, self.model.plan(run), self.model.device,
            optimizer.slots,
            last_fit=None if self.history is None else str(self.history.time_spent),
        )  # fmt: skip

    # -- pictures ---------------------------------------------------------------------

    def plot(
        self,
        ax: Any = None,
        *,
        image_shape: tuple[int, int] | bool | None = None,
        neurons: int = 25,
    ) -> Axes | np.ndarray:
        """Draw the weights: those of layer 1 as images, or w and b of all layers as heat maps.

        Red is above 0 and blue below, on one scale.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, or L of them for heat maps, optional
            To draw into; by default those of a new figure.
        image_shape : (height, width) or False, optional
            Of an input that is an image, row by row, or False if it is none. By default an input of
            a square number of values, 16 or more, is a square image.
        neurons : int, default 25
            How many images at most; the title says of how many.

        Returns
        -------
        matplotlib.axes.Axes, or array of L
            One with all images, or a heat map a layer.

        Raises
        ------
        ValueError, TypeError
            If the arguments do not fit the network.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        from . import pictures

        return pictures.weights(ax, self.weights, self.biases, image_shape, neurons)

    def plot_confusion(
        self, X: Any, y: Any, ax: Any = None, *, normalize: str | None = None
    ) -> Axes | np.ndarray:
        """Draw how many rows of each class are taken for which.

        Classes are those of `accuracy`. Of an estimator
        ``sklearn.metrics.ConfusionMatrixDisplay.from_estimator`` draws the same.

        Parameters
        ----------
        X : (n, n_0) array
            A sample a row.
        y : (n,) int array, or one-hot (n, n_L)
            The classes.
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.
        normalize : {"true", "pred", "all"}, optional
            Shares of the true classes, of the predicted ones or of all, in place of counts.

        Returns
        -------
        matplotlib.axes.Axes
            With the matrix, true classes downwards.

        Raises
        ------
        ValueError
            If X and y do not fit, or outputs are NaN, naming the row.
        ImportError
            If there is no matplotlib (extra ``plot``) or scikit-learn (extra ``sklearn``).
        """
        from . import pictures

        classes, predicted = self._classes(X, y)
        return pictures.confusion(ax, classes, predicted, max(2, self.sizes[-1]), normalize)

    def _classes(self, X: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        """The classes of rows: those that are right, and those that are predicted."""
        X = validation.inputs(X, self.sizes[0], self.dtype)
        classes = validation.labels(labels, len(X), self.sizes[-1], "y")
        outputs = self.model.passes().predict(self.parameters, X)
        wrong = np.flatnonzero(validation.nan_rows(outputs))
        if wrong.size:
            raise ValueError(f"outputs of {wrong.size} rows are NaN, first of row {wrong[0]}")
        return classes, validation.predicted(outputs, self.cost.threshold)

    # -- files and copies -------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the network to a safetensors file, replacing what is there in one step.

        Its header describes sizes, activations, cost, dtype, precision and preprocessing; its
        tensors are w and b. Activations and costs of your own are there by name alone: `load` finds
        those that are registered.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        OSError
            If the file cannot be written; an older one is then as it was.
        """
        from . import model_file

        model_file.save(path, self.model, self.parameters, self.preprocessing)

    @classmethod
    def load(cls, path: Any, *, backend: str = "auto", seed: int | None = None) -> Network:
        """Load the network in a file written by `save`. Nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like
            The file; that of a network's `Checkpoint`, too.
        backend : {"auto", "numpy", "cuda", "numba_cuda"}
            As in `Network`.
        seed : int, optional
            Makes the shuffling of further training repeatable.

        Returns
        -------
        Network
            One with the weights of the file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is cut short, is no model of this library, has another version,
            or names an activation or cost that is not registered.
        """
        from . import model_file

        saved = model_file.load(path)
        with model_file.naming(path):
            network = cls(**saved.arguments, backend=backend, seed=seed)
            network.weights, network.biases = saved.weights, saved.biases
        network.preprocessing = saved.preprocessing
        return network

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("parameters", "plan")}
        own = {name: copy.deepcopy(state[name]) for name in ("generator", "history")}
        return state | own | {"flat": self.model.read(self.parameters)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = state.pop("flat")
        vars(self).update(state)
        self.model = copy.copy(self.model)  # on a backend of its own
        self.parameters = self.model.parameters()
        self.plan = self.model.plan()
        self.model.write(flat, self.parameters)


def _read_only(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    for array in arrays:
        array.flags.writeable = False
    return arrays
