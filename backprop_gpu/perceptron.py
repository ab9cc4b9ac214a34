"""What is under `estimators`: scikit-learn's losses and rules of training, on our equations.

    Problem             layers, σ, loss, penalty: what the parameters mean
    loss_and_gradients  the equations in NumPy, for weighted samples, sparse X and dropout
    State               the optimizer's, kept between calls of ``partial_fit``
    EngineEpochs        epochs by the engine that the planner chooses, one or two calls an epoch
    PlainEpochs         epochs by `loss_and_gradients`, for what no engine can do

The loss of a mini-batch of m rows whose sample weights sum to S (S = m without weights) is

    Σ_x s_x C_x / S  +  ½ α Σ w² / S

so that of a short last mini-batch α weighs more; an epoch's is the mean over its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, costs
from .activations import Activation
from .backends.numpy import apply_rule, clip
from .driver import Driver
from .optimizers import SGD, Adam, Optimizer
from .parameters import Layout, Parameters
from .threads import one_blas_thread

if TYPE_CHECKING:
    from .costs import Cost
    from .network import Network

Array = Any

#: scikit-learn's names of activations -> ours; names that are not here are the same.
OUR_NAMES = {"logistic": "sigmoid", "exp": "exponential"}


def activation_of(name: str) -> Activation:
    """The activation that scikit-learn or we call so."""
    return activations.get(OUR_NAMES.get(name, name))


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
        """Ours, clipped as scikit-learn's log loss is; its gradient for all of the losses."""
        if self.loss == "log_loss":
            softmax = self.names[-1] == "softmax"
            kind = costs.CategoricalCrossEntropy if softmax else costs.BinaryCrossEntropy
            return kind(clipped=True)
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
    return delta.T @ a


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
    """What training goes on from: rule, moments, step and learning rate.

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
        """From `data`."""
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
        """After an epoch, `samples` having been seen in all."""
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


class EngineEpochs:
    """Epochs of a network by whichever engine the planner takes.

    All whole mini-batches are one call of the engine. A short last one is another, because the
    penalty weighs more in it.

    The loss has the penalty of every step on the CPU. On a device, which is not to wait for the
    host between steps, it has that of the mean of Σ w² before and after the epoch.
    """

    def __init__(
        self,
        problem: Problem,
        network: Network,
        X: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        epochs: int,
        state: State,
    ) -> None:
        self.problem, self.network, self.state = problem, network, state
        self.rows, self.batch_size = len(y), batch_size
        self.whole = self.rows // batch_size * batch_size
        self._every_step = problem.alpha > 0 and network.backend == "numpy"
        y = y.astype(network.dtype, copy=False)
        self._driver = Driver(
            network, X, y, epochs=epochs, batch_size=batch_size, optimizer=self._rule(batch_size),
            squares=self._every_step,
        )  # fmt: skip
        self._last = self._rule(max(1, self.rows - self.whole))
        backend = network._backend
        if state.slots is not None:
            for slot, saved in zip(self._driver.slots, state.slots, strict=True):
                backend.copy(backend.asarray(saved), slot)
        self._driver.step = state.step
        self.plan = str(self._driver.plan)
        self._constant = 0.0
        if problem.loss == "poisson":  # what our cost leaves out, having no gradient
            from scipy.special import xlogy

            self._constant = float((xlogy(y, y) - y).sum()) / self.rows

    def _rule(self, rows: int) -> Optimizer:
        return replace(self.state.rule, l2=self.problem.alpha / rows)

    def run(self, order: np.ndarray) -> float:
        """One epoch; the mean loss, of every mini-batch before its update."""
        squares = 0.0 if self._every_step else self._sum_of_squares()
        total = self._run(order[: self.whole], self.batch_size, None)
        if self.whole < self.rows:
            total += self._run(order[self.whole :], self.rows - self.whole, self._last)
        if not self._every_step:
            steps = -(-self.rows // self.batch_size)
            total += 0.25 * self.problem.alpha * steps * (squares + self._sum_of_squares())
        self.state.step = self._driver.step
        return total / self.rows + self._constant

    def _run(self, order: np.ndarray, m: int, rule: Optimizer | None) -> float:
        """Mini-batches of m rows: the sum of their losses, each times m."""
        squares = np.zeros(len(order) // m) if self._every_step else None
        found = self._driver.run(order, self.state.rate, optimizer=rule, squares=squares)
        if self.problem.loss == "squared_error":
            found = found / self.problem.sizes[-1]
        penalty = 0.0 if squares is None else 0.5 * self.problem.alpha * float(squares.sum())
        return m * float(found.sum()) + penalty

    def _sum_of_squares(self) -> float:
        if self.problem.alpha == 0:
            return 0.0
        parameters = self.network._parameters
        weights = parameters.flat[: parameters.layout.weights_end]
        return self.network._backend.sum_of_squares(weights)

    def between(self) -> AbstractContextManager[None]:
        """Around NumPy's work between two epochs, so that it leaves the cores to the next."""
        shared = self._driver.plan.engine == "resident" and self.network.backend == "numpy"
        return one_blas_thread if shared else nullcontext()

    def close(self) -> None:
        """Keep the optimizer's state, and give back the buffers."""
        to_numpy = self.network._backend.to_numpy
        self.state.slots = tuple(to_numpy(slot) for slot in self._driver.slots)
        self._driver.close()


class PlainEpochs:
    """Epochs by `loss_and_gradients`, a mini-batch after another in NumPy."""

    def __init__(
        self,
        problem: Problem,
        network: Network,
        X: Array,
        y: np.ndarray,
        sample_weight: np.ndarray | None,
        batch_size: int,
        state: State,
        rng: np.random.RandomState,
        reason: str,
    ) -> None:
        self.problem, self.network, self.state = problem, network, state
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self.batch_size, self.rng = batch_size, rng
        layout: Layout = network._layout
        self.parameters = network._parameters
        self._gradients = Parameters(layout, np.zeros_like(self.parameters.flat))
        if state.slots is None:
            slots = state.rule.slots
            state.slots = tuple(np.zeros_like(self.parameters.flat) for _ in range(slots))
        self._scratch = tuple(np.empty_like(self.parameters.flat) for _ in range(2))
        self.plan = f"engine none: one NumPy call an equation, because {reason}"

    def run(self, order: np.ndarray) -> float:
        """As `EngineEpochs.run`."""
        state, total = self.state, 0.0
        steps = -(-len(order) // self.batch_size)
        rows = state.rule.coefficients(np.full(steps, state.rate), state.step)
        for number, row in enumerate(rows.tolist()):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            weights = None if self.sample_weight is None else self.sample_weight[batch]
            loss = loss_and_gradients(
                self.problem, self.parameters, self.X[batch], self.y[batch], weights,
                self._gradients, state.rule, self.rng,
            )  # fmt: skip
            assert state.slots is not None
            with np.errstate(all="ignore"):
                apply_rule(
                    self.parameters, self._gradients.flat, state.slots, state.rule, row,
                    lambda shape: (self._scratch[0], self._scratch[1]),
                )  # fmt: skip
            total += len(batch) * loss
            state.step += 1
        return total / len(order)

    def between(self) -> AbstractContextManager[None]:
        """As of `EngineEpochs`; here all is NumPy."""
        return nullcontext()

    def close(self) -> None:
        """There is nothing to give back."""


Epochs = EngineEpochs | PlainEpochs
