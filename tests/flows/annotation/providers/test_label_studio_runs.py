"""Whole rounds with a real Label Studio, and annotators between them: one in a browser, the others by its API."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.annotation.batches import read_annotation_batch
from flows.annotation.providers.base import ProviderError
from flows.nightly import nightly
from flows.workspace import git
from flows.workspace.rounds import newest_round
from flows.workspace.scaffold import WorkspaceConfig, create_workspace
from tasks.data.dataset_source import DatasetSource
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.faulty_proxy import faulty_proxy
from tests.flows.annotation.providers.browser import label_stream, screenshot
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES, make_region, make_source
from tests.flows.small_campaign import fake_heavy_stages, run_gleaner

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.services,
    pytest.mark.usefixtures("prefect_test_server"),
    pytest.mark.timeout(1800),  # minutes on a free machine; with much else going on, several times that
]
IMAGES, BUDGET = 22, 6
FIRST_COLOR = (0x00, 0x72, 0xB2)
PREANNOTATION = (4.0, 4.0, 20.0, 20.0)
"""The box that the fake teacher predicts on every image."""


def make_campaign(server: LabelStudioServer, name: str, *overrides: str) -> Workspace:
    """Create a campaign of 22 images: 3 validation, 2 calibration, 3 seed, 14 to select from, 6 per round."""
    source = server.files.with_name(f"{name}-source")
    make_source(source / "images", source / "annotations.json", IMAGES, IMAGES)
    settings = (f"budget.amount={BUDGET}", "provider.kind=label_studio", f"provider.url={server.url}")
    workspace = Workspace(server.files / name)
    create_workspace(
        workspace.root,
        WorkspaceConfig(
            source=DatasetSource("coco", source / "annotations.json", source / "images", classes=CLASSES),
            seed_labels=3,
            calibration_images=2,
            val_frac=3 / IMAGES,
            oracle=False,
            overrides=(*settings, *overrides),
            imported_at="2026-01-01T00:00:00+00:00",
        ),
    )
    fake_heavy_stages(workspace)
    return workspace


def tasks_by_image(server: LabelStudioServer, workspace: Workspace, batch: int) -> tuple[int, dict[str, int]]:
    """Return the project, and tasks by image id in the order of the manifest."""
    delivery = read_annotation_batch(workspace, batch)
    assert delivery is not None
    assert delivery.receipt is not None
    project = int(delivery.receipt.rpartition("/")[2])
    found = [t for t in server.owner.sdk.tasks.list(project=project) if t.data["delivery"] == delivery.key]
    numbers = {task.data["image_id"]: task.id for task in found}
    assert len(found) == len(numbers) == len(delivery.image_ids)
    return project, {image_id: numbers[image_id] for image_id in delivery.image_ids}


def label_all(server: LabelStudioServer, workspace: Workspace, batch: int) -> int:
    """Annotate every task with the drawn boxes; return the number."""
    _, tasks = tasks_by_image(server, workspace, batch)
    for number in tasks.values():
        boxes = [make_region(name, *box) for name, box in zip(CLASSES, BOXES, strict=True)]
        server.second.annotate(number, *boxes, lead_time=8.5)
    return len(tasks)


def submit_in_browser(server: LabelStudioServer, project: int, picture: Path) -> None:
    """Check that image, reason and predicted box are shown, and submit unchanged."""
    with label_stream(server.owner, project) as page:
        page.get_by_text("Batch 1, rank 1: ").wait_for()
        page.wait_for_function("[...document.images].some(image => image.naturalWidth === 320)")
        page.get_by_text("0.70").wait_for()  # in the list of regions
        page.wait_for_function("document.querySelectorAll('canvas').length > 0")
        page.wait_for_timeout(1000)  # until the box is painted; there is nothing to wait for
        seen = np.asarray(Image.open(screenshot(page, picture)).convert("RGB")).astype(int)
        assert (np.abs(seen - FIRST_COLOR).max(axis=2) < 24).sum() > 100
        with page.expect_response(
            lambda response: "/annotations" in response.url and response.request.method == "POST"
        ):
            page.get_by_role("button", name="Submit", exact=False).first.click()


def label_the_first_batch(server: LabelStudioServer, workspace: Workspace, picture: Path) -> list[str]:
    """Annotate each image in another way; return the ids."""
    project, tasks = tasks_by_image(server, workspace, 1)
    assert len(tasks) == BUDGET
    submit_in_browser(server, project, picture)
    _, empty, unknown, outside, skipped, good = tasks.values()
    server.second.annotate(empty, lead_time=2.5)
    server.second.annotate(unknown, make_region("unicorn", *BOXES[0]))
    server.owner.annotate(outside, make_region(CLASSES[0], 250, 30, 400, 120))
    server.second.annotate(skipped, was_cancelled=True)
    server.second.annotate(good, make_region(CLASSES[0], *BOXES[0]), make_region(CLASSES[1], *BOXES[1]), lead_time=8.5)
    return list(tasks)


def labels_by_image(workspace: Workspace, number: int) -> dict[str, Mapping[str, Any]]:
    return {image["image_id"]: image for image in files.read_json(workspace.label_batch(number))["images"]}


def require_first_batch(workspace: Workspace, ids: list[str], server: LabelStudioServer) -> None:
    """Check labels and quarantine of the first batch."""
    seen, empty, unknown, outside, skipped, good = ids
    labels = labels_by_image(workspace, 1)
    assert {image_id: label["status"] for image_id, label in labels.items()} == {
        seen: "labeled",
        empty: "empty",
        skipped: "skipped",
        good: "labeled",
    }
    assert labels[seen]["annotator"] == server.owner.email
    assert labels[good]["annotator"] == server.second.email
    assert labels[good]["seconds_spent"] == 8.5
    assert labels[seen]["seconds_spent"] > 0
    (box,) = labels[seen]["boxes"]
    assert box["category"] == CLASSES[0]
    assert box["xyxy_px"] == pytest.approx(PREANNOTATION, abs=1e-3)
    assert [box["category"] for box in labels[good]["boxes"]] == list(CLASSES)
    assert np.allclose([box["xyxy_px"] for box in labels[good]["boxes"]], BOXES, atol=1e-3)
    refused = [files.read_json(path) for path in workspace.quarantine.glob("*.json")]
    assert {entry["image_id"]: entry["annotator"] for entry in refused} == {
        unknown: server.second.email,
        outside: server.owner.email,
    }
    reasons = {entry["image_id"]: entry["reason"] for entry in refused}
    assert "class is 'unicorn'" in reasons[unknown]
    assert "inside the image" in reasons[outside]
    assert all(f"{server.url}/projects/" in entry["url"] for entry in refused)


def test_three_rounds_with_annotators_between_them(
    label_studio: LabelStudioServer, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    workspace = make_campaign(label_studio, "three-rounds")
    assert nightly(workspace.root).outcome == "completed"  # round 0 on the seed labels; batch 1 is delivered
    assert nightly(workspace.root).outcome == "waiting_for_labels"
    ids = label_the_first_batch(label_studio, workspace, artifacts / "label-studio.png")
    nightly(workspace.root)
    require_first_batch(workspace, ids, label_studio)
    trained_on = [files.read_json(workspace.derived("assemble") / "summary.json")["labels"]]
    for number in (2, 3):
        labeled = label_all(label_studio, workspace, number)
        nightly(workspace.root)
        assert len(labels_by_image(workspace, number)) == labeled
        trained_on.append(files.read_json(workspace.derived("assemble") / "summary.json")["labels"])
    assert newest_round(workspace) == 3
    assert trained_on == sorted(set(trained_on))
    assert len(list(workspace.quarantine.glob("*.json"))) == 2  # those of the first batch
    names = sorted(path.name for path in workspace.labels.glob("batch-*.json"))
    assert names == [f"batch-{number:04d}.json" for number in range(4)]
    titles = [project.title for project in label_studio.owner.sdk.projects.list(page_size=500)]
    assert len([title for title in titles if title.startswith("three-rounds (")]) == 1


def test_the_command_reports_that_label_studio_is_down_and_the_next_one_recovers(
    label_studio: LabelStudioServer, shared_prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    with faulty_proxy(label_studio.url) as proxy:
        workspace = make_campaign(replace(label_studio, url=proxy.url), "down")
        proxy.inject("refused")
        alone = run_gleaner("run", cwd=workspace.root, **shared_prefect_server)
        assert alone.returncode == 1, alone.stderr
        assert "Traceback" not in alone.stdout + alone.stderr
        last = alone.stderr.splitlines()[-1]
        assert last.startswith(f"Label Studio at {proxy.url}: the connection failed when ")
        assert last.endswith("No label is lost: the next run collects again.")
        assert git.has_tag(workspace.root, "round-0000")  # everything that needs no annotators is done
        assert not workspace.label_batch(1).exists()
        proxy.inject("none")
        recovered = run_gleaner("run", cwd=workspace.root, **shared_prefect_server)
        assert recovered.returncode == 0, recovered.stderr
        assert f"Batch 1: {BUDGET} images are out for labeling (label_studio)." in recovered.stdout
        _, tasks = tasks_by_image(label_studio, workspace, 1)
        assert len(tasks) == BUDGET


def test_a_refused_token_and_a_deleted_project_are_reported_and_the_next_run_recovers(
    label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    workspace = make_campaign(label_studio, "deleted")
    with pytest.raises(ProviderError, match="the token was refused"):
        nightly(workspace.root)
    assert newest_round(workspace) == 0
    assert (workspace.ledger(0)).is_file()  # everything that needs no annotators is done
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    nightly(workspace.root)
    project, tasks = tasks_by_image(label_studio, workspace, 1)
    assert len(tasks) == BUDGET
    label_studio.owner.sdk.projects.delete(id=project)
    with pytest.raises(ProviderError, match="the campaign's project was deleted"):
        nightly(workspace.root)
    delivery = read_annotation_batch(workspace, 1)
    assert delivery is not None
    caplog.set_level(logging.WARNING)
    recreated = next(p for p in label_studio.owner.sdk.projects.list(page_size=500) if p.title.startswith("deleted ("))
    found = [task.id for task in label_studio.owner.sdk.tasks.list(project=recreated.id)]
    assert len(found) == BUDGET
    for number in found:
        label_studio.owner.annotate(number, make_region(CLASSES[0], *BOXES[0]))
    nightly(workspace.root)
    assert len(labels_by_image(workspace, 1)) == BUDGET


def test_honeypots_measure_annotators_and_change_no_label(
    label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One annotator answers a seed image as its label says, the other draws one of its two boxes."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    workspace = make_campaign(label_studio, "honeypots", "provider.honeypot_frac=0.34")
    nightly(workspace.root)
    seeds = labels_by_image(workspace, 0)
    delivery = read_annotation_batch(workspace, 1)
    assert delivery is not None
    assert len(delivery.checked_ids) == 2
    assert set(delivery.checked_ids) < set(seeds)
    _, tasks = tasks_by_image(label_studio, workspace, 1)
    shown = [label_studio.owner.sdk.tasks.get(id=number).data for number in tasks.values()]
    assert len({frozenset(data) for data in shown}) == 1  # nothing tells an annotator which task is one
    both = [make_region(name, *box) for name, box in zip(CLASSES, BOXES, strict=True)]
    right, partly = delivery.checked_ids
    label_studio.owner.annotate(tasks[partly], both[0], lead_time=4.0)
    for image_id in (*delivery.new_ids, right):
        label_studio.second.annotate(tasks[image_id], *both, lead_time=8.5)
    nightly(workspace.root)
    batch = read_batch(workspace.label_batch(1))
    assert {label.image_id for label in batch.honeypots} == {right, partly}
    assert {label.image_id for label in batch.images} == set(delivery.new_ids)
    assert labels_by_image(workspace, 0) == seeds
    done = run_gleaner("people", "--json", cwd=workspace.root)
    people = {person["annotator"]: person["honeypots"] for person in json.loads(done.stdout)}
    assert people[label_studio.second.email]["accuracy_f1"] == 1.0
    assert people[label_studio.owner.email]["accuracy_f1"] == pytest.approx(2 / 3, abs=1e-4)
