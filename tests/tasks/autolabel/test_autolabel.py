"""The whole of ``autolabel`` on a planted campaign: what is written, read back, killed, and found by the audit."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.autolabel.audit import judge_audit
from tasks.autolabel.evidence import ModelRef, find_stored_detections, gather_evidence, judge_image
from tasks.autolabel.labels import PROVENANCE
from tasks.autolabel.run import AutolabelResult, autolabel
from tasks.autolabel.summary import render_audit, render_summary
from tasks.data.annotations import MarkedBoxes
from tasks.data.formats.coco import parse_coco
from tasks.data.formats.voc import parse_voc_files
from tasks.data.formats.yolo import parse_yolo_classes, parse_yolo_files
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.tasks.autolabel.campaign import CLASSES, HEIGHT, MODEL, WIDTH, PlantedCampaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> PlantedCampaign:
    planted = PlantedCampaign(tmp_path_factory.mktemp("planted") / "campaign", num_calibration=250)
    planted.write()
    return planted


@pytest.fixture(scope="module")
def result(campaign: PlantedCampaign) -> AutolabelResult:
    return run(campaign.workspace)


def run(workspace: Workspace, open_batches: dict[str, int] | None = None) -> AutolabelResult:
    params = load_params(workspace.params)
    return autolabel(workspace, params, MODEL, workspace.derived("infer"), open_batches or {})


@pytest.fixture(scope="module")
def folder(result: AutolabelResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "out"
    with files.atomic_folder(path) as unfinished:
        result.write(unfinished)
    return path


def boxes_of(rows: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    return sorted((row["category"], row["xyxy_px"]) for row in rows)


def test_every_image_of_the_pool_goes_one_way(campaign: PlantedCampaign, result: AutolabelResult) -> None:
    whole = {r.image_id for r in result.records if r.is_complete and r.image_id in campaign.pool}
    left = [row["image_id"] for row in result.people]
    assert whole
    assert left
    assert whole | set(left) == set(campaign.pool)
    assert whole.isdisjoint(left)
    assert len(set(left)) == len(left)
    partial = {r.image_id for r in result.records if not r.is_complete}
    assert partial <= set(left)
    images = result.summary["images"]
    assert images["accepted_whole"] == len(whole)
    assert images["left_to_people"] == len(left)


def test_the_labels_of_people_go_out_as_theirs(campaign: PlantedCampaign, result: AutolabelResult) -> None:
    own = [*campaign.seed_batch, *campaign.chosen, *campaign.random, *campaign.calibration]
    records = {record.image_id: record for record in result.records}
    for image_id in own:
        record = records[image_id]
        assert record.is_complete
        assert {row["source"] for row in record.rows} <= {"person"}
        expected = sorted((box.category, list(box.xyxy_px)) for box in campaign.truth[image_id].boxes)
        assert boxes_of(list(record.rows)) == expected
    assert {row["part"] for row in records[campaign.calibration[0]].rows} <= {"calibration"}
    labeled = next(i for i in campaign.chosen if campaign.truth[i].boxes)
    assert {(row["part"], row["annotator"]) for row in records[labeled].rows} == {("batch-0001", "ada")}


def test_each_box_of_the_model_has_its_whole_provenance(folder: Path, result: AutolabelResult) -> None:
    table = pq.read_table(folder / "provenance.parquet")
    assert table.schema.equals(PROVENANCE)
    rows = [row for row in table.to_pylist() if row["source"] == "model"]
    assert rows
    rules = result.summary["classes"]
    for row in rows:
        assert (row["model_version"], row["model_sha256"]) == (MODEL.version, MODEL.sha256)
        assert row["confidence_level"] == 0.9
        if "class" in row["rule"]:
            assert row["score"] >= row["threshold"] == rules[row["category"]]["threshold"]
            assert row["precision_bound"] >= row["promised_precision"] == 0.9
        if "image" in row["rule"]:
            assert row["is_complete"]
            assert row["wrong_images_bound"] <= row["promised_wrong_images_frac"] == 0.1
    assert {row["rule"] for row in rows} >= {"class", "class and image"}
    assert all(row["rule"] == "class" for row in rows if not row["is_complete"])


@pytest.mark.parametrize("part", ["complete", "partial", "validation"])
def test_all_three_formats_are_read_again_with_equal_boxes(folder: Path, part: str, result: AutolabelResult) -> None:
    expected = {record.file_name: boxes_of(list(record.rows)) for record in result.records if record.folder == part}
    assert expected
    coco = parse_coco((folder / part / "coco.json").read_bytes(), "coco.json")
    assert coco.counts.images_good == len(expected)
    top = folder / part
    xml = [(p.relative_to(top / "voc").as_posix(), p.read_bytes()) for p in sorted((top / "voc").rglob("*.xml"))]
    voc = parse_voc_files(xml, "voc")
    labels = top / "yolo" / "labels"
    txt = [(p.relative_to(labels).as_posix(), p.read_bytes()) for p in sorted(labels.rglob("*.txt"))]
    yolo = parse_yolo_files(txt, "yolo", parse_yolo_classes((top / "yolo/data.yaml").read_bytes(), "data.yaml"))
    assert set(yolo.class_names) == set(CLASSES)
    for document, digits in ((coco, 1e-6), (voc, 1e-3), (yolo, 1e-3)):
        assert len(document.images) == len(expected)
        for image in document.images:
            sized = image.with_size(WIDTH, HEIGHT)
            name = image.name if document is coco else str(Path(image.name).with_suffix(".png"))
            found = sorted((str(box.category), list(box.xyxy)) for box in sized.boxes)
            assert [c for c, _ in found] == [c for c, _ in expected[name]]
            for (_, one), (_, other) in zip(found, expected[name], strict=True):
                np.testing.assert_allclose(one, other, atol=digits)


def test_coco_holds_provenance_and_only_complete_images_are_reviewed(folder: Path) -> None:
    complete = files.read_json(folder / "complete" / "coco.json")
    partial = files.read_json(folder / "partial" / "coco.json")
    validation = files.read_json(folder / "validation" / "coco.json")
    sources = {entry["attributes"]["source"] for entry in complete["annotations"]}
    assert sources == {"person", "model"}
    assert {entry["attributes"]["part"] for entry in validation["annotations"]} == {"validation"}
    assert "validation" not in {entry["attributes"]["part"] for entry in complete["annotations"]}
    model = next(entry for entry in complete["annotations"] if entry["attributes"]["source"] == "model")
    assert model["attributes"]["model_sha256"] == MODEL.sha256
    assert {entry["status"] for entry in complete["images"]} <= {"labeled", "empty"}
    assert all("status" not in entry for entry in partial["images"])
    assert {entry["annotator"] for entry in partial["images"]} == {"model version 2"}


def test_what_is_left_is_ordered_by_value_per_minute(folder: Path, campaign: PlantedCampaign) -> None:
    with (folder / "people.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    rates = [float(row["reason"].removeprefix("value per minute ").split()[0]) for row in rows]
    originals = [rate for rate, row in zip(rates, rows, strict=True) if "much like" not in row["reason"]]
    assert originals == sorted(originals, reverse=True)
    assert rows[0]["file_name"] == f"line 3/{rows[0]['image_id']}.png"


def test_the_same_inputs_give_the_same_bytes(campaign: PlantedCampaign, folder: Path, tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "again") as unfinished:
        run(campaign.workspace).write(unfinished)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path.name


def interrupted(_: object) -> str:
    raise KeyboardInterrupt


def test_a_killed_write_leaves_nothing_under_the_name_and_is_cleaned_up(
    result: AutolabelResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "labels"
    monkeypatch.setattr("tasks.autolabel.run.render_summary", interrupted)
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(target) as unfinished:
        result.write(unfinished)
    monkeypatch.undo()
    left = tmp_path / ".labels.dead.tmp"  # of a process that was killed for good
    left.mkdir()
    assert not target.exists()
    with files.atomic_folder(target) as unfinished:
        result.write(unfinished)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    with pytest.raises(OSError), files.atomic_folder(target) as unfinished:  # noqa: PT011 (which one is the system's)
        files.write_json(unfinished / "summary.json", {})
    assert (target / "provenance.parquet").is_file()


def test_nothing_is_written_into_the_campaign(campaign: PlantedCampaign) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in campaign.workspace.root.rglob("*") if path.is_file()}

    before = state()
    run(campaign.workspace)
    assert state() == before


def test_images_with_annotators_are_not_labeled_by_the_model(campaign: PlantedCampaign) -> None:
    opened = dict.fromkeys(campaign.pool[:40], 2)
    found = run(campaign.workspace, opened)
    shown = {record.image_id for record in found.records} | {row["image_id"] for row in found.people}
    assert shown.isdisjoint(opened)
    assert found.summary["pool"]["chosen"] == len(campaign.chosen) + 40


def test_images_that_were_taken_back_from_annotators_come_last(
    campaign: PlantedCampaign, result: AutolabelResult
) -> None:
    """They are no candidates of the round's selection, so it has no rank for them."""
    leased = campaign.workspace.derived("assemble") / "leased.json"
    taken_back = sorted(row["image_id"] for row in result.people)[:3]
    files.write_json(leased, taken_back)
    found = run(campaign.workspace)
    files.write_json(leased, [])
    assert [row["image_id"] for row in found.people[-3:]] == taken_back
    assert {row["image_id"] for row in found.people} == {row["image_id"] for row in result.people}
    assert all(row["reason"].startswith("not ranked") for row in found.people[-3:])


