"""scikit-learn's multi-layer perceptrons, trained by this library.

`MLPClassifier` and `MLPRegressor` take scikit-learn 1.9's parameters, have its attributes and
methods, and with the same ``random_state`` give its numbers, up to the rounding of sums in another
order. What they do more stands behind the parameters' docstring under *Beyond scikit-learn*.

    fit, partial_fit -> training.Session (the planner's engine, or an EquationsEngine) -> coefs_
    fit by lbfgs     -> SciPy's L-BFGS-B over a LossOfAllRows -> coefs_
    predict          -> CompiledPasses over coefs_ as they are
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Hashable
from itertools import pairwise
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn import get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import (
    check_random_state,
    compute_sample_weight,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import costs, cpu, planning, threads, validation
from ..costs import Cost
from ..engines import Engine
from ..engines.passes import Passes
from ..imports import uninterrupted
from ..model import Model
from ..parameters import Layout, Parameters
from ..planning import Run
from ..training import (
    ExponentialAverage,
    RowsAtOnce,
    Session,
    StochasticWeightAverage,
    TimeSpent,
)
from ..training.averages import WeightAverage
from . import perceptron
from .checks import (
    RULES,
    STOCHASTIC,
    THEIRS,
    a_name,
    are_plain_rows,
    as_given,
    check_weights,
    host,
    invalid,
    plain_labels,
)
from .perceptron import (
    EquationsCourse,
    EquationsEngine,
    LossOfAllRows,
    PerceptronCourse,
    PreparedFit,
    Problem,
    SharingFit,
    State,
)
from .scikit_learn import CallbackSupportMixin, Hooks, flattened, warn, with_callbacks

#: The parameters' descriptions, as far as classifier and regressor share them.
_PARAMETERS = """\
    hidden_layer_sizes : int or sequence of int, default (100,)
        Neurons of each hidden layer; ``()``, beyond scikit-learn, makes a linear model.
    activation : {"identity", "logistic", "tanh", "relu"}, default "relu"
        Activation σ of the hidden layers. Beyond scikit-learn a sequence, one for each of them, and
        ours for hidden layers, such as "gelu" (see `Network`).
    solver : {"lbfgs", "sgd", "adam"}, default "adam"
        What minimises the loss: SciPy's L-BFGS-B over all rows, or steps on mini-batches.
    alpha : float, default 0.0001
        Strength α of the penalty ½ α Σw², which is divided by the rows of a mini-batch.
    batch_size : int or "auto", default "auto"
        Rows of a mini-batch; "auto" is min(200, n).
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        Of "sgd": how η goes on from ``learning_rate_init``; "invscaling" divides by t^power_t,
        "adaptive" by 5 where two epochs have not improved.
    learning_rate_init : float, default 0.001
        Rate η of "sgd" and "adam" at the beginning.
    power_t : float, default 0.5
        Of "invscaling".
    max_iter : int, default 200
        Epochs, or iterations of "lbfgs", at most.
    shuffle : bool, default True
        Whether each epoch takes the rows in a new random order.
    random_state : int, RandomState or None
        Of initial weights, order and split, drawn as scikit-learn draws them.
    tol : float, default 1e-4
        What an epoch must improve by; else, ``n_iter_no_change`` times over, training stops.
    verbose : bool or int, default False
        Print what scikit-learn prints, and to stderr where the time went.
    warm_start : bool, default False
        Go on from the last solution in `fit`.
    momentum : float in [0, 1], default 0.9
        Of "sgd".
    nesterovs_momentum : bool, default True
        Of "sgd" with a momentum.
    early_stopping : bool, default False
        Hold out ``validation_fraction`` of the rows and stop by their score.
    validation_fraction : float, default 0.1
        Share of the rows that is held out.
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        Of "adam".
    n_iter_no_change : int or inf, default 10
        Epochs without an improvement before training stops.
    max_fun : int, default 15000
        Of "lbfgs": evaluations of the loss.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}, default "auto"
        As in `Network`. ``plan_`` says what ran, and why. This and all that follow are beyond
        scikit-learn.
    engine : {"auto", "layered", "resident", "fused", "persistent"}, default "auto"
        As in `Network.fit`; not of "lbfgs".
    precision : {"float32", "tf32", "bf16"}, optional
        As in `Network`, for "sgd" and "adam" and a dense X of float32. Predictions round as the
        training does.
    dropout : float in [0, 1), default 0
        The share of the hidden activations that a training step leaves out, the rest being scaled
        up (Srivastava et al. 2014).
    clip_norm, clip_value : float, optional
        Limits of the gradient, before the penalty joins it; not of "lbfgs".
    max_norm : float, optional
        After each step of "sgd" or "adam", the weights into each neuron are scaled down to this
        Euclidean norm where it is larger (Srivastava et al. 2014; see `Optimizer`).
    gradient_noise : float >= 0, default 0
        Noise of N(0, gradient_noise / (1 + t)^0.55) joins each component of the gradient at step t
        of "sgd" or "adam" (Neelakantan et al. 2015; see `Optimizer`).
    weight_average : {"ema", "swa"}, optional
        What the weights are in the end, for `fit` by "sgd" and "adam": an exponential moving
        average of them all (`ExponentialAverage`), or the mean of those after each of the last
        quarter of ``max_iter`` epochs (`StochasticWeightAverage`). Losses are of the weights that
        train. Not with early stopping, which leaves the weights of the best epoch.
    mixup : float >= 0, default 0
        With α > 0 a step of "sgd" or "adam" trains on mixtures of its rows and targets, by shares
        drawn from Beta(α, α) (Zhang et al. 2018; see `Network.fit`). Not with a sparse X. Losses
        are of mixtures.
"""

_ATTRIBUTES = """\
    Attributes
    ----------
    coefs_ : list of (n_{l-1}, n_l) arrays
        Weights w^l, transposed, in the dtype of X: float32 stays float32.
    intercepts_ : list of (n_l,) arrays
        Biases b^l.
    loss_, best_loss_ : float
        The loss of the last epoch, and the smallest; the latter is None with early stopping.
    loss_curve_ : list of float
        The mean loss of every epoch, each mini-batch before its update, penalty included.
    validation_scores_, best_validation_score_ : list of float, float
        With early stopping; else None.
    validation_loss_curve_ : list of float
        With early stopping: the held-out rows' loss after every epoch, without the penalty; beyond
        scikit-learn.
    plan_ : str
        What trained it and why; beyond scikit-learn.
    n_iter_, t_ : int
        Epochs of the last call, and samples seen in all.
    n_layers_, n_outputs_, n_features_in_, feature_names_in_, out_activation_
        As scikit-learn's.

    Notes
    -----
    ``_forward_pass``, ``_forward_pass_fast``, ``_loss_grad_lbfgs``, ``_no_improvement_count`` and
    ``_optimizer.learning_rate`` are kept for code, and scikit-learn's own tests, that use
    scikit-learn's private names; the error for any other says what to use.

    Any number of threads may predict, transform and score at once. One fits, and a second that
    tries is refused; what others read meanwhile are the weights from before, or of some epoch.
