"""Ensembles of perceptrons as scikit-learn's estimators: a population, whose outputs are averaged.

fit     -> MemberRows -> Population.fit(X, Y, rows=...) -> population_
predict -> Population.predict -> the mean, or the deviation, of the members' outputs
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import costs, optimizers, threads, validation
from ..costs import Cost
from ..population import Population
from ..training import Callback, EarlyStopping, History
from . import ensemble_file, ensemble_state
from .checks import RULES, a_name, a_number, as_given, check_weights, host, invalid, is_flag
from .perceptron import activation_of
from .resampling import MemberRows
from .scikit_learn import flattened, warn

_PARAMETERS = """
    Parameters
    ----------
    n_members : int, default 32
        How many networks. Member i depends, to the bit, on ``random_state`` and i and not on how
        many there are, as long as the same engine trains them.
    hidden_layer_sizes : int or sequence of int, default (100,)
        Neurons of each hidden layer; ``()`` makes linear models.
    activation : str or sequence of str, default "relu"
        Activation σ of the hidden layers, as in `MLPClassifier`.
    solver : {"adam", "sgd"}, default "adam"
        The rule of a step.
    alpha : float, default 0.0001
        Strength α of the penalty ½ α Σw², which is divided by the rows of a mini-batch, as in
        `MLPClassifier`: the optimizer's l2 is α / ``batch_size``.
    batch_size : int or "auto", default "auto"
        "auto" is min(200, rows of the member).
    learning_rate_init : float, default 0.001
        Rate η, constant.
    max_iter : int, default 200
        Epochs at most.
    momentum : float in [0, 1), default 0.9
        Of "sgd", in Nesterov's form.
    dropout, mixup : float, default 0
        As in `MLPClassifier`. A member's rows are mixed among themselves.
    bootstrap : bool or "auto", default "auto"
        Each member trains on as many rows as there are, drawn with replacement; with False on all.
        "auto" is True without `cv`.
    cv : int, splitter or iterable of (train, test), optional
        In place of a bootstrap: member i trains on fold i modulo their number, without its test
        rows. A number means shuffled folds, stratified by label.
    early_stopping : bool, default False
        Each member stops where the loss of the rows left out of its training no longer improves,
        and keeps its best epoch's weights; else, where that of its training rows does not. Scores
        of rows that have chosen an epoch are a little better than those of new rows.
    tol, n_iter_no_change : float, default 1e-4; int or inf, default 10
        A member stops after so many epochs without an improvement by more than `tol`.
    random_state : int, RandomState or None
        Of initial weights (Glorot & Bengio's), order, bootstraps and folds.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}, default "auto"
        As in `MLPClassifier`.
    engine : {"auto", "layered", "resident", "fused", "persistent"}, default "auto"
        As in `MLPClassifier`.
    precision : {"float32", "tf32", "bf16"}, optional
        As in `MLPClassifier`.
"""

_ATTRIBUTES = """
    Attributes
    ----------
    population_ : Population
        The members, `Network` objects with a ``history`` each. Those in ``population_.failed``,
        whose cost or weights became NaN or infinite, have no part in what the ensemble predicts.
    n_iter_ : (members,) array of int
        The epochs of each.
    oob_score_ : float
        With a bootstrap or `cv`: the score, as of `score`, of every row by the members that did not
        train on it.
    estimators_samples_ : list of int arrays
        The rows that each member has trained on; not after `load`.
    plan_ : str
        What trained them and why.
    n_outputs_, n_features_in_, feature_names_in_
        As scikit-learn's.
"""

_NOTES = """
    Notes
    -----
    Inputs should be of mean 0 and deviation 1: put a `StandardScaler` before it. Rows of weight 0
    are as if they were not there, but for their labels. Any number of threads may predict and score
    at once; one fits, and a second that tries is refused.
"""


class LeftOutStopping(EarlyStopping):
    """Early stopping of each member by rows that it does not train on.

    Parameters
    ----------
    X, Y, weights : arrays of all rows; weights may be None
    rows : MemberRows
    members : tuple of Network
        Whose numbers are those in `rows`.
    patience, min_delta : as in `EarlyStopping`
    """

    def __init__(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        rows: MemberRows,
        members: tuple[Any, ...],
        patience: int,
        min_delta: float,
    ) -> None:
        super().__init__(patience=patience, min_delta=min_delta)
        self._data = X, Y, weights
        self._left_out: dict[int, np.ndarray] = {}
        for i, member in enumerate(members):
            left_out = rows.left_out(i)
            left_out = left_out[rows.counted[left_out]]
            if not len(left_out):
                raise ValueError(
                    f"early_stopping needs rows left out, and member {i} trains on all "
                    f"{np.count_nonzero(rows.counted)} samples"
                )
            self._left_out[id(member)] = left_out

    def check_fit(self, validation_data: Any) -> None:
        """It brings its own."""

    def for_member(self, network: Any) -> Callback:
        own: LeftOutStopping = super().for_member(network)  # type: ignore[assignment]
        own._rows = self._left_out[id(network)]
        return own

    def on_epoch_end(self, network: Any, history: History) -> bool:
        X, Y, weights = self._data
        rows = self._rows
        loss = network.loss(X[rows], Y[rows], None if weights is None else weights[rows])
        history.val_loss.append(loss)
        return super().on_epoch_end(network, history)

    _rows: np.ndarray


class _Ensemble(BaseEstimator):
    """What classifier and regressor share; they say what y means, and the cost."""

    def __init__(  # type: ignore[no-untyped-def]
        self, n_members, hidden_layer_sizes, activation, solver, alpha, batch_size,
        learning_rate_init, max_iter, momentum, dropout, mixup, bootstrap, cv, early_stopping, tol,
        n_iter_no_change, random_state, backend, engine, precision,
    ):  # fmt: skip
        self.n_members = n_members
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.momentum = momentum
        self.dropout = dropout
        self.mixup = mixup
        self.bootstrap = bootstrap
        self.cv = cv
        self.early_stopping = early_stopping
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.backend = backend
        self.engine = engine
        self.precision = precision

    # -- what classifier and regressor say ----------------------------------------------------

    def _read(self, probe: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """X, Y as the population takes it, and attributes; `probe` learns the features."""
        raise NotImplementedError

    def _shape(self, fitted: dict[str, Any]) -> tuple[int, Cost, str]:
        """How many outputs a member has, its cost, and their σ."""
        raise NotImplementedError

    def _from_outputs(self, a: np.ndarray, cost: Cost) -> np.ndarray:
        """What is predicted, in columns, of outputs a^L (…, n_L)."""
        raise NotImplementedError

    def _judge(
        self, Y: np.ndarray, mean: np.ndarray, known: np.ndarray, weights: np.ndarray | None
    ) -> dict[str, Any]:
        """The attributes that tell of the rows left out, whose `mean` is where they are `known`."""
        raise NotImplementedError

    def _weights(
        self, sample_weight: Any, X: np.ndarray, Y: np.ndarray, fitted: dict[str, Any]
    ) -> np.ndarray | None:
        """What each row counts, (n,) float64; None where all count alike."""
        if sample_weight is None:
            return None
        return validation.weights(check_weights(host("sample_weight", sample_weight), X), len(X))

    # -- parameters ---------------------------------------------------------------------------

    def check_parameters(self) -> None:
        """Refuse parameters that mean nothing.

        Raises
        ------
        ValueError
            Naming the first of them, and what was expected.
        """
        for name, (is_valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise invalid(type(self).__name__, name, expected, value)
        hidden = self._hidden()
        if not isinstance(self.activation, str) and len(self.activation) != len(hidden):
            raise ValueError(
                f"activation must name one for each of the {len(hidden)} hidden layers, "
                f"got {list(self.activation)}"
            )
        bootstrap = self._bootstraps()
        if bootstrap and self.bootstrap != "auto" and self.cv is not None:
            raise ValueError("bootstrap=True and cv exclude each other: give one of them")
        if self.early_stopping and not bootstrap and self.cv is None:
            raise ValueError("early_stopping needs rows left out: a bootstrap, or cv")
        check_random_state(self.random_state)

    def _bootstraps(self) -> bool:
        return self.cv is None if isinstance(self.bootstrap, str) else bool(self.bootstrap)

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if validation.is_ordered(sizes) else [sizes]
        return [validation.integer("hidden_layer_sizes", n, 1) for n in sizes]

    def _optimizer(self, batch_size: int) -> optimizers.Optimizer:
        l2 = self.alpha / batch_size
        if self.solver == "adam":
            return optimizers.Adam(l2=l2)
        return optimizers.SGD(l2=l2, momentum=float(self.momentum), nesterov=self.momentum > 0)

    def _draw_rows(self, y: np.ndarray, weights: np.ndarray | None) -> MemberRows:
        """Which rows members train on; y are labels' numbers or targets, to make folds of."""
        n = len(y)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        counted = np.ones(n, bool) if weights is None else weights > 0
        if self.cv is None:
            return MemberRows(counted, seed, self._bootstraps())
        classifies = isinstance(self, ClassifierMixin)
        if isinstance(self.cv, Integral):
            kind = StratifiedKFold if classifies else KFold
            folds = kind(validation.integer("cv", self.cv, 2), shuffle=True, random_state=seed)
        else:
            folds = check_cv(self.cv, y, classifier=classifies)
        splits = [
            (
                validation.row_numbers(f"cv: train of fold {k}", train, n),
                validation.row_numbers(f"cv: test of fold {k}", test, n),
            )
            for k, (train, test) in enumerate(folds.split(np.empty((n, 1)), y))
        ]
        if not splits:
            raise ValueError("cv has no folds")
        for k, (train, _) in enumerate(splits):
            if not counted[train].any():
                raise ValueError(f"cv: fold {k} trains on no row with a weight above 0")
        return MemberRows(counted, seed, False, splits)

    # -- fit ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train all members.

        Parameters
        ----------
        X : (n, n_0) array
            Of numbers, dense. float32 trains in float32, all else in float64.
        y : (n,) or (n, k) array
            Labels, (n,), or numbers.
        sample_weight : (n,) array or number, optional
            What each row counts in the costs and in ``oob_score_``.

        Returns
        -------
        self
            This estimator, fitted.

        Raises
        ------
        ValueError, TypeError
            For parameters and data that do not fit. The estimator then stays as it was.
        FloatingPointError
            If all members failed.

        Warns
        -----
        ConvergenceWarning
            If members have reached `max_iter`.
        RuntimeWarning
            If some members failed (see ``population_``).
        UserWarning
            If rows were left out of no member's training, and have no part in ``oob_score_``.
        """
        with threads.alone("estimator", self):
            fitted = self._fit(X, y, sample_weight)
            old = [name for name in vars(self) if name in _FITTED and name not in fitted]
            self.__dict__.update(fitted)  # at once: others may be predicting
            for name in old:
                delattr(self, name)
        return self

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
        """The attributes of a fitted estimator."""
        self.check_parameters()
        probe = copy.copy(self)  # which may learn other features
        X, Y, fitted = self._read(probe, host("X", X), host("y", y))
        fitted |= {name: value for name, value in vars(probe).items() if name in _FEATURES}
        weights = self._weights(sample_weight, X, Y, fitted)
        rows = self._draw_rows(Y, weights)
        outputs, cost, sigma = self._shape(fitted)
        hidden = self._hidden()
        names = self.activation
        names = [names] * len(hidden) if isinstance(names, str) else list(names)
        members = int(self.n_members)
        population = Population(
            [X.shape[1], *hidden, outputs],
            members=members,
            activation=[*map(activation_of, names), activation_of(sigma)],
            cost=cost,
            dtype=X.dtype,
            precision=self.precision,
            backend=self.backend,
            initial_weights="xavier",  # as scikit-learn's perceptrons begin
            seed=[rows.network_seed(i) for i in range(members)],
        )
        self._train(population, X, Y, weights, rows)
        fitted |= {
            "population_": population,
            "plan_": str(population.plan),
            "n_iter_": np.array([len(member.history or ()) for member in population]),
            "_rows": rows,
        }
        if rows.leaves_out:
            fitted |= self._out_of_bag(population, X, Y, weights, rows)
        return fitted

    def _train(
        self,
        population: Population,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        rows: MemberRows,
    ) -> None:
        numbers = [rows.trained(i) for i in range(len(population))]
        counts = [len(each) for each in numbers]
        wanted = 200 if self.batch_size == "auto" else int(self.batch_size)
        if self.batch_size != "auto" and wanted > min(counts):
            warn(
                f"batch_size={wanted} is more than the {min(counts)} rows of a member, which takes "
                "all of them at once",
                module=__package__,
            )
        sizes = [min(wanted, count) for count in counts]
        endless, tol = self.n_iter_no_change == np.inf, float(self.tol)
        patience = sys.maxsize if endless else int(self.n_iter_no_change)
        callbacks: list[Callback] = []
        if self.early_stopping:  # endless, too, it keeps the best epoch
            callbacks = [LeftOutStopping(X, Y, weights, rows, population.members, patience, tol)]
        elif not endless:
            callbacks = [
                EarlyStopping("loss", patience=patience, min_delta=tol, restore_best=False)
            ]
        everything = not rows.leaves_out and bool(rows.counted.all())
        histories = population.fit(
            X,
            Y,
            epochs=int(self.max_iter),
            batch_size=sizes,
            learning_rate=float(self.learning_rate_init),
            optimizer=[self._optimizer(size) for size in sizes],
            callbacks=callbacks,
            engine=self.engine,
            dropout=float(self.dropout) if len(population.sizes) > 2 else 0.0,
            mixup=float(self.mixup),
            sample_weight=weights,
            rows=None if everything else numbers,
        )
        last = sum(len(history) == self.max_iter for history in histories)
        if last and not endless:
            warn(
                f"{last} of {len(histories)} members have reached max_iter={self.max_iter} and "
                "have not converged yet",
                ConvergenceWarning,
                module=__package__,
            )

    def _out_of_bag(
        self,
        population: Population,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        rows: MemberRows,
    ) -> dict[str, Any]:
        """What the members make of the rows that they have not trained on."""
        n, outputs = len(X), population.sizes[-1]
        total, count = np.zeros((n, outputs)), np.zeros(n, np.intp)
        for i, member in enumerate(population):
            left_out = rows.left_out(i)
            if i not in population.failed and len(left_out):
                total[left_out] += member.predict(X[left_out])
                count[left_out] += 1
        known = count > 0
        if not known.all():
            warn(
                f"{n - known.sum()} of {n} rows were left out of no member's training and have no "
                "part in oob_score_; more members would help",
                module=__package__,
            )
        mean = np.full((n, outputs), np.nan)
        mean[known] = total[known] / count[known, None]
        if weights is not None:
            known = known & (weights > 0)
        return self._judge(Y, self._from_outputs(mean, population.cost), known, weights)

    @property
    def estimators_samples_(self) -> list[np.ndarray]:
        """Numbers of the rows that each member has trained on."""
        check_is_fitted(self, "population_")
        rows = getattr(self, "_rows", None)
        if rows is None:
            raise AttributeError("an ensemble from a file does not know the rows of its members")
        return [rows.trained(i) for i in range(len(self.population_))]

    # -- predictions ----------------------------------------------------------------------------

    def _checked(self, X: Any) -> tuple[Population, np.ndarray]:
        check_is_fitted(self, "population_")
        population: Population = self.population_
        X = validate_data(self, host("X", X), dtype=(np.float64, np.float32), reset=False)
        return population, X

    def _mean(self, X: Any) -> np.ndarray:
        population, X = self._checked(X)
        return self._from_outputs(population.predict(X, combine="mean"), population.cost)

    @staticmethod
    def _outputs_in_pieces(population: Population, X: np.ndarray) -> Iterator[np.ndarray]:
        """Some rows' outputs (members, rows, n_L), of the members that have not failed."""
        sound = [i for i in range(len(population)) if i not in population.failed]
        step = max(1, _NUMBERS_AT_ONCE // (len(population) * population.sizes[-1]))
        for start in range(0, len(X), step):
            yield population.predict(X[start : start + step])[sound].astype(np.float64)

    def _deviation(self, X: Any) -> np.ndarray:
        population, X = self._checked(X)
        found = []
        for a in self._outputs_in_pieces(population, X):
            found.append(self._from_outputs(a, population.cost).std(axis=0))
        return np.concatenate(found).astype(population.dtype)

    # -- files and copies -----------------------------------------------------------------------

    def __getstate__(self) -> Any:
        return ensemble_state.to_plain(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(ensemble_state.from_plain(state))

    def __copy__(self) -> Self:
        """The copy shares what `fit` has left, which another `fit` replaces and never changes."""
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def save(self, path: Any) -> None:
        """Write the ensemble to a safetensors file, replacing what is there in one step.

        It holds weights, classes, names of features and the parameters that are numbers or texts; a
        `random_state`, `cv` or `class_weight` that is an object stays behind, and so do members
        that failed, histories and rows.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        ValueError
            For class labels that are neither numbers nor texts.
        OSError
            If the file cannot be written; an older one is then as it was.
        """
        check_is_fitted(self, "population_")
        ensemble_file.save(path, self)

    @classmethod
    def load(cls, path: Any, *, backend: str = "auto") -> Self:
        """Load the ensemble in a file written by `save`: it predicts the same, to the bit.

        Nothing in the file is executed. On another backend or machine rounding may differ.

        Parameters
        ----------
        path : str or path-like
            The file.
        backend : {"auto", "numpy", "cuda", "numba_cuda"}
            As in `Network`.

        Returns
        -------
        EnsembleClassifier or EnsembleRegressor
            One that is fitted.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is cut short, damaged, of another version or of another kind of estimator.
        """
        loaded: Self = ensemble_file.load(path, cls, backend)
        return loaded


#: Attributes of a fitted estimator that another fit may not have.
_FEATURES = ("n_features_in_", "feature_names_in_")
_FITTED = (
    *_FEATURES, "oob_score_", "oob_prediction_", "oob_decision_function_", "classes_",
    "population_", "n_iter_", "n_outputs_", "plan_", "_rows",
)  # fmt: skip
#: So many numbers of all members' outputs are in memory at once.
_NUMBERS_AT_ONCE = 1 << 22

#: Parameter -> whether a value is valid, and what is.
_RULES: dict[str, tuple[Any, str]] = {
    "n_members": a_number(Integral, "[1, inf)"),
    **{
        name: RULES[name]
        for name in (
            "hidden_layer_sizes", "activation", "alpha", "batch_size", "learning_rate_init",
            "max_iter", "dropout", "mixup", "early_stopping", "tol", "n_iter_no_change", "backend",
            "engine", "precision",
        )
    },
    "solver": a_name("adam", "sgd"),
    "momentum": a_number(Real, "[0, 1)"),
    "bootstrap": (
        lambda value: is_flag(value) or (isinstance(value, str) and value == "auto"),
        "a bool or 'auto'",
    ),
}  # fmt: skip


class EnsembleClassifier(ClassifierMixin, _Ensemble):
    __module__ = __package__  # where users import it from, and pickles look for it
    __doc__ = f"""Perceptrons that vote: the mean of their probabilities decides (a soft vote).

    One label a sample, of any kind: softmax, or one sigmoid for two classes, by cross-entropy.
{_PARAMETERS.rstrip()}
    class_weight : dict or "balanced", optional
        As of scikit-learn's linear classifiers: multiplies the samples' weights.
{_ATTRIBUTES.rstrip()}
    classes_ : (classes,) array
        The labels, in order.
    oob_decision_function_ : (n, classes) array
        The mean probabilities behind ``oob_score_``; NaN where no member has left a row out.
{_NOTES}
    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from backprop_gpu import EnsembleClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> ensemble = EnsembleClassifier(
    ...     n_members=16, learning_rate_init=0.01, max_iter=500, early_stopping=True, random_state=0
    ... )
    >>> model = make_pipeline(StandardScaler(), ensemble).fit(X, y)
    >>> model[-1].oob_score_ > 0.9
    True
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, n_members=32, hidden_layer_sizes=(100,), activation="relu", *, solver="adam",
        alpha=0.0001, batch_size="auto", learning_rate_init=0.001, max_iter=200, momentum=0.9,
        dropout=0.0, mixup=0.0, bootstrap="auto", cv=None, early_stopping=False, tol=1e-4,
        n_iter_no_change=10, random_state=None, backend="auto", engine="auto", precision=None,
        class_weight=None,
    ):  # fmt: skip
        super().__init__(
            n_members, hidden_layer_sizes, activation, solver, alpha, batch_size,
            learning_rate_init, max_iter, momentum, dropout, mixup, bootstrap, cv, early_stopping,
            tol, n_iter_no_change, random_state, backend, engine, precision,
        )  # fmt: skip
        self.class_weight = class_weight

    def _read(self, probe: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        X, y = validate_data(probe, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes[0]!r}: a classifier needs two")
        outputs = 1 if len(classes) == 2 else len(classes)
        return X, labels, {"classes_": classes, "n_outputs_": outputs}

    def _weights(
        self, sample_weight: Any, X: np.ndarray, Y: np.ndarray, fitted: dict[str, Any]
    ) -> np.ndarray | None:
        weights = super()._weights(sample_weight, X, Y, fitted)
        if self.class_weight is not None:
            of_class = compute_sample_weight(self.class_weight, fitted["classes_"][Y])
            weights = of_class if weights is None else weights * of_class
        if weights is not None and len(np.unique(Y[weights > 0])) < 2:
            raise ValueError("the rows with a weight above 0 have one class: it needs two")
        return weights

    def _shape(self, fitted: dict[str, Any]) -> tuple[int, Cost, str]:
        outputs = fitted["n_outputs_"]
        if outputs == 1:
            return 1, costs.get("binary_cross_entropy"), "sigmoid"
        return outputs, costs.get("categorical_cross_entropy"), "softmax"

    def _from_outputs(self, a: np.ndarray, cost: Cost) -> np.ndarray:
        return np.concatenate([1 - a, a], axis=-1) if a.shape[-1] == 1 else a

    def _judge(
        self, Y: np.ndarray, mean: np.ndarray, known: np.ndarray, weights: np.ndarray | None
    ) -> dict[str, Any]:
        score = np.nan
        if known.any():
            score = accuracy_score(
                Y[known],
                mean[known].argmax(axis=1),
                sample_weight=None if weights is None else weights[known],
            )
        return {"oob_decision_function_": mean, "oob_score_": float(score)}

    def predict(self, X: Any) -> Any:
        """Predict the label of the largest mean probability of each row, the first of equals.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n,) array
            Labels.
        """
        best = self._mean(X).argmax(axis=1)
        return as_given(self.classes_[best], X)

    def predict_proba(self, X: Any) -> Any:
        """Compute the mean of the members' probabilities.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n, classes) array
            Probabilities, in the order of ``classes_``.
        """
        return as_given(self._mean(X), X)

    def predict_log_proba(self, X: Any) -> Any:
        """Compute the logarithm of `predict_proba`.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n, classes) array
            Logarithms, -inf of a probability of 0.
        """
        with np.errstate(divide="ignore"):
            return as_given(np.log(self._mean(X)), X)

    def predict_std(self, X: Any) -> Any:
        """Compute the standard deviation of the members' probabilities: their disagreement.

        It is that of the members that there are, Σ / n, and 0 of one.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n, classes) array
            Deviations, in the order of ``classes_``.
        """
        return as_given(self._deviation(X), X)


class EnsembleRegressor(RegressorMixin, _Ensemble):
    __module__ = __package__
    __doc__ = f"""Perceptrons whose outputs are averaged, one number a sample or several.
{_PARAMETERS.rstrip()}
    loss : str or Cost, default "squared_error"
        As in `MLPRegressor`: "squared_error" (half of it), "poisson", "absolute_error", "huber",
        "quantile" or "gaussian_nll", where each member predicts a variance, too (Lakshminarayanan
        et al. 2017); with parameters as "huber(delta=2.0)" or ``Huber(2.0)``.
{_ATTRIBUTES.rstrip()}
    oob_prediction_ : (n,) or (n, k) array
        What ``oob_score_`` is the R² of; NaN where no member has left a row out.
{_NOTES}
    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import EnsembleRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> ensemble = EnsembleRegressor(
    ...     n_members=16, batch_size=20, max_iter=500, early_stopping=True, random_state=0
    ... )
    >>> ensemble.fit(X, np.sin(3 * X[:, 0])).score(X, np.sin(3 * X[:, 0])) > 0.9
    True
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, n_members=32, hidden_layer_sizes=(100,), activation="relu", *, loss="squared_error",
        solver="adam", alpha=0.0001, batch_size="auto", learning_rate_init=0.001, max_iter=200,
        momentum=0.9, dropout=0.0, mixup=0.0, bootstrap="auto", cv=None, early_stopping=False,
        tol=1e-4,
        n_iter_no_change=10, random_state=None, backend="auto", engine="auto", precision=None,
    ):  # fmt: skip
        super().__init__(
            n_members, hidden_layer_sizes, activation, solver, alpha, batch_size,
            learning_rate_init, max_iter, momentum, dropout, mixup, bootstrap, cv, early_stopping,
            tol, n_iter_no_change, random_state, backend, engine, precision,
        )  # fmt: skip
        self.loss = loss

    def check_parameters(self) -> None:
        super().check_parameters()
        self._cost()

    def _cost(self) -> Cost:
        loss = self.loss.name if isinstance(self.loss, costs.BuiltinCost) else self.loss
        if not isinstance(loss, str) or loss.partition("(")[0] not in _LOSSES:
            listed = ", ".join(map(repr, _LOSSES))
            expected = f"a str among {{{listed}}}, or one of those costs with its parameters"
            raise invalid(type(self).__name__, "loss", expected, self.loss)
        return costs.get("quadratic" if loss == "squared_error" else loss)

    def _read(self, probe: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        X, y = validate_data(
            probe, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = flattened(y)
        if y.dtype.kind not in "biuf":
            raise TypeError(
                f"y must hold numbers, got dtype {y.dtype}: for labels, EnsembleClassifier"
            )
        Y = np.ascontiguousarray(y.reshape(len(y), -1), X.dtype)
        return X, Y, {"n_outputs_": Y.shape[1]}

    def _shape(self, fitted: dict[str, Any]) -> tuple[int, Cost, str]:
        cost = self._cost()
        return cost.outputs_of(fitted["n_outputs_"]), cost, cost.default_output or "identity"

    def _from_outputs(self, a: np.ndarray, cost: Cost) -> np.ndarray:
        found = cost.predictions(a.reshape(-1, a.shape[-1]))
        return found.reshape(*a.shape[:-1], found.shape[-1])

    def _judge(
        self, Y: np.ndarray, mean: np.ndarray, known: np.ndarray, weights: np.ndarray | None
    ) -> dict[str, Any]:
        score = np.nan
        if np.count_nonzero(known) >= 2:
            score = r2_score(
                Y[known], mean[known], sample_weight=None if weights is None else weights[known]
            )
        return {"oob_prediction_": _columns(mean), "oob_score_": float(score)}

    def predict(self, X: Any) -> Any:
        """Predict the mean of the members' outputs of each row.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n,) or (n, k) array
            Numbers.
        """
        return as_given(_columns(self._mean(X)), X)

    def predict_quantiles(self, X: Any) -> Any:
        """Predict the means of the members' quantiles, in the order of the loss's ``q``.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.

        Returns
        -------
        (n, quantiles) array, or (n, k, quantiles) of several numbers
            Each is learnt for itself: where there is little data they may cross.

        Raises
        ------
        ValueError
            For another loss than "quantile".
        """
        population, rows = self._checked(X)
        cost = population.cost
        if not isinstance(cost, costs.Quantile):
            raise ValueError(f"predict_quantiles needs loss 'quantile', not {cost.name!r}")
        a, count = population.predict(rows, combine="mean"), len(cost.constants)
        return as_given(a if a.shape[1] == count else a.reshape(len(a), -1, count), X)

    def predict_std(self, X: Any, noise: bool = False) -> Any:
        """Compute the standard deviation of the members' outputs: their disagreement.

        It is that of the members that there are, Σ / n, and 0 of one.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.
        noise : bool, default False
            With loss "gaussian_nll", that of a new y: √(mean of the variances that the members
            predict + variance of their means).

        Returns
        -------
        (n,) or (n, k) array
            Deviations, in the unit of y.

        Raises
        ------
        ValueError
            If there is to be noise, and the loss tells of none.
        """
        if not validation.boolean("noise", noise):
            return as_given(_columns(self._deviation(X)), X)
        population, rows = self._checked(X)
        cost = population.cost
        if not isinstance(cost, costs.GaussianNLL):
            raise ValueError(f"noise=True needs loss 'gaussian_nll', not {cost.name!r}")
        found = []
        for a in self._outputs_in_pieces(population, rows):
            means = self._from_outputs(a, cost)
            own = cost.deviations(a.reshape(-1, a.shape[-1])).reshape(means.shape)
            found.append(np.sqrt((own**2).mean(axis=0) + means.var(axis=0)))
        return as_given(_columns(np.concatenate(found).astype(population.dtype)), X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


#: Of the regressor; all but the first are costs' names.
_LOSSES = ("squared_error", "poisson", "absolute_error", "huber", "quantile", "gaussian_nll")


def _columns(found: np.ndarray) -> np.ndarray:
    """(n, k), or (n,) of one column."""
    return found[:, 0] if found.shape[1] == 1 else found