def test_random_draws_that_came_back_join_the_sample_of_a_model_that_has_not_seen_them(
    campaign: PlantedCampaign,
) -> None:
    workspace = campaign.workspace
    sizes = {}
    for number in (0, 1):
        model = ModelRef(number, number + 1, MODEL.sha256)
        evidence = gather_evidence(
            workspace,
            model,
            workspace.derived("infer"),
            classes=list(CLASSES),
            open_batches={},
            min_iou=0.5,
            score_threshold=0.2,
        )
        sizes[number] = set(evidence.sample.found.image_ids) - set(campaign.calibration)
        assert evidence.num_calibration == len(campaign.calibration)
    assert sizes == {0: set(campaign.random), 1: set()}  # batch 1 is what round 1 learned from


def test_stored_detections_are_used_only_where_they_are_the_models(campaign: PlantedCampaign) -> None:
    assert find_stored_detections(campaign.workspace, MODEL) == campaign.workspace.derived("infer")
    assert find_stored_detections(campaign.workspace, ModelRef(0, 1, "cd" * 32)) is None


def test_an_image_without_detections_stops_it(tmp_path: Path) -> None:
    planted = PlantedCampaign(tmp_path / "campaign", num_pool=30, num_calibration=5)
    del planted.rows[planted.pool[0]]["image_id"]
    planted.rows[planted.pool[0]]["image_id"] = "f" * 16
    workspace = planted.write()
    with pytest.raises(UserError, match=f"without detections are 1 .first: {planted.pool[0]}"):
        run(workspace)


