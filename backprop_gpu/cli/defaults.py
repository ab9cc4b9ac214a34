"""What a network for some data is where nothing else is asked for."""

from __future__ import annotations

from .. import costs
from ..datasets import Dataset
from ..preprocessing import Number

HIDDEN = 30
EPOCHS = 60
BATCH_SIZE = 10


def default_cost(data: Dataset) -> str:
    return "quadratic" if data.classes is None else "binary_cross_entropy"


def default_activations(data: Dataset, cost: str, layers: int) -> list[str]:
    """σ of each layer: outputs as the cost or the data need them."""
    numbers = data.classes is None
    output = costs.get(cost).default_output or ("identity" if numbers else "sigmoid")
    return ["sigmoid"] * (max(layers, 1) - 1) + [output]


def default_rate(optimizer: str, cost: str, output: str) -> float:
    """η for an optimizer, a cost and the σ of the outputs."""
    bounded = output in ("sigmoid", "softmax")
    if optimizer in ("adam", "adamw"):
        return 0.003 if bounded else 0.001
    rate = 3.0 if cost == "quadratic" else 0.5
    if optimizer != "sgd":
        rate /= 10.0
    if isinstance(costs.get(cost), costs.Hinge):  # whose slopes are 0 and 1
        return rate / 10.0
    return rate if bounded else rate / 100.0


def fits_numbers(data: Dataset, cost: str, output: str) -> bool:
    """Whether the target is a table's column of numbers, which outputs without bounds fit."""
    target = data.preprocessing.target if data.preprocessing else None
    of_numbers = cost == "quadratic" or not costs.get(cost).takes_labels
    return isinstance(target, Number) and of_numbers and output == "identity"
