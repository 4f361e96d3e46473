"""Boxes to percent and back, and anything an export may hold."""

import json
import math
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.annotation_rules import InvalidAnnotation, ValidationContext, parse_annotation
from flows.annotation.providers.base import AnnotationBatch, RawAnnotation, sample_for_double_annotation
from flows.annotation.providers.label_studio_tasks import (
    MODEL_VERSION,
    config_error,
    labeling_config,
    parse_export,
    to_task,
)
from tasks.data.schemas import AnnotationTask, Prediction, RunnerUp
from tasks.params import load_params
from tests.flows.annotation.providers.label_studio_users import CLASSES, HEIGHT, WIDTH, make_region
from tests.flows.small_campaign import REPOSITORY

IMAGE_ID, SHA256 = "ab" * 8, "ab" * 32


def make_task(
    *boxes: tuple[float, float, float, float], width_px: int = WIDTH, height_px: int = HEIGHT
) -> AnnotationTask:
    return AnnotationTask(
        image_id=IMAGE_ID,
        uri="data/images/a.png",
        width_px=width_px,
        height_px=height_px,
        rank=4,
        reason="it is new",
        uncertainty=0.5,
        predictions=tuple(Prediction(category="cup", xyxy_px=box, score=0.75) for box in boxes),
        model_digest="c0ffee" * 10 + "aaaa",
    )


def make_import_task(task: AnnotationTask) -> dict[str, Any]:
    delivery = AnnotationBatch(3, "key", REPOSITORY, (IMAGE_ID,), "2026-03-01T00:00:00+00:00", "prepared", None)
    return to_task(task, delivery, "/data/local-files/?d=a.png", SHA256)


def make_export_task(result: Any, **annotation: Any) -> dict[str, Any]:
    """Build a task with one annotation, as it is exported."""
    fields = {"id": 5, "unique_id": "uuid", "completed_by": 7, "result": result, "was_cancelled": False}
    times = {"updated_at": "2026-03-01T10:00:00.5Z", "lead_time": 4.5}
    return {"id": 9, "data": make_import_task(make_task())["data"], "annotations": [{**fields, **times, **annotation}]}


def parse_tasks(*tasks: Any) -> list[RawAnnotation]:
    return parse_export(tasks, {7: "ann@example.com", 8: "bob@example.com"}, "http://ls/projects/1")


@cache
def validation_context() -> ValidationContext:
    params = load_params(REPOSITORY / "params.yaml")
    return ValidationContext(
        3,
        {IMAGE_ID: make_task()},
        CLASSES,
        params.label_validation,
        is_teacher_trusted=False,
        collected_at=datetime.now(UTC),
    )


def validate(raw: RawAnnotation) -> Any:
    return parse_annotation(raw, validation_context())[0]


sides = st.integers(16, 20_000)
share = st.floats(0, 1)


@given(sides, sides, share, share, share, share)
def test_a_box_is_the_same_after_import_and_export(
    width_px: int, height_px: int, a: float, b: float, c: float, d: float
) -> None:
    (x1, x2), (y1, y2) = sorted((a * width_px, b * width_px)), sorted((c * height_px, d * height_px))
    task = make_import_task(make_task((x1, y1, x2, y2), width_px=width_px, height_px=height_px))
    exported = json.loads(json.dumps(task))
    exported["annotations"] = [{"result": exported["predictions"][0]["result"], "completed_by": 7}]
    (raw,) = parse_tasks(exported)
    assert raw.get("problem") is None
    (box,) = raw["boxes"]
    assert box["category"] == "cup"
    assert box["shape"] == "box"
    assert all(abs(got - sent) < 1e-3 for got, sent in zip(box["xyxy_px"], (x1, y1, x2, y2), strict=True))


def test_a_task_holds_what_annotators_see_and_what_collection_needs() -> None:
    task = make_import_task(make_task((40, 30, 140, 120)))
    assert task["data"]["about"] == "Batch 3, rank 4: it is new"
    assert {task["data"][name] for name in ("image_id", "delivery", "batch", "rank")} == {IMAGE_ID, "key", 3, 4}
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (MODEL_VERSION, 0.75)
    assert task["data"]["teacher"] == "c0ffeec0ffee"
    assert prediction["result"][0]["value"]["width"] == 100 * 100 / WIDTH
    assert make_import_task(make_task())["predictions"] == []


