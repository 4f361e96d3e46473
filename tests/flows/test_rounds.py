"""Two real nights: git, DVC, Prefect, MLflow and the simulated annotator, with the heavy stages replaced."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.workspace import dvc, git
from flows.workspace.rounds import all_ledgers, last_published_round, read_ledger
from tasks.data.paths import STAGES, Workspace
from tasks.data.schemas import LabelBatch
from tasks.storage import files
from tests.flows.small_campaign import BUDGET, CALIBRATION, SEED, run_gleaner

pytestmark = pytest.mark.e2e


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): files.sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_stages_run_in_the_order_of_the_round(two_rounds: Workspace) -> None:
    for number in (0, 1):
        logs = (two_rounds.root / ".gleaner" / "logs" / f"round-{number:04d}").glob("*.log")
        started = sorted((log.read_text().splitlines()[0], STAGES.index(log.stem)) for log in logs)
        assert [position for _, position in started] == sorted(position for _, position in started)
        assert len(started) == len(STAGES)


def test_labels_are_what_was_delivered(two_rounds: Workspace) -> None:
    batch = LabelBatch.model_validate(files.read_json(two_rounds.label_batch(1)))
    delivery = files.read_json(two_rounds.delivery(1) / "delivery.json")
    assert {image.image_id for image in batch.images} == set(delivery["image_ids"])
    assert len(batch.images) == BUDGET
    assert delivery["state"] == "collected"
    assert all(image.offered_batch == 1 and image.annotator == "oracle" for image in batch.images)
    assert [read_ledger(two_rounds, n)["metrics"]["labels"] for n in (0, 1)] == [
        SEED + CALIBRATION,
        SEED + CALIBRATION + BUDGET,
    ]


def test_the_round_before_hands_over_its_detections_and_teacher(two_rounds: Workspace) -> None:
    picked = files.read_json(two_rounds.delivery(1) / "delivery.json")["image_ids"]
    assert sorted(pq.read_table(two_rounds.detections_at_selection_batch(1))["image_id"].to_pylist()) == sorted(picked)
    assert (two_rounds.warm_start / "teacher.pth").read_bytes() == b"teacher of 5 labels"
    assert [entry["round"] for entry in files.read_json(two_rounds.warm_start / "history.json")] == [0]
    assert pq.read_table(two_rounds.warm_start / "uncertainty.parquet").column_names == ["image_id", "uncertainty"]


def test_only_the_open_delivery_keeps_its_copies(two_rounds: Workspace) -> None:
    assert {path.name for path in two_rounds.delivery(1).iterdir()} == {"delivery.json", "manifest.jsonl"}
    assert "teacher.pth" in {path.name for path in two_rounds.delivery(2).iterdir()}
    tracked = git.run_git(two_rounds.root, "ls-files", "deliveries").splitlines()
    assert sorted(tracked) == [
        f"deliveries/batch-000{batch}/{name}" for batch in (1, 2) for name in ("delivery.json", "manifest.jsonl")
    ]


def test_nothing_is_left_to_commit_or_derive(two_rounds: Workspace) -> None:
    assert git.run_git(two_rounds.root, "status", "--porcelain") == ""
    assert dvc.is_clean(two_rounds.root)
    assert last_published_round(two_rounds) == 1


def test_each_round_has_one_tag_and_its_ledger(two_rounds: Workspace) -> None:
    assert git.run_git(two_rounds.root, "tag").splitlines() == ["round-0000", "round-0001"]
    for number in (0, 1):
        committed = git.run_git(two_rounds.root, "show", f"round-{number:04d}:rounds/round-{number:04d}.json")
        assert json.loads(committed) == read_ledger(two_rounds, number)


def test_ledgers_are_a_chain(two_rounds: Workspace) -> None:
    first, second = all_ledgers(two_rounds)
    assert first["previous_ledger_sha256"] is None
    assert second["previous_ledger_sha256"] == hashlib.sha256(two_rounds.ledger(0).read_bytes()).hexdigest()
    assert second["labels_sha256"] == files.sha256_file(two_rounds.label_batch(1))
    assert set(second["stages"]) == set(STAGES)
    assert set(second["times"]["stage_seconds"]) == set(STAGES)
    assert second["code"] == files.read_json(two_rounds.code_versions)


def test_a_ledgers_digests_are_those_of_the_files(two_rounds: Workspace) -> None:
    ledger = read_ledger(two_rounds, 1)
    teacher = hashlib.md5((two_rounds.derived("train") / "teacher.pth").read_bytes()).hexdigest()
    assert ledger["stages"]["evaluate"]["deps"]["derived/train/teacher.pth"] == teacher
    assert ledger["manifest_sha256"] == files.sha256_file(two_rounds.delivery(2) / "manifest.jsonl")


def test_an_old_round_comes_back_to_the_byte(after_two_rounds: Workspace) -> None:
    root = after_two_rounds.root
    now = {folder: tree(root / folder) for folder in ("derived", "data")}
    git.run_git(root, "checkout", "--quiet", "round-0000")
    dvc.run_dvc(root, "checkout", "--quiet")
    assert dvc.is_clean(root)
    assert (root / "derived" / "train" / "teacher.pth").read_bytes() == b"teacher of 5 labels"
    assert not after_two_rounds.label_batch(1).exists()
    assert not (after_two_rounds.warm_start / "teacher.pth").exists()
    refused = run_gleaner("run", cwd=root)
    assert refused.returncode == 2
    assert "git switch main && dvc checkout" in refused.stderr
    git.run_git(root, "switch", "--quiet", "main")
    dvc.run_dvc(root, "checkout", "--quiet")
    assert {folder: tree(root / folder) for folder in ("derived", "data")} == now


def test_plain_dvc_repro_finds_nothing_to_do(two_rounds: Workspace) -> None:
    said = dvc.run_dvc(two_rounds.root, "repro")
    assert "Running stage" not in said


def test_status_shows_rounds_open_delivery_and_next_step(two_rounds: Workspace) -> None:
    shown = run_gleaner("status", cwd=two_rounds.root)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^ +0 +5 ", shown.stdout, re.MULTILINE)
    assert re.search(r"^ +1 +8 ", shown.stdout, re.MULTILINE)
    assert re.search(r"^Picked images: .*, 3 leased, 0 offered, 0 expired$", shown.stdout, re.MULTILINE)
    assert "Batch 2: 3 of 3 images open, delivered, leased until" in shown.stdout
    assert "collects new labels as batch 2" in shown.stdout


def test_commits_are_by_gleaner_where_git_knows_nobody(two_rounds: Workspace) -> None:
    authors = subprocess.run(
        ["git", "log", "--format=%an <%ae>"], cwd=two_rounds.root, capture_output=True, text=True, check=True
    )
    assert set(authors.stdout.splitlines()) == {"Gleaner <gleaner@localhost>"}


def test_publishing_leaves_no_trace_in_the_environment(two_rounds: Workspace) -> None:
    """MLflow would put its address there, and the next campaign of this process would publish to it."""
    assert "MLFLOW_TRACKING_URI" not in os.environ
