"""The stage on files: what it reads, what it writes, and what it says."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, DETECTIONS, RELABEL, SCORES, SELECTION, UNCERTAINTY, UNLABELED
from tasks.params import load_params
from tasks.params.stages import BudgetParams, SelectParams
from tasks.runtime.errors import UserError
from tasks.select import select
from tasks.selection.earlier_picks import EarlierPick
from tasks.storage import files

ROOT = Path(__file__).parents[2]
IMAGES_24 = BudgetParams(
    unit="images", amount=24.0, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=20, relabel_frac=0.0
)
MINUTES_BROUGHT = [("uncertainty", 1.0), ("entropy", 4.0)]
BY_UNCERTAINTY = SelectParams(
    strategy="uncertainty", objectives={}, portfolio=["uncertainty", "random"], random_frac=0.1
)


def image_ids(count: int) -> list[str]:
    return [f"{i:016x}" for i in range(count)]


def write_inputs(root: Path, count: int, *, shuffle: int = 0, empty: tuple[int, ...] = ()) -> dict[str, Path]:
    """``count`` unlabeled images; image i has i % 5 boxes of score 0.5."""
    ids = image_ids(count)
    boxes = [0 if i in empty else i % 5 for i in range(count)]
    rows = np.random.default_rng(shuffle).permutation(count) if shuffle else np.arange(count)
    values = np.random.default_rng(0).random((count, 8))
    weights = values[:, 3:6] / values[:, 3:6].sum(1, keepdims=True) if count else values[:, 3:6]
    scores = {
        "image_id": ids, "num_boxes": boxes, "num_distinct_classes": np.minimum(boxes, 1),
        "expected_boxes": np.array(boxes) * 0.5, "expected_boxes_per_class": [[n * 0.5] for n in boxes],
        "features": [[0.0] * 14] * count, "residual_mass": [0.0] * count, "expected_misses": [0.0] * count,
        "value": values[:, 6],
        **{name: values[:, i] for i, name in enumerate(["confidence_raw", "entropy_raw", "overlap_raw"])},
        **{name: values[:, i] for i, name in enumerate(["confidence", "entropy", "overlap"])},
        "has_no_detections": [n == 0 for n in boxes],
        "objectness_entropy_raw": [None] * count, "objectness_entropy": [0.0] * count,
    }  # fmt: skip
    weighed = {
        "image_id": ids,
        **{f"w_{name}": weights[:, i] for i, name in enumerate(["confidence", "entropy", "overlap"])},
        "w_objectness_entropy": [0.0] * count, "uncertainty": (weights * values[:, :3]).sum(1),
    }  # fmt: skip
    workspace = Workspace(root)
    unlabeled = {"image_id": ids, "uri": ids, "width_px": [64] * count, "height_px": [64] * count}
    paths = {
        "labels": workspace.labels,
        "unlabeled": workspace.derived("assemble") / "unlabeled.parquet",
        "labeled": workspace.derived("assemble") / "labeled.parquet",
        "leased": workspace.derived("assemble") / "leased.json",
        "infer": workspace.derived("infer"),
        "scores": workspace.derived("score") / "scores.parquet",
        "box_errors": workspace.derived("score") / "box_errors.json",
        "uncertainty": workspace.derived("weigh") / "uncertainty.parquet",
        "detections_at_selection": workspace.detections_at_selection,
    }
    for name, table, schema in [
        ("unlabeled", unlabeled, UNLABELED),
        ("scores", scores, SCORES),
        ("uncertainty", weighed, UNCERTAINTY),
    ]:
        files.write_table(paths[name], pa.table(table, schema=schema).take(rows))
    files.write_json(paths["leased"], [])
    files.write_json(paths["box_errors"], {"used": True, "reason": "held-out rank correlation"})
    write_annotations(workspace, [])
    return paths


def write_annotations(workspace: Workspace, timed: list[tuple[int, float]]) -> None:
    """A label batch with boxes and minutes of each answer."""
    box = {"category": "a", "xyxy_px": [0, 0, 9, 9]}
    images = [
        {
            "image_id": f"{number:015x}x", "status": "labeled" if boxes else "empty", "boxes": [box] * boxes,
            "annotator": "ann", "finished_at": "2026-03-01T10:00:00+00:00", "seconds_spent": 60 * minutes,
            "offered_batch": 0,
        }
        for number, (boxes, minutes) in enumerate(timed)
    ]  # fmt: skip
    batch = {"batch": 0, "provider": "test", "collected_at": "2026-03-02T00:00:00+00:00", "images": images}
    files.write_json(workspace.label_batch(0), batch)


def read_selection(out: Path) -> list[dict]:
    table = pq.read_table(out / "selection.parquet")
    assert table.schema.equals(SELECTION)
    return table.to_pylist()


def test_writes_ranked_rows_and_a_summary(tmp_path):
    paths = write_inputs(tmp_path, 60)
    summary = select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    rows = read_selection(tmp_path / "out")
    assert [row["rank"] for row in rows] == list(range(1, 25))
    assert [row["picked_by"] for row in rows] == ["random" if row["is_random_pick"] else "uncertainty" for row in rows]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["selected"], summary["random_picks"], summary["candidates"]) == (24, 2, 60)
    assert (summary["budget_unit"], summary["budget_amount"], summary["pool_exhausted"]) == (
        "images",
        24.0,
        False,
    )
    assert summary["expected_boxes"] == pytest.approx(sum(row["expected_boxes"] for row in rows))
    assert summary["expected_minutes"] == pytest.approx(24 * 0.2 + summary["expected_boxes"] * 0.5)


def test_reasons_name_rank_metrics_and_weights_or_the_draw(tmp_path):
    paths = write_inputs(tmp_path, 60)
    select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    rows = read_selection(tmp_path / "out")
    scores = {row["image_id"]: row for row in pq.read_table(paths["scores"]).to_pylist()}
    weights = {row["image_id"]: row for row in pq.read_table(paths["uncertainty"]).to_pylist()}
    s, w = scores[rows[0]["image_id"]], weights[rows[0]["image_id"]]
    place = sorted(-row["uncertainty"] for row in weights.values()).index(-w["uncertainty"]) + 1
    expected = (
        f"uncertainty {w['uncertainty']:.2f} (rank {place} of 60): entropy {s['entropy']:.2f}, "
        f"overlap {s['overlap']:.2f}, confidence {s['confidence']:.2f}; "
        f"weights {w['w_entropy']:.2f}/{w['w_overlap']:.2f}/{w['w_confidence']:.2f}"
    )
    assert rows[0]["reason"].startswith(expected)
    explored = [row for row in rows if row["reason"].startswith("random pick; ")]
    assert [row["rank"] for row in explored] == [5, 15]


def test_zero_detection_images_say_so(tmp_path):
    paths = write_inputs(tmp_path, 10, empty=(1, 2, 3))
    select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    said = {int(row["image_id"], 16) for row in read_selection(tmp_path / "out") if "no detections" in row["reason"]}
    assert said == {0, 1, 2, 3, 5}  # 0 and 5 have i % 5 = 0 boxes


def test_pool_smaller_than_the_budget_is_taken_whole_and_said(tmp_path, caplog):
    paths = write_inputs(tmp_path, 5)
    with caplog.at_level(logging.INFO):
        summary = select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    assert (summary["selected"], summary["pool_exhausted"]) == (5, True)
    assert {row["image_id"] for row in read_selection(tmp_path / "out")} == set(image_ids(5))
    assert "all that is left" in caplog.text


def test_empty_pool_gives_an_empty_selection_and_no_error(tmp_path, caplog):
    paths = write_inputs(tmp_path, 0)
    with caplog.at_level(logging.INFO):
        summary = select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    assert read_selection(tmp_path / "out") == []
    assert (summary["selected"], summary["random_picks"], summary["expected_minutes"]) == (0, 0, 0.0)
    assert "nothing to select" in caplog.text


def test_what_the_annotators_have_already_is_not_picked_again(tmp_path, caplog):
    paths = write_inputs(tmp_path, 8)
    everything = image_ids(8)
    files.write_json(paths["leased"], everything[:5])
    with caplog.at_level(logging.INFO):
        summary = select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")
    assert sorted(row["image_id"] for row in read_selection(tmp_path / "out")) == everything[5:]
    assert (summary["leased"], summary["candidates"], summary["selected"]) == (5, 3, 3)
    assert "5 unlabeled images are with the annotators" in caplog.text


def test_unscored_image_is_named(tmp_path):
    paths = write_inputs(tmp_path, 5)
    files.write_table(paths["scores"], pq.read_table(paths["scores"]).slice(1))
    with pytest.raises(UserError, match=r"without a score is 1 \(first: 0000000000000000\), expected 0"):
        select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")


@pytest.mark.parametrize("unit", ["images", "boxes", "minutes"])
def test_measured_times_take_the_place_of_the_parameters(tmp_path, unit, caplog):
    paths = write_inputs(tmp_path, 60)
    write_annotations(Workspace(tmp_path), [(n % 7, 1.0 + 2.0 * (n % 7)) for n in range(30)] + [(1, 90.0)])
    budget = IMAGES_24.model_copy(update={"unit": unit, "amount": 20.0})
    with caplog.at_level(logging.INFO):
        summary = select(BY_UNCERTAINTY, budget, 7, **paths, out=tmp_path / "out")
    cost = summary["annotation_cost"]
    assert (cost["minutes_per_image"], cost["minutes_per_box"]) == (1.0, 2.0)
    assert (cost["is_fitted"], cost["num_timed"], cost["num_outliers"]) == (True, 31, 1)
    assert "1 minutes per image and 2 per box: fitted to 30 answers with a measured time; 1 that" in caplog.text
    rows = read_selection(tmp_path / "out")
    for row in rows:
        assert row["expected_minutes"] == pytest.approx(1.0 + 2.0 * row["expected_boxes"])
    if unit == "minutes":  # with the parameters' 0.2 and 0.5 four times as many images would fit
        assert 12 <= sum(row["expected_minutes"] for row in rows) <= 20
    elif unit == "images":
        assert len(rows) == 20


def test_without_enough_measured_times_the_parameters_count_and_the_summary_says_so(tmp_path):
    paths = write_inputs(tmp_path, 30)
    write_annotations(Workspace(tmp_path), [(n, 9.0) for n in range(19)])
    cost = select(BY_UNCERTAINTY, IMAGES_24, 7, **paths, out=tmp_path / "out")["annotation_cost"]
    assert (cost["minutes_per_image"], cost["minutes_per_box"], cost["is_fitted"]) == (0.2, 0.5, False)
    assert "are 19, fewer than budget.min_timed_annotations (20)" in cost["reason"]


def test_a_portfolio_says_whose_turn_it_was_and_what_it_knows(tmp_path):
    paths = write_inputs(tmp_path, 60)
    params = SelectParams(strategy="portfolio", objectives={}, portfolio=["uncertainty", "entropy"], random_frac=0.1)
    picks = [EarlierPick(f"p{n}", 1, arm, worth, worth, 1.0) for n in range(40) for arm, worth in MINUTES_BROUGHT]
    summary = select(params, IMAGES_24, 7, **paths, out=tmp_path / "out", earlier_picks=lambda _: picks)
    rows = read_selection(tmp_path / "out")
    assert {row["picked_by"] for row in rows if row["is_random_pick"]} == {"random"}
    others = [row for row in rows if not row["is_random_pick"]]
    assert all(f"turn of {row['picked_by']}: {row['picked_by']} " in row["reason"] for row in others)
    assert all(row["picked_by"] == "entropy" for row in others)
    assert summary["portfolio"]["entropy"]["share"] == 1
    assert summary["portfolio"]["entropy"]["num_images"] == 40
    select(params, IMAGES_24, 7, **paths, out=tmp_path / "new")  # nothing is known: both have their turns
    assert {row["picked_by"] for row in read_selection(tmp_path / "new")} == {"random", "uncertainty", "entropy"}


@pytest.mark.parametrize("unit", ["boxes", "minutes"])
def test_one_image_is_picked_even_if_it_alone_is_over_budget(tmp_path, unit):
    paths = write_inputs(tmp_path, 30)
    budget = BudgetParams(
        unit=unit, amount=0.01, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=20, relabel_frac=0.0
    )
    assert select(BY_UNCERTAINTY, budget, 7, **paths, out=tmp_path / "out")["selected"] == 1


@given(
    unit=st.sampled_from(["images", "boxes", "minutes"]),
    amount=st.floats(1, 60),
    seed=st.integers(0, 2**31 - 1),
    strategy=st.sampled_from(["uncertainty", "random", "entropy"]),
    random_frac=st.floats(0, 1),
    shuffle=st.integers(1, 99),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_result_is_within_budget_deterministic_and_blind_to_row_order(
    tmp_path, unit, amount, seed, strategy, random_frac, shuffle
):
    params = SelectParams(
        strategy=strategy,
        objectives={"uncertainty": 1, "rarity": 1},
        portfolio=["entropy", "random"],
        random_frac=random_frac,
    )
    budget = BudgetParams(
        unit=unit, amount=amount, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=20, relabel_frac=0.0
    )
    paths, shuffled = (
        write_inputs(tmp_path / "a", 40),
        write_inputs(tmp_path / "b", 40, shuffle=shuffle),
    )
    summary = select(params, budget, seed, **paths, out=tmp_path / "out-a")
    select(params, budget, seed, **shuffled, out=tmp_path / "out-b")
    for name in ("selection.parquet", "summary.json"):
        assert (tmp_path / "out-a" / name).read_bytes() == (tmp_path / "out-b" / name).read_bytes()
    rows = read_selection(tmp_path / "out-a")
    assert {row["image_id"] for row in rows} <= set(image_ids(40))
    spent = {"images": len(rows), "boxes": summary["expected_boxes"], "minutes": summary["expected_minutes"]}[unit]
    assert spent <= amount + 1e-3 or len(rows) == 1


def test_runs_as_a_module_in_a_workspace(tmp_path):
    write_inputs(tmp_path, 40)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    command = [sys.executable, "-m", "tasks.select"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    amount = load_params(ROOT / "params.yaml").budget.amount
    assert len(read_selection(tmp_path / "derived" / "select")) == min(40, int(amount))
    assert (tmp_path / ".gleaner" / "timings" / "select.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "images", "amount": 0.5}, "budget: amount is 0.5, expected at least 1 image"),
        ({"unit": "minutes", "minutes_per_image": 0.0}, "budget: minutes_per_image is 0, expected more"),
        ({"unit": "hours"}, "budget.unit is 'hours', expected 'images', 'boxes' or 'minutes'"),
        ({"amount": 0.0}, "budget.amount is 0.0, expected greater than 0"),
    ],
)
def test_budget_that_makes_no_sense_is_one_sentence(tmp_path, change, message):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["budget"] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"params\.yaml") as raised:
        load_params(tmp_path / "params.yaml")
    assert message in str(raised.value)


def write_doubted_labels(paths: dict[str, Path], workspace: Workspace, image_ids: list[str]) -> None:
    """Labeled images with one box, which the teacher thinks to be of the other class; surer from image to image."""
    box = [0.0, 0.0, 9.0, 9.0]
    labels = [
        {"image_id": i, "boxes_xyxy": box, "class_ids": [0], "is_crowd": [False], "batch": 0, "width_px": 20}
        for i in image_ids
    ]
    files.write_table(paths["labeled"], pa.Table.from_pylist(labels, schema=ANNOTATED))
    found = [
        {
            "image_id": i, "boxes_xyxy": box, "scores": [0.5 + 0.05 * place], "class_ids": [1],
            "class_probs": [0.0, 0.5, 0.5], "residual_mass": 0.0,
        }
        for place, i in enumerate(image_ids)
    ]  # fmt: skip
    files.write_table(paths["infer"] / "labeled-0000.parquet", pa.Table.from_pylist(found, schema=DETECTIONS))
    write_annotations(workspace, [])


def test_a_share_of_the_budget_checks_labels_and_the_rest_is_for_new_images(tmp_path: Path) -> None:
    paths = write_inputs(tmp_path, 60)
    write_doubted_labels(paths, Workspace(tmp_path), ["a", "b", "c", "d", "e"])
    budget = IMAGES_24.model_copy(update={"relabel_frac": 0.125})
    summary = select(BY_UNCERTAINTY, budget, 7, **paths, out=tmp_path / "out", classes=["cat", "dog"])
    checks = files.read_table(tmp_path / "out" / "relabel.parquet", RELABEL).to_pylist()
    assert [(row["image_id"], row["rank"]) for row in checks] == [("e", 22), ("d", 23), ("c", 24)]
    assert (summary["selected"], summary["relabel"]["images"]) == (21, 3)


def test_labels_that_are_checked_or_out_or_crowded_are_not_asked_for(tmp_path: Path) -> None:
    paths, workspace = write_inputs(tmp_path, 60), Workspace(tmp_path)
    write_doubted_labels(paths, workspace, ["a", "b", "c", "d", "e"])
    rows = files.read_table(paths["labeled"], ANNOTATED).to_pylist()
    rows[3]["is_crowd"] = [True]
    files.write_table(paths["labeled"], pa.Table.from_pylist(rows, schema=ANNOTATED))
    batch = files.read_json(workspace.label_batch(0))
    checked = {
        "image_id": "e", "status": "skipped", "boxes": [], "annotator": "ann", "seconds_spent": None,
        "finished_at": "2026-03-01T10:00:00+00:00", "offered_batch": 1, "checks_batch": 0,
    }  # fmt: skip
    first = {**batch, "batch": 1, "other_annotations": [checked], "leased": {"c": 1}}
    files.write_json(workspace.label_batch(1), first)
    budget = IMAGES_24.model_copy(update={"relabel_frac": 0.5})
    select(BY_UNCERTAINTY, budget, 7, **paths, out=tmp_path / "out", classes=["cat", "dog"])
    checks = files.read_table(tmp_path / "out" / "relabel.parquet", RELABEL).to_pylist()
    assert [row["image_id"] for row in checks] == ["b", "a"]


def test_an_exhausted_pool_asks_for_no_checks(tmp_path: Path) -> None:
    paths = write_inputs(tmp_path, 0)
    write_doubted_labels(paths, Workspace(tmp_path), ["a"])
    budget = IMAGES_24.model_copy(update={"relabel_frac": 0.5})
    select(BY_UNCERTAINTY, budget, 7, **paths, out=tmp_path / "out", classes=["cat", "dog"])
    assert files.read_table(tmp_path / "out" / "relabel.parquet", RELABEL).num_rows == 0
