"""`PopulationSearchCV`: scikit-learn's searches, whose candidates train as populations.

fit of a search -> scikit-learn's own, up to its list of fits
-> `Fits` prepares each, and trains those of a shape in one `Session` over one X
-> scikit-learn's own `_fit_and_score`, on estimators that are trained, with its scorers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.model_selection._search import BaseSearchCV, ParameterGrid, ParameterSampler
from sklearn.model_selection._search_successive_halving import BaseSuccessiveHalving
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params, _num_samples

from ..imports import uninterrupted
from ..model import Model
from ..planning import Run
from ..training import RowsAtOnce, Session
from .mlp import MLPClassifier, MLPRegressor, may_share, prepare
from .perceptron import PreparedFit, SharedCourse, SharingFit, sums_squares

#: Bytes that candidates may keep until they are scored.
MOST_BYTES = 1 << 30


class CandidatesTogether:
    """Makes a search of scikit-learn train candidates that can share a session at once.

    To be mixed in before a class of scikit-learn's. What cannot is fitted as there, one by one, by
    `n_jobs` processes.
    """

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> None:
        # What `BaseSearchCV.fit` calls with its list of fits is a local variable there.
        place = evaluate_candidates.__code__.co_freevars.index("parallel")
        cell = evaluate_candidates.__closure__[place]
        if not isinstance(cell.cell_contents, Fits):
            cell.cell_contents = Fits(cell.cell_contents, self)
        run_search(super()._run_search, evaluate_candidates, callback_ctx)  # type: ignore[misc]


def is_ours(estimator: Any) -> bool:
    """Whether it is a perceptron of ours, or a pipeline that ends with one."""
    if isinstance(estimator, Pipeline) and estimator.steps:
        estimator = estimator.steps[-1][-1]
    return isinstance(estimator, MLPClassifier | MLPRegressor)


def run_search(run: Callable[..., None], evaluate_candidates: Any, callback_ctx: Any) -> None:
    """Call a search's `_run_search`, which takes a context from scikit-learn 1.9 on."""
    takes = "callback_ctx" in signature(run).parameters
    run(evaluate_candidates, **({"callback_ctx": callback_ctx} if takes else {}))


class Fits:
    """Called with the fits of a search, as joblib's `Parallel` is: the result of each.

    Parameters
    ----------
    parallel : Parallel
        For those that are fitted one by one.
    search : BaseSearchCV
    """

    def __init__(self, parallel: Any, search: Any) -> None:
        self.parallel = parallel
        self._watched = bool(getattr(search, "_skl_callbacks", None))

    def __call__(self, tasks: Iterable[Any]) -> list[Any]:
        calls = [Call(*task) for task in tasks]
        alone = [i for i, call in enumerate(calls) if self._watched or not call.may_share()]
        found = self.parallel(calls[i].task for i in alone) if alone else []
        results = dict(zip(alone, found, strict=True))
        folds: dict[int, list[int]] = {}
        for i, call in enumerate(calls):
            if i not in results:
                folds.setdefault(id(call.settings["train"]), []).append(i)
        waiting = Waiting()
        # A fold after the other: the copy of its rows is there once, and not for long.
        for numbers in folds.values():
            fold = FoldRows(calls[numbers[0]])
            for i in numbers:
                waiting.add(i, calls[i], fold)
                if waiting.bytes > MOST_BYTES:
                    results |= waiting.finish()
            fold.forget()
            if waiting.has_own_rows:
                results |= waiting.finish()
        results |= waiting.finish()
        return [results[i] for i in range(len(calls))]


