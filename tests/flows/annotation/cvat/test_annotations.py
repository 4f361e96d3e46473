"""Annotations of CVAT become answers; what is odd in them is named and reaches the quarantine, image by image."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.annotation_rules import read_validation_context
from flows.annotation.providers.cvat_annotations import (
    ABOUT,
    SKIP,
    Frame,
    Label,
    label_specs,
    labels_problem,
    parse_image,
)
from flows.annotation.validation import validate_batch
from tasks.params import load_params
from tests.flows.annotation.cvat.conftest import Team
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES
from tests.flows.small_campaign import REPOSITORY

LABELS = (
    Label(1, "cup", "rectangle", {"score": 11, "note": 12}),
    Label(2, "unicorn", "any", {}),
    Label(3, SKIP, "tag", {}),
    Label(4, ABOUT, "tag", {"about": 13, "teacher": 14}),
)
FRAME = Frame(5, "0123456789abcdef", 320, 240)
Shape = dict[str, Any]


def shape(*points: float, **changes: Any) -> Shape:
    return {"type": "rectangle", "label_id": 1, "frame": 5, "points": list(points), "rotation": 0.0, **changes}


def parse(**annotations: Any) -> Mapping[str, Any]:
    return parse_image(annotations, FRAME, LABELS, annotator="ann", finished_at="2026-03-01T00:00:00+00:00")


def test_boxes_of_the_frame_alone_are_read() -> None:
    raw = parse(shapes=[shape(1, 2.00049, 30, 40), shape(9, 9, 20, 20, frame=4)], tags=[], tracks=[])
    assert raw["boxes"] == [{"category": "cup", "xyxy_px": [1.0, 2.0, 30.0, 40.0], "shape": "box"}]
    assert (raw["status"], raw["image_id"], raw["annotator"]) == ("labeled", FRAME.image_id, "ann")
    assert raw["seconds_spent"] is None
    assert "problem" not in raw


@pytest.mark.parametrize(
    ("drawn", "kind", "corners"),
    [
        (shape(10, 20, 30, 40, rotation=90.0), "box", [10, 20, 30, 40]),
        (shape(10, 20, 50, 40, rotation=90.0), "box", [20, 10, 40, 50]),
        (shape(10, 20, 50, 40, rotation=30.0), "rotated", None),
        (shape(1, 1, 9, 1, 9, 9, 1, 9, type="polygon"), "box", [1, 1, 9, 9]),
        (shape(1, 1, 9, 1, 5, 9, type="polygon"), "polygon", [1, 1, 9, 9]),
        (shape(50, 40, 60, 35, type="ellipse"), "ellipse", [40, 35, 60, 45]),
        (shape(0, 4, 0, 7, 8, 8, 9, type="mask"), "rle", [7, 8, 9, 10]),
    ],
)
def test_other_shapes_are_what_they_are(drawn: Shape, kind: str, corners: list[float] | None) -> None:
    (box,) = parse(shapes=[drawn])["boxes"]
    assert box["shape"] == kind
    assert corners is None or box["xyxy_px"] == corners


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({"shapes": [shape(1, 2, 3)]}, "the points of a rectangle are"),
        ({"shapes": [shape(1, 2, 3, float("nan"))]}, "the points of a rectangle are"),
        ({"shapes": [shape(1, 2, 3, 4, points=None)]}, "the points of a rectangle are None"),
        ({"shapes": [shape(1, 2, 3, 4, rotation="north")]}, "rotation is 'north'"),
        ({"shapes": [shape(1, 2, 3, 4, label_id=99)]}, "the label is number 99"),
        ({"shapes": [shape(1, 2, 3, 4, label_id=None)]}, "the label is number None"),
        ({"shapes": [shape(1, 2, type="points")]}, "the shape is 'points'"),
        ({"shapes": [shape(1, 2, 3, 4, type="skeleton")]}, "the shape is 'skeleton'"),
        ({"shapes": [shape(1, 2, 3, 4, type="polygon")]}, "the points of a polygon are"),
        ({"shapes": ["a shape"]}, r"shapes\[0\] of the job is 'a shape'"),
        ({"shapes": {"0": 1}}, "shapes of the job is"),
        ({"shapes": [shape(1, 2, 3, 4, frame=None)]}, "with the number of a frame"),
        ({"tracks": [{"frame": 3, "label_id": 1, "shapes": []}]}, "a track over several images"),
    ],
)
def test_what_is_odd_is_a_problem_of_the_image(annotations: dict[str, Any], problem: str) -> None:
    assert re.search(problem, parse(**annotations)["problem"])


def test_a_later_track_and_the_annotations_of_other_images_are_no_problem() -> None:
    raw = parse(tracks=[{"frame": 6, "label_id": 1}], shapes=[shape(1, frame=7)], tags=[{"frame": 7, "label_id": 3}])
    assert (raw["status"], "problem" in raw) == ("empty", False)


def test_tags_that_are_not_ours_do_not_matter() -> None:
    raw = parse(tags=[{"frame": 5, "label_id": 4}, {"frame": 5, "label_id": 77}, {"frame": 5, "label_id": "x"}])
    assert (raw["status"], "problem" in raw) == ("empty", False)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["shapes", "tags", "tracks", "frame", "label_id", "type", "points", "rotation"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_anything_is_an_answer_or_a_problem(content: Any) -> None:
    annotations = content if isinstance(content, dict) else {"shapes": content}
    raw = parse_image(annotations, FRAME, LABELS, annotator="ann", finished_at="2026-03-01T00:00:00+00:00")
    assert raw["image_id"] == FRAME.image_id
    assert ("problem" in raw) or raw["status"] in ("labeled", "empty", "skipped")


def test_labels_of_a_project_may_be_added_but_not_be_missing() -> None:
    specs = label_specs(["cup", "fork"])
    labels = [Label(n, spec["name"], spec["type"], {}) for n, spec in enumerate(specs)]
    assert labels_problem([*labels, Label(9, "unicorn", "polygon", {})], ["cup", "fork"]) is None
    assert "lack 'knife'" in str(labels_problem(labels, ["cup", "knife"]))
    assert f"lack {SKIP!r}" in str(labels_problem([one for one in labels if one.name != SKIP], ["cup"]))
    as_polygon = [Label(0, "cup", "polygon", {}), *labels[1:]]
    assert "lack 'cup'" in str(labels_problem(as_polygon, ["cup"]))


def test_poison_is_quarantined_and_the_other_answers_are_labels(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(6)))
    good, unknown, outside, turned, polygon, track = delivery.image_ids
    cup = CLASSES[0]
    (project,) = team.fake.projects.values()
    project.labels.append({"id": 999, "name": "unicorn", "type": "rectangle", "attributes": []})
    team.fake.draw(good, (cup, BOXES[0]))
    team.fake.draw(unknown, ("unicorn", BOXES[0]))
    team.fake.draw(outside, (cup, (250.0, 30.0, 400.0, 120.0)))
    team.fake.draw(turned, (cup, BOXES[0]), rotation=30.0)
    team.fake.draw(polygon, (cup, (1.0, 1.0, 50.0, 1.0, 20.0, 70.0)), type="polygon")
    for image_id in (good, outside, polygon):
        team.fake.finish(image_id)
    job, frame = team.fake.job_of(track)
    job.annotations["tracks"] = [{"frame": frame, "label_id": team.fake.label(job, cup), "shapes": []}]
    params = load_params(REPOSITORY / "params.yaml").model_copy(update={"classes": list(CLASSES)})
    context = read_validation_context(team.workspace, params, delivery, datetime.now(UTC), frozenset())
    validated = validate_batch(team.provider.collect(delivery), context, {})
    assert [label.image_id for label in validated.primary] == [good]
    reasons = {entry.quarantined.item.split()[-1]: entry.quarantined.reason for entry in validated.rejections}
    assert "class is 'unicorn'" in reasons[unknown]
    assert "inside the image" in reasons[outside]
    assert "a rotated box" in reasons[turned]
    assert "a polygon" in reasons[polygon]
    assert "a track" in reasons[track]
