"""Logs and manifests of one JSON document a line, with texts whose letters end a line elsewhere."""

from pathlib import Path

import pytest

from flows.annotation.batches import read_manifest
from flows.workspace import git
from flows.workspace.owner import OWNERS_LOG, log_adoption, settle
from flows.workspace.promotion_log import ModelRecord, append_decision, first_corrupt_line, read_decisions
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.storage import files

TEXT = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"


def test_a_line_feed_alone_ends_a_line() -> None:
    assert files.json_lines("{1}\n\n\u2028{2}\x85\n".encode()) == ["{1}", "\u2028{2}\x85"]
    assert files.json_lines(b"\xff\n", errors="replace") == ["\ufffd"]


def test_a_reason_may_have_any_letters(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for number in range(3):
        append_decision(
            workspace, f"key {number}", "refuse", author=TEXT, previous_champion=None,
            model=ModelRecord(version=1, round=0, sha256="a" * 64), reason=TEXT, gate={TEXT: TEXT},
        )  # fmt: skip
    assert [decision.reason for decision in read_decisions(workspace)] == [TEXT] * 3
    assert first_corrupt_line(workspace) is None


def test_an_adoption_may_have_any_reason(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    git.init_repository(tmp_path)
    owner = settle(workspace, None)
    for number in range(3):
        log_adoption(workspace, owner, f"{number} {TEXT}", {})
    log_adoption(workspace, owner, f"2 {TEXT}", {})  # repeated after a crash
    assert len(files.json_lines((tmp_path / OWNERS_LOG).read_bytes())) == 3


@pytest.mark.parametrize("category", ["cat\u2028", "\x85dog"])
def test_a_class_may_have_any_letters(tmp_path: Path, category: str) -> None:
    task = AnnotationTask(
        image_id="a" * 16, uri="data/images/a.png", width_px=9, height_px=9, rank=1, reason=TEXT, uncertainty=0.5,
        predictions=(Prediction(category=category, xyxy_px=(0, 0, 5, 5), score=0.5),), model_digest="d",
    )  # fmt: skip
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(f"{task.model_dump_json()}\n".encode() * 2)
    assert read_manifest(path) == [task, task]
