"""What is under `estimators`: scikit-learn's losses and rules of training, on our equations.

    Problem             layers, σ, loss, penalty: what the parameters mean
    loss_and_gradients  the equations in NumPy, for weighted samples, sparse X and dropout
    State               the optimizer's, kept between calls of ``partial_fit``
    PerceptronCourse    what a session asks of an estimator, and tells it
    WeightedEngine      epochs by `loss_and_gradients`, for what no other engine can do

The loss of a mini-batch of m rows whose sample weights sum to S (S = m without weights) is

    Σ_x s_x C_x / S  +  ½ α Σ w² / S

so that of a short last mini-batch α weighs more; an epoch's is the mean over its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import activations, costs
from ..activations import Activation
from ..backends.numpy import apply_rule, clip
from ..engines import Engine, Hyperparameters, Member
from ..model import Model
from ..optimizers import SGD, Adam, Optimizer
from ..parameters import Parameters
from ..planning import Plan
from ..training import Course

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
    loss : {"log_loss", "squared_error", "poisson", "absolute_error"}
    alpha : float
        α of the penalty.
    dropout : float
        The share of every hidden layer's activations that a step leaves out.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    loss: str
    alpha: float
    dropout: float = 0.0

    @property
    def activations(self) -> list[Activation]:
        return [activation_of(name) for name in self.names]

    @property
    def cost(self) -> Cost:
        if self.loss == "log_loss":
            return SoftmaxLogLoss() if self.names[-1] == "softmax" else LogisticLogLoss()
        return costs.get("poisson" if self.loss == "poisson" else "quadratic")


# -- the equations, for any sample weights, sparse X and dropout ------------------------------


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

    Squared and absolute errors are means over the outputs too, the other two sums.
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
            samples = np.abs(y - a).mean(axis=1)
        return float(np.average(samples, weights=sample_weight))


def loss_and_gradients(
    problem: Problem,
    parameters: Parameters,
    X: Array,
    y: np.ndarray,
    sample_weight: np.ndarray | None,
    gradients: Parameters,
    clips: Optimizer | None = None,
    rng: np.random.RandomState | None = None,
) -> float:
    """The loss of a mini-batch with its penalty, and its gradient into `gradients` (BP1–BP4).

    Parameters
    ----------
    X : (m, n_0) array or sparse matrix
    y : (m, n_L)
    sample_weight : (m,), optional
    clips : Optimizer, optional
        Whose limits the gradient is clipped to before the penalty joins it.
    rng : RandomState, optional
        Draws what dropout leaves out; without it nothing is.

    Every output activation is its loss's partner, so that δ^L = a - y, but for the absolute
    error, whose δ^L is the sign of a - y.
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
            if rng is not None and problem.dropout and l < depth:
                mask = rng.random_sample(out.shape) >= problem.dropout
                kept[l] = (mask / (1.0 - problem.dropout)).astype(out.dtype)
                a.append(out * kept[l])
                kept[l] = kept[l], out
            else:
                a.append(out)
        loss = loss_of(problem, y, a[-1], sample_weight)
        weights = parameters.flat[: parameters.layout.weights_end]
        loss += 0.5 * problem.alpha * float(np.dot(weights, weights)) / total
        delta = a[-1] - y
        if problem.loss == "absolute_error":
            delta = np.sign(delta) / y.shape[1]
        delta = delta.astype(parameters.flat.dtype, copy=False)
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
        if clips is not None:
            clip(gradients.flat, clips)
        end = parameters.layout.weights_end
        gradients.flat[:end] += (problem.alpha / total) * weights
    return loss


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

    All whole mini-batches are one call of the engine. A short last one is another, because the
    penalty weighs more in it.

    The loss has the penalty of every step on the CPU. On a device, which is not to wait for the
    host between steps, it has that of the mean of Σ w² before and after the epoch.

    Parameters
    ----------
    problem : Problem
    model : Model
    parameters : Parameters
    rows, batch_size : int
    state : State
        Goes on from where it is; takes the optimizer's moments at the end.
    y : (rows, n_L) array
    order : callable
        () -> (rows,) int array, for the next epoch.
    after : callable
        (mean loss of the epoch, of every mini-batch before its update) -> whether to stop.
    """

    def __init__(
        self,
        problem: Problem,
        model: Model,
        parameters: Parameters,
        rows: int,
        batch_size: int,
        state: State,
        y: np.ndarray,
        order: Callable[[], np.ndarray],
        after: Callable[[float], bool],
    ) -> None:
        super().__init__(parameters)
        self.problem, self.model, self.state = problem, model, state
        self.rows, self.batch_size = rows, batch_size
        self.steps = -(-rows // batch_size)
        self._order, self._after = order, after
        # Of the last batch, which is short, the penalty weighs more.
        sizes = {batch_size, rows % batch_size} - {0}
        self._rules = {m: replace(state.rule, l2=problem.alpha / m) for m in sizes}
        self._backend = model.backend.fork()
        self._over = False
        self._every_step = sums_squares(problem, model)
        self._slots = tuple(
            model.backend.zeros((model.layout.length,)) for _ in range(state.rule.slots)
        )
        for slot, saved in zip(self._slots, state.slots or self._slots, strict=True):
            model.backend.copy(model.backend.asarray(saved), slot)
        self._constant = 0.0
        if problem.loss == "poisson":  # what our cost leaves out, having no gradient
            from scipy.special import xlogy

            self._constant = float((xlogy(y, y) - y).sum()) / rows

    def epoch(self) -> Sequence[Member]:
        order, m = self._order(), self.batch_size
        whole, rest = divmod(self.rows, m)
        self._squares_before = 0.0 if self._every_step else self._sum_of_squares()
        self._parts = [
            (rows, self._part(order[begin : begin + rows * steps], rows, steps, first))
            for begin, rows, steps, first in ((0, m, whole, 0), (m * whole, rest, 1, whole))
            if rows * steps
        ]
        return [member for _, member in self._parts]

    def _part(self, order: np.ndarray, rows: int, steps: int, first: int) -> Member:
        """Steps of so many rows each, by a rule whose penalty is theirs."""
        state, rule = self.state, self._rules[rows]
        coefficients = rule.coefficients(np.full(steps, state.rate), state.step + first)
        squares = np.zeros(steps) if self._every_step else None
        hyperparameters = Hyperparameters(self.batch_size, rule, coefficients, squares)
        return Member(self.parameters, self._slots, order, hyperparameters)

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.state.step += self.steps
        total = 0.0
        for rows, member in self._parts:
            squares = member.hyperparameters.squares
            steps = len(member.hyperparameters.coefficients)
            found, costs = costs[:steps], costs[steps:]
            if self.problem.loss == "squared_error":
                found = found / self.problem.sizes[-1]
            penalty = 0.0
            if squares is not None:
                penalty = 0.5 * self.problem.alpha * float(squares.sum())
            total += rows * float(found.sum()) + penalty
        if not self._every_step:
            both = self._squares_before + self._sum_of_squares()
            total += 0.25 * self.problem.alpha * self.steps * both
        self._over = self._after(total / self.rows + self._constant)

    def _sum_of_squares(self) -> float:
        if self.problem.alpha == 0:
            return 0.0
        weights = self.parameters.flat[: self.parameters.layout.weights_end]
        return self._backend.sum_of_squares(weights)

    def is_over(self) -> bool:
        return self._over

    def finish(self) -> None:
        self.state.slots = tuple(self.model.backend.to_numpy(slot) for slot in self._slots)


def sums_squares(problem: Problem, model: Model) -> bool:
    """Whether an engine is asked for Σ w² before every step."""
    return problem.alpha > 0 and model.choice.backend == "numpy"


class WeightedCourse(PerceptronCourse):
    """As `PerceptronCourse`, for a `WeightedEngine`: its losses have the penalty already."""

    def epoch(self) -> Sequence[Member]:
        order, state = self._order(), self.state
        coefficients = state.rule.coefficients(np.full(self.steps, state.rate), state.step)
        hyperparameters = Hyperparameters(self.batch_size, state.rule, coefficients)
        return [Member(self.parameters, self._slots, order, hyperparameters)]

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.state.step += self.steps
        total, left = 0.0, self.rows
        for loss in costs.tolist():
            total += min(self.batch_size, left) * loss
            left -= self.batch_size
        self._over = self._after(total / self.rows)


class WeightedEngine(Engine):
    """`loss_and_gradients`, a mini-batch after another: for what no other engine can do.

    Parameters
    ----------
    sample_weight : (rows,) array or None
    rng : RandomState
        Draws what dropout leaves out.
    """

    name = "none"

    def __init__(
        self,
        problem: Problem,
        model: Model,
        sample_weight: np.ndarray | None,
        rng: np.random.RandomState,
        reason: str,
    ) -> None:
        plan = Plan(
            "numpy", model.choice.reason, "none",
            f"one NumPy call per equation, because {reason}", captured=False,
        )  # fmt: skip
        super().__init__(model.backend, model.sizes, model.activations, model.cost, plan)
        self.problem, self.sample_weight, self.rng = problem, sample_weight, rng

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
            weights = None if self.sample_weight is None else self.sample_weight[batch]
            losses.append(
                loss_and_gradients(
                    self.problem, parameters, X[batch], Y[batch], weights, gradients, rule, self.rng
                )
            )
            with np.errstate(all="ignore"):
                apply_rule(
                    parameters, gradients.flat, member.slots, rule, row, lambda shape: scratch
                )
        return np.array(losses)
