"""Headless Chromium on a studio that was really started, in an empty data directory. A missing browser is a failure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.acceptance.studios import EMBEDDED_COMMANDS, RunningStudio, embedded, started

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-dev-shm-usage"
)  # fmt: skip
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


def chromium() -> str:
    """Where the browser is. Fails where there is none: nobody should believe that this was tested."""
    found = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("no Chromium is installed (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    with started(EMBEDDED_COMMANDS, embedded(tmp_path_factory.mktemp("browser"))) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        yield launched
        launched.close()


@dataclass
class Complaints:
    """What the browser's console said: errors, warnings, breaches of the security policy."""

    said: list[str] = field(default_factory=list)

    def forgive(self, *words: str) -> None:
        """Forget complaints with one of these words: the console names every answer that is not a success."""
        self.said = [one for one in self.said if not any(word in one for word in words)]

    def listen(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.said.append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: self._failed(request.url, request.failure or ""))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.location.get('url', '')}: {message.text}")

    def _failed(self, url: str, reason: str) -> None:
        if "ERR_ABORTED" not in reason:  # leaving a page ends its stream and its lazy pictures
            self.said.append(f"{url}: {reason}")


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest.fixture
def page(browser: Browser, studio: RunningStudio, complaints: Complaints) -> Iterator[Page]:
    """A desktop page of the studio that is listened to; whatever it complains of fails the test."""
    context = browser.new_context(base_url=studio.url, viewport=DESKTOP, reduced_motion="reduce")
    opened = context.new_page()
    complaints.listen(opened)
    yield opened
    context.close()
    assert complaints.said == []
