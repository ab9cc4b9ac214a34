"""A browser without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; the test skips where one is missing, or must not be.

    Where BACKPROP_GPU_REQUIRE_BROWSER is set, it fails.
    """
    required = bool(os.environ.get("BACKPROP_GPU_REQUIRE_BROWSER"))
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if path is None:
        assert not required, "there is no chromium"
        pytest.skip("there is no chromium")
    if not required:
        pytest.importorskip("playwright", reason="the package playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers seldom allow its sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
