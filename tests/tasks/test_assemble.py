"""All batches together: the newest answer counts, the sets share nothing, and every breach has a name."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.assemble import assemble
from tasks.data.annotations import read_annotated, write_annotated
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, POOL, UNLABELED
from tasks.params.stages import AssembleParams, PrepareParams
from tasks.prepare import prepare
from tasks.runtime.errors import UserError
from tasks.storage import files

CLASSES = ["square", "disc"]
Summary = dict[str, Any]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def workspace(tiny_campaign: Workspace) -> Workspace:
    limits = PrepareParams(min_image_side_px=16, max_pixels=100_000)
    out = tiny_campaign.derived("prepare")
    prepare(limits, index=tiny_campaign.index, val=tiny_campaign.val, root=tiny_campaign.root, out=out)
    return tiny_campaign


def run(workspace: Workspace, *, empty_images: str = "keep", classes: Iterable[str] = CLASSES) -> Summary:
    assemble(
        AssembleParams(empty_images=empty_images),  # type: ignore[arg-type]
        classes=list(classes),
        labels=workspace.labels,
        val=workspace.val,
        calibration=workspace.calibration,
        prepared=workspace.derived("prepare"),
        out=workspace.derived("assemble"),
    )
    summary: Summary = files.read_json(workspace.derived("assemble") / "summary.json")
    return summary


def ids(workspace: Workspace, name: str) -> list[str]:
    schema = UNLABELED if name == "unlabeled" else ANNOTATED
    found: list[str] = files.read_table(workspace.derived("assemble") / f"{name}.parquet", schema)[
        "image_id"
    ].to_pylist()
    return found


def make_label(image_id: str, *boxes: list[float], status: str = "", category: str = "disc") -> dict[str, Any]:
    return {
        "image_id": image_id,
        "status": status or ("labeled" if boxes else "empty"),
        "boxes": [{"category": category, "xyxy_px": box} for box in boxes],
        "annotator": "ann",
        "finished_at": "2026-01-02T00:00:00+00:00",
        "seconds_spent": 30.0,
        "offered_batch": 1,
    }


def add_batch(workspace: Workspace, number: int, *labels: dict[str, Any], **changes: Any) -> None:
    batch = {"batch": number, "provider": "test", "collected_at": "2026-01-02T00:00:00+00:00", "images": list(labels)}
    files.write_json(workspace.label_batch(number), batch | changes)


def unlabeled_ids(workspace: Workspace) -> list[str]:
    return sorted(image.image_id for image in read_annotated(workspace.oracle, CLASSES))


def seed_ids(workspace: Workspace) -> list[str]:
    return [image["image_id"] for image in files.read_json(workspace.label_batch(0))["images"]]


def test_seed_round(workspace: Workspace) -> None:
    summary = run(workspace)
    assert (summary["round"], summary["labels"], summary["calibration_images"]) == (0, 5, 2)
    assert summary["labeled_images"] + summary["empty_images"] == 3
    assert (summary["unlabeled_images"], summary["val_images"], summary["pool_images"]) == (4, 3, 9)
    assert summary["minutes_spent"] is None
    assert summary["boxes"] == sum(summary["boxes_per_class"].values())
    assert list(summary["boxes_per_class"]) == CLASSES
    assert ids(workspace, "unlabeled") == unlabeled_ids(workspace)
    for name in ("labeled", "val", "calibration", "unlabeled"):
        assert ids(workspace, name) == sorted(ids(workspace, name))


def test_crowd_regions_arrive_and_are_no_boxes(workspace: Workspace) -> None:
    first, second, *_ = unlabeled_ids(workspace)
    before = run(workspace)
    region = [{"category": "disc", "xyxy_px": [0, 0, 40, 40]}]
    alone = make_label(second, status="labeled") | {"crowd_regions": region}
    add_batch(workspace, 1, make_label(first, [1, 2, 30, 40]) | {"crowd_regions": region}, alone)
    summary = run(workspace, empty_images="drop")
    labeled = {i.image_id: i for i in read_annotated(workspace.derived("assemble") / "labeled.parquet", CLASSES)}
    assert [len(labeled[image_id].boxes) for image_id in (first, second)] == [1, 0]
    assert [list(labeled[i].crowd_regions[0].xyxy_px) for i in (first, second)] == [[0, 0, 40, 40]] * 2
    assert summary["crowd_regions"] == 2
    assert (summary["boxes"], summary["labeled_images"]) == (before["boxes"] + 1, before["labeled_images"] + 2)


def test_validation_images_that_prepare_set_aside_are_not_measured_on(workspace: Workspace) -> None:
    before = run(workspace)
    aside, *usable = read_annotated(workspace.val, CLASSES)
    prepared = workspace.derived("prepare") / "val.parquet"
    table = files.read_table(prepared, UNLABELED)
    files.write_table(prepared, table.filter(pc.not_equal(table["image_id"], aside.image_id)))
    summary = run(workspace)
    assert ids(workspace, "val") == [image.image_id for image in usable]
    assert (summary["val_images"], summary["val_images_set_aside"]) == (2, 1)
    assert summary["unlabeled_images"] == before["unlabeled_images"]  # it is not selected instead
    files.write_table(prepared, table.slice(0, 0))
    with pytest.raises(UserError, match=r"val\.parquet: boxes in all of its images are 0"):
        run(workspace)


def test_boxes_and_batches_arrive(workspace: Workspace) -> None:
    first, second, third, fourth = unlabeled_ids(workspace)
    add_batch(
        workspace,
        1,
        make_label(first, [1, 2, 30, 40], [5, 5, 9.5, 9]),
        make_label(second),
        make_label(third, status="skipped"),
    )
    summary = run(workspace)
    labeled = {i.image_id: i for i in read_annotated(workspace.derived("assemble") / "labeled.parquet", CLASSES)}
    assert [list(box.xyxy_px) for box in labeled[first].boxes] == [[1, 2, 30, 40], [5, 5, 9.5, 9]]
    assert (labeled[first].batch, labeled[second].batch, labeled[second].boxes) == (1, 1, ())
    assert third not in labeled
    assert ids(workspace, "unlabeled") == [fourth]
    assert (summary["round"], summary["skipped_images"], summary["minutes_spent"]) == (1, 1, 1.5)
    assert summary["labels"] == 7  # 3 seed, 2 calibration, 2 reviewed


def test_empty_images_can_be_left_out_of_training_but_are_not_asked_for_again(workspace: Workspace) -> None:
    first, *rest = unlabeled_ids(workspace)
    add_batch(workspace, 1, make_label(first))
    kept, dropped = run(workspace), run(workspace, empty_images="drop")
    assert first not in ids(workspace, "labeled")
    assert ids(workspace, "unlabeled") == rest
    assert kept == dropped  # the summary tells what people did


def test_newest_answer_counts(workspace: Workspace) -> None:
    first, second, *_ = unlabeled_ids(workspace)
    add_batch(workspace, 1, make_label(first, [1, 2, 30, 40]), make_label(second, [1, 2, 30, 40]))
    add_batch(workspace, 2, make_label(first, [3, 3, 9, 9], category="square"), make_label(second, status="skipped"))
    assert run(workspace)["round"] == 2
    labeled = {i.image_id: i for i in read_annotated(workspace.derived("assemble") / "labeled.parquet", CLASSES)}
    assert [(b.category, list(b.xyxy_px)) for b in labeled[first].boxes] == [("square", [3, 3, 9, 9])]
    assert labeled[first].batch == 2
    assert second not in labeled
    assert second not in ids(workspace, "unlabeled")


def test_class_list_in_another_order_changes_indices_and_nothing_else(workspace: Workspace) -> None:
    run(workspace)
    first = read_annotated(workspace.derived("assemble") / "val.parquet", CLASSES)
    run(workspace, classes=["new", "disc", "square"])
    assert read_annotated(workspace.derived("assemble") / "val.parquet", ["new", "disc", "square"]) == first


def test_image_that_prepare_set_aside_waits_with_its_labels(workspace: Workspace) -> None:
    [broken, *_] = seed_ids(workspace)
    calibrating = read_annotated(workspace.calibration, CLASSES)[0].image_id
    for image_id in (broken, calibrating):
        (workspace.images / f"{image_id}.png").write_bytes(b"no picture")
    limits = PrepareParams(min_image_side_px=16, max_pixels=100_000)
    prepare(limits, index=workspace.index, val=workspace.val, root=workspace.root, out=workspace.derived("prepare"))
    summary = run(workspace)
    assert (summary["labels"], summary["calibration_images"], summary["pool_images"]) == (3, 1, 7)
    everywhere = ids(workspace, "labeled") + ids(workspace, "unlabeled") + ids(workspace, "calibration")
    assert not {broken, calibrating} & set(everywhere)


def edit_first(key: str, value: Any) -> Edit:
    def edit(batch: dict[str, Any]) -> None:
        batch["images"][0][key] = value

    return edit


def make_boxes(*corners: float, category: str = "disc") -> list[dict[str, Any]]:
    return [{"category": category, "xyxy_px": list(corners)}]


def labeled_with(boxes: list[dict[str, Any]]) -> Edit:
    return lambda batch: batch["images"][0].update(boxes=boxes, status="labeled")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (edit_first("image_id", "f" * 16), "image ffffffffffffffff is unknown"),
        (edit_first("status", "done"), "images.0.status"),
        (edit_first("mood", "good"), "images.0.mood"),
        (lambda batch: batch["images"][0].pop("annotator"), "images.0.annotator"),
        (lambda batch: batch["images"].append(batch["images"][0]), "stands in it twice"),
        (lambda batch: batch.update(batch=5), "batch is 5, expected the number"),
        (lambda batch: batch["images"][0].update(status="labeled", boxes=[]), "'labeled' with 0 boxes"),
        (lambda batch: batch["images"][0].update(status="empty", boxes=make_boxes(1, 1, 2, 2)), "'empty' with 1 boxes"),
        (labeled_with(make_boxes(1, 1, 2, 2, category="cat")), "'cat', expected one of .*Add the class"),
        (labeled_with(make_boxes(5, 5, 5, 9)), "expected x1 < x2"),
        (labeled_with(make_boxes(-1, 0, 9, 9)), "expected x1 < x2"),
        (labeled_with(make_boxes(0, 0, 1000, 9)), "expected x1 < x2"),
        (labeled_with(make_boxes(0, 0, 9, 1000)), "expected x1 < x2"),
        (labeled_with(make_boxes(float("nan"), 0, 9, 9)), "expected x1 < x2"),
    ],
)
def test_breach_in_a_batch_names_the_file(workspace: Workspace, edit: Edit, problem: str) -> None:
    batch = files.read_json(workspace.label_batch(0))
    edit(batch)
    files.write_json(workspace.label_batch(0), batch)
    with pytest.raises(UserError, match=rf"batch-0000\.json: .*{problem}"):
        run(workspace)


def test_corner_that_float32_moved_a_hair_outside_is_let_through(workspace: Workspace) -> None:
    pool = files.read_table(workspace.derived("prepare") / "pool.parquet", POOL).to_pylist()
    image = next(row for row in pool if row["image_id"] == unlabeled_ids(workspace)[0])
    add_batch(workspace, 1, make_label(image["image_id"], [0, 0, image["width_px"] + 1e-4, 9]))
    assert run(workspace)["round"] == 1


def test_leaks_are_refused(workspace: Workspace) -> None:
    seeds = seed_ids(workspace)
    val, calibration = (read_annotated(path, CLASSES) for path in (workspace.val, workspace.calibration))
    for path, images, name in (
        (workspace.val, val, "val.parquet"),
        (workspace.calibration, calibration, "calibration.parquet"),
    ):
        write_annotated(path, [*images, *_moved(images[:1], seeds[0])], CLASSES)
        with pytest.raises(UserError, match=rf"batch-0000\.json: image {seeds[0]} is also in {name}"):
            run(workspace)
        write_annotated(path, images, CLASSES)
    write_annotated(workspace.calibration, [*calibration, val[0]], CLASSES)
    with pytest.raises(UserError, match=rf"calibration\.parquet: image {val[0].image_id} is also in val\.parquet"):
        run(workspace)


def _moved(images: Iterable[Any], image_id: str) -> list[Any]:
    return [type(image)(**{**vars(image), "image_id": image_id}) for image in images]


def test_batches_that_are_missing_or_strange(workspace: Workspace) -> None:
    add_batch(workspace, 2)
    with pytest.raises(UserError, match=r"batch-0001\.json is missing"):
        run(workspace)
    workspace.label_batch(2).rename(workspace.labels / "mine.json")
    with pytest.raises(UserError, match=r"mine\.json: the file is no label batch"):
        run(workspace)
    (workspace.labels / "mine.json").unlink()
    workspace.label_batch(0).write_text("{")
    with pytest.raises(UserError, match=r"batch-0000\.json: .*expected a label batch"):
        run(workspace)
    workspace.label_batch(0).unlink()
    with pytest.raises(UserError, match="label batches are 0"):
        run(workspace)


def test_no_labels_at_all(workspace: Workspace) -> None:
    batch = files.read_json(workspace.label_batch(0))
    batch["images"] = []
    files.write_json(workspace.label_batch(0), batch)
    with pytest.raises(UserError, match=r"labels: boxes in all of its images are 0"):
        run(workspace)


def test_nothing_to_measure_on(workspace: Workspace) -> None:
    write_annotated(workspace.val, [], CLASSES)
    with pytest.raises(UserError, match=r"val\.parquet: boxes in all of its images are 0"):
        run(workspace)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_every_pool_image_is_in_just_one_place(workspace: Workspace, data: st.DataObject) -> None:
    """Whatever people answered in whatever order."""
    pool = {
        row["image_id"] for row in files.read_table(workspace.derived("prepare") / "pool.parquet", POOL).to_pylist()
    }
    answered = st.dictionaries(
        st.sampled_from(unlabeled_ids(workspace)), st.sampled_from(["labeled", "empty", "skipped"])
    )
    batches = data.draw(st.lists(answered, max_size=3))
    for number in range(1, 4):
        workspace.label_batch(number).unlink(missing_ok=True)
    for number, answers in enumerate(batches, start=1):
        boxes = {"labeled": [[1.0, 1.0, 9.0, 9.0]], "empty": [], "skipped": []}
        add_batch(workspace, number, *(make_label(i, *boxes[s], status=s) for i, s in answers.items()))
    summary = run(workspace)
    places = [set(ids(workspace, name)) for name in ("labeled", "unlabeled", "calibration")]
    last = {image_id: status for answers in batches for image_id, status in answers.items()}
    skipped = {image_id for image_id, status in last.items() if status == "skipped"}
    assert sum(map(len, places)) + len(skipped) == len(pool)
    assert set.union(*places, skipped) == pool
    assert summary["skipped_images"] == len(skipped)
    assert summary["round"] == len(batches)


def test_summary_is_json_without_paths(workspace: Workspace) -> None:
    assert str(workspace.root) not in json.dumps(run(workspace))


def test_the_time_is_linear_in_the_pool(workspace: Workspace) -> None:
    """60,000 further images and 2,000 labels: one pass over the pool per label takes many times the limit."""
    prepared = workspace.derived("prepare") / "pool.parquet"
    pool = files.read_table(prepared, POOL)
    first, count = pool.slice(0, 1).to_pylist()[0], 60_000
    extra = pa.Table.from_pylist([first | {"image_id": f"f{number:015x}"} for number in range(count)], schema=POOL)
    files.write_table(prepared, pa.concat_tables([pool, extra]))
    before = run(workspace)
    add_batch(workspace, 1, *(make_label(f"f{number:015x}", [1, 1, 9, 9]) for number in range(2000)))
    began = time.process_time()
    summary = run(workspace)
    assert time.process_time() - began < 8
    assert summary["labels"] == before["labels"] + 2000
    assert summary["unlabeled_images"] == before["unlabeled_images"] - 2000
