"""Whole nights of ``gleaner run`` with people at a CVAT between them; the CVAT is the fake of this folder."""

import json
from pathlib import Path

import pytest
import yaml

from flows.annotation.batches import read_annotation_batch
from flows.annotation.providers.cvat_annotations import SKIP
from tasks.data.annotations import read_annotated
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.annotation.cvat import fake_server
from tests.flows.annotation.cvat.fake_server import FakeCvat, running_cvat
from tests.flows.small_campaign import BUDGET, CLASSES, run_gleaner

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def use_cvat(workspace: Workspace, fake: FakeCvat) -> None:
    """Let the campaign deliver to the fake: jobs of two images, and a honeypot in each batch."""
    params = yaml.safe_load(workspace.params.read_text())
    params["provider"] |= {"kind": "cvat", "url": fake.url, "images_per_job": 2, "honeypot_frac": 0.34}
    workspace.params.write_text(yaml.safe_dump(params, sort_keys=False))


def run(workspace: Workspace, *arguments: str, **changes: str) -> str:
    """Run a command of the campaign, which must succeed, with the token in its environment."""
    done = run_gleaner(*arguments, cwd=workspace.root, timeout_s=900, CVAT_ACCESS_TOKEN=fake_server.TOKEN, **changes)
    assert fake_server.TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_batch_is_handed_out_labeled_and_collected(
    small_campaign: Workspace, shared_prefect_server: dict[str, str]
) -> None:
    known = read_annotated(small_campaign.oracle, CLASSES)
    truth = {image.image_id: [(box.category, tuple(box.xyxy_px)) for box in image.boxes] for image in known}
    with running_cvat() as fake:
        use_cvat(small_campaign, fake)
        run(small_campaign, "run", **shared_prefect_server)
        delivery = read_annotation_batch(small_campaign, 1)
        assert delivery is not None
        assert len(delivery.image_ids) == BUDGET + 1
        assert [len(task.frames) for task in fake.tasks.values()] == [BUDGET + 1]
        skipped, polygon, *_ = delivery.new_ids
        for image_id in delivery.image_ids:
            fake.draw(image_id, *truth.get(image_id, [("dark", (10.0, 8.0, 26.0, 24.0))]))  # the honeypot is a seed
        fake.tag(skipped, SKIP)
        fake.draw(polygon, ("dark", (1.0, 1.0, 20.0, 1.0, 9.0, 25.0)), type="polygon")
        for image_id in delivery.image_ids:
            fake.finish(image_id)
        run(small_campaign, "run", **shared_prefect_server)
        batch = read_batch(small_campaign.label_batch(1))
        status = {label.image_id: label.status for label in batch.images}
        assert (batch.provider, len(status), status[skipped]) == ("cvat", BUDGET - 1, "skipped")
        assert polygon not in status
        assert {label.annotator for label in batch.images} == {"ann"}
        (refused,) = [files.read_json(path) for path in small_campaign.quarantine.glob("*.json")]
        assert (refused["image_id"], "a polygon" in refused["reason"]) == (polygon, True)
        assert refused["url"].startswith(f"{fake.url}/tasks/")
        assert [label.image_id for label in batch.honeypots] == list(delivery.checked_ids)
        fake.draw(polygon, *truth[polygon])  # corrected, late
        people = json.loads(run(small_campaign, "people", "--json"))
        assert "ann" in json.dumps(people)
        assert sorted(task.name.split(" [")[0] for task in fake.tasks.values()) == ["Batch 1", "Batch 2"]
        run(small_campaign, "run", **shared_prefect_server)
        late = read_batch(small_campaign.label_batch(2))
        assert [(label.image_id, label.offered_batch) for label in late.images] == [(polygon, 1)]
    doctor = run_gleaner("doctor", cwd=small_campaign.root, CVAT_ACCESS_TOKEN=fake_server.TOKEN)
    assert "the connection failed" in doctor.stdout
    assert fake_server.TOKEN not in "".join(
        path.read_text(errors="replace") for path in _small_files(small_campaign.root)
    )


def _small_files(root: Path) -> list[Path]:
    """Files of the campaign in which a secret could stand, its logs among them."""
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
