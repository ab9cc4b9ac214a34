"""What is under `estimators`: scikit-learn's losses and rules of training, on our equations.

    Problem             layers, σ, loss, penalty: what the parameters mean
    LossOfAllRows       the loss and its gradient in the CPU's library, for L-BFGS
    loss_and_gradients  the equations in NumPy, for what no library reads
    State               the optimizer's, kept between calls of ``partial_fit``
    PerceptronCourse    what a session asks of an estimator, and tells it
    EquationsEngine     epochs by `loss_and_gradients`, for what no other engine can do

The loss of a mini-batch of m rows whose sample weights sum to S (S = m without weights) is

    Σ_x s_x C_x / S  +  ½ α Σ w² / S

so that of a short last mini-batch α weighs more; an epoch's is the mean over its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import activations, costs, cpu
from ..activations import Activation
from ..backends.numpy import add_noise, apply_rule, clip, limit_norms
from ..engines import Engine, Hyperparameters, Member
from ..engines.compiled_passes import CompiledPasses
from ..model import Model
from ..optimizers import SGD, Adam, Optimizer
from ..parameters import Layout, Parameters
from ..philox import Draws, factors
from ..planning import Plan
from ..training import Course
from ..training.averages import WeightAverage
from ..training.callbacks import watches_batches
from ..training.mixing import mixed
from ..training.weights import relative_weights

if TYPE_CHECKING:
    from ..costs import Cost

Array = Any

#: scikit-learn's names of activations -> ours; names that are not here are the same.
OUR_NAMES = {"logistic": "sigmoid", "exp": "exponential"}


def activation_of(name: str) -> Activation:
    """The activation that scikit-learn or we call so."""
    return activations.get(OUR_NAMES.get(name, name))


class _Clipped(costs.BuiltinCost):
    """scikit-learn's log loss: C, but not its gradient, takes a from [ε, 1 - ε] of the dtype."""

    from_z = False

    def limits(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        epsilon = float(np.finfo(dtype).eps)
        return epsilon, 1.0 - epsilon


class LogisticLogLoss(_Clipped, costs.BinaryCrossEntropy):
    """The loss of two classes, or of labels."""


class SoftmaxLogLoss(_Clipped, costs.CategoricalCrossEntropy):
    """The loss of three classes or more."""


@dataclass(frozen=True)
class Problem:
    """A perceptron and what it is trained to do.

    Parameters
    ----------
    sizes : tuple of int
        n_0 … n_L.
    names : tuple of str
        σ of layers 1 … L, as scikit-learn calls it.
    loss : str
        "log_loss", "squared_error", or the name of a cost.
    alpha : float
        α of the penalty.
    dropout : float
        The share of every hidden layer's activations that a step leaves out.
    precision : str or None
        What factors of products are rounded to, if they are.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    loss: str
    alpha: float
    dropout: float = 0.0
    precision: str | None = None

    @property
    def activations(self) -> list[Activation]:
        return [activation_of(name) for name in self.names]

    @property
    def cost(self) -> Cost:
        if self.loss == "log_loss":
            return SoftmaxLogLoss() if self.names[-1] == "softmax" else LogisticLogLoss()
        return costs.get("quadratic" if self.loss == "squared_error" else self.loss)

    def targets(self, y: np.ndarray) -> np.ndarray:
        """y as kernels take it, (n, n_L)."""
        return self.cost.prepare(y, self.sizes[-1])

    def model(self, dtype: np.dtype[Any], backend: str) -> Model:
        """Its model: all fits of a search have one between them, whatever their penalties."""
        return _model_of(replace(self, alpha=0.0, dropout=0.0), dtype, backend)


@lru_cache(maxsize=64)
def _model_of(problem: Problem, dtype: np.dtype[Any], backend: str) -> Model:
    return Model(
        problem.sizes, activation=problem.activations, cost=problem.cost, dtype=dtype,
        precision=problem.precision, backend=backend,
    )  # fmt: skip


def outputs_of(model: Model, parameters: Parameters, X: Any) -> Callable[[], np.ndarray]:
    """() -> a^L of the rows of X, which may be sparse, by the parameters as they are then."""
    if model.compiled is not None:
        compiled, rows = model.compiled, cpu.readable(X, model.dtype)
        return lambda: compiled.predict(parameters, rows)
    if hasattr(X, "toarray"):
        names = [activation.name for activation in model.activations]
        return lambda: forward(X, parameters.weights, parameters.biases, names)[-1]
    rows, passes = np.ascontiguousarray(X, model.dtype), model.passes()
    return lambda: passes.predict(parameters, rows)


# -- the loss of all rows ----------------------------------------------------------------------


class LossOfAllRows:
    """The loss with its penalty, and its gradient, in the library: what L-BFGS asks for.

    Parameters are packed into one vector as scikit-learn does: all (n_{l-1}, n_l), then all (n_l,).

    Parameters
    ----------
    problem : Problem
    passes : CompiledPasses
        Of w^l as (n_{l-1}, n_l).
    X : (n, n_0) array of the passes' dtype, or SparseRows
    y : (n, targets) array of the dtype
    weights : (n,) array of the dtype, or None
        s.
    """

    def __init__(
        self,
        problem: Problem,
        passes: CompiledPasses,
        X: Any,
        y: np.ndarray,
        weights: np.ndarray | None,
    ) -> None:
        self._problem, self._passes = problem, passes
        self._X, self._y, self._weights = X, problem.targets(y), weights
        self._total = float(len(y) if weights is None else weights.sum(dtype=np.float64))
        if self._total == 0.0:
            raise ZeroDivisionError("the sample weights sum to zero")
        shapes = [*pairwise(problem.sizes), *((n,) for n in problem.sizes[1:])]
        self._ends = np.cumsum([prod(shape) for shape in shapes]).tolist()
        self._end_of_weights = self._ends[len(problem.sizes) - 2]
        rest = rest_of_loss(problem, y)
        self._rest = 0.0 if rest is None else float(np.average(rest, weights=weights))

    def __call__(self, packed: np.ndarray) -> tuple[float, np.ndarray]:
        """(loss, gradient) at packed parameters."""
        dtype = self._passes.dtype
        packed = np.ascontiguousarray(packed, dtype)
        gradient = np.empty_like(packed)
        loss = self._passes.gradients_by(
            self._addresses(packed), self._X, self._y, self._addresses(gradient), self._total,
            self._weights,
        )  # fmt: skip
        loss /= self._total
        if self._problem.loss == "squared_error":
            loss /= self._problem.sizes[-1]
        share = self._problem.alpha / self._total
        w = packed[: self._end_of_weights]
        gradient[: self._end_of_weights] += dtype.type(share) * w
        # BLAS would wake threads that stand in the library's way.
        squares = float(np.einsum("i,i->", w, w, dtype=np.float64))
        return loss + self._rest + 0.5 * share * squares, gradient

    def _addresses(self, packed: np.ndarray) -> Any:
        begin, size = cpu.address(packed), packed.itemsize
        return cpu.addresses_from([begin + start * size for start in (0, *self._ends[:-1])])


# -- the equations in NumPy, for a sparse X where there is no library ---------------------------


def forward(
    X: Array, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], names: Sequence[str]
) -> list[np.ndarray]:
    """[a^1, …, a^L] of the rows of X, which may be sparse. w[l] is (n_l, n_{l-1})."""
    found: list[np.ndarray] = []
    a = X
    with np.errstate(over="ignore"):
        for w, b, name in zip(weights, biases, names, strict=True):
            a = np.asarray(a @ w.T) + b
            activation_of(name).evaluate(a, a, np.empty_like(a))
            found.append(a)
    return found


def loss_of(
    problem: Problem, y: np.ndarray, a: np.ndarray, sample_weight: np.ndarray | None
) -> float:
    """The weighted mean loss of the outputs a (m, n_L), without the penalty.

    The squared error is a mean over the outputs too, the others are sums.
    """
    from scipy.special import xlogy

    with np.errstate(all="ignore"):  # a loss that diverges is seen by the caller
        if problem.loss == "log_loss":
            epsilon = np.finfo(a.dtype).eps
            a = np.clip(a, epsilon, 1.0 - epsilon)
            terms = -xlogy(y, a)
            if problem.names[-1] != "softmax":
                terms -= xlogy(1 - y, 1 - a)
            samples = terms.sum(axis=1)
        elif problem.loss == "poisson":
            samples = (xlogy(y, y / a) - y + a).sum(axis=1)
        elif problem.loss == "squared_error":
            samples = 0.5 * ((y - a) ** 2).mean(axis=1)
        else:
            samples = problem.cost.samples(a, problem.targets(y))
        return float(np.average(samples, weights=sample_weight))


def loss_and_gradients(
    problem: Problem,
    parameters: Parameters,
    X: Array,
    y: np.ndarray,
    sample_weight: np.ndarray | None,
    gradients: Parameters,
    share: float,
    change: Callable[[Parameters], None] | None = None,
    drop: Callable[[int, tuple[int, int]], np.ndarray] | None = None,
) -> float:
    """The loss of a mini-batch with its penalty, and its gradient into `gradients` (BP1–BP4).

    Parameters
    ----------
    X : (m, n_0) array or sparse matrix
    y : (m, n_L)
    sample_weight : (m,), optional
    share : float
        α, over the sum of the sample weights.
    change : callable, optional
        What is done to the gradient before the penalty joins it.
    drop : callable, optional
        (l, shape of a^l) -> what it is multiplied by, of hidden layers.
    """
    w, b, sigmas = parameters.weights, parameters.biases, problem.activations
    depth = len(w)
    total = float(len(y) if sample_weight is None else sample_weight.sum())
    a: list[Any] = [X]
    z: list[Any] = [None]
    kept: list[Any] = [None] * (depth + 1)
    with np.errstate(all="ignore"):
        for l in range(1, depth + 1):
            z.append(np.asarray(a[-1] @ w[l - 1].T) + b[l - 1])
            keeps = sigmas[l - 1].derivative_from == "z"
            out = np.empty_like(z[l]) if keeps else z[l]
            sigmas[l - 1].evaluate(z[l], out, np.empty_like(out))
            if drop is not None and l < depth:
                kept[l] = drop(l, out.shape).astype(out.dtype)
                a.append(out * kept[l])
                kept[l] = kept[l], out
            else:
                a.append(out)
        loss = loss_of(problem, y, a[-1], sample_weight)
        weights = parameters.flat[: parameters.layout.weights_end]
        loss += 0.5 * share * float(np.dot(weights, weights))
        delta = np.empty(a[-1].shape, parameters.flat.dtype)
        targets, cost = problem.targets(y), problem.cost
        if costs.collapses(sigmas[-1], cost):
            np.subtract(a[-1], targets, out=delta)
        else:
            scratch = np.empty_like(delta), np.empty_like(delta)
            cost.output_error(z[-1], a[-1], targets, sigmas[-1], delta, scratch)
        if sample_weight is not None:
            delta *= sample_weight[:, None]
        for l in range(depth, 0, -1):
            gradients.weights[l - 1][...] = _transposed_product(delta, a[l - 1])
            gradients.weights[l - 1][...] /= total
            np.sum(delta, axis=0, out=gradients.biases[l - 1])
            gradients.biases[l - 1][...] /= total
            if l > 1:
                delta = delta @ w[l - 1]
                activation = a[l - 1]
                if kept[l - 1] is not None:
                    factor, activation = kept[l - 1]
                    delta *= factor
                scratch = np.empty_like(delta), np.empty_like(delta)
                sigmas[l - 2].pull_back(delta, z[l - 1], activation, scratch)
        if change is not None:
            change(gradients)
        end = parameters.layout.weights_end
        gradients.flat[:end] += share * weights
    return loss


def loss_of_packed(
    problem: Problem, packed: np.ndarray, X: Array, y: np.ndarray, weights: np.ndarray | None
) -> tuple[float, np.ndarray]:
    """(loss, gradient) at parameters packed as `LossOfAllRows` has them."""
    layout = Layout(problem.sizes)
    parameters, gradients = (
        Parameters(layout, np.zeros(layout.length, packed.dtype)) for _ in range(2)
    )
    at = 0
    for w, (k, n) in zip(parameters.weights, pairwise(problem.sizes), strict=True):
        w[...] = packed[at : at + k * n].reshape(k, n).T
        at += k * n
    for b in parameters.biases:
        b[...] = packed[at : at + b.size]
        at += b.size
    total = len(y) if weights is None else float(weights.sum())
    share = problem.alpha / total
    loss = loss_and_gradients(problem, parameters, X, y, weights, gradients, share)
    found = [*(g.T.ravel() for g in gradients.weights), *gradients.biases]
    return loss, np.concatenate(found)


def _transposed_product(delta: np.ndarray, a: Array) -> np.ndarray:
    """δᵀ a; a sparse a stays the left factor, which keeps the product one of sparse by dense."""
    if hasattr(a, "toarray"):
        return np.asarray(a.T @ delta).T
    return np.asarray(delta.T @ a)


# -- the optimizer -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Descent(SGD):
    """SGD whose momentum may be 1, as scikit-learn's."""

    def __post_init__(self) -> None:
        Optimizer.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class EpsilonOutsideAdam(Adam):
    """Adam in the form of Kingma & Ba, section 2, as scikit-learn has it: ε is added to √v
    before, and not after, v is corrected for its bias.
    """

    def coefficients(self, learning_rates: np.ndarray, first_step: int) -> np.ndarray:
        rows = super().coefficients(learning_rates, first_step)
        rows[:, 1] /= rows[:, 2]
        rows[:, 2] = 1.0
        return rows


@dataclass
class State:
    """What training resumes from: rule, moments, step and learning rate.

    ``learning_rate`` and ``learning_rate_init`` are for code that reads or sets those of
    scikit-learn's ``_optimizer``.
    """

    rule: Optimizer
    learning_rate_init: float
    schedule: str = "constant"
    power_t: float = 0.5
    #: Steps taken.
    step: int = 0
    #: On the host, in the order of `parameters.Layout`.
    slots: tuple[np.ndarray, ...] | None = None
    #: η of sgd, as its schedule has changed it.
    _rate: float = field(init=False)

    def __post_init__(self) -> None:
        self._rate = float(self.learning_rate_init)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"_optimizer has no {name}: of scikit-learn's optimizer there is learning_rate and "
            "learning_rate_init. The parameters are coefs_ and intercepts_, partial_fit(X, y) "
            "takes steps, and transform(X, layer=i) has the activations of a layer"
        )

    @property
    def data(self) -> dict[str, Any]:
        """All of it in plain types, for a file."""
        return vars(self) | {"rule": vars(self.rule)}

    @classmethod
    def of(cls, data: dict[str, Any]) -> State:
        """The state that `data` has written."""
        state = object.__new__(cls)
        rule = data["rule"]
        kind: type[Optimizer] = EpsilonOutsideAdam if "beta1" in rule else Descent
        vars(state).update(data | {"rule": kind(**rule)})
        return state

    @property
    def _is_adam(self) -> bool:
        return self.rule.rule == "adam"

    @property
    def rate(self) -> float:
        """η of the next step."""
        return float(self.learning_rate_init) if self._is_adam else self._rate

    @property
    def learning_rate(self) -> float:
        """η of the last step, Adam's with its correction."""
        if self._is_adam and self.step:
            return float(self.rule.coefficients(np.array([self.rate]), self.step - 1)[0, 1])
        return self.rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if self._is_adam:
            raise AttributeError(
                "Adam's learning_rate follows from learning_rate_init and the step: set "
                "_optimizer.learning_rate_init"
            )
        self._rate = float(value)

    def iteration_ends(self, samples: int) -> None:
        """Tell the state that an epoch is over, and how many `samples` it has seen in all."""
        if self.schedule == "invscaling":
            self._rate = float(self.learning_rate_init) / (samples + 1) ** self.power_t

    def gives_up(self, message: str, verbose: bool) -> bool:
        """Whether to stop for lack of improvement, rather than go on with a smaller η."""
        if self.schedule != "adaptive":
            outcome = " Stopping."
        elif self.rate <= 1e-6:
            outcome = " Learning rate too small. Stopping."
        else:
            self._rate /= 5.0
            outcome = f" Setting learning rate to {self.rate:f}"
        if verbose:
            print(message + outcome)
        return outcome.endswith("Stopping.")


