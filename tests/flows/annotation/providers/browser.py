"""Open servers in a real headless browser."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.flows.annotation.providers.label_studio_users import Annotator
from tests.services import skip_or_fail

_CHROMIUM_ARGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)
_TIMEOUT_MS = 120_000


@contextmanager
def open_browser(server: str) -> Iterator[Page]:
    """Open an empty page for one server; asserts that nothing is loaded from elsewhere."""
    program = os.environ.get("GLEANER_CHROMIUM") or shutil.which("chromium")
    if program is None:
        skip_or_fail("chromium is not installed: apt-get install chromium, or set GLEANER_CHROMIUM")
    external_requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_CHROMIUM_ARGS.split())
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        context.set_default_timeout(_TIMEOUT_MS)
        context.on(
            "request", lambda request: None if _is_local(request.url, server) else external_requests.append(request.url)
        )
        try:
            yield context.new_page()
        finally:
            browser.close()
    assert external_requests == []


@contextmanager
def label_stream(annotator: Annotator, project: int) -> Iterator[Page]:
    """Open the label stream of Label Studio, where an annotator gets one task after the other."""
    with open_browser(annotator.url) as page:
        page.goto(f"{annotator.url}/user/login/")
        page.fill("input[name=email]", annotator.email)
        page.fill("input[name=password]", annotator.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        page.goto(f"{annotator.url}/projects/{project}/data?labeling=1")
        yield page


def screenshot(page: Page, path: Path) -> Path:
    """Save a screenshot."""
    page.screenshot(path=path)
    return path


def _is_local(address: str, server: str) -> bool:
    return address.startswith((server, "data:", "blob:", "about:"))
