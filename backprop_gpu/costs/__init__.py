"""Cost functions C = 1/n Σ_x C_x, each C_x a function of the outputs a^L and the target y.

`collapses` is the one place that knows the pairs of output activation and cost
for which BP1 reads δ^L = a^L - y: there the division in ∇_a C and the factor
σ'(z^L) cancel, and leaving both out is faster and does not lose digits where σ
is saturated. The cost of such a pair is computed from z^L for the same reason.

For all other pairs of a cost of means this is BP1, in every engine and kernel.
∂C/∂a = r / V(a), with V the variance that the cost's distribution has at mean a
(McCullagh & Nelder 1989, section 2.2)::

    quadratic                  r = a - y   V = 1
    binary_cross_entropy       r = a - y   V = a (1 - a)
    categorical_cross_entropy  r = -y      V = a
    poisson                    r = a - y   V = a

    δ^L = r(ā, y) ⊙ σ' / V(ā)         σ' of ā too, where it is computed from a
    δ_j = q_j - ā_j Σ_k q_k           softmax, with q = r ā / V(ā) = ā ∂C/∂a

- ā is a, moved to the nearest normal float inside the cost's `interior`. Where σ
  is saturated a is rounded to 0 or 1, or to a float that has lost its digits, and
  σ' / V would be 0 / 0 or noise; at ā it is the limit that it has there. So
  learning does not stop at z = -200: sigmoid with poisson has δ = -y (1 - ā).
- σ' / V comes first. It is about 1, while r / V may overflow: y / ā, where y > 4.
- 1 - ā of the one output of softmax that may be above ½ is the sum of the others'
  ā: they have the digits that 1 - a has lost, and δ has a pole there.
- A NaN stays one, so that a diverged cost is seen.

C takes the same ā, with 1 - ā from ā itself. A user's cost gets a as it is: it
says itself what happens at an edge.

The other built-in costs have V = 1 or, of `Focal`, the variance of a cross-entropy, and an r of
their own. `Cosine` and `GaussianNLL` are no sums over outputs c(a_j, y_j); their ∇_a C takes a
row, and σ' or softmax's Jacobian comes behind it.

A target that is NaN is a missing label: its output counts neither in C_x nor in δ.

Kernels take every cost's targets with one number an output, (m, n_L): `Cost.prepare` makes those of
what a user gives.
"""

from __future__ import annotations

import ast
from typing import Any

from ..activations import BELOW_ZERO, Activation
from .base import BuiltinCost, Cost, collapses, leave_out, output_tangent
from .distances import AbsoluteError, Cosine, Huber, Quantile
from .likelihoods import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    CategoricalFocal,
    Focal,
    GaussianNLL,
    Poisson,
    Quadratic,
)
from .margins import Hinge, SquaredHinge
from .registry import REGISTRY, check_name

__all__ = [
    "REGISTRY", "AbsoluteError", "BinaryCrossEntropy", "BuiltinCost", "CategoricalCrossEntropy",
    "CategoricalFocal",
    "Cosine", "Cost", "Focal", "GaussianNLL", "Hinge", "Huber", "Poisson", "Quadratic",
    "Quantile", "SquaredHinge", "check_name", "check_pair", "collapses", "get", "leave_out",
    "names", "output_tangent", "register",
]  # fmt: skip

REGISTRY.update(
    (cost.name, cost)
    for cost in (
        Quadratic(),
        BinaryCrossEntropy(),
        CategoricalCrossEntropy(),
        Poisson(),
        AbsoluteError(),
        Huber(),
        Quantile(),
        Hinge(),
        SquaredHinge(),
        Focal(),
        CategoricalFocal(),
        Cosine(),
        GaussianNLL(),
    )
)


def names() -> tuple[str, ...]:
    """List the names that `get` knows: the built-ins and what `register` added.

    Returns
    -------
    tuple of str
        In the order of their registration.
    """
    return tuple(REGISTRY)


def get(cost: str | Cost) -> Cost:
    """Return the cost of that name, or the `Cost` itself.

    Parameters
    ----------
    cost : str or Cost
        A name, behind which a built-in one's parameters may stand: "huber(delta=2.0)".

    Returns
    -------
    Cost
        The registered one, or a new one with these parameters.

    Raises
    ------
    ValueError
        For an unknown name, or parameters that do not fit.
    TypeError
        For anything but a name or a Cost.
    """
    if isinstance(cost, Cost):
        return cost
    if not isinstance(cost, str):
        raise TypeError(f"cost must be a name or a Cost, got {cost!r}")
    if cost in REGISTRY:
        found: Cost = REGISTRY[cost]
        return found
    name, bracket, _ = cost.partition("(")
    kind = REGISTRY.get(name.strip())
    if not bracket or not isinstance(kind, BuiltinCost):
        raise ValueError(f"unknown cost {cost!r}; known: {', '.join(REGISTRY)}")
    try:
        call = ast.parse(cost.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in [k.arg for k in call.keywords]:
            raise ValueError("no parameters by name")
        given: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"cost {cost!r} is not of the form {name.strip()}(parameter=number, ...)"
        ) from error
    try:
        made: Cost = type(kind)(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cost {cost!r}: {error}") from error
    return made


def register(cost: Cost) -> Cost:
    """Make a cost known by its name, to `Network` and to `Network.load`.

    Parameters
    ----------
    cost : Cost
        One of your own; another of the same name is replaced.

    Returns
    -------
    Cost
        The same.

    Raises
    ------
    ValueError
        If the name is a built-in's, or no Python identifier.
    TypeError
        For anything but a Cost.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"register takes a Cost, got {cost!r}")
    check_name(cost.name)
    REGISTRY[cost.name] = cost
    return cost


def check_pair(activation: Activation, cost: Cost) -> None:
    """Refuse an output activation whose values the cost is not defined for.

    Raises
    ------
    ValueError
        Naming both intervals and the activation that suits the cost.
    """
    if isinstance(cost, GaussianNLL) and not activation.elementwise:
        raise ValueError(
            f"cost {cost.name!r} needs outputs in any range, means and log-variances, but "
            f"activation {activation.name!r} gives probabilities; 'identity' suits it"
        )
    if activation.range is None:
        return
    low, high = activation.range
    if low < cost.domain[0] or high > cost.domain[1]:
        suits = cost.partner or cost.default_output or "sigmoid"
        raise ValueError(
            f"cost {cost.name!r} needs outputs in {_interval(cost.domain)}, but activation "
            f"{activation.name!r} gives {_interval(activation.range)}; {suits!r} suits it"
        )


def _interval(ends: tuple[float, float]) -> str:
    low = "[0" if ends[0] == BELOW_ZERO else f"({ends[0]:.3g}"
    return f"{low}, {ends[1]:.3g})"
