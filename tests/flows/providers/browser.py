"""Label Studio as an annotator sees it: in a real browser without a window."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.flows.providers.team import Annotator
from tests.services import missing

_QUIET = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)
_PATIENCE_MS = 120_000


@contextmanager
def label_stream(annotator: Annotator, project: int) -> Iterator[Page]:
    """The page where an annotator gets one task after the other; nothing may be loaded from elsewhere."""
    program = os.environ.get("GLEANER_CHROMIUM") or shutil.which("chromium")
    if program is None:
        missing("chromium is not installed: apt-get install chromium, or set GLEANER_CHROMIUM")
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_QUIET.split())
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(_PATIENCE_MS)
        page.on(
            "request", lambda request: None if _is_local(request.url, annotator.url) else elsewhere.append(request.url)
        )
        page.goto(f"{annotator.url}/user/login/")
        page.fill("input[name=email]", annotator.email)
        page.fill("input[name=password]", annotator.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        page.goto(f"{annotator.url}/projects/{project}/data?labeling=1")
        try:
            yield page
        finally:
            browser.close()
    assert elsewhere == []


def screenshot(page: Page, path: Path) -> Path:
    """Keep what is seen."""
    page.screenshot(path=path)
    return path


def _is_local(address: str, server: str) -> bool:
    return address.startswith((server, "data:", "blob:", "about:"))
