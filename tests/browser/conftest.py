"""One headless Chromium for all tests of the folder; where it is missing, they fail and say what to do."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from sparseg.viewer.report_page import write_report_page
from viewer.report_folder import FAILED, write_case, write_run

# No GPU: WebGL runs in software. No service of the browser may call home and pass for the page's doing.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
WAIT_MS = 30_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is missing: run make test-browser", pytrace=False)
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("no Chromium: install it (Debian: apt-get install chromium) or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, with everything that it asked for and complained about."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context(viewport={"width": 760, "height": 560})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._note_request(request.url))
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._note_dialog)
        self.page.goto(address)

    def _note_request(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.requests.append(url)

    def _note_message(self, message: Any) -> None:
        # Chromium's own remark on reading pixels back from software rendering.
        if message.type in ("error", "warning") and "GPU stall due to ReadPixels" not in message.text:
            self.faults.append(message.text)

    def _note_dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def loaded(self, case: int, resolution: str = "preview") -> Visit:
        """Wait until the viewer shows a case."""
        self.page.wait_for_selector(f'#v-canvas[data-case="{case}"][data-resolution="{resolution}"]')
        return self

    def canvas(self) -> np.ndarray:
        """Red, green, blue 0 to 255 of the viewer as it is on the screen."""
        png = self.page.locator("#v-canvas").screenshot()
        return np.round(imread(io.BytesIO(png))[..., :3] * 255)

    def canvas_after(self, act: Any) -> np.ndarray:
        """Do something, wait until the viewer's picture differs, and return it."""
        before = self.canvas()
        act()
        for _ in range(50):
            after = self.canvas()
            if (after != before).any():
                return after
            self.page.wait_for_timeout(50)
        pytest.fail("the viewer's picture did not change")

    def go_to(self, mm: np.ndarray) -> None:
        """Type a place."""
        self.page.fill("#v-mm", ", ".join(f"{value:.3f}" for value in mm))
        self.page.press("#v-mm", "Enter")

    def place(self) -> np.ndarray:
        """Millimetres that the page names."""
        text = self.page.get_attribute("#v-where", "data-mm")
        return np.array([float(value) for value in str(text).split(",")])

    def words(self) -> str:
        """What the page says about the place."""
        return str(self.page.inner_text("#v-where"))

    def close(self) -> None:
        """Close it."""
        self.context.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Return a function that opens an address."""
    visits: list[Visit] = []

    def open_it(address: str) -> Visit:
        visits.append(Visit(browser, address))
        return visits[-1]

    yield open_it
    for one in visits:
        one.close()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report page of one patient and one failed case."""
    out = tmp_path_factory.mktemp("browser") / "out"
    return write_report_page(write_run(out, [write_case(out), FAILED]))