def test_the_next_likeliest_class_is_in_the_region_s_note() -> None:
    second = RunnerUp(category="plate", score=0.416)
    box = Prediction(category="cup", xyxy_px=(40, 30, 140, 120), score=0.75, runner_up=second)
    task = make_import_task(make_task().model_copy(update={"predictions": (box,)}))
    (region,) = task["predictions"][0]["result"]
    assert region["meta"] == {"text": ["or plate (0.42)"]}
    (raw,) = parse_tasks(make_export_task([region]))  # submitted as it is
    assert [found["category"] for found in raw["boxes"]] == ["cup"]
    assert "meta" not in make_import_task(make_task((40, 30, 140, 120)))["predictions"][0]["result"][0]


def test_a_valid_annotation_becomes_a_label() -> None:
    (raw,) = parse_tasks(make_export_task([make_region("cup", 40, 30, 140, 120)]))
    label = validate(raw)
    assert (label.status, label.annotator, label.seconds_spent) == ("labeled", "ann@example.com", 4.5)
    assert label.boxes[0].xyxy_px == pytest.approx((40, 30, 140, 120))
    assert (raw["answer_id"], raw["url"], raw["image_sha256"]) == ("uuid", "http://ls/projects/1/data?task=9", SHA256)


def test_nothing_drawn_is_empty_and_cancelled_is_skipped() -> None:
    comment = {"type": "textarea", "from_name": "note", "value": {"text": ["dark"]}}
    (empty,) = parse_tasks(make_export_task([comment]))
    (skipped,) = parse_tasks(make_export_task([make_region("cup", 1, 2, 30, 40)], was_cancelled=True))
    assert (validate(empty).status, validate(skipped).status) == ("empty", "skipped")


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (make_region("unicorn", 40, 30, 140, 120), "class is 'unicorn'"),
        (make_region("cup", 40, 30, 140, 120, rectanglelabels=["cup", CLASSES[1]]), "labels of the region are"),
        (make_region("cup", 40, 30, 140, 120, rectanglelabels=None), "labels of the region are"),
        (make_region("cup", 40, 30, 400, 120), "inside the image"),
        (make_region("cup", 40, 30, 140, 120, rotation=12.5), "a rotated box"),
        (make_region("cup", 40, 30, 140, 120, x=math.nan), "nan.*expected percentages"),
        (make_region("cup", 40, 30, 140, 120, width="wide"), "'wide'.*expected percentages"),
        (make_region("cup", 40, 30, 140, 120) | {"original_width": 640}, "size of the labeled image is 640 x 240 px"),
        (make_region("cup", 40, 30, 140, 120) | {"original_width": None}, "expected the image's size in pixels"),
        (
            {"type": "polygonlabels", "value": {"points": [[1, 2]], "polygonlabels": ["cup"]}},
            "original_width and original_height are",
        ),
        ("rubbish", "expected a region"),
    ],
)
def test_an_invalid_region_is_rejected_with_its_reason(region: Any, reason: str) -> None:
    (raw,) = parse_tasks(make_export_task([region]))
    with pytest.raises(InvalidAnnotation, match=reason):
        validate(raw)


def test_each_annotator_has_one_annotation_of_an_image() -> None:
    """Also if the import was repeated, so that the image has two tasks."""
    early = make_export_task([], updated_at="2026-03-01T10:00:00.000000Z", unique_id="early")
    late = make_export_task(
        [make_region("cup", 40, 30, 140, 120)], updated_at="2026-03-01T11:00:00.000000Z", unique_id="late"
    )
    skip = make_export_task([], updated_at="2026-03-01T12:00:00.000000Z", was_cancelled=True, unique_id="skip")
    other = make_export_task([], completed_by=8, unique_id="other")
    for order in ([early, late, skip, other], [skip, other, late, early]):
        assert {raw["answer_id"] for raw in parse_tasks(*order)} == {"late", "other"}
    assert [raw["answer_id"] for raw in parse_tasks(skip)] == ["skip"]


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
broken_region = st.builds(
    lambda key, value, wrong: {**make_region("cup", 1, 2, 30, 40), key: value, "value": wrong},
    st.sampled_from(["type", "original_width", "original_height", "image_rotation"]),
    anything,
    anything | st.dictionaries(st.sampled_from(["x", "y", "width", "height", "rotation", "rectanglelabels"]), anything),
)
broken_task = st.builds(
    lambda key, value: make_export_task(**{"result": [], key: value}),
    st.sampled_from(["result", "completed_by", "updated_at", "lead_time", "was_cancelled", "unique_id"]),
    anything | st.lists(broken_region, max_size=3),
)


