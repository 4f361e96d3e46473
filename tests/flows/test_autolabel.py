"""``gleaner autolabel`` on a campaign after two rounds: labels, audit by the oracle and by files, and nothing else."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flows.autolabel
from flows.autolabel import detections_of, find_model
from tasks.data.annotations import read_annotated
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import CLASSES, run_gleaner

pytestmark = pytest.mark.integration

# Two calibration images can show next to nothing, so next to nothing is asked for.
LENIENT = {
    "wanted_precision": 0.05,
    "box_iou": 0.1,
    "max_wrong_images_frac": 0.95,
    "confidence_level": 0.5,
    "min_calibration_images": 1,
}


def set_autolabel(workspace: Workspace, **values: Any) -> None:
    text = workspace.params.read_text()
    overrides = [f"autolabel.{name}={value}" for name, value in values.items()]
    workspace.params.write_text(render_params(text, classes=CLASSES, overrides=overrides))


def mark_all_as_random(workspace: Workspace) -> None:
    """As a campaign with ``select.random_frac: 1`` has it: nothing was chosen out of the pool."""
    for path in (workspace.detections_at_selection_batch(1), workspace.delivery(2) / "detections.parquet"):
        table = pq.read_table(path)
        drawn = pa.array([True] * table.num_rows)
        position = table.schema.get_field_index("is_random_pick")
        path.chmod(0o644)
        files.write_table(path, table.set_column(position, table.schema.field(position), drawn))


def test_labels_and_both_audits(after_two_rounds: Workspace, tmp_path: Path) -> None:
    workspace, out = after_two_rounds, tmp_path / "labels"
    set_autolabel(workspace, **LENIENT)
    mark_all_as_random(workspace)
    sources = {p: p.read_bytes() for p in (workspace.root / "data").rglob("*") if p.is_file()}
    done = run_gleaner("autolabel", str(out), "--json", cwd=workspace.root)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["model"]["round_number"] == 1
    assert summary["sample"] == {"images": 2, "calibration_images": 2, "returned_random_draws": 0}
    assert summary["pool"]["images"] == 2  # of 8, three came back and three are with the oracle
    boxes = [row for row in pq.read_table(out / "provenance.parquet").to_pylist() if row["source"] == "model"]
    assert len(boxes) == 2
    assert {row["model_sha256"] for row in boxes} == {summary["model"]["sha256"]}
    assert summary["images"]["labeled_by_people"] == 3 + 3 + 2 + 3  # seed, batch 1, calibration, validation

    again = run_gleaner("autolabel", str(out), cwd=workspace.root)
    assert again.returncode == 0
    assert "complete already; nothing was written" in again.stderr

    by_oracle = run_gleaner("autolabel", str(out), "--audit", "oracle", "--json", cwd=workspace.root)
    assert by_oracle.returncode == 0, by_oracle.stderr
    found = json.loads(by_oracle.stdout)
    assert found["boxes"]["checked"] == 2
    assert found["unanswered"] == []
    assert files.read_json(out / "audit" / "result.json") == found

    answers = tmp_path / "answers.json"
    files.write_json(answers, corrected(workspace, out))
    by_files = run_gleaner("autolabel", str(out), "--audit", str(answers), "--json", cwd=workspace.root)
    assert by_files.returncode == 0, by_files.stderr
    assert json.loads(by_files.stdout) == found

    set_autolabel(workspace, wanted_precision=0.06)
    other = run_gleaner("autolabel", str(out), cwd=workspace.root)
    assert other.returncode == 2
    assert "expected a new folder" in other.stderr.replace("\n", " ")
    assert {p: p.read_bytes() for p in (workspace.root / "data").rglob("*") if p.is_file()} == sources
    assert not list(out.parent.glob(".labels.*"))
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=workspace.root, capture_output=True, text=True, check=True
    )
    assert changed.stdout.split() == ["M", "params.yaml"]


def corrected(workspace: Workspace, out: Path) -> dict[str, Any]:
    """The published tasks as a person returns them: each image with its true boxes and a status."""
    document: dict[str, Any] = files.read_json(out / "audit" / "outbox" / "audit" / "coco.json")
    truth = {image.image_id: image for image in read_annotated(workspace.oracle, CLASSES)}
    for image in document["images"]:
        boxes = truth[image["image_id"]].boxes
        image["status"] = "labeled" if boxes else "empty"
        for box in boxes:
            x1, y1, x2, y2 = box.xyxy_px
            entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": CLASSES.index(box.category) + 1}
            document["annotations"].append({"id": len(document["annotations"]) + 1, "image_id": image["id"], **entry})
    return document


def test_the_defaults_accept_nothing_from_two_calibration_images(after_two_rounds: Workspace, tmp_path: Path) -> None:
    done = run_gleaner("autolabel", str(tmp_path / "labels"), "--json", cwd=after_two_rounds.root)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [rule["threshold"] for rule in summary["classes"].values()] == [None, None]
    assert summary["classes"]["bright"]["calibration_images_needed"] >= 22
    assert summary["images"]["accepted_whole"] == 0


def test_a_clone_without_the_files_of_the_round_says_so(after_two_rounds: Workspace, tmp_path: Path) -> None:
    (after_two_rounds.derived("score") / "scores.parquet").unlink()
    done = run_gleaner("autolabel", str(tmp_path / "labels"), cwd=after_two_rounds.root)
    assert done.returncode == 2
    assert "scores.parquet" in done.stderr
    assert "Run: dvc checkout" in done.stderr
    assert not (tmp_path / "labels").exists()


def test_another_model_is_run_on_the_pool_once(after_two_rounds: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, calls = after_two_rounds, []
    params = load_params(workspace.params)
    champion = find_model(workspace, None)
    assert detections_of(workspace, params, champion, print) == workspace.derived("infer")
    first = find_model(workspace, "round-0000")

    def detect(_: Workspace, teacher: Path, folder: Path, on_line: object) -> None:
        calls.append((files.sha256_file(teacher), load_params(folder / "params.yaml").model))

    monkeypatch.setattr(flows.autolabel, "_detect", detect)
    folder = detections_of(workspace, params, first, print)
    assert detections_of(workspace, params, first, print) == folder
    assert calls == [(first.ref.sha256, params.model)]
    assert folder.is_relative_to(workspace.root / ".gleaner")
    other = params.model_copy(update={"classes": ["dark", "bright"]})
    with pytest.raises(UserError, match="the classes of round-0000 are"):
        detections_of(workspace, other, first, print)