"""


class _Perceptron(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """What classifier and regressor share; they say what y means, and the loss."""

    loss: str
    #: Of those pickled before there were these.
    engine = "auto"
    precision = None
    weight_average = None
    mixup = 0.0
    max_norm = None
    gradient_noise = 0.0

    def __init__(  # type: ignore[no-untyped-def]
        self, *, hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate,
        learning_rate_init, power_t, max_iter, loss, shuffle, random_state, tol, verbose,
        warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1,
        beta_2, epsilon, n_iter_no_change, max_fun, backend, dropout, clip_norm, clip_value, engine,
        precision, weight_average, mixup, max_norm, gradient_noise,
    ):  # fmt: skip
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.loss = loss
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.backend = backend
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.engine = engine
        self.precision = precision
        self.weight_average = weight_average
        self.mixup = mixup
        self.max_norm = max_norm
        self.gradient_noise = gradient_noise

    # -- what is asked for ------------------------------------------------------------------

    @classmethod
    def _get_param_names(cls) -> list[str]:
        # A search asks for them several times a fit.
        if cls not in _PARAMETER_NAMES:
            _PARAMETER_NAMES[cls] = tuple(super()._get_param_names())
        return list(_PARAMETER_NAMES[cls])

    def _check_parameters(self) -> None:
        """Refuse parameters that mean nothing, in scikit-learn's words."""
        if get_config().get("skip_parameter_validation"):
            return
        values = [getattr(self, name) for name in self._get_param_names()]
        members = [one for value in values if type(value) is tuple for one in value]
        kinds = tuple(map(type, members))  # as 1 and True are equal
        plain = tuple not in kinds and _PLAIN.issuperset((*kinds, *map(type, values)))
        key = (type(self), *values, *map(type, values), *kinds) if plain else None
        if key in _VALID:
            return
        rules = RULES | {"loss": self._loss_rule()}
        for name, (is_valid, expected) in rules.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise invalid(type(self).__name__, name, expected, value)
        sizes = self._hidden_sizes()
        if any(not isinstance(n, Integral) or n <= 0 for n in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        for n in sizes:
            validation.integer("hidden_layer_sizes", int(n), 1)
        if not isinstance(self.activation, str) and len(self.activation) != len(sizes):
            raise ValueError(
                f"activation must name one for each of the {len(sizes)} hidden layers, "
                f"got {list(self.activation)}"
            )
        check_random_state(self.random_state)
        if key is not None and len(_VALID) < 1000:
            _VALID.add(key)

    def _loss_rule(self) -> tuple[Any, str]:
        """(whether a value is a loss, what is expected)."""
        return a_name(*self._losses)

    @property
    def _loss_name(self) -> str:
        return self.loss.name if isinstance(self.loss, Cost) else self.loss

    def _hidden_sizes(self) -> list[Any]:
        sizes = self.hidden_layer_sizes
        return list(sizes) if hasattr(sizes, "__iter__") else [sizes]

    def _hidden_names(self) -> tuple[str, ...]:
        if isinstance(self.activation, str):
            return (self.activation,) * len(self._hidden_sizes())
        return tuple(self.activation)

    @property
    def _problem(self) -> Problem:
        sizes = (self.coefs_[0].shape[0], *(w.shape[1] for w in self.coefs_))
        names = (*self._hidden_names(), self.out_activation_)
        return Problem(
            sizes, names, self._loss_name, float(self.alpha), float(self.dropout), self.precision
        )

    @property
    def _rounds(self) -> bool:
        """Whether the factors of products are rounded."""
        return self.precision not in (None, "float32")

    def _check_average(self, incremental: bool) -> None:
        """Refuse what leaves no average of weights, or weights of its own."""
        obstacle = (
            f"solver {self.solver!r} has no epochs"
            if self.solver not in STOCHASTIC
            else "partial_fit is one epoch"
            if incremental
            else "early_stopping leaves the weights of the best epoch"
            if self.early_stopping
            else None
        )
        if obstacle is not None:
            raise ValueError(f"weight_average={self.weight_average!r} cannot be: {obstacle}")

    def _check_precision(self, X: Any) -> None:
        """Refuse what is computed where nothing is rounded."""
        obstacle = (
            f"solver {self.solver!r} needs a loss without its noise"
            if self.solver not in STOCHASTIC
            else f"X is of {X.dtype}: give X.astype('float32')"
            if X.dtype != np.float32
            else "X is sparse"
            if hasattr(X, "toarray")
            else None
        )
        if obstacle is not None:
            raise ValueError(f"precision {self.precision!r} cannot train this: {obstacle}")

    # -- fit ----------------------------------------------------------------------------------

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on X and y.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x. float32 trains in float32, all else in float64.
        y : (n,) or (n, n_L) array
            Labels, label indicators or numbers.
        sample_weight : (n,) array, optional
            What each row counts in the loss.

        Returns
        -------
        self
            This estimator, fitted.

        Raises
        ------
        ValueError
            For parameters and data that do not fit; after training, for weights that are not
            finite.
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        with threads.alone("estimator", self):
            return self._fit_alone(X, y, sample_weight, incremental)

    def _fit_alone(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        prepared = self._prepare(X, y, sample_weight, incremental)
        prepared.train()
        prepared.end()
        return self

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, incremental: bool = False
    ) -> PreparedFit:
        """Everything that comes before the first epoch."""
        self._check_parameters()
        if self.early_stopping and incremental and self.solver in STOCHASTIC:
            raise ValueError("partial_fit does not support early_stopping=True")
        if self.weight_average is not None:
            self._check_average(incremental)
        for name in ("mixup", "max_norm", "gradient_noise"):
            if getattr(self, name) and self.solver not in STOCHASTIC:
                raise ValueError(
                    f"{name}={getattr(self, name)} cannot be: solver {self.solver!r} has no steps"
                )
        fresh = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        X, y = host("X", X), host("y", y)
        context = self._begin(X, y, sample_weight)
        X, y = self._validate_input(X, y, incremental, fresh)
        if self._rounds:
            self._check_precision(X)
        if self.mixup and hasattr(X, "toarray"):
            raise ValueError(f"mixup={self.mixup} needs a dense X: X.toarray()")
        y = y.reshape(len(y), -1)
        if sample_weight is not None:
            sample_weight = check_weights(host("sample_weight", sample_weight), X)
        sample_weight = self._weighted_by_class(y, sample_weight)
        self.n_outputs_ = y.shape[1]
        self._random_state = check_random_state(self.random_state)
        if fresh:
            self._initialize(X.shape[1], X.dtype)
        if self.solver == "lbfgs":
            return PreparedFit(
                lambda: self._fit_lbfgs(X, y, sample_weight), lambda: self._end_fit(context)
            )
        return self._prepare_stochastic(X, y, sample_weight, incremental, context)

    def _end_fit(self, hooks: Hooks) -> None:
        """What comes after the last epoch."""
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )
        hooks.end()

    def _begin(self, X: Any, y: Any, sample_weight: Any) -> Hooks:
        """Set up scikit-learn's callbacks, if this version has them and any are set."""
        if not getattr(self, "_skl_callbacks", None):
            return Hooks(self, None, None, None, {})  # so that nobody keeps the rows
        epochs = self.max_iter if self.solver in STOCHASTIC else 0
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        context = self._init_callback_context(max_subtasks=epochs)
        hooks = Hooks(self, context, X, y, metadata)
        hooks.begin()
        return hooks

    def _weighted_by_class(self, y: np.ndarray, sample_weight: Any) -> Any:
        return sample_weight

    def _neurons(self, targets: int) -> int:
        """Of the last layer, for so many targets."""
        return targets

    def _initialize(self, n_inputs: int, dtype: np.dtype[Any]) -> None:
        """Glorot & Bengio's initial weights, drawn in scikit-learn's order."""
        units = [n_inputs, *map(int, self._hidden_sizes()), self._neurons(self.n_outputs_)]
        validation.room(f"hidden_layer_sizes={units[1:-1]}", 16 * Layout(tuple(units)).length)
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(units)
        self.out_activation_ = self._output_name()
        names = (*self._hidden_names(), self.activation)
        draw = self._random_state.uniform
        self.coefs_, self.intercepts_ = [], []
        for l, (k, n) in enumerate(pairwise(units)):
            # The output layer's bound goes by the hidden activation too.
            name = names[l] if isinstance(names[l], str) else names[l - 1] if l else "identity"
            bound = np.sqrt((2.0 if name == "logistic" else 6.0) / (k + n))
            self.coefs_.append(draw(-bound, bound, (k, n)).astype(dtype, copy=False))
            self.intercepts_.append(draw(-bound, bound, n).astype(dtype, copy=False))
        if self.solver in STOCHASTIC:
            stops = self.early_stopping
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            self.validation_scores_: Any = [] if stops else None
            self.validation_loss_curve_: Any = [] if stops else None
            self.best_validation_score_: Any = -np.inf if stops else None
            self.best_loss_: Any = None if stops else np.inf
            self._best: Any = None

    def _model(self, backend: str) -> Model:
        """The model of what was learnt."""
        return self._problem.model(np.result_type(*self.coefs_, *self.intercepts_), backend)

    def _parameters(self, model: Model) -> Parameters:
        """New parameters of the model, with what was learnt."""
        flat = model.layout.flat((w.T for w in self.coefs_), self.intercepts_, model.dtype)
        parameters = model.parameters()
        model.write(flat, parameters)
        return parameters

    def _take(self, model: Model, parameters: Parameters) -> None:
        """The parameters, as scikit-learn holds them."""
        weights, biases = model.layout.views(model.read(parameters))
        self.coefs_ = [np.ascontiguousarray(w.T) for w in weights]
        self.intercepts_ = [b.copy() for b in biases]

    # -- sgd and adam -----------------------------------------------------------------------

    def _plan_training(
        self, rows: int, batch_size: int, epochs: int, sparse: bool
    ) -> tuple[Model, Engine]:
        """What trains, on the backend that is asked for or, where only the CPU can, there."""
        of_cpu = "X is sparse" if sparse else None
        if of_cpu is not None and self.backend in ("cuda", "numba_cuda"):
            warn(
                f"backend {self.backend!r} was asked for, but the CPU trains this: {of_cpu}",
                module=__package__,
            )
        model = self._model(self.backend if of_cpu is None else "numpy")
        rule = self._optimizer.rule
        run = Run(
            rows, epochs, batch_size, self.engine, slots=rule.slots,
            rules=frozenset([rule.rule]), options=rule.options,
            squares=perceptron.sums_squares(self._problem, model), drops=bool(self.dropout),
        )  # fmt: skip
        plan = model.plan(run)
        engine = model.engine(plan)
        if of_cpu is None or engine.reads_sparse:
            return model, engine
        reason = f"{of_cpu}, which engine {plan.engine!r} cannot read ({plan.engine_reason})"
        return model, EquationsEngine(self._problem, model, reason)

    @property
    def _first_averaged(self) -> int:
        """The first of the last quarter of epochs, counted from 1."""
        return int(self.max_iter - max(1, self.max_iter // 4) + 1)

    def _new_average(self) -> WeightAverage | None:
        if self.weight_average is None:
            return None
        if self.weight_average == "ema":
            return ExponentialAverage()
        return StochasticWeightAverage(self._first_averaged)

    def _new_state(self) -> State:
        options = {
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "max_norm": self.max_norm,
            "gradient_noise": float(self.gradient_noise),
        }
        if self.solver == "adam":
            return State(
                perceptron.EpsilonOutsideAdam(
                    beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, **options
                ),
                self.learning_rate_init,
            )
        rule = perceptron.Descent(
            momentum=float(self.momentum),
            nesterov=bool(self.nesterovs_momentum and self.momentum > 0),
            **options,
        )
        return State(rule, self.learning_rate_init, self.learning_rate, self.power_t)

    def _split(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The numbers of the rows to train with, and of those to stop by."""
        numbers = np.arange(len(y))
        if not self.early_stopping:
            return numbers, None
        # Stratified by label; label indicators cannot be.
        stratified = self._is_classifier and self.n_outputs_ == 1
        train, held_out = train_test_split(
            numbers,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if stratified else None,
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return train, held_out

    def _rows_a_batch(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        if self.batch_size > rows:
            warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            )
        return int(min(max(self.batch_size, 1), rows))

    def _prepare_stochastic(
        self, X: Any, y: np.ndarray, sample_weight: Any, incremental: bool, hooks: Hooks
    ) -> PreparedFit:
        if not incremental or not isinstance(getattr(self, "_optimizer", None), State):
            self._optimizer = self._new_state()
        spent = TimeSpent()
        order, held_out = self._split(y)
        X_val = y_val = labels_val = val_weight = None
        if held_out is not None:
            X_val, y_val = X[held_out], y[held_out]
            labels_val = self._labels(y_val)
            val_weight = None if sample_weight is None else sample_weight[held_out]
        rows = len(order)
        batch_size = self._rows_a_batch(rows)
        epochs = 1 if incremental else self.max_iter
        model, engine = self._plan_training(rows, batch_size, epochs, hasattr(X, "toarray"))
        y = y.astype(model.dtype, copy=False)
        by_equations = isinstance(engine, EquationsEngine)
        if hasattr(X, "toarray") and not by_equations:
            X = cpu.SparseRows(X, model.dtype)
        if sample_weight is not None:
            sample_weight = np.ascontiguousarray(sample_weight, model.dtype)
        plan = engine.plan
        self.plan_ = f"engine none: {plan.engine_reason}" if by_equations else str(plan)
        parameters = self._parameters(model)
        outputs = None if X_val is None else perceptron.outputs_of(model, parameters, X_val)
        self.n_iter_ = 0
        looks = (
            hooks.are_set
            or outputs is not None
            or self._optimizer.schedule == "invscaling"
            or self.weight_average is not None
            or self.mixup > 0
        )
        at_once = 1 if looks else engine.epochs_at_once(rows, batch_size)

        def next_epochs() -> int:
            idle = self.n_iter_no_change - self._no_improvement_count + 1
            return max(1, int(min(at_once, idle, epochs - self.n_iter_)))

        def next_order() -> np.ndarray:
            nonlocal order
            hooks.begin_epoch()
            if self.shuffle:  # as `sklearn.utils.shuffle` does
                draws = np.arange(rows)
                self._random_state.shuffle(draws)
                order = order[draws]
            return order

        def next_key() -> int:
            low, high = self._random_state.randint(0, 2**32, 2, np.uint32).tolist()
            return int(low + (high << 32))

        def next_mixup() -> np.ndarray:
            steps = -(-rows // batch_size)
            return np.asarray(self._random_state.beta(self.mixup, self.mixup, steps))

        def after(loss: float) -> bool:
            self.loss_ = loss
            if hooks.are_set:  # who may look at the weights
                self._take(model, parameters)
            self.n_iter_ += 1
            self.t_ += rows
            self.loss_curve_.append(loss)
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
            if outputs is None:
                self._judge_by_loss()
            else:
                spent.add("callbacks")
                if self._judge_by_score(outputs(), y_val, labels_val, val_weight):
                    self._take(model, parameters)
                    self._best = self.coefs_, self.intercepts_
                spent.add("validation")
            self._optimizer.iteration_ends(self.t_)
            stops = hooks.end_epoch()
            if self._no_improvement_count > self.n_iter_no_change:
                if self._optimizer.gives_up(self._stagnation(), bool(self.verbose)):
                    return True
                self._no_improvement_count = 0
            if incremental or stops:
                return True
            if self.n_iter_ == self.max_iter:
                warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and "
                    "the optimization hasn't converged yet.",
                    ConvergenceWarning,
                )
            return bool(self.n_iter_ >= self.max_iter)

        def course(
            kind: type[PerceptronCourse], y: np.ndarray, weights: Any, places: np.ndarray | None
        ) -> PerceptronCourse:
            made = kind(
                self._problem, model, parameters, batch_size, self._optimizer, rows, y, weights,
                next_epochs,
                next_order if places is None else lambda: places[next_order()],
                next_key, after, self._new_average(), next_mixup if self.mixup else None,
            )  # fmt: skip
            made.at_once = at_once
            return made

        def take() -> None:
            self._take(model, parameters)
            if self.early_stopping and self._best is not None:
                self.coefs_, self.intercepts_ = self._best
            if self.weight_average == "swa" and self.n_iter_ < self._first_averaged:
                warn(
                    f"weight_average='swa' is of the epochs from {self._first_averaged} on, and "
                    f"training ended after {self.n_iter_}: the weights are the last. With "
                    "n_iter_no_change=numpy.inf it goes on to max_iter"
                )

        def train() -> None:
            kind = EquationsCourse if by_equations else PerceptronCourse
            data = RowsAtOnce(engine, X, y)
            try:
                own = course(kind, y, sample_weight, None)
                Session(model, data, [own], time_spent=spent).run()
            except KeyboardInterrupt:
                warn("Training interrupted by user.")
            finally:
                take()
            if self.verbose:  # not among the lines that scikit-learn prints
                print(f"{type(self).__name__}: {spent}", file=sys.stderr)

        sharing = None
        if not by_equations and not isinstance(X, cpu.SparseRows):
            sharing = SharingFit(
                model, engine, X, y, sample_weight, self._meaning_of_outputs(), rows, batch_size,
                epochs, self._optimizer.rule, course, take,
            )  # fmt: skip
        return PreparedFit(train, lambda: self._end_fit(hooks), sharing)

    def _stagnation(self) -> str:
        what = "Validation score" if self.early_stopping else "Training loss"
        return (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} "
            "consecutive epochs."
        )

    def _judge_by_loss(self) -> None:
        """Count the epochs without improvement."""
        worse = not self.loss_ <= self.best_loss_ - self.tol  # NaN is worse
        self.best_loss_ = min(self.best_loss_, self.loss_)
        self._no_improvement_count = self._no_improvement_count + 1 if worse else 0

    def _judge_by_score(self, a: np.ndarray, y: Any, labels: Any, sample_weight: Any) -> bool:
        """The same, by the held-out rows, of which a is a^L; whether it is the best so far."""
        self.validation_loss_curve_.append(
            perceptron.loss_of(self._problem, y.astype(a.dtype), a, sample_weight)
        )
        score = self._score_of(a, labels, sample_weight)
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        worse = not score >= self.best_validation_score_ + self.tol
        self._no_improvement_count = self._no_improvement_count + 1 if worse else 0
        best = score > self.best_validation_score_
        if best:
            self.best_validation_score_ = score
        return bool(best)

    def _score_of(self, a: np.ndarray, labels: np.ndarray, sample_weight: Any) -> float:
        predicted = self._from_outputs(a)
        if predicted.dtype.kind == "f" and not np.isfinite(predicted).all():
            return float("nan")
        return float(self._metric(labels, predicted, sample_weight=sample_weight))

    # -- lbfgs ----------------------------------------------------------------------------------

    def _fit_lbfgs(self, X: Any, y: np.ndarray, sample_weight: Any) -> None:
        with uninterrupted():
            import scipy.optimize

        packed = _pack(self.coefs_, self.intercepts_)
        evaluate, self.plan_ = self._loss_of_all_rows(packed.dtype, X, y, sample_weight)
        last = np.inf

        def evaluated(packed: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal last
            found = evaluate(packed)
            last = found[0]
            return found

        def told(packed: np.ndarray) -> None:
            self.n_iter_ += 1
            print(f"Iteration {self.n_iter_}, loss = {last:.8f}")

        self.n_iter_ = 0
        result = scipy.optimize.minimize(
            evaluated if self.verbose else evaluate,
            packed,
            method="L-BFGS-B",
            jac=True,
            callback=told if self.verbose else None,
            options={"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol},
        )
        self._unpack(result.x.astype(packed.dtype, copy=False))
        self.n_iter_ = min(result.nit, self.max_iter)
        self.loss_ = result.fun
        if result.status != 0:
            more = (
                f"\nIncrease the number of iterations to improve the convergence "
                f"(max_iter={self.max_iter})."
                if self.n_iter_ == self.max_iter
                else ""
            )
            warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s) "
                f"(status={result.status}):\n{result.message}\n{more}"
                "\nYou might also want to scale the data.",
                ConvergenceWarning,
            )

    def _unpack(self, packed: np.ndarray) -> None:
        """The parameters, from one vector of all coefs_ and then all intercepts_."""
        at = 0
        for arrays in (self.coefs_, self.intercepts_):
            for i, array in enumerate(arrays):
                arrays[i] = packed[at : at + array.size].reshape(array.shape).copy()
                at += array.size

    def _loss_grad_lbfgs(
        self, packed_coef_inter: np.ndarray, X: Any, y: np.ndarray, sample_weight: Any = None,
        *buffers: Any,
    ) -> tuple[float, np.ndarray]:  # fmt: skip
        """The loss with its penalty and its gradient, in the order of the packed parameters.

        `buffers` are those that scikit-learn passes, and are not used.
        """
        self._unpack(packed_coef_inter)
        evaluate, _ = self._loss_of_all_rows(packed_coef_inter.dtype, X, y, sample_weight)
        return evaluate(packed_coef_inter)

    def _loss_of_all_rows(
        self, dtype: np.dtype[Any], X: Any, y: np.ndarray, sample_weight: Any
    ) -> tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], str]:
        """(packed parameters -> (loss, gradient), what computes it)."""
        problem, y = self._problem, y.astype(dtype)
        passes = problem.model(dtype, "numpy").compiled
        if passes is None:
            return (
                lambda packed: perceptron.loss_of_packed(problem, packed, X, y, sample_weight),
                "engine none: L-BFGS-B of SciPy over one NumPy call per equation",
            )
        weights = None if sample_weight is None else np.ascontiguousarray(sample_weight, dtype)
        return (
            LossOfAllRows(problem, passes.transposed, cpu.readable(X, dtype), y, weights),
            f"engine resident: L-BFGS-B of SciPy over the library {passes.description}",
        )

    # -- without training ---------------------------------------------------------------------

    def _check_solver(self) -> bool:
        if self.solver not in STOCHASTIC:
            raise AttributeError(
                "partial_fit is only available for stochastic optimizers. "
                f"{self.solver} is not stochastic."
            )
        return True

    def _outputs(self, X: Any) -> np.ndarray:
        """a^L of checked rows."""
        if self._rounds and hasattr(X, "toarray"):
            raise ValueError(f"X must be dense for precision {self.precision!r}: X.toarray()")
        if not hasattr(X, "toarray") and (self._rounds or self._on_device(len(X))):
            model = self._model(self.backend)
            X = validation.inputs(X.astype(model.dtype, copy=False), X.shape[1], model.dtype)
            outputs = model.passes().predict(self._parameters(model), X)
            return validation.warn_of_nan(outputs)
        arrays = [*self.coefs_, *self.intercepts_]
        passes = self._model("numpy").compiled
        if passes is None or not passes.transposed.reads(arrays, X):
            return self._layers(X)[-1]
        passes = passes.transposed
        return passes.predict_by(passes.addresses_of(arrays), cpu.readable(X, passes.dtype))

    def _on_device(self, rows: int) -> bool:
        """Whether a device was asked for, or has enough to do to be worth it."""
        if self.backend == "numpy" or (self.backend == "auto" and rows < planning.CHUNK_ROWS):
            return False
        return self._model(self.backend).choice.backend != "numpy"

    def _layers(self, X: Any) -> list[np.ndarray]:
        if self._rounds:
            model = self._model("numpy")
            passes = Passes(model.backend.fork(), model.sizes, model.activations, model.cost)
            return passes.layers(self._parameters(model), np.ascontiguousarray(X, model.dtype))
        weights = [w.T for w in self.coefs_]
        return perceptron.forward(X, weights, self.intercepts_, self._problem.names)

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        """a^L of X, (n, n_L): scikit-learn's private method, for code that calls it."""
        return self._outputs(self._checked(X) if check_input else X)

    def _forward_pass(self, activations: list[Any]) -> list[Any]:
        """Fill a^1 … a^L into a list that begins with X: scikit-learn's private method."""
        for l, a in enumerate(self._layers(activations[0]), start=1):
            activations[l] = a
        return activations

    def _checked(self, X: Any) -> Any:
        if are_plain_rows(self, X, reset=False) and hasattr(self, "coefs_"):
            return X
        check_is_fitted(self)
        return validate_data(self, host("X", X), accept_sparse=["csr", "csc"], reset=False)

    def predict(self, X: Any) -> Any:
        """Predict labels or, of a regressor, numbers.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x. An array on a device, and under ``array_api_dispatch`` one of any library,
            gives its like, where the answer is numbers.

        Returns
        -------
        (n,) or (n, n_L) array
            Labels or label indicators; of a regressor the values of the outputs.
        """
        return as_given(self._from_outputs(self._outputs(self._checked(X))), X)

    def transform(self, X: Any, layer: int = -1) -> Any:
        """Compute the activations of a hidden layer, by default the last.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.
        layer : int
            Which of the hidden layers, counted from 0, or from the last with -1.

        Returns
        -------
        (n, n_l) array
            Activations a^l.

        Raises
        ------
        ValueError
            If there is no such layer.
        """
        checked, hidden = self._checked(X), len(self.coefs_) - 1
        if not isinstance(layer, Integral) or not -hidden <= layer < hidden:
            raise ValueError(f"layer must be one of the {hidden} hidden layers, got {layer!r}")
        return as_given(self._layers(checked)[:-1][layer], X)

    @property
    def _n_features_out(self) -> int:
        return int(self.coefs_[-1].shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __copy__(self) -> Any:
        """The copy shares hyperparameters, not what `fit` has left: both train on independently."""
        copied = object.__new__(type(self))
        shared = {*self.get_params(deep=False), "_skl_callbacks"}
        for name, value in vars(self).items():
            setattr(copied, name, value if name in shared else copy.deepcopy(value))
        return copied

    def __getstate__(self) -> Any:
        state = dict(super().__getstate__())
        if isinstance(state.get("_optimizer"), State):  # so that a file names no type but this
            state["_optimizer"] = state["_optimizer"].data
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state.get("_optimizer"), dict):
            state = state | {"_optimizer": State.of(state["_optimizer"])}
        super().__setstate__(state)

    def __getattr__(self, name: str) -> Any:
        """Called only for what is missing: for scikit-learn's private names, say what to use."""
        if name in _INSTEAD:
            raise AttributeError(
                f"{type(self).__name__} has no {name}, which is private to scikit-learn's own; "
                f"{_INSTEAD[name]}"
            )
        return self.__getattribute__(name)  # raises what it raised

    # -- to scikit-learn ------------------------------------------------------------------------

    def to_sklearn(self) -> Any:
        """Return the same estimator as a genuine one of scikit-learn, fitted if this one is.

        Returns
        -------
        sklearn.neural_network.MLPClassifier or MLPRegressor
            With copies of the weights.

        Raises
        ------
        ValueError
            For what scikit-learn's cannot be: one activation a layer, an activation or a loss of
            ours, no hidden layer. Dropout, clipping and class weights are of training only, and
            are left behind.
        """
        # `accel` may have bound the public names to ours.
        with uninterrupted():
            from sklearn.neural_network import _multilayer_perceptron as genuine

        names = set(self._hidden_names())
        if len(names) != 1 or not names <= set(THEIRS):
            raise ValueError(
                "scikit-learn's perceptrons have hidden layers of one activation, one of "
                f"{', '.join(THEIRS)}; this one has {sorted(names) or 'no hidden layer'}"
            )
        if self._loss_name not in ("log_loss", "squared_error", "poisson"):
            raise ValueError(f"scikit-learn's {self._genuine} has no loss {self._loss_name!r}")
        kind = getattr(genuine, self._genuine)
        parameters = self.get_params()
        taken = {name: parameters[name] for name in kind().get_params()}
        taken["activation"] = names.pop()
        estimator = kind(**taken)
        for name, value in vars(self).items():
            if name in _FITTED and hasattr(self, name):
                copied = [each.copy() for each in value] if name in _FITTED[:2] else value
                setattr(estimator, name, copied)
        return estimator


_STEP = "partial_fit(X, y) takes steps, transform(X, layer=i) has the activations of a layer"

#: scikit-learn's private names that cannot be -> what to use.
_INSTEAD = {
    "_backprop": _STEP,
    "_fit_stochastic": _STEP,
    "_compute_loss_grad": _STEP,
    "_init_coef": "coefs_ and intercepts_ can be assigned, and are where warm_start=True begins",
    "_best_coefs": "with early stopping coefs_ are the best",
    "_best_intercepts": "with early stopping intercepts_ are the best",
    "_coef_indptr": "coefs_ have the shapes",
    "_intercept_indptr": "intercepts_ have the shapes",
    "_predict": "use predict(X)",
    "_score": "use score(X, y)",
    "_score_with_function": "use score(X, y)",
    "_update_no_improvement_count": "use validation_scores_, or score(X, y)",
}

#: What scikit-learn's estimator has after `fit`, and predicts with.
_FITTED = (
    "coefs_", "intercepts_", "n_layers_", "n_outputs_", "out_activation_", "n_iter_", "t_", "loss_",
    "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_", "classes_",
    "_label_binarizer", "n_features_in_", "feature_names_in_", "_random_state",
    "_no_improvement_count",
)  # fmt: skip


class MLPClassifier(ClassifierMixin, _Perceptron):
    __module__ = __package__  # where users import it from, and pickles look for it
    __doc__ = f"""Drop-in for scikit-learn's `MLPClassifier`, trained by this library.

    One label a sample (softmax, or one sigmoid for two classes) or many (a sigmoid each), by
    cross-entropy.

    Parameters
    ----------
{_PARAMETERS}\
    class_weight : dict, list of dict or "balanced", optional
        As of scikit-learn's linear classifiers: multiplies the samples' weights.

{_ATTRIBUTES}
    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from backprop_gpu import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> MLPClassifier(random_state=1, max_iter=1000).fit(X, y).score(X, y) > 0.95
    True
    """

    _losses = ("log_loss",)
    _genuine = "MLPClassifier"
    _is_classifier = True
    _metric = staticmethod(accuracy_score)

    def __init__(  # type: ignore[no-untyped-def]
        self, hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001,
        batch_size="auto", learning_rate="constant", learning_rate_init=0.001, power_t=0.5,
        max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False, warm_start=False,
        momentum=0.9, nesterovs_momentum=True, early_stopping=False, validation_fraction=0.1,
        beta_1=0.9, beta_2=0.999, epsilon=1e-8, n_iter_no_change=10, max_fun=15000,
        backend="auto", class_weight=None, dropout=0.0, clip_norm=None, clip_value=None,
        engine="auto", precision=None, weight_average=None, mixup=0.0, max_norm=None,
        gradient_noise=0.0,
    ):  # fmt: skip
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver,
            alpha=alpha, batch_size=batch_size, learning_rate=learning_rate,
            learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter,
            loss="log_loss", shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping, validation_fraction=validation_fraction,
            beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, n_iter_no_change=n_iter_no_change,
            max_fun=max_fun, backend=backend, dropout=dropout, clip_norm=clip_norm,
            clip_value=clip_value, engine=engine, precision=precision,
            weight_average=weight_average, mixup=mixup, max_norm=max_norm,
            gradient_noise=gradient_noise,
        )  # fmt: skip
        self.class_weight = class_weight

    def _output_name(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        if are_plain_rows(self, X, reset):
            found = plain_labels(y, len(X))
            if found is not None:
                indicators = self._indicators(*found, not self.warm_start and not incremental)
                if indicators is not None:
                    self.n_features_in_ = X.shape[1]
                    self._labels_seen = y if self.class_weight is not None else None
                    return X, indicators
        X, y = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], multi_output=True,
            dtype=(np.float64, np.float32), reset=reset,
        )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = flattened(y)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            classes = unique_labels(y)
            if self.warm_start and set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the "
                    f"previous call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
            if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
                raise ValueError(
                    f"`y` has classes not in `self.classes_`. `self.classes_` has "
                    f"{self.classes_}. 'y' has {classes}."
                )
        self._labels_seen = y if self.class_weight is not None else None
        return X, self._label_binarizer.transform(y).astype(bool)

    def _indicators(self, labels: np.ndarray, places: np.ndarray, fresh: bool) -> np.ndarray | None:
        """y as its `LabelBinarizer` makes it, for rows whose labels have these places.

        A new one is made where labels are learnt anew; None where an old one knows others.
        """
        if fresh or not hasattr(self, "classes_"):
            binarizer = LabelBinarizer()
            binarizer.y_type_ = "binary" if len(labels) <= 2 else "multiclass"
            binarizer.sparse_input_ = False
            binarizer.classes_ = self.classes_ = labels
            self._label_binarizer = binarizer
        elif not np.array_equal(labels, self.classes_):
            return None
        if self._label_binarizer.y_type_ == "multiclass":
            return np.asarray(places[:, None] == np.arange(len(labels)))
        return np.asarray(places == 1).reshape(-1, 1)

    def _weighted_by_class(self, y: np.ndarray, sample_weight: Any) -> Any:
        labels = self.__dict__.pop("_labels_seen", None)
        if labels is None:
            return sample_weight
        weights = compute_sample_weight(self.class_weight, labels)
        return weights if sample_weight is None else weights * sample_weight

    def _labels(self, y: np.ndarray) -> Any:
        return self._label_binarizer.inverse_transform(y)

    def _meaning_of_outputs(self) -> Hashable:
        return self._label_binarizer.y_type_, tuple(self._label_binarizer.classes_.tolist())

    def _from_outputs(self, a: np.ndarray) -> Any:
        kind, classes = self._label_binarizer.y_type_, self._label_binarizer.classes_
        if kind == "multiclass":
            return classes[a.argmax(axis=1)]
        if kind == "binary" and len(classes) == 2:
            return classes[(a.ravel() > 0.5).astype(np.intp)]
        return self._label_binarizer.inverse_transform(a.ravel() if self.n_outputs_ == 1 else a)

    @available_if(lambda estimator: estimator._check_solver())  # noqa: SLF001
    @with_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train one epoch more over X and y, as `fit`.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.
        y : (n,) or (n, n_L) array
            Labels or label indicators.
        sample_weight : (n,) array, optional
            What each row counts in the loss.
        classes : array, optional
            All labels that there will be; needed in the first call.

        Returns
        -------
        self
            This estimator.

        Raises
        ------
        ValueError
            For data that do not fit, or a first call without `classes`.
        AttributeError
            With solver "lbfgs": then there is no such method.
        """
        if not hasattr(self, "classes_") and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        y, classes = host("y", y), host("classes", classes)
        if classes is not None:
            classes = unique_labels(classes)
            if hasattr(self, "classes_") and not np.array_equal(self.classes_, classes):
                raise ValueError(
                    f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                    f"{self.classes_!r}"
                )
        if not hasattr(self, "classes_"):
            multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if multilabel else classes)
            self.classes_ = classes
        return self._fit(X, y, sample_weight, incremental=True)

    def predict_proba(self, X: Any) -> Any:
        """Compute the probability of each class.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.

        Returns
        -------
        (n, classes) array
            Probabilities, in the order of ``classes_``.
        """
        return as_given(self._probabilities(X), X)

    def _probabilities(self, X: Any) -> np.ndarray:
        a = self._outputs(self._checked(X))
        return np.hstack([1 - a, a]) if self.n_outputs_ == 1 else a

    def predict_log_proba(self, X: Any) -> Any:
        """Compute the logarithm of `predict_proba`.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.

        Returns
        -------
        (n, classes) array
            Logarithms, -inf of a probability of 0.
        """
        with np.errstate(divide="ignore"):
            return as_given(np.log(self._probabilities(X)), X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _Perceptron):
    __module__ = __package__  # where users import it from, and pickles look for it
    __doc__ = f"""Drop-in for scikit-learn's `MLPRegressor`, trained by this library.

    One number per sample or several, by half the squared error, half the Poisson deviance (with an
    exponential output) or, beyond scikit-learn, the absolute error and other costs.

    Parameters
    ----------
    loss : str or Cost, default "squared_error"
        Either "squared_error" or "poisson"; or, beyond scikit-learn, "absolute_error" or another
        cost of `backprop_gpu.costs`, by its name or itself: "huber(delta=2.0)", ``Huber(2.0)``;
        "quantile(q=0.9)", or of several quantiles, ``Quantile((0.1, 0.5, 0.9))``, whose middle one
        `predict` gives, and `predict_quantiles` all; "gaussian_nll", a mean and a variance for each
        number, of which ``predict(X, return_std=True)`` gives the standard deviation, too.
{_PARAMETERS}
{_ATTRIBUTES}
    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> net = MLPRegressor(hidden_layer_sizes=(20,), solver="lbfgs", random_state=1)
    >>> net.fit(X, np.sin(3 * X[:, 0])).score(X, np.sin(3 * X[:, 0])) > 0.99
    True
    """

    _losses = ("squared_error", "poisson", "absolute_error", "huber", "quantile", "gaussian_nll")
    _genuine = "MLPRegressor"
    _is_classifier = False
    _metric = staticmethod(r2_score)

    def __init__(  # type: ignore[no-untyped-def]
        self, loss="squared_error", hidden_layer_sizes=(100,), activation="relu", *,
        solver="adam", alpha=0.0001, batch_size="auto", learning_rate="constant",
        learning_rate_init=0.001, power_t=0.5, max_iter=200, shuffle=True, random_state=None,
        tol=1e-4, verbose=False, warm_start=False, momentum=0.9, nesterovs_momentum=True,
        early_stopping=False, validation_fraction=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8,
        n_iter_no_change=10, max_fun=15000, backend="auto", dropout=0.0, clip_norm=None,
        clip_value=None, engine="auto", precision=None, weight_average=None, mixup=0.0,
        max_norm=None, gradient_noise=0.0,
    ):  # fmt: skip
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver,
            alpha=alpha, batch_size=batch_size, learning_rate=learning_rate,
            learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter, loss=loss,
            shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping, validation_fraction=validation_fraction,
            beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, n_iter_no_change=n_iter_no_change,
            max_fun=max_fun, backend=backend, dropout=dropout, clip_norm=clip_norm,
            clip_value=clip_value, engine=engine, precision=precision,
            weight_average=weight_average, mixup=mixup, max_norm=max_norm,
            gradient_noise=gradient_noise,
        )  # fmt: skip

    def _output_name(self) -> str:
        return "exp" if self._loss_name == "poisson" else "identity"

    def _loss_rule(self) -> tuple[Any, str]:
        def is_valid(value: Any) -> bool:
            if isinstance(value, costs.BuiltinCost):
                value = value.name
            if not isinstance(value, str) or value.partition("(")[0] not in self._losses:
                return False
            if "(" in value:
                costs.get(value)  # or says what its parameters are to be
            return True

        listed = ", ".join(repr(name) for name in sorted(self._losses))
        return is_valid, f"a str among {{{listed}}}, or one of those costs with its parameters"

    @property
    def _cost(self) -> Cost:
        name = self._loss_name
        return costs.get("quadratic" if name == "squared_error" else name)

    def _neurons(self, targets: int) -> int:
        return self._cost.outputs_of(targets)

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        plain = type(y) is np.ndarray and y.ndim == 1 and y.dtype in (np.float64, np.float32)
        if plain and are_plain_rows(self, X, reset) and len(y) == len(X) and (
            validation.all_finite(y)
        ):  # fmt: skip
            self.n_features_in_ = X.shape[1]
        else:
            X, y = validate_data(
                self, X, y, accept_sparse=["csr", "csc"], multi_output=True, y_numeric=True,
                dtype=(np.float64, np.float32), reset=reset,
            )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = flattened(y)
        if y.dtype.kind not in "biuf":
            raise TypeError(f"y must hold numbers, got dtype {y.dtype}: for labels, MLPClassifier")
        if self._loss_name == "poisson" and (y < 0).any():
            raise ValueError("loss='poisson' needs y >= 0")
        return X, y

    def _labels(self, y: np.ndarray) -> Any:
        return y.ravel() if y.shape[1] == 1 else y

    def _meaning_of_outputs(self) -> Hashable:
        return None

    def _from_outputs(self, a: np.ndarray) -> Any:
        a = self._cost.predictions(a)
        return a.ravel() if a.shape[1] == 1 else np.ascontiguousarray(a)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict the numbers for every row.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x. An array on a device, and under ``array_api_dispatch`` one of any library,
            gives its like.
        return_std : bool, default False
            Give the standard deviations, too, of the same shape: of loss "gaussian_nll" alone.

        Returns
        -------
        (n,) or (n, outputs) array
            Numbers; with `return_std` a pair of such arrays.

        Raises
        ------
        ValueError
            For standard deviations of another loss.
        """
        if not return_std:
            return super().predict(X)
        cost = self._cost
        if not isinstance(cost, costs.GaussianNLL):
            raise ValueError(
                f"return_std needs loss 'gaussian_nll', which learns a variance, not "
                f"{self._loss_name!r}"
            )
        a = self._outputs(self._checked(X))
        deviations = cost.deviations(a)
        deviations = deviations.ravel() if deviations.shape[1] == 1 else deviations
        return as_given(self._from_outputs(a), X), as_given(deviations, X)

    def predict_quantiles(self, X: Any) -> Any:
        """Predict all quantiles that were learnt, in the order of the loss's ``q``.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.

        Returns
        -------
        (n, quantiles) array, or (n, outputs, quantiles) of several outputs
            Each is learnt for itself: where there is little data they may cross.

        Raises
        ------
        ValueError
            For another loss than "quantile".
        """
        cost = self._cost
        if not isinstance(cost, costs.Quantile):
            raise ValueError(f"predict_quantiles needs loss 'quantile', not {self._loss_name!r}")
        a = self._outputs(self._checked(X))
        count = len(cost.constants)
        return as_given(a if a.shape[1] == count else a.reshape(len(a), -1, count), X)

    @available_if(lambda estimator: estimator._check_solver())  # noqa: SLF001
    @with_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train one epoch more over X and y, as `fit`.

        Parameters
        ----------
        X : (n, n_0) array or sparse matrix
            Rows x.
        y : (n,) or (n, n_L) array
            Numbers.
        sample_weight : (n,) array, optional
            What each row counts in the loss.

        Returns
        -------
        self
            This estimator.

        Raises
        ------
        ValueError
            For data that do not fit.
        AttributeError
            With solver "lbfgs": then there is no such method.
        """
        return self._fit(X, y, sample_weight, incremental=True)


def may_share(estimator: Any) -> bool:
    """Whether an estimator is a perceptron whose `fit` may be one of many in a session."""
    return (
        isinstance(estimator, _Perceptron)
        and type(estimator).fit is _Perceptron.fit
        and isinstance(estimator.solver, str)
        and estimator.solver in STOCHASTIC
        and not estimator.verbose  # whose lines would stand between those of others
        and not getattr(estimator, "_skl_callbacks", None)
    )


def prepare(perceptron: Any, X: Any, y: Any, sample_weight: Any) -> PreparedFit:
    """What ``perceptron.fit(X, y, sample_weight)`` does before the first epoch.

    Raises
    ------
    As `fit` does.
    """
    prepared: PreparedFit = perceptron._prepare(X, y, sample_weight)  # noqa: SLF001
    return prepared


#: Parameters that were found valid, and the types that stay what they are.
_VALID: set[Any] = set()
_PLAIN = frozenset((str, int, float, bool, tuple, type(None)))

_PARAMETER_NAMES: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _pack(coefs: Any, intercepts: Any) -> np.ndarray:
    return np.hstack([array.ravel() for array in (*coefs, *intercepts)])
