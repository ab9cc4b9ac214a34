"""Optimizers: how a gradient becomes a change of w and b.

An optimizer is a description, not a loop. For every step of an epoch it works
out on the host, in float64, one row of coefficients from the learning rate
and the step number; `kernels/*/update` and the NumPy backend apply a row to all
parameters in one pass. So a schedule costs a device nothing, and no engine
needs to know what Adam's bias correction is.

With g the gradient, clipped, with noise n of N(0, 1), and after the penalties (weights only)::

    g ← g + σ n,  g ← g + l2 w + l1 sign(w)

the five rules are, c0 … c3, l2 and σ being the row::

    sgd        p ← p - c0 g
    momentum   v ← μ v - c0 g,  p ← p + v
    nesterov   v ← μ v - c0 g,  p ← p + μ v - c0 g
    adam       m ← β1 m + (1-β1) g,  v ← β2 v + (1-β2) g²,  p ← p - c1 m / (√v c2 + ε)
    adamw      adam, after w ← w - c3 w

and where the norm of a neuron's weights, a row of w, has a limit::

    w_j ← w_j min(1, max_norm / ‖w_j‖)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from . import validation

#: c0 … c3, l2 and σ.
COEFFICIENTS = 6


@dataclass(frozen=True, kw_only=True, repr=False)
class Optimizer:
    """What every optimizer takes.

    Parameters
    ----------
    l1, l2 : float
        Penalties l1 Σ|w| + ½ l2 Σw² added to C, on weights and not on biases.
    clip_norm : float, optional
        Scale the whole gradient down to this Euclidean norm where it is larger
        (Pascanu et al. 2013), before the penalties.
    clip_value : float, optional
        Clip every component of the gradient to ± this value, before `clip_norm`.
    max_norm : float, optional
        After each step, scale the weights into each neuron, a row w_j of w, down to this Euclidean
        norm where it is larger (Srivastava et al. 2014); 2 to 4 go with dropout.
    gradient_noise, noise_decay : float
        Add noise of N(0, σ²) to each component of the gradient, before it is clipped (Neelakantan
        et al. 2015); σ² = gradient_noise / (1 + t)^noise_decay at step t, counted from 0.
    """

    l1: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    max_norm: float | None = None
    gradient_noise: float = 0.0
    noise_decay: float = 0.55

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "gradient_noise", "noise_decay"):
            validation.number(name, getattr(self, name), "[0, inf)")
        for name in ("clip_norm", "clip_value", "max_norm"):
            if getattr(self, name) is not None:
                validation.number(name, getattr(self, name), "(0, inf)")

    def __repr__(self) -> str:
        """With what is not the default."""
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def rule(self) -> str:
        """The name of one of the five rules."""
        raise NotImplementedError

    @property
    def options(self) -> frozenset[str]:
        """Names of what it asks for beside its rule that not every engine does."""
        names = ("clip_norm", "max_norm", "gradient_noise")
        return frozenset(name for name in names if getattr(self, name))

    @property
    def slots(self) -> int:
        """Number of arrays of the parameters' size that the rule keeps between steps."""
        return 0

    @property
    def constants(self) -> tuple[float, float, float]:
        """The rule's constants: (μ, 0, 0) or (β1, β2, ε)."""
        return (0.0, 0.0, 0.0)

    @property
    def kernel_constants(self) -> tuple[float, float, float]:
        """The constants as the CUDA C++ kernels take them: (μ, 0, 0) or (1-β1, 1-β2, ε)."""
        return self.constants

    def coefficients(self, learning_rates: np.ndarray, first_step: int) -> np.ndarray:
        """Compute one row (c0, c1, c2, c3, l2, σ) per step.

        Parameters
        ----------
        learning_rates : (steps,) array
            Rates η of the steps.
        first_step : int
            How many steps there were before.

        Returns
        -------
        (steps, 6) float64 array
            Coefficients, as the module's equations name them.
        """
        rows = np.zeros((len(learning_rates), COEFFICIENTS))
        rows[:, 0], rows[:, 4] = learning_rates, self.l2
        if self.gradient_noise:
            t = first_step + np.arange(len(rows), dtype=np.float64)
            rows[:, 5] = np.sqrt(self.gradient_noise * (1.0 + t) ** -self.noise_decay)
        return rows


