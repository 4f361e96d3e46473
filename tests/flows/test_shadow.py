"""``gleaner shadow`` on a campaign after two rounds, whose models are stand-ins: all but the networks is real."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import flows.shadow
from flows.shadow import PAGE, SUMMARY, TABLE, shadow
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace
from tasks.data.schemas import DETECTIONS, INDEX
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.shadow.job import ShadowJob
from tasks.storage import files
from tests.flows.small_campaign import CLASSES, run_gleaner

pytestmark = pytest.mark.integration
NUM_NEW = 5


def detect_by_size(job_file: Path) -> list[Path]:
    """Write what two models might say: they disagree about an image as many objects as its red channel says."""
    job = ShadowJob.model_validate_json(job_file.read_text())
    assert job.champion.read_bytes() != job.challenger.read_bytes()
    written = []
    for rows, path in job.pieces():
        if path.is_file():
            continue
        found = [
            {
                "image_id": row["image_id"], "boxes_xyxy": [1.0, 1.0, 9.0, 9.0], "scores": [0.7], "class_ids": [1],
                "class_probs": [0.1, 0.7, 0.2], "residual_mass": 0.0, "embedding": [0.0], "model_digest": "0" * 64,
                "box_disagreement": float(np.asarray(Image.open(job.root / row["uri"]))[0, 0, 0]),
                "class_disagreement": 0.0,
            }
            for row in rows.to_pylist()
        ]  # fmt: skip
        full = [{field.name: row.get(field.name) for field in DETECTIONS} for row in found]
        files.write_table(path, pa.Table.from_pylist(full, DETECTIONS))
        written.append(path)
    return written


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[Path]]:
    """The pieces that each run of the networks wrote."""
    written: list[list[Path]] = []
    monkeypatch.setattr(flows.shadow, "_run", lambda workspace, job, on_line: written.append(detect_by_size(job)))
    return written


@pytest.fixture
def stream(after_two_rounds: Workspace, tmp_path: Path) -> Path:
    """Five new images, one of the pool, one that is no image."""
    folder = tmp_path / "stream"
    (folder / "camera 1").mkdir(parents=True)
    for number in range(NUM_NEW):
        image = Image.new("RGB", (40, 32), (10 * number, 3, 200))
        image.save(folder / "camera 1" / f"{number}.PNG")
    known = next(path for path in after_two_rounds.images.iterdir())
    (folder / f"known{known.suffix}").write_bytes(known.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def look(workspace: Workspace, stream: Path, out: Path, num_added: int = 0) -> dict[str, object]:
    return shadow(workspace, str(stream), out, None, num_added, on_line=lambda line: None).document


def test_new_images_are_compared_and_the_rest_is_accounted_for(
    after_two_rounds: Workspace, stream: Path, tmp_path: Path, runs: list[list[Path]]
) -> None:
    document = look(after_two_rounds, stream, tmp_path / "out")
    assert (document["images"], document["known"]) == (NUM_NEW, 1)
    [set_aside] = document["set_aside"]  # type: ignore[misc]
    assert set_aside.startswith("broken.jpg: ")
    assert "round-0001" in str(document["champion"]) or "round-0000" in str(document["champion"])
    assert document["champion"] != document["challenger"]
    table = pq.read_table(tmp_path / "out" / TABLE)
    assert table["file_name"].to_pylist()[0] == f"camera 1/{NUM_NEW - 1}.PNG"  # the most disagreement
    assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == document
    page = (tmp_path / "out" / PAGE).read_text()
    assert page.count("data:image/jpeg") == NUM_NEW
    assert "broken.jpg" in page


def test_a_second_call_repeats_no_finished_piece(
    after_two_rounds: Workspace, stream: Path, tmp_path: Path, runs: list[list[Path]]
) -> None:
    first = look(after_two_rounds, stream, tmp_path / "out")
    assert look(after_two_rounds, stream, tmp_path / "out") == first
    assert [len(written) for written in runs] == [1, 0]


def test_the_images_most_worth_a_label_enter_the_pool_once(
    after_two_rounds: Workspace, stream: Path, tmp_path: Path, runs: list[list[Path]]
) -> None:
    workspace, source = after_two_rounds, tmp_path / "source"
    source.mkdir()
    for path in workspace.images.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    text = render_params(workspace.params.read_text(), classes=CLASSES, overrides=[f"pool.images_uri={source}"])
    workspace.params.write_text(text)
    before = files.read_table(workspace.index, INDEX)["image_id"].to_pylist()
    look(workspace, stream, tmp_path / "out", num_added=2)
    after = files.read_table(workspace.index, INDEX)["image_id"].to_pylist()
    assert set(before) < set(after)
    assert len(after) == len(before) + 2
    assert len(list((source / "shadow").iterdir())) == 2
    document = look(workspace, stream, tmp_path / "out")
    assert (document["images"], document["known"]) == (NUM_NEW - 2, 3)
    colors = {np.asarray(Image.open(path))[0, 0, 0] for path in (source / "shadow").iterdir()}
    assert colors == {30, 40}


def test_what_cannot_be_compared_is_named(
    small_campaign_template: Workspace,
    after_two_rounds: Workspace,
    stream: Path,
    tmp_path: Path,
    runs: list[list[Path]],
) -> None:
    for arguments, message in (
        (("round-0001", 0), "is the champion, expected another model|the same"),
        ((None, 3), "pool.images_uri is '.*', expected a folder for --add"),
        (("round-0007", 0), "round-0007"),
    ):
        with pytest.raises(UserError, match=message):
            shadow(after_two_rounds, str(stream), tmp_path / "out", *arguments, on_line=lambda line: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it has 0 images"):
        look(after_two_rounds, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no ledger of a finished round"):
        look(small_campaign_template, stream, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert runs == []


def test_a_running_night_is_waited_for_in_words(after_two_rounds: Workspace, stream: Path, tmp_path: Path) -> None:
    with run_lock(after_two_rounds):
        done = run_gleaner("shadow", str(stream), str(tmp_path / "out"), cwd=after_two_rounds.root)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
