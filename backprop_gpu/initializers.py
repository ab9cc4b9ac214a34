"""Initial weights. Every one draws all weights first, layer by layer, then the biases.

`fan_in` is n_{l-1}, `fan_out` is n_l; N(0, s²) is the normal distribution::

    book      w ~ N(0, 1/fan_in), b ~ N(0, 1)     Nielsen, chapter 3
    book_large  w ~ N(0, 1), b ~ N(0, 1)          Nielsen, chapter 1
    xavier    w ~ U(±√(6/(fan_in+fan_out))), b = 0   Glorot & Bengio 2010
    he        w ~ N(0, 2/fan_in), b = 0           He et al. 2015
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .activations import Activation

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def _normal(scale: Callable[[int], float]) -> Draw:
    return lambda rng, rows, columns: rng.standard_normal((rows, columns)) * scale(columns)


def _xavier(rng: np.random.Generator, fan_out: int, fan_in: int) -> np.ndarray:
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_out, fan_in))


#: name -> (how a w is drawn, whether b is drawn from N(0, 1) rather than set to 0)
_INITIALIZERS: dict[str, tuple[Draw, bool]] = {
    "book": (_normal(lambda fan_in: 1.0 / math.sqrt(fan_in)), True),
    "book_large": (_normal(lambda fan_in: 1.0), True),
    "xavier": (_xavier, False),
    "he": (_normal(lambda fan_in: math.sqrt(2.0 / fan_in)), False),
}


def names() -> tuple[str, ...]:
    """List the initial weights that `draw` knows.

    Returns
    -------
    tuple of str
        Without "auto", which `rules` resolves.
    """
    return tuple(_INITIALIZERS)


def draw(
    chosen: Sequence[str], sizes: Sequence[int], rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw initial weights and biases, in float64.

    Parameters
    ----------
    chosen : sequence of str
        One of `names` per layer after the input.
    sizes : sequence of int
        Neurons per layer, (n_0, …, n_L).
    rng : numpy.random.Generator
        Gives all weights, layer by layer, and then the biases.

    Returns
    -------
    weights : list of (n_l, n_{l-1}) arrays
        Weights w[1] … w[L].
    biases : list of (n_l,) arrays
        Biases b[1] … b[L].
    """
    kinds = [_INITIALIZERS[name] for name in chosen]
    weights = [
        weight(rng, n, fan_in)
        for (weight, _), fan_in, n in zip(kinds, sizes, sizes[1:], strict=False)
    ]
    biases = [
        rng.standard_normal(n) if random_bias else np.zeros(n)
        for (_, random_bias), n in zip(kinds, sizes[1:], strict=True)
    ]
    return weights, biases


def rules(name: str, activations: Sequence[Activation]) -> list[str]:
    """Name the initial weights of each layer.

    Parameters
    ----------
    name : str
        One of `names`, or "auto": he where σ is a rectifier and book elsewhere.
    activations : sequence of Activation
        One per layer after the input.

    Returns
    -------
    list of str
        One of `names` per layer.
    """
    if name != "auto":
        return [name] * len(activations)
    return ["he" if each.rectifier else "book" for each in activations]
