"""One browser for all tests: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opened import NAMES, Opened


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; CHORAL_REQUIRE=browser makes its absence an error."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        reason = f"needs playwright (extra dev) and one of {', '.join(NAMES)} on the PATH"
        if "browser" in os.environ.get("CHORAL_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Open pages from disk; at the end, none may have logged a message, made a request, or executed data."""
    opened: list[Opened] = []

    def open_page(html: str, **options: Any) -> Opened:
        path = tmp_path / f"page {len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        opened.append(Opened(browser, path, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()
        assert one.complaints == []
        assert one.requests == [one.path.as_uri()]
