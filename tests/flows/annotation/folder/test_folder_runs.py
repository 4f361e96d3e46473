"""Rounds with a directory for annotators, who label between the runs."""

import json
import os
import time
from pathlib import Path

import pytest

from flows.nightly import run_rounds
from tasks.data.annotations import read_annotated
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.small_campaign import BUDGET, CLASSES

pytestmark = pytest.mark.e2e


def annotate_batch(workspace: Workspace, share: Path, batch: str) -> int:
    """Annotate every image of a batch with the ground truth; return their number."""
    known = {image.image_id: image.boxes for image in read_annotated(workspace.oracle, CLASSES)}
    document = json.loads((share / "outbox" / batch / "coco.json").read_text())
    number_of = {category["name"]: category["id"] for category in document["categories"]}
    for image in document["images"]:
        image["reviewed"] = True
        for box in known[image["image_id"]]:
            x1, y1, x2, y2 = box.xyxy_px
            document["annotations"].append(
                {"image_id": image["id"], "category_id": number_of[box.category], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )
    path = share / "inbox" / batch / "done.json"
    files.write_json(path, document)
    past = time.time() - 60
    os.utime(path, (past, past))
    return len(document["images"])


def test_two_batches_through_a_directory_with_an_unknown_file_in_quarantine(
    small_campaign: Workspace, tmp_path: Path, prefect_test_server: None
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    text = small_campaign.params.read_text()
    small_campaign.params.write_text(text.replace("kind: oracle", "kind: folder").replace("url: ''", "url: ../share"))
    assert [result.outcome for result in run_rounds(small_campaign.root, 1)] == ["completed"]
    assert (share / "outbox" / "batch-0001" / "_COMPLETE").is_file()
    assert [result.outcome for result in run_rounds(small_campaign.root, 1)] == ["waiting_for_labels"]
    assert annotate_batch(small_campaign, share, "batch-0001") == BUDGET
    odd = share / "inbox" / "batch-0001" / "odd.json"
    files.write_json(odd, {"theme": "dark"})
    os.utime(odd, (0, 0))
    assert [result.outcome for result in run_rounds(small_campaign.root, 1)] == ["completed"]
    batch = read_batch(small_campaign.label_batch(1))
    assert (batch.provider, len(batch.images)) == ("folder", BUDGET)
    assert {image.annotator for image in batch.images} == {"annotator"}
    reasons = [files.read_json(path)["reason"] for path in small_campaign.quarantine.glob("*.json")]
    assert [reason for reason in reasons if "odd.json: the JSON is an object with ['theme']" in reason]
    assert (share / "outbox" / "batch-0002" / "_COMPLETE").is_file()
