"""A pytest plugin: ``pytest_plugins = ["backprop_gpu.testing.plugin"]`` in conftest.py.

It is no entry point, which every run of pytest would pay for, whatever it tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import stand_in
from .standin import Standin

_CARD = "cuda_stand_in_card"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_CARD, "the card of the fixture cuda_stand_in", default="H100")


@pytest.fixture
def cuda_stand_in(request: pytest.FixtureRequest) -> Iterator[Standin]:
    """CUDA without a GPU during a test; the `backprop_gpu.testing.standin.Standin` itself."""
    with stand_in(request.config.getini(_CARD)) as started:
        yield started
