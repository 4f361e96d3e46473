"""Boxes to percent and back, and whatever an export may hold."""

import json
import math
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.providers.base import AnnotationBatch, RawAnnotation
from flows.annotation.providers.double_annotation import sample_for_double_annotation
from flows.annotation.providers.label_studio.labeling_config import config_error, labeling_config
from flows.annotation.providers.label_studio.parse_export import parse_export
from flows.annotation.providers.label_studio.tasks import MODEL_VERSION, to_task
from flows.annotation.validation.annotation import parse_annotation
from flows.annotation.validation.context import ValidationContext
from flows.annotation.validation.rejection import InvalidAnnotation
from tasks.data.schemas import AnnotationTask, Prediction
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
    """A task with one annotation, as the export tells it."""
    given = {"id": 5, "unique_id": "uuid", "completed_by": 7, "result": result, "was_cancelled": False}
    times = {"updated_at": "2026-03-01T10:00:00.5Z", "lead_time": 4.5}
    return {"id": 9, "data": make_import_task(make_task())["data"], "annotations": [{**given, **times, **annotation}]}


def parse_tasks(*tasks: Any) -> list[RawAnnotation]:
    names = {7: "ann@example.com", 8: "bob@example.com"}
    return parse_export(tasks, lambda by: names.get(by), lambda number: f"http://ls/{number}")


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


def validate(answer: RawAnnotation) -> Any:
    return parse_annotation(answer, validation_context())[0]


sides = st.integers(16, 20_000)
share = st.floats(0, 1)


@given(sides, sides, share, share, share, share)
def test_a_box_survives_the_way_there_and_back(
    width_px: int, height_px: int, a: float, b: float, c: float, d: float
) -> None:
    (x1, x2), (y1, y2) = sorted((a * width_px, b * width_px)), sorted((c * height_px, d * height_px))
    task = make_import_task(make_task((x1, y1, x2, y2), width_px=width_px, height_px=height_px))
    there = json.loads(json.dumps(task))
    there["annotations"] = [{"result": there["predictions"][0]["result"], "completed_by": 7}]
    (answer,) = parse_tasks(there)
    assert answer.get("problem") is None
    (box,) = answer["boxes"]
    assert box["category"] == "cup"
    assert box["rotation_deg"] == 0
    assert all(abs(got - sent) < 1e-3 for got, sent in zip(box["xyxy_px"], (x1, y1, x2, y2), strict=True))


def test_a_task_tells_annotators_and_us_what_each_must_know() -> None:
    task = make_import_task(make_task((40, 30, 140, 120)))
    assert task["data"]["about"] == "Batch 3, pick 4: it is new"
    assert {task["data"][name] for name in ("image_id", "delivery", "batch", "rank")} == {IMAGE_ID, "key", 3, 4}
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (MODEL_VERSION, 0.75)
    assert task["data"]["teacher"] == "c0ffeec0ffee"
    assert prediction["result"][0]["value"]["width"] == 100 * 100 / WIDTH
    assert make_import_task(make_task())["predictions"] == []


def test_a_good_answer_passes_the_door() -> None:
    (answer,) = parse_tasks(make_export_task([make_region("cup", 40, 30, 140, 120)]))
    label = validate(answer)
    assert (label.status, label.annotator, label.seconds_spent) == ("labeled", "ann@example.com", 4.5)
    assert label.boxes[0].xyxy_px == pytest.approx((40, 30, 140, 120))
    assert (answer["answer_id"], answer["url"], answer["image_sha256"]) == ("uuid", "http://ls/9", SHA256)


def test_nothing_drawn_is_empty_and_cancelled_is_skipped() -> None:
    comment = {"type": "textarea", "from_name": "note", "value": {"text": ["dark"]}}
    (empty,) = parse_tasks(make_export_task([comment]))
    (skipped,) = parse_tasks(make_export_task([make_region("cup", 1, 2, 30, 40)], was_cancelled=True))
    assert (validate(empty).status, validate(skipped).status) == ("empty", "skipped")


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (make_region("unicorn", 40, 30, 140, 120), "class is 'unicorn'"),
        (make_region("cup", 40, 30, 140, 120, rectanglelabels=["cup", CLASSES[1]]), "class is"),
        (make_region("cup", 40, 30, 140, 120, rectanglelabels=None), "class is None"),
        (make_region("cup", 40, 30, 400, 120), "inside the image"),
        (make_region("cup", 40, 30, 140, 120, rotation=12.5), "rotation_deg"),
        (make_region("cup", 40, 30, 140, 120, x=math.nan), "nan"),
        (make_region("cup", 40, 30, 140, 120, width="wide"), "expected four numbers"),
        (make_region("cup", 40, 30, 140, 120) | {"original_width": 640}, "the labeled picture is 640 x 240 px"),
        (make_region("cup", 40, 30, 140, 120) | {"original_width": None}, "expected four numbers"),
        ({"type": "polygonlabels", "value": {"points": [[1, 2]], "polygonlabels": ["cup"]}}, "class is None"),
        ("rubbish", "class is None"),
    ],
)
def test_the_door_hears_what_is_wrong(region: Any, words: str) -> None:
    (answer,) = parse_tasks(make_export_task([region]))
    with pytest.raises(InvalidAnnotation, match=words):
        validate(answer)