@dataclass(frozen=True, kw_only=True, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent, p ← p - η g; with `momentum` the book's v (chapter 3).

    Parameters
    ----------
    momentum : float, default 0
        Share μ of the last step that is taken again, in [0, 1).
    nesterov : bool, default False
        Take the gradient step from where the momentum would lead (Nesterov 1983,
        in the form of Sutskever et al. 2013).
    l1, l2 : float, default 0
        Penalties l1 Σ|w| + ½ l2 Σw², as in `Optimizer`.
    clip_norm, clip_value : float, optional
        Limits of the gradient, as in `Optimizer`.
    max_norm : float, optional
        Limit of the norm of a neuron's weights, as in `Optimizer`.
    gradient_noise, noise_decay : float, default 0, 0.55
        Noise that joins the gradient, as in `Optimizer`.

    Examples
    --------
    >>> from backprop_gpu import SGD
    >>> SGD(momentum=0.9, l2=1e-4)
    SGD(l2=0.0001, momentum=0.9)
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("momentum", self.momentum, "[0, 1)")
        validation.boolean("nesterov", self.nesterov)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs momentum > 0")

    @property
    def rule(self) -> str:
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0

    @property
    def constants(self) -> tuple[float, float, float]:
        return (self.momentum, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1).

    Parameters
    ----------
    beta1, beta2 : float, default 0.9, 0.999
        Decay of the running mean of g and of g², in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment.
    l1, l2 : float, default 0
        Penalties l1 Σ|w| + ½ l2 Σw², as in `Optimizer`; their gradient joins g.
    clip_norm, clip_value : float, optional
        Limits of the gradient, as in `Optimizer`.
    max_norm : float, optional
        Limit of the norm of a neuron's weights, as in `Optimizer`.
    gradient_noise, noise_decay : float, default 0, 0.55
        Noise that joins the gradient, as in `Optimizer`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("beta1", self.beta1, "[0, 1)")
        validation.number("beta2", self.beta2, "[0, 1)")
        validation.number("epsilon", self.epsilon, "(0, inf)")

    @property
    def rule(self) -> str:
        return "adam"

    @property
    def slots(self) -> int:
        return 2

    @property
    def constants(self) -> tuple[float, float, float]:
        return (self.beta1, self.beta2, self.epsilon)

    @property
    def kernel_constants(self) -> tuple[float, float, float]:
        return (1.0 - self.beta1, 1.0 - self.beta2, self.epsilon)

    def coefficients(self, learning_rates: np.ndarray, first_step: int) -> np.ndarray:
        rows = super().coefficients(learning_rates, first_step)
        t = np.arange(first_step + 1, first_step + 1 + len(rows), dtype=np.float64)
        rows[:, 1] = learning_rates / (1.0 - self.beta1**t)
        rows[:, 2] = 1.0 / np.sqrt(1.0 - self.beta2**t)
        return rows


@dataclass(frozen=True, kw_only=True, repr=False)
class AdamW(Adam):
    """Adam with decoupled weight decay, w ← w - η λ w (Loshchilov & Hutter 2019).

    Parameters
    ----------
    weight_decay : float, default 0.01
        Decay λ of the weights, >= 0; biases do not decay.
    beta1, beta2 : float, default 0.9, 0.999
        As in `Adam`.
    epsilon : float, default 1e-8
        As in `Adam`.
    l1, l2 : float, default 0
        Penalties l1 Σ|w| + ½ l2 Σw², as in `Optimizer`; their gradient joins g.
    clip_norm, clip_value : float, optional
        Limits of the gradient, as in `Optimizer`.
    max_norm : float, optional
        Limit of the norm of a neuron's weights, as in `Optimizer`.
    gradient_noise, noise_decay : float, default 0, 0.55
        Noise that joins the gradient, as in `Optimizer`.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("weight_decay", self.weight_decay, "[0, inf)")

    @property
    def rule(self) -> str:
        return "adamw"

    def coefficients(self, learning_rates: np.ndarray, first_step: int) -> np.ndarray:
        rows = super().coefficients(learning_rates, first_step)
        rows[:, 3] = learning_rates * self.weight_decay
        return rows


_NAMED: dict[str, Optimizer] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
}
#: The classes, each once.
KINDS = tuple(dict.fromkeys(map(type, _NAMED.values())))


def names() -> tuple[str, ...]:
    """List the names that `get` knows.

    Returns
    -------
    tuple of str
        "sgd" and so on; "momentum" and "nesterov" are SGD with μ = 0.9.
    """
    return tuple(_NAMED)


def get(optimizer: str | Optimizer) -> Optimizer:
    """Return the optimizer of that name with its usual settings, or the `Optimizer` itself.

    Parameters
    ----------
    optimizer : str or Optimizer
        One of `names`, or an object.

    Returns
    -------
    Optimizer
        An immutable description, which trainings may share.

    Raises
    ------
    ValueError
        For an unknown name.
    TypeError
        For anything but a name or an Optimizer.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer must be a name or an Optimizer, got {optimizer!r}")
    if optimizer not in _NAMED:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(_NAMED)}")
    return _NAMED[optimizer]
