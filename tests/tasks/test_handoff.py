"""The manifest: picked images in order, with the boxes the teacher would draw."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.schemas import (
    DETECTIONS,
    DETECTIONS_AT_SELECTION,
    RELABEL,
    SCORES,
    SELECTION,
    UNLABELED,
    AnnotationTask,
    Box,
    RunnerUp,
    stored_class_names,
)
from tasks.handoff import handoff
from tasks.params.stages import PreannotationParams
from tasks.runtime.errors import UserError
from tasks.selection.preannotation import suppress_overlapping
from tasks.storage import files

CLASSES = ["cat", "a\u2028b"]  # a line separator that str.splitlines would break at
IDS = ["aaa", "bbb", "ccc", "ddd"]


def detection_row(image_id: str, *found: tuple[list[float], float, int]) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "boxes_xyxy": [corner for box, _, _ in found for corner in box],
        "scores": [score for _, score, _ in found],
        "class_ids": [label for _, _, label in found],
        "class_probs": [0.0] * 3 * len(found),
        "residual_mass": 0.25,
        "embedding": [0.5, 0.25],
        "model_digest": "f00d",
    }


DETECTIONS_BY_ID = {
    "aaa": detection_row("aaa", ([1, 2, 10.123, 20], 0.5, 0), ([3, 3, 9, 9], 0.9, 1), ([0, 0, 5, 5], 0.2, 0)),
    "bbb": detection_row("bbb", ([-0.001, -3, 100.002, 90], 1.0000001, 0), ([50, 50, 50.001, 60], 0.8, 0)),
    "ccc": detection_row("ccc"),
    "ddd": detection_row("ddd", ([1, 1, 2, 2], 0.9, 0)),
}

METRICS = ("confidence", "entropy", "overlap")
SCORES_BY_ID = {
    image_id: {"image_id": image_id, "num_boxes": 1, "has_no_detections": False}
    | {f"{name}_raw": 9.0 for name in METRICS}
    | {name: (3 * row + column) / 16 for column, name in enumerate(METRICS)}
    for row, image_id in enumerate(IDS)
}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    unlabeled = [{"image_id": i, "uri": f"data/images/{i}.png", "width_px": 100, "height_px": 80} for i in IDS]
    files.write_table(tmp_path / "unlabeled.parquet", pa.Table.from_pylist(unlabeled, schema=UNLABELED))
    for number, part in enumerate((["bbb"], ["aaa", "ddd"], ["ccc"])):
        shard = pa.Table.from_pylist([DETECTIONS_BY_ID[i] for i in part], schema=DETECTIONS)
        files.write_table(tmp_path / "infer" / f"shard-{number:04d}.parquet", shard)
    files.write_table(tmp_path / "scores.parquet", pa.Table.from_pylist(list(SCORES_BY_ID.values()), schema=SCORES))
    write_selection(tmp_path, "bbb", "ccc", "aaa")
    write_selection(tmp_path, name="open_ranking")
    files.write_table(tmp_path / "relabel.parquet", RELABEL.empty_table())
    return tmp_path


def write_selection(folder: Path, *ranked: str, name: str = "selection") -> None:
    rows = [
        {
            "image_id": image_id,
            "rank": rank,
            "uncertainty": 0.5,
            "expected_boxes": 1.0,
            "expected_minutes": 1.0,
            "is_random_pick": rank == 2,
            "picked_by": "entropy",
            "num_candidates": 7,
            "reason": "why",
        }
        for rank, image_id in reversed(list(enumerate(ranked, start=1)))
    ]
    files.write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows, schema=SELECTION))


def run(folder: Path, score_threshold: float = 0.3, suppress_iou: float = 0.5) -> list[AnnotationTask]:
    handoff(
        PreannotationParams(score_threshold=score_threshold, suppress_iou=suppress_iou),
        classes=CLASSES,
        unlabeled=folder / "unlabeled.parquet",
        detections=folder / "infer",
        scores=folder / "scores.parquet",
        selection=folder / "selection.parquet",
        open_ranking=folder / "open_ranking.parquet",
        relabel=folder / "relabel.parquet",
        labeled=folder / "labeled.parquet",
        out=folder / "out",
    )
    lines = (folder / "out" / "manifest.jsonl").read_text().splitlines()
    return [AnnotationTask.model_validate_json(line) for line in lines]


def test_tasks_stand_by_rank_with_what_the_annotator_needs(inputs: Path) -> None:
    tasks = run(inputs)
    assert [(task.rank, task.image_id) for task in tasks] == [(1, "bbb"), (2, "ccc"), (3, "aaa")]
    assert (tasks[0].uri, tasks[0].width_px, tasks[0].height_px) == ("data/images/bbb.png", 100, 80)
    assert {task.model_digest for task in tasks} == {"f00d"}
    assert tasks[1].predictions == ()


def test_open_images_have_tasks_of_their_own_and_no_part_in_the_batch(inputs: Path) -> None:
    write_selection(inputs, "ddd", "bbb", name="open_ranking")
    write_selection(inputs, "ccc", "aaa")
    assert [task.image_id for task in run(inputs)] == ["ccc", "aaa"]
    lines = (inputs / "out" / "open_tasks.jsonl").read_text().splitlines()
    tasks = [AnnotationTask.model_validate_json(line) for line in lines]
    assert [(task.rank, task.image_id, len(task.predictions)) for task in tasks] == [(1, "ddd", 1), (2, "bbb", 1)]
    frozen = files.read_table(inputs / "out" / "detections.parquet", DETECTIONS_AT_SELECTION)
    assert frozen["image_id"].to_pylist() == ["aaa", "ccc"]


LABELED = [Box(category="cat", xyxy_px=(10.0, 10.0, 30.0, 30.0)), Box(category="cat", xyxy_px=(50.0, 50.0, 70.0, 70.0))]


def write_relabel(folder: Path, kind: str, class_name: str, box: tuple[float, ...], strength: float = 0.75) -> None:
    """Two cats are labeled on image eee; the teacher sees one of them, and something at (80, 10)."""
    image = AnnotatedImage("eee", "data/images/eee.png", 100, 80, tuple(LABELED), 4)
    write_annotated(folder / "labeled.parquet", [image], CLASSES)
    found = detection_row("eee", ([11, 11, 30, 30], 0.9, 0), ([80, 10, 95, 25], 0.5, 1), ([0, 60, 9, 70], 0.1, 0))
    files.write_table(folder / "infer" / "labeled-0000.parquet", pa.Table.from_pylist([found], schema=DETECTIONS))
    row = {
        "image_id": "eee", "rank": 4, "batch": 4, "strength": strength, "kind": kind, "class_name": class_name,
        "box_xyxy": box, "expected_minutes": 1.0, "reason": "check",
    }  # fmt: skip
    files.write_table(folder / "relabel.parquet", pa.Table.from_pylist([row], schema=RELABEL))


def test_a_label_to_be_checked_is_shown_with_what_the_teacher_would_add(inputs: Path) -> None:
    write_relabel(inputs, "swapped", CLASSES[1], LABELED[1].xyxy_px)
    *new, task = run(inputs)
    assert [found.checks_batch for found in new] == [None] * 3
    assert (task.image_id, task.rank, task.checks_batch, task.uncertainty) == ("eee", 4, 4, 0.75)
    first, second, added = task.predictions
    assert [(box.category, box.xyxy_px, box.score) for box in (first, second)] == [
        (box.category, box.xyxy_px, 1.0) for box in LABELED
    ]
    assert (first.doubt, second.doubt, second.runner_up) == (None, 0.75, RunnerUp(category=CLASSES[1], score=0.75))
    assert (added.category, added.xyxy_px, added.score) == (CLASSES[1], (80.0, 10.0, 95.0, 25.0), 0.5)
    frozen = files.read_table(inputs / "out" / "detections.parquet", DETECTIONS_AT_SELECTION)
    assert "eee" not in frozen["image_id"].to_pylist()  # the teacher was trained on it


def test_a_box_that_only_another_teacher_misses_is_drawn_once(inputs: Path) -> None:
    write_relabel(inputs, "missing", CLASSES[1], (80.0, 11.0, 95.0, 25.0))
    assert [box.xyxy_px for box in run(inputs)[-1].predictions[2:]] == [(80.0, 11.0, 95.0, 25.0)]
    write_relabel(inputs, "missing", "cat", (0.0, 60.0, 9.0, 70.0))
    assert [box.xyxy_px for box in run(inputs)[-1].predictions[2:]] == [
        (80.0, 10.0, 95.0, 25.0),
        (0.0, 60.0, 9.0, 70.0),
    ]


def test_a_label_to_be_checked_that_the_teacher_did_not_see_is_refused(inputs: Path) -> None:
    write_relabel(inputs, "missing", "cat", (0.0, 60.0, 9.0, 70.0))
    files.write_table(inputs / "infer" / "labeled-0000.parquet", DETECTIONS.empty_table())
    with pytest.raises(UserError, match="image eee is missing"):
        run(inputs)


def test_the_doubt_of_a_box_is_that_class_or_place_are_wrong(inputs: Path) -> None:
    """1 - score * overlap with a second regression pass; without a second pass the place is believed."""
    shard = inputs / "infer" / "shard-0001.parquet"
    rows = files.read_table(shard, DETECTIONS).to_pylist()
    rows[0]["stability"] = [0.5, 0.8, 1.0]
    files.write_table(shard, pa.Table.from_pylist(rows, schema=DETECTIONS))
    tasks = {task.image_id: task for task in run(inputs)}
    assert [box.doubt for box in tasks["aaa"].predictions] == [pytest.approx(1 - 0.9 * 0.8), pytest.approx(1 - 0.25)]
    assert [box.doubt for box in tasks["bbb"].predictions] == [0.0]


def test_boxes_above_the_threshold_best_first(inputs: Path) -> None:
    drawn = run(inputs)[2].predictions
    assert [(p.category, p.xyxy_px) for p in drawn] == [
        (CLASSES[1], (3, 3, 9, 9)),
        ("cat", (1, 2, 10.12, 20)),
    ]
    assert len(run(inputs, score_threshold=0.1)[2].predictions) == 3


def test_boxes_are_clipped_to_the_image_and_slivers_left_out(inputs: Path) -> None:
    [prediction] = run(inputs)[0].predictions
    assert prediction.xyxy_px == (0, 0, 100, 80)
    assert prediction.score == 1


def test_detections_of_the_picked_images_are_frozen_with_their_metrics(inputs: Path) -> None:
    run(inputs)
    frozen = files.read_table(inputs / "out" / "detections.parquet", DETECTIONS_AT_SELECTION)
    rows = [
        DETECTIONS_BY_ID[i]
        | {name: SCORES_BY_ID[i][name] for name in METRICS}
        | {"is_random_pick": i == "ccc", "picked_by": "entropy", "num_candidates": 7}  # the second in rank
        for i in ("aaa", "bbb", "ccc")
    ]
    assert frozen.equals(pa.Table.from_pylist(rows, schema=DETECTIONS_AT_SELECTION))
    assert stored_class_names(frozen.schema) == CLASSES


def test_second_run_writes_the_same_bytes(inputs: Path) -> None:
    run(inputs)
    digest = files.sha256_tree(inputs / "out")
    run(inputs)
    assert files.sha256_tree(inputs / "out") == digest


def test_exhausted_pool_gives_an_empty_manifest(inputs: Path) -> None:
    write_selection(inputs)
    assert run(inputs) == []
    assert files.read_table(inputs / "out" / "detections.parquet", DETECTIONS_AT_SELECTION).num_rows == 0


def test_picked_image_that_nobody_knows_is_an_error(inputs: Path) -> None:
    write_selection(inputs, "aaa", "zzz")
    with pytest.raises(UserError, match=r"selection\.parquet: picked image zzz is not among.*dvc repro"):
        run(inputs)


def test_picked_image_that_the_teacher_did_not_see_is_an_error(inputs: Path) -> None:
    (inputs / "infer" / "shard-0000.parquet").unlink()
    with pytest.raises(UserError, match=r"infer: picked image bbb has no detections"):
        run(inputs)


def test_picked_image_that_was_not_scored_is_an_error(inputs: Path) -> None:
    rows = [SCORES_BY_ID["aaa"], SCORES_BY_ID["bbb"]]
    files.write_table(inputs / "scores.parquet", pa.Table.from_pylist(rows, schema=SCORES))
    with pytest.raises(UserError, match=r"scores\.parquet: picked image ccc has no scores"):
        run(inputs)


def test_metrics_that_are_not_normalized_have_no_upper_bound(inputs: Path) -> None:
    """With scoring.normalize: none the uncertainty is a sum of scores and nats."""
    table = files.read_table(inputs / "selection.parquet", SELECTION)
    column = table.schema.get_field_index("uncertainty")
    files.write_table(inputs / "selection.parquet", table.set_column(column, "uncertainty", pa.array([7.25] * 3)))
    assert [task.uncertainty for task in run(inputs)] == [7.25] * 3


BOX, SHIFTED, HALF = [10.0, 10, 30, 30], [12.0, 10, 32, 30], [20.0, 10, 40, 30]  # IoU with BOX 1, 0.82, 0.33


def choose(
    boxes: list[list[float]], posteriors: list[list[float]], threshold: float = 0.3, iou: float = 0.5
) -> list[tuple[int, tuple[int, float] | None]]:
    """Detections with these posteriors of three classes and background."""
    class_probs_NK = np.array(posteriors).reshape(-1, 4)
    foreground_NK = class_probs_NK[:, :3]
    scores_N, class_ids_N = foreground_NK.max(axis=1), foreground_NK.argmax(axis=1)
    return suppress_overlapping(np.array(boxes).reshape(-1, 4), scores_N, class_ids_N, class_probs_NK, threshold, iou)


def test_boxes_of_several_classes_on_one_object_become_one_that_names_the_runner_up() -> None:
    posteriors = [[0.0, 0.5, 0.1, 0.4], [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]]
    assert choose([SHIFTED, BOX, SHIFTED], posteriors) == [(1, (1, 0.5))]
    assert choose([HALF, BOX, SHIFTED], posteriors) == [(1, (2, 0.4)), (0, None)]
    assert choose([SHIFTED, BOX, SHIFTED], posteriors, iou=1.0) == [(1, None), (0, None), (2, None)]


def test_the_runner_up_may_be_in_the_box_s_own_posterior() -> None:
    assert choose([BOX], [[0.31, 0.5, 0.1, 0.09]]) == [(0, (0, 0.31))]
    assert choose([BOX], [[0.29, 0.5, 0.1, 0.11]]) == [(0, None)]
    assert choose([BOX, SHIFTED], [[0.35, 0.5, 0.1, 0.05], [0.1, 0.1, 0.4, 0.4]]) == [(0, (2, 0.4))]
    assert choose([BOX, SHIFTED], [[0.1, 0.8, 0.1, 0.0], [0.1, 0.6, 0.1, 0.2]]) == [(0, None)]  # of the same class


def test_detections_below_the_threshold_take_no_part() -> None:
    assert choose([BOX, SHIFTED], [[0.5, 0.1, 0.1, 0.3], [0.1, 0.2, 0.1, 0.6]]) == [(0, None)]
    assert choose([], []) == []


_CORNER = st.integers(0, 12)
_DETECTION = st.tuples(
    _CORNER, _CORNER, st.integers(1, 8), st.integers(1, 8), st.lists(st.integers(1, 9), min_size=4, max_size=4)
)


@given(st.lists(_DETECTION, max_size=8), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_what_is_drawn_overlaps_little_and_stands_for_all(found: list[Any], iou: float) -> None:
    boxes = [[x, y, x + width, y + height] for x, y, width, height, _ in found]
    posteriors = [[value / sum(counts) for value in counts] for *_, counts in found]
    drawn = choose(boxes, posteriors, 0.25, iou)
    kept = [n for n, _ in drawn]
    scores = [max(row[:3]) for row in posteriors]
    overlaps = pairwise_iou(np.array(boxes).reshape(-1, 4), np.array(boxes).reshape(-1, 4))
    assert [scores[n] for n in kept] == sorted((scores[n] for n in kept), reverse=True)
    assert all(overlaps[a, b] <= iou for a in kept for b in kept if a != b)
    for n, score in enumerate(scores):
        if n not in kept and score >= 0.25:
            assert any(overlaps[n, k] > iou and scores[k] >= score for k in kept)
    for n, runner_up in drawn:
        if runner_up is not None:
            assert runner_up[0] != int(np.argmax(posteriors[n][:3]))
            assert 0.25 <= runner_up[1] <= scores[n]


def test_the_manifest_names_the_runner_up(inputs: Path) -> None:
    row = detection_row("aaa", ([1, 2, 11, 20], 0.6, 0), ([1, 2, 10, 20], 0.5, 1))
    shard = pa.Table.from_pylist([row, DETECTIONS_BY_ID["ddd"]], schema=DETECTIONS)
    files.write_table(inputs / "infer" / "shard-0001.parquet", shard)
    [prediction] = run(inputs)[2].predictions
    assert prediction.runner_up is not None
    assert (prediction.category, prediction.runner_up.category) == ("cat", CLASSES[1])
    assert prediction.runner_up.score == 0.5
    assert [p.runner_up for p in run(inputs, suppress_iou=1.0)[2].predictions] == [None, None]