def test_each_annotator_says_one_thing_about_an_image() -> None:
    """Also where an import happened twice, so that the image has two tasks."""
    early = make_export_task([], updated_at="2026-03-01T10:00:00.000000Z", unique_id="early")
    late = make_export_task(
        [make_region("cup", 40, 30, 140, 120)], updated_at="2026-03-01T11:00:00.000000Z", unique_id="late"
    )
    skip = make_export_task([], updated_at="2026-03-01T12:00:00.000000Z", was_cancelled=True, unique_id="skip")
    other = make_export_task([], completed_by=8, unique_id="other")
    for order in ([early, late, skip, other], [skip, other, late, early]):
        assert {answer["answer_id"] for answer in parse_tasks(*order)} == {"late", "other"}
    assert [answer["answer_id"] for answer in parse_tasks(skip)] == ["skip"]


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
spoiled_region = st.builds(
    lambda key, value, wrong: {**make_region("cup", 1, 2, 30, 40), key: value, "value": wrong},
    st.sampled_from(["type", "original_width", "original_height", "image_rotation"]),
    anything,
    anything | st.dictionaries(st.sampled_from(["x", "y", "width", "height", "rotation", "rectanglelabels"]), anything),
)
spoiled = st.builds(
    lambda key, value: make_export_task(**{"result": [], key: value}),
    st.sampled_from(["result", "completed_by", "updated_at", "lead_time", "was_cancelled", "unique_id"]),
    anything | st.lists(spoiled_region, max_size=3),
)


@given(st.lists(anything | spoiled | st.builds(lambda x: {"id": 1, "data": x, "annotations": [{}]}, anything)))
def test_rubbish_never_crashes_and_is_never_dropped_or_believed(tasks: list[Any]) -> None:
    found = parse_export(tasks, lambda by: by if isinstance(by, str) else None, lambda number: repr(number))
    annotated = [task for task in tasks if not isinstance(task, dict) or task.get("annotations") != []]
    assert bool(found) == bool(annotated)
    for answer in found:
        try:
            label = validate(answer)
        except InvalidAnnotation:
            continue
        assert label.status in ("empty", "skipped", "labeled")
        assert all(0 <= side <= WIDTH for box in label.boxes for side in box.xyxy_px)


def test_a_configuration_we_wrote_has_no_flaw_and_keeps_colours_and_keys() -> None:
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
    ("config", "words"),
    [
        (labeling_config(["cup"]), r"lacks 'fork & <knife>', expected all classes"),
        ("<View", "is no XML"),
        (labeling_config(CLASSES).replace('name="label"', 'name="box"'), "has no RectangleLabels 'label'"),
        (labeling_config(CLASSES).replace("$image", "$picture"), "on an Image 'image'"),
    ],
)
def test_a_configuration_that_would_spoil_labels_is_named(config: str, words: str) -> None:
    flaw = config_error(config, CLASSES)
    assert flaw is not None
    assert words in flaw


def test_a_team_may_add_to_the_configuration() -> None:
    config = labeling_config(CLASSES).replace("</View>", '<TextArea name="note" toName="image"/></View>')
    assert config_error(config.replace("#0072B2", "red"), CLASSES[::-1]) is None


@given(st.integers(1, 40), st.floats(0, 1), st.text(max_size=9))
def test_the_share_for_two_annotators_is_drawn_the_same_again(count: int, share: float, key: str) -> None:
    ids = [f"{n:016x}" for n in range(count)]
    drawn = sample_for_double_annotation(ids, share, key)
    assert drawn == sample_for_double_annotation(ids[::-1], share, key)
    assert len(drawn) == (max(1, round(share * count)) if share else 0)