# -- epochs --------------------------------------------------------------------------------------


class PerceptronCourse(Course):
    """A perceptron on its way, in the order and until the end that an estimator says.

    The loss has the penalty of every step on the CPU. On a device, which is not to wait for the
    host between steps, it has that of the mean of Σ w² before and after the epoch.

    Parameters
    ----------
    problem : Problem
    model : Model
    parameters : Parameters
    batch_size : int
    state : State
        Goes on from where it is; takes the optimizer's moments at the end.
    rows : int
        Of an epoch.
    y : (n, n_L) array
    weights : (n,) array of the model's dtype, or None
        s.
    epochs : callable
        () -> how many epochs come before any that may be the last, that one included; if they are
        several, `after` alone hears of each, when all are over.
    order : callable
        () -> (rows,) int array, of n, for the next epoch.
    key : callable
        () -> 64 bits, from which its steps draw.
    after : callable
        (mean loss of the epoch, of every mini-batch before its update) -> whether to stop.
    average : WeightAverage, optional
        What the parameters are at the end. Then `epochs` says 1.
    mixup : callable, optional
        () -> λ of each mini-batch of the next epoch, by which its rows are mixed. Then, too.
    """

    def __init__(
        self,
        problem: Problem,
        model: Model,
        parameters: Parameters,
        batch_size: int,
        state: State,
        rows: int,
        y: np.ndarray,
        weights: np.ndarray | None,
        epochs: Callable[[], int],
        order: Callable[[], np.ndarray],
        key: Callable[[], int],
        after: Callable[[float], bool],
        average: WeightAverage | None = None,
        mixup: Callable[[], np.ndarray] | None = None,
    ) -> None:
        super().__init__(parameters)
        self._average, self._epochs_over, self._mixup = average, 0, mixup
        if average is not None and watches_batches(average):
            self.piece = average.interval
        self.problem, self.model, self.state = problem, model, state
        self.batch_size, self.weights = batch_size, weights
        self.rows = rows
        self.steps = -(-rows // batch_size)
        self._epochs, self._order, self._key, self._after = epochs, order, key, after
        self._over = False
        self._every_step = sums_squares(problem, model)
        self._squares: np.ndarray | None = None
        #: Of each step the sum of the weights, where rows have some.
        self._totals: np.ndarray | None = None
        self._backend = model.backend.fork()
        self._slots = tuple(
            model.backend.zeros((model.layout.length,)) for _ in range(state.rule.slots)
        )
        for slot, saved in zip(self._slots, state.slots or (), strict=False):
            model.backend.copy(model.backend.asarray(saved), slot)
        self._sizes = np.full(self.steps, float(batch_size))
        self._sizes[-1] = rows - batch_size * (self.steps - 1)
        self._y = y
        #: What our cost leaves out of each row's loss, having no gradient; and of the rows of this
        #: epoch, in their order, times their weights.
        self._rest = rest_of_loss(problem, y)
        self._left_out: np.ndarray | None = None

    def start(self) -> None:
        if self._average is not None:
            self._average.on_fit_start(self)

    def piece_is_over(self, step: int) -> None:
        if self._average is not None:
            self._average.on_batch_end(self, step)

    def steps_are_over(self, steps: int) -> None:
        if self._average is not None and self.piece and steps % self.piece:
            self._average.on_batch_end(self, steps - 1)

    def epoch(self) -> Member:
        epochs, state = self._epochs(), self.state
        rate, noise = self.problem.dropout, state.rule.gradient_noise > 0
        rates = (rate,) * (len(self.problem.sizes) - 2) if rate else ()
        orders, keys = [], []
        for _ in range(epochs):
            orders.append(self._order())
            keys.append(self._key() if rate or noise else 0)
        order = orders[0] if epochs == 1 else np.concatenate(orders)
        mixup = None if self._mixup is None else self._mixup()
        steps = epochs * self.steps
        coefficients = state.rule.coefficients(np.full(steps, state.rate), state.step)
        if self._every_step:
            self._squares = np.empty(steps)
        elif self.problem.alpha:
            self._squares_before = self._sum_of_squares()
        weights, totals = None, np.tile(self._sizes, epochs)
        of_rows = None if self.weights is None else self._in_order(self.weights, order, mixup)
        if of_rows is not None:
            weights, totals = relative_weights(of_rows, self.batch_size, epochs)
            if not totals.all():
                raise ZeroDivisionError("the weights of a mini-batch sum to zero")
            weights, self._totals = weights.astype(self.model.dtype), totals
        coefficients[:, 4] += self.problem.alpha / totals
        settings = Hyperparameters(self.batch_size, state.rule, coefficients, self._squares)
        self._left_out = self._rest_in_order(order, mixup)
        if self._left_out is not None and of_rows is not None:
            self._left_out = self._left_out * of_rows
        draws = Draws(rates, tuple(keys)) if rates or noise else None
        return Member(self.parameters, self._slots, order, settings, weights, epochs, draws, mixup)

    def _in_order(
        self, values: np.ndarray, order: np.ndarray, mixup: np.ndarray | None
    ) -> np.ndarray:
        """Of each row, in the order they are taken, or of mixtures of them."""
        taken = values[order]
        return taken if mixup is None else mixed(taken, mixup, self.batch_size)

    def _rest_in_order(self, order: np.ndarray, mixup: np.ndarray | None) -> np.ndarray | None:
        if self._rest is None or mixup is None:
            return None if self._rest is None else self._rest[order]
        return rest_of_loss(self.problem, self._in_order(self._y, order, mixup))

    def _over_batches(self, numbers: np.ndarray) -> np.ndarray:
        """The sum of each mini-batch's, of one epoch or several."""
        starts = np.arange(0, self.rows, self.batch_size)
        sums = np.add.reduceat(numbers.reshape(-1, self.rows), starts, axis=1, dtype=np.float64)
        return sums.ravel()

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.state.step += len(costs)
        if self.problem.loss == "squared_error":
            costs = costs / self.problem.sizes[-1]
        # A step's sum of weights is its rows, where they have none.
        each = (-1, self.steps)
        sizes = self._sizes
        shares = sizes if self._totals is None else sizes / self._totals.reshape(each)
        losses = (costs.reshape(each) * sizes).sum(axis=1)  # of whose bits BLAS would not be sure
        if self._left_out is not None:
            sums = self._over_batches(self._left_out).reshape(each)
            losses += sums.sum(axis=1) if self._totals is None else (sums * shares).sum(axis=1)
        alpha = 0.5 * self.problem.alpha
        if self._squares is not None:
            penalties = self._squares.reshape(each)
            losses += alpha * (penalties if self._totals is None else penalties * shares).sum(
                axis=1
            )
        elif alpha:
            losses += 0.5 * alpha * self.steps * (self._squares_before + self._sum_of_squares())
        for loss in (losses / self.rows).tolist():
            self._over = self._after(loss)

    def _sum_of_squares(self) -> float:
        weights = self.parameters.flat[: self.parameters.layout.weights_end]
        return self._backend.sum_of_squares(weights)

    def is_over(self) -> bool:
        self._epochs_over += 1
        if self._average is not None:
            self._average.epoch_is_over(self, self._epochs_over)
        return self._over

    def finish(self) -> None:
        if self._average is not None:
            self._average.leave(self)
        self.state.slots = tuple(self.model.backend.to_numpy(slot) for slot in self._slots)


def rest_of_loss(problem: Problem, y: np.ndarray) -> np.ndarray | None:
    """What of each row's loss is not in `Problem.cost`, if anything: it has no gradient."""
    if problem.loss != "poisson":
        return None
    from scipy.special import xlogy

    return np.asarray((xlogy(y, y) - y).sum(axis=1), np.float64)


def sums_squares(problem: Problem, model: Model) -> bool:
    """Whether an engine is asked for Σ w² before every step."""
    return problem.alpha > 0 and model.choice.backend == "numpy"


class EquationsCourse(PerceptronCourse):
    """As `PerceptronCourse`, for an `EquationsEngine`: its losses have the penalty already."""

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.state.step += self.steps
        self._over = self._after(float(costs @ self._sizes) / self.rows)


class SharedCourse(PerceptronCourse):
    """As `PerceptronCourse`, among others: what goes wrong with it ends it alone.

    Attributes
    ----------
    error : Exception or None
        What was raised.
    """

    error: Exception | None = None

    def epoch(self) -> Member | None:  # type: ignore[override]
        try:
            return super().epoch()
        except Exception as error:
            self._fail(error)
            return None

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        try:
            super().end_epoch(costs, seconds)
        except Exception as error:  # a warning that is an error, for one
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error, self.failure, self._over = error, str(error), True


@dataclass(frozen=True, eq=False)
class SharingFit:
    """What a session with others needs of a fit by "sgd" or "adam".

    Attributes
    ----------
    model : Model
    engine : Engine
        That would train it alone.
    X, y : (n, n_0), (n, n_L) arrays
    weights : (n,) array or None
        s.
    meaning : hashable
        Equal for fits whose y says the same of the same row.
    rows : int
        Of an epoch: fewer than n where some are held out.
    batch_size, epochs : int
    rule : Optimizer
    course : callable
        (class, y, weights, places) -> its course, over rows of which row i of X is ``places[i]``.
    take : callable
        Gives the estimator what was learnt.
    """

    model: Model
    engine: Engine
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    meaning: Hashable
    rows: int
    batch_size: int
    epochs: int
    rule: Optimizer
    course: Callable[..., Any]
    take: Callable[[], None]


@dataclass(frozen=True, eq=False)
class PreparedFit:
    """A fit before its first epoch.

    Attributes
    ----------
    train : callable
        Trains it alone.
    end : callable
        What comes after the last epoch.
    sharing : SharingFit or None
        Where it may train in a session with others.
    """

    train: Callable[[], None]
    end: Callable[[], None]
    sharing: SharingFit | None = None


class EquationsEngine(Engine):
    """`loss_and_gradients`, a mini-batch after another: for what no other engine can do."""

    name = "none"
    reads_sparse = True

    def __init__(self, problem: Problem, model: Model, reason: str) -> None:
        plan = Plan(
            "numpy", model.choice.reason, "none",
            f"one NumPy call per equation, because {reason}", captured=False,
        )  # fmt: skip
        super().__init__(model.backend, model.sizes, model.activations, model.cost, plan)
        self.problem = problem

    def put(self, X: Any, Y: np.ndarray) -> tuple[Array, Array]:
        return X, Y  # which may be sparse

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        parameters, m = member.parameters, member.hyperparameters.batch_size
        rule = member.hyperparameters.optimizer
        gradients = Parameters(parameters.layout, np.zeros_like(parameters.flat))
        scratch = np.empty_like(parameters.flat), np.empty_like(parameters.flat)
        losses = []
        for number, row in enumerate(member.hyperparameters.coefficients.tolist()):
            batch = member.order[number * m : (number + 1) * m]
            of_batch = slice(number * m, (number + 1) * m)
            weights = None if member.weights is None else member.weights[of_batch]
            draws = member.draws
            drop = (
                partial(_factors, draws, number) if draws is not None and any(draws.rates) else None
            )
            change = partial(_change, rule, row[5], draws, number)
            losses.append(
                loss_and_gradients(
                    self.problem,
                    parameters,
                    X[batch],
                    Y[batch],
                    weights,
                    gradients,
                    row[4],
                    change,
                    drop,
                )
            )
            with np.errstate(all="ignore"):
                apply_rule(
                    parameters, gradients.flat, member.slots, rule, row, lambda shape: scratch
                )
                if rule.max_norm is not None:
                    limit_norms(parameters, rule.max_norm)
        return np.array(losses)


def _factors(draws: Draws, step: int, layer: int, shape: tuple[int, int]) -> np.ndarray:
    return factors(draws, layer, draws.first_step + step, *shape)


def _change(
    rule: Optimizer, sigma: float, draws: Draws | None, step: int, gradients: Parameters
) -> None:
    """Add noise to the gradient, and clip it."""
    if draws is not None and sigma:
        add_noise(gradients, sigma, draws, step)
    clip(gradients.flat, rule)
