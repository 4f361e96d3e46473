"""A changed byte anywhere is reported; an unaltered campaign passes."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.provenance.audit import Check
from flows.provenance.audit.run import run_audit
from flows.provenance.snapshot import load_snapshots
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.small_campaign import run_gleaner

pytestmark = pytest.mark.integration


def run_checks(workspace: Workspace, *, recompute: bool = False) -> list[Check]:
    return run_audit(workspace, None, recompute=recompute, on_check=lambda _: None)


def findings(workspace: Workspace) -> list[str]:
    return [finding for check in run_checks(workspace) for finding in check.findings]


def flip_bit(path: Path, at: int | None = None) -> None:
    """One bit of one byte, in place: a hard link's other names change too."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(content)


def cached_path(workspace: Workspace, path: str, round_number: int = 1) -> Path:
    return load_snapshots(workspace)[round_number].cached_path(path)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def flip_image(workspace: Workspace) -> None:
    flip_bit(sorted(workspace.images.iterdir())[0], at=-9)


def alter_metric(workspace: Workspace) -> None:
    with sqlite3.connect(workspace.root / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics"):
            database.execute(f"UPDATE {table} SET value = value + 0.001 WHERE key = 'teacher/mAP' AND step = 1")


def alter_version_tag(workspace: Workspace) -> None:
    with sqlite3.connect(workspace.root / "mlflow.db") as database:
        database.execute("UPDATE model_version_tags SET value = 'x' || value WHERE key = 'gleaner.teacher_sha256'")


def alter_git_object(workspace: Workspace) -> None:
    blob = git.run_git(workspace.root, "rev-parse", "round-0000:params.yaml")
    flip_bit(workspace.root / ".git" / "objects" / blob[:2] / blob[2:])


def flip_stored(path: str, round_number: int = 1) -> Callable[[Workspace], None]:
    return lambda workspace: flip_bit(cached_path(workspace, path, round_number))


def flip_folder_list(workspace: Workspace) -> None:
    snapshot = load_snapshots(workspace)[1]
    flip_bit(snapshot.dvc_cache.object_path(snapshot.ledger["stages"]["infer"]["outs"]["derived/infer"]))


def alter_copy(workspace: Workspace) -> None:
    files.write_bytes(workspace.derived("select") / "selection.parquet", b"x")


TAMPERED: dict[str, tuple[Callable[[Workspace], object], str]] = {
    "label batch": (lambda w: flip_bit(w.label_batch(1)), "data/labels/batch-0001.json in the workspace: SHA-256 is"),
    "checkpoint": (flip_stored("derived/train/teacher.pth", 0), "round-0000:derived/train/teacher.pth"),
    "shard": (flip_stored("derived/infer/shard-0000.parquet"), "round-0001:derived/infer/shard-0000.parquet: MD5 of"),
    "frozen detections": (
        flip_stored("data/detections_at_selection/batch-0001.parquet"),
        "data/detections_at_selection/batch-0001.parquet",
    ),
    "list of a folder": (flip_folder_list, "round-0001:derived/infer: MD5 of"),
    "parameter": (
        lambda w: replace_text(w.params, "iterations: ", "iterations: 1"),
        "params.yaml: git object of the file is",
    ),
    "ledger": (lambda w: replace_text(w.ledger(0), '"boxes": 5', '"boxes": 6'), "rounds/round-0000.json: SHA-256 is"),
    "metric": (alter_metric, "metric teacher/mAP is 60.001, expected 60.0"),
    "version": (alter_version_tag, "MLflow model version 2: tag gleaner.teacher_sha256 is"),
    "pool image": (flip_image, "data/images/"),
    "validation list": (lambda w: flip_bit(w.val), "data/val.parquet: git object of the file is"),
    "promotion log": (lambda w: replace_text(w.promotions, '"promote"', '"refuse"'), "promotions.jsonl: "),
    "copy in the workspace": (alter_copy, "derived/select/selection.parquet in the workspace: MD5 is"),
    "git": (alter_git_object, ".git: "),
}


def test_an_untouched_campaign_passes(two_rounds: Workspace) -> None:
    checks = run_checks(two_rounds, recompute=True)
    assert [finding for check in checks for finding in check.findings] == []
    assert [check.name for check in checks if check.state == "skip"] == ["signatures of tags"]
    assert len(checks) > 20


@pytest.mark.parametrize("what", TAMPERED)
def test_every_alteration_is_reported(after_two_rounds: Workspace, what: str) -> None:
    alter, named = TAMPERED[what]
    alter(after_two_rounds)
    found = findings(after_two_rounds)
    assert any(named in finding for finding in found), found


def test_a_history_written_anew_does_not_fit_what_others_recorded(after_two_rounds: Workspace) -> None:
    """Ledger changed, committed and tagged again, by a user who knows git well."""
    root = after_two_rounds.root
    replace_text(after_two_rounds.ledger(1), '"boxes": 8', '"boxes": 9')
    git.run_git(root, "commit", "--quiet", "--all", "--message", "Round 1")
    digest = files.sha256_file(after_two_rounds.ledger(1))
    git.run_git(root, "tag", "--force", "--annotate", "--message", f"fine\n\nLedger-SHA256: {digest}", "round-0001")
    found = findings(after_two_rounds)
    assert any("MLflow run round-0001: tag gleaner.ledger_sha256" in finding for finding in found), found
    assert any("metric boxes is 8.0, expected 9.0" in finding for finding in found), found


def test_recomputing_finds_a_measurement_that_the_weights_do_not_give(after_two_rounds: Workspace) -> None:
    """The stored boxes fit the stored mAP, but not what the model of that round really finds."""
    root = after_two_rounds.root
    replace_text(root / "dvc.yaml", "fake_stages.py evaluate", "fake_stages.py evaluate --lost bright")
    git.run_git(root, "commit", "--quiet", "--all", "--message", "Another evaluation")
    git.run_git(root, "tag", "--force", "--annotate", "--message", "x", "round-0001")
    (check,) = [one for one in run_checks(after_two_rounds, recompute=True) if "stored weights" in one.name]
    assert any(
        "teacher in the ledger: mAP is 60.0, expected 0.0 by the stored weights" in finding
        for finding in check.findings
    ), check


def test_the_command_reports_by_table_json_and_exit_code(after_two_rounds: Workspace) -> None:
    passed = run_gleaner("audit", "round-0000", cwd=after_two_rounds.root)
    assert (passed.returncode, "Nothing was altered" in passed.stdout) == (0, True), passed.stdout + passed.stderr
    flip_bit(after_two_rounds.val)
    failed = run_gleaner("audit", "--json", cwd=after_two_rounds.root)
    document = json.loads(failed.stdout)
    assert (failed.returncode, document["state"]) == (1, "fail")
    assert any("data/val.parquet" in finding for check in document["checks"] for finding in check["findings"])


def test_a_clone_without_mlflow_skips_it_and_says_so(after_two_rounds: Workspace, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git.run_git(after_two_rounds.root, "clone", "--quiet", str(after_two_rounds.root), str(clone))
    cache = Path(os.path.relpath(after_two_rounds.root / ".dvc" / "cache", clone / ".dvc"))
    (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n")
    checks = run_checks(Workspace(clone))
    assert [finding for check in checks for finding in check.findings] == []
    assert [check.area for check in checks if check.state == "skip"] == ["ledgers", "evaluation", "MLflow"]
    assert not (clone / "mlflow.db").exists()


def test_a_clone_without_tags_lacks_the_tags_and_nothing_else(after_two_rounds: Workspace, tmp_path: Path) -> None:
    """As after a ``git push`` that forgot them: the rounds before the newest one are not what HEAD is."""
    clone = tmp_path / "clone"
    git.run_git(after_two_rounds.root, "clone", "--quiet", "--no-tags", str(after_two_rounds.root), str(clone))
    cache = Path(os.path.relpath(after_two_rounds.root / ".dvc" / "cache", clone / ".dvc"))
    (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n")
    assert findings(Workspace(clone)) == [
        f"tag round-000{number}: there is no annotated tag of that name" for number in (0, 1)
    ]
