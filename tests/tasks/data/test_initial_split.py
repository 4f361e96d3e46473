"""A campaign's source data: parts that share nothing, the same bytes each time, refusals with a fix."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tasks.data.annotations import read_annotated
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.initial_split import CampaignPlan, create_campaign_data, examine_source
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import ANNOTATED, DETECTIONS_AT_SELECTION, FILE_NAMES, INDEX, PREVIOUS_UNCERTAINTY, LabelBatch
from tasks.data.seed_draw import BoxesPerClass, ImagePercent
from tasks.runtime.errors import UserError
from tasks.storage import files

CLASSES = ("square", "disc")


def ids(path: Path) -> set[str]:
    return {image.image_id for image in read_annotated(path, CLASSES)}


def seed_batch(workspace: Workspace) -> LabelBatch:
    return LabelBatch.model_validate_json(workspace.label_batch(0).read_bytes())


def test_parts_share_no_image_and_cover_all(tiny_campaign: Workspace) -> None:
    val, calibration, oracle = (ids(p) for p in (tiny_campaign.val, tiny_campaign.calibration, tiny_campaign.oracle))
    seed = {label.image_id for label in seed_batch(tiny_campaign).images}
    pool = set(files.read_table(tiny_campaign.index, INDEX)["image_id"].to_pylist())
    assert [len(part) for part in (val, calibration, seed, oracle, pool)] == [3, 2, 3, 4, 9]
    assert pool == calibration | seed | oracle
    assert not pool & val


def test_images_keep_their_bytes_under_their_digest(tiny_campaign: Workspace, tiny_source: DatasetSource) -> None:
    for row in files.read_table(tiny_campaign.index, INDEX).to_pylist():
        content = (tiny_campaign.root / row["uri"]).read_bytes()
        assert content == (tiny_source.images / row["file_name"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["image_id"] == image_id_from_sha256(row["sha256"])
        assert row["size_bytes"] == len(content)
    assert len(list(tiny_campaign.images.iterdir())) == 12
    shared = [p for p in tiny_campaign.images.iterdir() if p.stat().st_nlink > 1 or p.is_symlink()]
    assert not shared  # DVC would make the user's own files read-only through a link


def test_validation_images_keep_their_names(tiny_campaign: Workspace, tiny_source: DatasetSource) -> None:
    names = files.read_table(tiny_campaign.val_names, FILE_NAMES).to_pylist()
    assert [row["image_id"] for row in names] == files.read_table(tiny_campaign.val, ANNOTATED)["image_id"].to_pylist()
    for row in names:
        digest = files.sha256_file(tiny_source.images / row["file_name"])
        assert row["image_id"] == image_id_from_sha256(digest)


def test_boxes_travel_unchanged(tiny_campaign: Workspace, tiny_source: DatasetSource) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    name_of = {image["id"]: image["file_name"] for image in document["images"]}
    truth: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in name_of.values()}
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        truth[name_of[annotation["image_id"]]].append((CLASSES[annotation["category_id"]], [x, y, x + w, y + h]))
    sources = {row["image_id"]: row["file_name"] for row in files.read_table(tiny_campaign.index, INDEX).to_pylist()}
    for image in read_annotated(tiny_campaign.oracle, CLASSES):
        assert [(b.category, list(b.xyxy_px)) for b in image.boxes] == truth[sources[image.image_id]]
    for label in seed_batch(tiny_campaign).images:
        assert [(b.category, list(b.xyxy_px)) for b in label.boxes] == truth[sources[label.image_id]]
        assert label.status == ("labeled" if label.boxes else "empty")
        assert (label.annotator, label.offered_batch, label.seconds_spent) == ("imported", 0, None)


def test_crowd_regions_reach_every_part_and_count_as_no_box(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    plain = examine_source(tiny_source, tiny_plan).counts
    for image in document["images"]:
        region = {"image_id": image["id"], "category_id": 1, "bbox": [0, 0, 30, 20], "iscrowd": 1}
        document["annotations"].append(region | {"id": 1000 + image["id"]})
    files.write_json(tiny_source.annotations, document)
    workspace = Workspace(tmp_path / "w")
    counts = create_campaign_data(tiny_source, tiny_plan, workspace).counts
    assert (counts["boxes"], counts["crowd_regions"], counts["empty_images"]) == (plain["boxes"], 12, 0)
    stored = [read_annotated(path, CLASSES) for path in (workspace.val, workspace.calibration, workspace.oracle)]
    for marked in (*(image for images in stored for image in images), *seed_batch(workspace).images):
        assert [(box.category, box.xyxy_px) for box in marked.crowd_regions] == [("disc", (0, 0, 30, 20))]
    assert {label.status for label in seed_batch(workspace).images} == {"labeled"}


def test_first_round_finds_the_files_of_a_round_before(tiny_campaign: Workspace) -> None:
    assert files.read_table(tiny_campaign.detections_at_selection_batch(0), DETECTIONS_AT_SELECTION).num_rows == 0
    assert files.read_table(tiny_campaign.warm_start / "uncertainty.parquet", PREVIOUS_UNCERTAINTY).num_rows == 0
    assert files.read_json(tiny_campaign.warm_start / "history.json") == []
    assert files.read_json(tiny_campaign.warm_start / "class_weights.json") == {}


def test_same_input_gives_the_same_bytes_and_no_paths(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan, tiny_campaign: Workspace
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_source.images.parent, moved)
    source = dataclasses.replace(tiny_source, annotations=moved / "annotations.json", images=moved / "images")
    again = Workspace(tmp_path / "again")
    create_campaign_data(source, tiny_plan, again)
    for folder in ("data", "oracle"):
        assert files.sha256_tree(again.root / folder) == files.sha256_tree(tiny_campaign.root / folder)
    assert str(tmp_path) not in again.import_report.read_text()


def test_another_seed_draws_other_images(tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> None:
    drawn = set()
    for seed in range(5):
        workspace = Workspace(tmp_path / f"w{seed}")
        create_campaign_data(tiny_source, dataclasses.replace(tiny_plan, seed=seed), workspace)
        drawn.add(frozenset(label.image_id for label in seed_batch(workspace).images))
    assert len(drawn) > 1


def test_import_report_counts_what_came_in(tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> None:
    (tiny_source.images / "05.png").write_bytes(b"no picture")
    shutil.copy(tiny_source.images / "06.png", tiny_source.images / "bare.png")
    workspace = Workspace(tmp_path / "w")
    data = create_campaign_data(tiny_source, tiny_plan, workspace)
    report = files.read_json(workspace.import_report)
    assert report["counts"] == data.counts
    assert [entry["item"] for entry in report["set_aside"]] == ["05.png"]
    assert "bare.png" in [entry["item"] for entry in report["notes"]]
    expected = {"pool_images": 8, "annotated_images": 11, "set_aside": 1, "duplicates_collapsed": 1, "val_images": 3}
    assert {key: data.counts[key] for key in expected} == expected


def test_classes_are_those_found_the_most_frequent_first(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    document["categories"].append({"id": 9, "name": "unused"})
    files.write_json(tiny_source.annotations, document)
    data = create_campaign_data(tiny_source, tiny_plan, Workspace(tmp_path / "w"))
    counts = data.counts["boxes_per_class"]
    assert data.classes[:2] == ("square", "disc")  # as the user orders them
    assert counts["unused"] == 0  # kept: the rare class is the point of active learning
    data = create_campaign_data(dataclasses.replace(tiny_source, classes=()), tiny_plan, Workspace(tmp_path / "v"))
    counts = data.counts["boxes_per_class"]
    assert set(data.classes) == {"square", "disc", "unused"}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_a_class_that_was_not_asked_for_follows_those_that_were(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    document["categories"].append({"id": 9, "name": "cat"})
    document["annotations"][0]["category_id"] = 9
    files.write_json(tiny_source.annotations, document)
    data = create_campaign_data(tiny_source, tiny_plan, Workspace(tmp_path / "w"))
    assert data.classes == ("square", "disc", "cat")
    assert data.counts["boxes_per_class"]["cat"] == 1
    assert data.counts["pool_images"] + data.counts["val_images"] == 12


def test_without_oracle_the_rest_is_not_written(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    workspace = Workspace(tmp_path / "w")
    data = create_campaign_data(tiny_source, dataclasses.replace(tiny_plan, oracle=False), workspace)
    assert not workspace.oracle.exists()
    assert (data.counts["oracle_images"], data.counts["unused_annotations"]) == (0, 4)


def test_all_annotated_images_are_the_seed_where_no_number_is_given(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    plan = dataclasses.replace(tiny_plan, seed_images=None)
    with pytest.raises(UserError, match=r"left to choose from are 0 .*--seed-labels"):
        create_campaign_data(tiny_source, plan, Workspace(tmp_path / "none_left"))
    shutil.copy(tiny_source.images / "00.png", tiny_source.images / "bare.png")
    with (tiny_source.images / "bare.png").open("ab") as stream:
        stream.write(b"another picture for the digest")
    data = create_campaign_data(tiny_source, plan, Workspace(tmp_path / "w"))
    assert (data.counts["seed_images"], data.counts["unannotated_images"]) == (7, 1)


def test_given_validation_set_is_taken_whole(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    listed = tmp_path / "val.txt"
    listed.write_text("00\n01\n02\n03\n")
    data = create_campaign_data(dataclasses.replace(tiny_source, val=listed), tiny_plan, Workspace(tmp_path / "w"))
    assert (data.counts["val_images"], data.counts["pool_images"]) == (4, 8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed_images": 8}, "annotated images besides validation are 9, expected at least 10"),
        ({"calibration_images": 9}, "expected at least 12"),
        ({"val_frac": 0.99}, "besides validation are 0"),
        ({"seed_images": 7}, "left to choose from are 0 of 9"),
    ],
)
def test_source_too_small_for_the_plan(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan, change: dict[str, float], problem: str
) -> None:
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(UserError, match=problem):
        create_campaign_data(tiny_source, dataclasses.replace(tiny_plan, **change), workspace)  # type: ignore[arg-type]
    assert not workspace.root.exists()  # refused before anything is written


def test_no_label_at_all(tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    files.write_json(tiny_source.annotations, document | {"annotations": []})
    with pytest.raises(UserError, match=r"boxes in all annotations are 0"):
        create_campaign_data(tiny_source, tiny_plan, Workspace(tmp_path / "w"))


def test_seed_or_validation_without_a_box(tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    only = [a for a in document["annotations"] if a["image_id"] == 0]
    files.write_json(tiny_source.annotations, document | {"annotations": only})
    tiny_source = dataclasses.replace(tiny_source, policy=ImportPolicy(unannotated="empty"))
    with pytest.raises(UserError, match=r"boxes on the \d images of the (seed|validation) set are 0"):
        create_campaign_data(tiny_source, tiny_plan, Workspace(tmp_path / "w"))


def test_second_campaign_in_the_same_place(
    tiny_source: DatasetSource, tiny_plan: CampaignPlan, tiny_campaign: Workspace
) -> None:
    before = files.sha256_tree(tiny_campaign.root)
    with pytest.raises(UserError, match="exists already"):
        create_campaign_data(tiny_source, tiny_plan, tiny_campaign)
    assert files.sha256_tree(tiny_campaign.root) == before


def test_class_missing_in_the_seed_is_noted(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    source = dataclasses.replace(tiny_source, classes=(*CLASSES, "cat"))
    data = create_campaign_data(source, tiny_plan, Workspace(tmp_path / "w"))
    entry = {"item": "seed set", "reason": "class 'cat' has no box in it", "code": "class_without_box"}
    assert entry in data.notes
    assert files.read_table(tmp_path / "w" / "data" / "val.parquet", ANNOTATED).num_rows == 3


def boxes_of_seed(workspace: Workspace) -> Counter[str]:
    return Counter(box.category for label in seed_batch(workspace).images for box in label.boxes)


@pytest.mark.parametrize("wanted", [1, 2])
def test_seed_labels_per_class_give_every_class_its_boxes_and_no_image_in_vain(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan, wanted: int
) -> None:
    plan = dataclasses.replace(tiny_plan, seed_images=BoxesPerClass(wanted))
    workspace = Workspace(tmp_path / "w")
    counts = create_campaign_data(tiny_source, plan, workspace).counts
    drawn = boxes_of_seed(workspace)
    assert min(drawn[name] for name in CLASSES) >= wanted
    assert counts["seed_rule"] == f"at least {wanted} {'box' if wanted == 1 else 'boxes'} of every class"
    val, calibration, oracle = (ids(path) for path in (workspace.val, workspace.calibration, workspace.oracle))
    seed = {label.image_id for label in seed_batch(workspace).images}
    assert (len(val), len(calibration)) == (3, 2)
    assert not seed & (val | calibration | oracle)
    assert len(seed) + len(oracle) == 7
    fixed = Workspace(tmp_path / "fixed")  # validation and calibration are those of any other size
    create_campaign_data(tiny_source, tiny_plan, fixed)
    assert (ids(fixed.val), ids(fixed.calibration)) == (val, calibration)


def test_a_percentage_of_seed_labels_counts_images_besides_validation_and_calibration(
    tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan
) -> None:
    sizes = {}
    for percent in (1, 30, 60):  # of 7 images
        workspace = Workspace(tmp_path / f"w{percent}")
        plan = dataclasses.replace(tiny_plan, seed_images=ImagePercent(percent))
        sizes[percent] = create_campaign_data(tiny_source, plan, workspace).counts["seed_images"]
        by_number = Workspace(tmp_path / f"n{percent}")
        create_campaign_data(tiny_source, dataclasses.replace(tiny_plan, seed_images=sizes[percent]), by_number)
        assert seed_batch(workspace).images == seed_batch(by_number).images  # the same images as that number of them
    assert sizes == {1: 1, 30: 2, 60: 4}


def test_a_class_with_fewer_boxes_than_wanted_is_named(tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> None:
    plan = dataclasses.replace(tiny_plan, seed_images=BoxesPerClass(1000))
    words = r"boxes besides validation and calibration are \d+ of 'disc', \d+ of 'square', expected at least 1000"
    with pytest.raises(UserError, match=words):
        examine_source(tiny_source, plan)