class Call:
    """A call of scikit-learn's `_fit_and_score`: the fit of a candidate to a fold.

    Parameters
    ----------
    function, arguments, settings
        What scikit-learn's `delayed` holds.
    """

    def __init__(self, function: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        self.task = function, arguments, settings
        self.settings = settings
        self.estimator, self.X, self.y = arguments
        self._candidate: Any = None

    @property
    def candidate(self) -> Any:
        """An estimator with the candidate's parameters."""
        if self._candidate is None:
            parameters = clone(self.settings["parameters"] or {}, safe=False)
            self._candidate = clone(self.estimator).set_params(**parameters)
        return self._candidate

    @property
    def perceptron(self) -> Any:
        """The candidate, or a pipeline's last step."""
        candidate = self.candidate
        return candidate.steps[-1][1] if type(candidate) is Pipeline else candidate

    def may_share(self) -> bool:
        """Whether it may train in a session with others."""
        given, train = self.settings["fit_params"] or {}, np.asarray(self.settings["train"])
        dense = isinstance(self.X, np.ndarray | list) or hasattr(self.X, "iloc")
        if (
            not is_ours(self.estimator)
            or self.y is None
            or not dense
            or train.ndim != 1
            or train.dtype.kind not in "iub"
        ):
            return False
        try:
            candidate, perceptron = self.candidate, self.perceptron
        except Exception:  # which scikit-learn will meet, too
            return False
        if type(candidate) is Pipeline:
            watched = candidate.verbose or getattr(candidate, "_skl_callbacks", None)
            if given or watched or getattr(candidate, "transform_input", None):
                return False
        return may_share(perceptron) and set(given) <= {"sample_weight"}

    def sample_weight(self) -> Any:
        """Of the fold's rows, if they have any."""
        given = self.settings["fit_params"] or {}
        of_fold = _check_method_params(self.X, params=given, indices=self.settings["train"])
        return of_fold.get("sample_weight")

    def evaluate(self, outcome: Outcome) -> dict[str, Any]:
        """The result of the call, given what has become of the candidate."""
        function, arguments, settings = self.task
        estimator = self.estimator

        def fit(*_: Any, **__: Any) -> Any:
            del estimator.fit
            if outcome.error is not None:
                raise outcome.error
            vars(estimator).update(vars(self.candidate))
            return estimator

        estimator.fit = fit
        # scikit-learn's `delayed` wraps it for other processes.
        result: dict[str, Any] = getattr(function, "function", function)(*arguments, **settings)
        result["fit_time"] += outcome.seconds
        return result


@dataclass(eq=False)
class Outcome:
    """What became of a candidate on a fold."""

    error: Exception | None = None
    #: Its share of the training's.
    seconds: float = 0.0


class FoldRows:
    """The rows of a fold, and what a pipeline's steps before the last make of them.

    Parameters
    ----------
    call : Call
        One of those that train on it.
    """

    def __init__(self, call: Call) -> None:
        self._train = train = np.asarray(call.settings["train"])
        n = _num_samples(call.X)
        #: (k,) int, of all rows.
        self.numbers = np.flatnonzero(train) if train.dtype.kind == "b" else train.astype(int) % n
        self._call = call
        self._rows: tuple[Any, Any] | None = None
        self._transformed: dict[Hashable, tuple[list[Any], Any]] = {}

    @property
    def rows(self) -> tuple[Any, Any]:
        """X and y, as scikit-learn gives them to `fit`."""
        if self._rows is None:
            call = self._call
            self._rows = _safe_split(call.estimator, call.X, call.y, self._train)
        return self._rows

    def forget(self) -> None:
        """Keep nothing but the numbers: all that train on it have been prepared."""
        self._rows = None
        self._transformed.clear()

    def before_last(self, pipeline: Pipeline) -> Any:
        """X after all steps but the last, which the pipeline then has, fitted.

        Candidates whose first steps are equal share these.
        """
        X, y = self.rows
        if len(pipeline.steps) == 1:
            return X
        key = content_of(pipeline[:-1])
        if key not in self._transformed:
            first = clone(pipeline[:-1])
            self._transformed[key] = first.steps, first.fit_transform(X, y)
        steps, transformed = self._transformed[key]
        pipeline.steps = [*steps, pipeline.steps[-1]]
        return transformed


def content_of(estimator: Any) -> Hashable:
    """Equal for estimators that are equal before `fit`."""
    with uninterrupted():
        import joblib  # type: ignore[import-untyped]
    try:
        return str(joblib.hash(estimator))
    except Exception:  # whatever the pickling of a parameter raises
        return object()


class SharedRows:
    """Rows of which the fits of a session have some each.

    Parameters
    ----------
    X : (n, n_0) array, or None
        None: it takes the rows of the fits.
    n : int
    fit : SharingFit
        The first of them.
    """

    def __init__(self, X: np.ndarray | None, n: int, fit: SharingFit) -> None:
        self._takes_rows = X is None
        self.X = np.zeros((n, fit.X.shape[1]), fit.model.dtype) if X is None else X
        self.Y = np.zeros((n, fit.y.shape[1]), fit.model.dtype)
        #: Those whose rows are here.
        self._folds: list[FoldRows] = []

    def course(self, fit: SharingFit, fold: FoldRows, places: np.ndarray) -> SharedCourse:
        """The course of a fit to a fold, whose row i is ``places[i]`` here."""
        if not any(each is fold for each in self._folds):
            self._folds.append(fold)
            self.Y[places] = fit.y
            if self._takes_rows:
                self.X[places] = fit.X
        weights = None
        if fit.weights is not None:
            weights = np.zeros(len(self.Y), fit.weights.dtype)
            weights[places] = fit.weights
        made: SharedCourse = fit.course(SharedCourse, self.Y, weights, places)
        return made


@dataclass(frozen=True, eq=False)
class SessionPart:
    """A candidate's part in a session."""

    outcome: Outcome
    course: SharedCourse
    epochs: int
    take: Callable[[], None]
    end: Callable[[], None]


class Together:
    """The parts of a session, whose fits have one model, one engine and one X between them."""

    def __init__(self, model: Model, engine: str, rows: SharedRows) -> None:
        self.model, self.engine, self.rows = model, engine, rows
        self.parts: list[SessionPart] = []

    def train(self) -> None:
        """Train all; an estimator has what it learnt, or its outcome has the error."""
        began = time.perf_counter()
        try:
            engine = self.model.engine(self.model.plan(self._run()))
            rows = RowsAtOnce(engine, self.rows.X, self.rows.Y)
            Session(self.model, rows, [part.course for part in self.parts]).run()
        except Exception as error:  # which is nobody's in particular
            for part in self.parts:
                part.outcome.error = error
            return
        for part in self.parts:
            try:
                part.take()
                if part.course.error is not None:
                    raise part.course.error
                part.end()
            except Exception as error:
                part.outcome.error = error
        seconds = time.perf_counter() - began
        steps = [part.course.state.step for part in self.parts]
        for part, own in zip(self.parts, steps, strict=True):
            part.outcome.seconds += seconds * own / max(1, sum(steps))

    def _run(self) -> Run:
        courses = [part.course for part in self.parts]
        rules = [course.state.rule for course in courses]
        kinds = dict.fromkeys(
            (course.batch_size, rule.slots) for course, rule in zip(courses, rules, strict=True)
        )
        short = {course.rows % course.batch_size for course in courses} - {0}
        return Run(
            rows=max(course.rows for course in courses),
            epochs=max(part.epochs for part in self.parts),
            batch_size=max(m for m, _ in kinds),
            engine=self.engine,
            members=len(courses),
            slots=max(slots for _, slots in kinds),
            others=tuple(kinds),
            rules=frozenset(rule.rule for rule in rules),
            options=frozenset().union(*(rule.options for rule in rules)),
            squares=any(sums_squares(course.problem, self.model) for course in courses),
            drops=any(course.problem.dropout for course in courses),
            short=tuple(sorted(short)),
        )


class Waiting:
    """Candidates that have been prepared, and are trained and scored by `finish`."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._calls: dict[int, tuple[Call, Outcome]] = {}
        self._rows: dict[Hashable, SharedRows] = {}
        self._sessions: dict[Hashable, Together] = {}
        #: What they keep, about.
        self.bytes = 0
        #: Whether some are of rows that no other fold has.
        self.has_own_rows = False

    def add(self, number: int, call: Call, fold: FoldRows) -> None:
        """Prepare a call's candidate to train on a fold; what is wrong with it is its outcome."""
        outcome = Outcome()
        self._calls[number] = call, outcome
        began = time.perf_counter()
        try:
            X, y = fold.rows
            if type(call.candidate) is Pipeline:
                X = fold.before_last(call.candidate)
            prepared = prepare(call.perceptron, X, y, call.sample_weight())
            if prepared.sharing is None:
                prepared.train()
                prepared.end()
            elif type(call.candidate) is Pipeline and len(call.candidate.steps) > 1:
                self.has_own_rows = True
                self._share(outcome, prepared, prepared.sharing, X, fold, np.arange(len(y)))
            else:
                self._share(outcome, prepared, prepared.sharing, call.X, fold, fold.numbers)
        except Exception as error:
            outcome.error = error
        outcome.seconds = time.perf_counter() - began

    def _share(
        self,
        outcome: Outcome,
        prepared: PreparedFit,
        fit: SharingFit,
        X: Any,
        fold: FoldRows,
        places: np.ndarray,
    ) -> None:
        """Let a fit train with others, on rows of X at these places."""
        model = fit.model
        key = id(X), fit.X.shape[1], model.dtype, fit.y.shape[1], fit.meaning
        if key not in self._rows:
            plain = type(X) is np.ndarray and X.dtype == model.dtype and X.flags.c_contiguous
            self._rows[key] = SharedRows(X if plain else None, _num_samples(X), fit)
        rows = self._rows[key]
        course = rows.course(fit, fold, places)
        session: tuple[Any, ...] = id(model), fit.engine.name, key
        if model.device is not None:  # a kernel is cut for the largest of all
            session += fit.batch_size, fit.rule.slots, fit.rule.options
        if session not in self._sessions:
            self._sessions[session] = Together(model, fit.engine.name, rows)
        part = SessionPart(outcome, course, fit.epochs, fit.take, prepared.end)
        self._sessions[session].parts.append(part)
        arrays = 4 + 2 * fit.rule.slots
        self.bytes += arrays * model.layout.length * model.dtype.itemsize + 32 * len(fit.y)

    def finish(self) -> dict[int, dict[str, Any]]:
        """Train and score all, and forget them: the results, by the numbers of the calls."""
        for together in self._sessions.values():
            together.train()
        self._sessions.clear()
        self._rows.clear()
        results = {i: call.evaluate(outcome) for i, (call, outcome) in self._calls.items()}
        self._clear()
        return results


class AnySearch(BaseSuccessiveHalving):
    """What scikit-learn has four classes for: a grid or draws, with or without halving."""

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's)
        **BaseSuccessiveHalving._parameter_constraints,  # noqa: SLF001
        "scoring": BaseSearchCV._parameter_constraints["scoring"],  # noqa: SLF001
        "param_grid": [dict, list, tuple],
        "n_iter": [Interval(Integral, 1, None, closed="left"), None],
        "factor": [Interval(Real, 1, None, closed="neither"), None],
    }

    def __init__(  # type: ignore[no-untyped-def]
        self, estimator, param_grid, *, n_iter=None, factor=None, resource="n_samples",
        min_resources="exhaust", max_resources="auto", aggressive_elimination=False, scoring=None,
        n_jobs=None, refit=True, cv=None, verbose=0, random_state=None, error_score=np.nan,
        return_train_score=False,
    ):  # fmt: skip
        super().__init__(
            estimator, scoring=scoring, n_jobs=n_jobs, refit=refit, cv=cv, verbose=verbose,
            random_state=random_state, error_score=error_score,
            return_train_score=return_train_score, max_resources=max_resources,
            min_resources=min_resources, resource=resource, factor=factor,
            aggressive_elimination=aggressive_elimination,
        )  # fmt: skip
        self.param_grid = param_grid
        self.n_iter = n_iter

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Search, and fit the best estimator again where ``refit`` says so.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.
        y : (n,) or (n, n_L) array
            Labels, label indicators or numbers.
        **params
            As of `GridSearchCV`: ``groups``, ``sample_weight``, and what is routed.

        Returns
        -------
        self
            This search.
        """
        if self.factor is None:
            return BaseSearchCV.fit(self, X, y, **params)
        if not (self.scoring is None or isinstance(self.scoring, str) or callable(self.scoring)):
            raise ValueError(
                f"scoring must be one metric where a factor is given, got {self.scoring!r}"
            )
        return super().fit(X, y, **params)

    @property
    def param_distributions(self) -> Any:
        """Grid or distributions: `param_grid`, by the name that `RandomizedSearchCV` has for it."""
        return self.param_grid

    @property
    def _kind(self) -> Any:
        """Whose methods it has."""
        if self.factor is not None:
            return BaseSuccessiveHalving
        return GridSearchCV if self.n_iter is None else RandomizedSearchCV

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> None:
        run = partial(self._kind._run_search, self)  # noqa: SLF001
        run_search(run, evaluate_candidates, callback_ctx)

    def _check_input_parameters(self, X: Any, y: Any, split_params: Any) -> None:
        self._kind._check_input_parameters(self, X, y, split_params)  # noqa: SLF001

    def _select_best_index(self, refit: Any, refit_metric: Any, results: Any) -> Any:
        return self._kind._select_best_index(refit, refit_metric, results)  # noqa: SLF001

    def _generate_candidate_params(self) -> Any:
        if self.n_iter is None:
            return ParameterGrid(self.param_grid)
        return ParameterSampler(self.param_grid, self.n_iter, random_state=self.random_state)


class PopulationSearchCV(CandidatesTogether, AnySearch):
    """A search over an `MLPClassifier` or `MLPRegressor`, all candidates at once.

    All candidates of one shape (sizes, activations, loss, dtype), on all folds, train as a
    population that reads one X. Scores are to the bit those of `GridSearchCV`,
    `RandomizedSearchCV` and, with a `factor`, `HalvingGridSearchCV` over the same estimator.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor or Pipeline that ends with one
        Any other estimator is fitted as scikit-learn's searches do.
    param_grid : dict of str to list, or a list of such dicts
        With `n_iter` a value may be a distribution of SciPy's, too.
    n_iter : int, optional
        So many candidates are drawn from `param_grid`; without it every combination is one.
    factor : float > 1, optional
        Successive halving: the best 1 / factor of the candidates go on, with factor times the
        resource; see `HalvingGridSearchCV`.
    resource : str, default "n_samples"
        What halving multiplies, as in `HalvingGridSearchCV`; this and the three that follow are not
        used without a `factor`.
    min_resources, max_resources : int or str, default "exhaust", "auto"
        As in `HalvingGridSearchCV`.
    aggressive_elimination : bool, default False
        As in `HalvingGridSearchCV`.
    scoring : str, callable, list or dict, optional
        As in `GridSearchCV`; several metrics, but for halving.
    n_jobs : int, optional
        Processes for what is fitted one by one. A population uses all cores whatever it says.
    refit : bool, str or callable, default True
        As in `GridSearchCV`.
    cv : int, splitter or iterable, optional
        As in `GridSearchCV`: any splitter.
    verbose : int, default 0
        As in `GridSearchCV`.
    random_state : int, RandomState or None
        Of what is drawn, and of the rows that halving takes.
    error_score : "raise" or number, default nan
        As in `GridSearchCV`.
    return_train_score : bool, default False
        As in `GridSearchCV`.

    Attributes
    ----------
    cv_results_, best_estimator_, best_index_, best_params_, best_score_, …
        As of `GridSearchCV`. A candidate's ``fit_time`` is its share, by steps, of its
        population's.
    n_resources_, n_candidates_, n_iterations_, …
        As of `HalvingGridSearchCV`, with a `factor`.

    Notes
    -----
    Fitted one by one: ``solver="lbfgs"``, a sparse X, ``verbose`` and
    callbacks of scikit-learn, and fit parameters of a pipeline. The steps of a pipeline before the
    last are fitted once a fold for all candidates that have the same, who then train as a
    population. Parameters and optimizer's state of all candidates are kept until they are scored,
    up to 1 GiB at a time. What goes wrong with a candidate, and its warnings, are its own, but
    Ctrl-C ends the whole search. With ``random_state=None`` in the estimator its draws come from
    NumPy's global generator, in another order than one by one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from backprop_gpu import MLPClassifier, PopulationSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier(max_iter=1000, learning_rate_init=0.01, random_state=0)
    >>> search = PopulationSearchCV(net, {"alpha": [1e-4, 100.0]}, cv=3)
    >>> search.fit(X, y).best_params_
    {'alpha': 0.0001}
    """

    __module__ = __package__  # where users import it from, and pickles look for it
