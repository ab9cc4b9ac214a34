"""Some steps of a member's epoch, as a member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..engines import Member
from ..philox import Draws


def part_of_member(
    member: Member, first: int, last: int, order: np.ndarray | None = None
) -> Member:
    """Steps `first` to `last` of a member's epoch, perhaps with the rows' numbers in a buffer.

    All of them, and then of all its epochs, are the member itself.
    """
    settings = member.hyperparameters
    if order is None and first == 0 and last == len(settings.coefficients):
        return member
    m = settings.batch_size
    squares = None if settings.squares is None else settings.squares[first:last]
    part = replace(settings, coefficients=settings.coefficients[first:last], squares=squares)
    return replace(
        member,
        order=member.order[first * m : last * m] if order is None else order,
        hyperparameters=part,
        weights=None if member.weights is None else member.weights[first * m : last * m],
        draws=from_step(member.draws, first),
        mixup=None if member.mixup is None else member.mixup[first:last],
    )


def from_step(draws: Draws | None, first: int) -> Draws | None:
    if draws is None:
        return None
    return replace(draws, first_step=draws.first_step + first)


def later(on_step: Callable[[int], None], first: int) -> Callable[[int], None]:
    return lambda number: on_step(first + number)


def nothing() -> None:
    pass
