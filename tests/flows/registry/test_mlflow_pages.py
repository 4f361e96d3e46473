"""Where a champion came from, found by somebody who has nothing but MLflow's pages: in a real browser."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from flows.workspace.rounds import read_ledger
from infra.services.http import require_http_ok
from infra.services.ports import LOOPBACK, free_ports
from infra.services.service import Service
from tasks.data.paths import Workspace
from tests.flows.annotation.providers.browser import open_browser, screenshot
from tests.services import running_service

pytestmark = [pytest.mark.integration, pytest.mark.services]
DATASETS = {
    "Labels, MD5": ("assemble", "data/labels"),
    "Pool, MD5": ("prepare", "data/index.parquet"),
    "Validation set, MD5": ("assemble", "data/val.parquet"),
    "Calibration set, MD5": ("assemble", "data/calibration.parquet"),
}
"""Row of the description, and where the ledger has the same digest."""


@pytest.fixture
def mlflow_pages(after_two_rounds: Workspace) -> Iterator[str]:
    """URL of MLflow as the operations guide starts it in a workspace."""
    port = free_ports()
    url = f"http://{LOOPBACK}:{port}"
    command = (sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1")
    service = Service(
        name="mlflow",
        folder=after_two_rounds.root,
        ports=(port,),
        url=url,
        command=(*command, "--host", LOOPBACK, "--port", str(port)),
        check_ready=partial(require_http_ok, f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"),
        env={
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        },
        start_timeout_s=120,
    )
    with running_service(service):
        yield url


def test_a_new_user_finds_where_the_champion_came_from(
    after_two_rounds: Workspace,
    mlflow_pages: str,
    artifacts: Path,
) -> None:
    ledger = read_ledger(after_two_rounds, 1)
    with open_browser(mlflow_pages) as page:
        open_champion_page(page, mlflow_pages, ledger["mlflow"]["model_name"])
        assert_provenance_shown(page, ledger)
        screenshot(page, artifacts / "mlflow-champion.png")
        with page.expect_popup() as opened:
            page.get_by_role("link", name="report.html").click()
        assert_report_shown(opened.value, after_two_rounds)
        screenshot(opened.value, artifacts / "mlflow-report.png")
        page.get_by_role("link", name="round-0001").click()  # its run
        page.get_by_text("round-0001: 8 labels, teacher mAP 60.0.").wait_for()
        page.get_by_text("Show more", exact=True).click()
        assert_provenance_shown(page, ledger)
        screenshot(page, artifacts / "mlflow-run.png")
        assert_datasets_shown(page, ledger)
        screenshot(page, artifacts / "mlflow-data-sets.png")
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("report", exact=True).click()
        page.get_by_text("report.html", exact=True).click()
        assert_report_shown(page, after_two_rounds)


def open_champion_page(page: Page, url: str, model_name: str) -> None:
    """From the list of all models to the version whose alias is champion."""
    news = page.get_by_role("button", name="Try it now")  # MLflow tells each new user of its new pages
    page.add_locator_handler(news, lambda button: button.click())
    page.goto(f"{url}/#/models")
    page.get_by_role("link", name=model_name).click()
    page.get_by_role("row").filter(has_text="champion").get_by_role("link", name="Version 2").click()
    page.get_by_role("heading", name="Version 2").wait_for()


def assert_provenance_shown(page: Page, ledger: dict[str, Any]) -> None:
    """Each row of the description with the very value of the ledger."""
    expected = {name: ledger["stages"][stage]["deps"][path] for name, (stage, path) in DATASETS.items()}
    code = ledger["environment"]["gleaner"]
    expected |= {
        "Labels": "8 images",
        "Annotators": "imported (3), oracle (3)",
        "Parent round": "round-0000",
        "Code revision": str(code["git_revision"] or code["version"]),
        "Campaign revision": f"{ledger['git_revision']} (tag round-0001)",
        "Teacher, SHA-256": ledger["teacher"]["sha256"],
    }
    for name, value in expected.items():
        page.get_by_role("row", name=f"{name} {value}").wait_for()


def assert_datasets_shown(page: Page, ledger: dict[str, Any]) -> None:
    """MLflow's own list of what the run read; all but the first are behind a button."""
    page.get_by_text("+3", exact=True).click()
    for name, (stage, path) in zip(("labels", "pool", "validation", "calibration"), DATASETS.values(), strict=True):
        page.get_by_text(f"{name} ({ledger['stages'][stage]['deps'][path][:36]})").first.wait_for()


def assert_report_shown(page: Page, workspace: Workspace) -> None:
    """The page that the report stage wrote, shown by MLflow."""
    body = page.frame_locator("iframe.mlflow-html-iframe").locator("body")
    expect(body).to_have_text((workspace.derived("report") / "report.html").read_text(), timeout=60_000)
