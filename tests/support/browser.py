"""A headless Chromium for tests, and the check that nothing on a page is cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).resolve().parents[2] / "outputs" / "screenshots"  # kept by CI
WIDTHS = (1280, 390)
MODES = ("light", "dark")

# words of charts that reach out of their drawing, and elements that reach out of the page
CUT_OFF = """() => [...document.querySelectorAll('.js-plotly-plot text')].filter((text) => {
  const box = text.getBoundingClientRect(), frame = text.closest('svg').getBoundingClientRect();
  return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
                       box.bottom > frame.bottom + 1);
}).map((text) => text.textContent)"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Skips where no browser can be had."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium here: `make browser` installs Debian's, or name one with CHROMIUM=...")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open an address; at the end of the test, its console must have been silent."""
    contexts, said = [], []

    def opened(url: str, width: int = 1280, mode: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not said


def whole_view(page: Any) -> None:
    """Make the window as tall as the page, so that every chart is drawn."""
    width = page.viewport_size["width"]
    page.set_viewport_size({"width": width, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.wait_for_function("() => [...document.querySelectorAll('.chart')].every((c) => c.querySelector('.main-svg'))")


def nothing_is_cut_off(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate(CUT_OFF) == []


def keep_screenshot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