def answers_of(campaign: PlantedCampaign, ids: list[str]) -> dict[str, MarkedBoxes]:
    none = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    return {
        image_id: MarkedBoxes(
            np.array([box.xyxy_px for box in campaign.truth[image_id].boxes]).reshape(-1, 4),
            np.array([CLASSES.index(box.category) for box in campaign.truth[image_id].boxes], dtype=np.int64),
            *none,
        )
        for image_id in ids
    }


def test_the_audit_says_what_is_true(campaign: PlantedCampaign, result: AutolabelResult) -> None:
    sample = result.sample
    assert len(sample["boxes"]) == 60
    assert len(sample["images"]) == 30
    found = judge_audit(sample, answers_of(campaign, list(sample["shown"])), CLASSES)
    right = 0
    for box in sample["boxes"]:
        row = campaign.rows[box["image_id"]]
        corners = row["boxes_xyxy"][4 * box["detection"] : 4 * box["detection"] + 4]
        category = CLASSES[row["class_ids"][box["detection"]]]
        right += any(
            list(b.xyxy_px) == corners and b.category == category for b in campaign.truth[box["image_id"]].boxes
        )
    assert (found["boxes"]["checked"], found["boxes"]["right"]) == (60, right)
    assert sum(one["checked"] for one in found["by_class"].values()) == 60
    assert found["boxes"]["low"] < right / 60 < found["boxes"]["high"] or right == 60
    assert found["images"]["checked"] == 30
    assert found["unanswered"] == []
    assert "60" in render_audit(found)
    assert "model version 2" in render_summary(result.summary)


def test_the_audit_finds_a_broken_promise(campaign: PlantedCampaign, result: AutolabelResult) -> None:
    empty = {
        image_id: MarkedBoxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int))
        for image_id in result.sample["shown"]
    }
    found = judge_audit(result.sample, empty, CLASSES)
    assert (found["boxes"]["right"], found["boxes"]["verdict"]) == (0, "broken")
    assert found["boxes"]["high"] == pytest.approx(1 - 0.025 ** (1 / 60))
    nobody = judge_audit(result.sample, {}, CLASSES)
    assert nobody["boxes"]["verdict"] == "not checked"
    assert set(nobody["unanswered"]) == set(result.sample["shown"])


def test_one_image_judged_by_hand() -> None:
    """Two detections on one object: the surer one is right; another class is wrong; one object has none."""
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], dtype=np.float64)
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 0, 60, 10]], dtype=np.float64)
    is_right, missed = judge_image(
        boxes, np.array([0.6, 0.9, 0.8]), np.array([0, 0, 1]), truth, np.array([0, 0, 0]), 0.5
    )
    assert is_right.tolist() == [False, True, False]
    assert missed == 2
    strict, _ = judge_image(boxes, np.array([0.6, 0.9, 0.8]), np.array([0, 0, 0]), truth, np.array([0, 0, 0]), 0.95)
    assert strict.tolist() == [True, False, True]