@given(st.lists(anything | broken_task | st.builds(lambda x: {"id": 1, "data": x, "annotations": [{}]}, anything)))
def test_an_invalid_export_never_crashes_and_is_never_dropped_or_accepted(tasks: list[Any]) -> None:
    found = parse_export(tasks, {}, "http://ls/projects/1")
    annotated = [task for task in tasks if not isinstance(task, dict) or task.get("annotations") != []]
    assert bool(found) == bool(annotated)
    for raw in found:
        try:
            label = validate(raw)
        except InvalidAnnotation:
            continue
        assert label.status in ("empty", "skipped", "labeled")
        assert all(0 <= side <= WIDTH for box in label.boxes for side in box.xyxy_px)


def test_the_configuration_is_valid_and_keeps_colors_and_keys() -> None:
    names = [*CLASSES, *(f"class {n}" for n in range(30))]
    config = labeling_config(names)
    assert config_error(config, names) is None
    labels = list(ET.fromstring(config).iter("Label"))
    assert [label.get("value") for label in labels] == names
    assert [label.get("hotkey") for label in labels[:12]] == [*"1234567890", None, None]
    fewer = list(ET.fromstring(labeling_config(CLASSES)).iter("Label"))
    assert [label.attrib for label in labels[:2]] == [label.attrib for label in fewer]
    assert len({label.get("background") for label in labels[:20]}) == 20


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (labeling_config(["cup"]), r"lacks 'fork & <knife>', expected all classes"),
        ("<View", "is no XML"),
        (labeling_config(CLASSES).replace('name="label"', 'name="box"'), "has no RectangleLabels 'label'"),
        (labeling_config(CLASSES).replace("$image", "$picture"), "on an Image 'image'"),
    ],
)
def test_a_configuration_without_a_class_or_tag_is_an_error(config: str, reason: str) -> None:
    error = config_error(config, CLASSES)
    assert error is not None
    assert reason in error


def test_a_team_may_add_to_the_configuration() -> None:
    config = labeling_config(CLASSES).replace("</View>", '<TextArea name="note" toName="image"/></View>')
    assert config_error(config.replace("#0072B2", "red"), CLASSES[::-1]) is None


@given(st.integers(1, 40), st.floats(0, 1), st.text(max_size=9))
def test_the_sample_for_double_annotation_is_reproducible(count: int, share: float, key: str) -> None:
    ids = [f"{n:016x}" for n in range(count)]
    drawn = sample_for_double_annotation(ids, share, key)
    assert drawn == sample_for_double_annotation(ids[::-1], share, key)
    assert len(drawn) == (max(1, round(share * count)) if share else 0)


def test_the_least_sure_box_stands_first_with_its_doubt_and_the_task_names_the_largest() -> None:
    boxes = [
        Prediction(category="cup", xyxy_px=(0, 0, 10, 10), score=score, doubt=doubt)
        for score, doubt in ((0.9, 0.1), (0.8, 0.6), (0.7, 0.3))
    ]
    imported = make_import_task(make_task().model_copy(update={"predictions": tuple(boxes)}))
    regions = imported["predictions"][0]["result"]
    assert [region["score"] for region in regions] == [0.8, 0.7, 0.9]
    assert [region["meta"]["text"] for region in regions] == [["doubt 0.60"], ["doubt 0.30"], ["doubt 0.10"]]
    assert [region["id"] for region in regions] == ["teacher-1", "teacher-2", "teacher-0"]
    assert (imported["data"]["largest_doubt"], imported["data"]["priority"]) == (0.6, "000004")
