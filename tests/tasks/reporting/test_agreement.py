"""Agreement counted by hand, and sums that must hold whatever was drawn."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.reporting.agreement import Agreement, agreement_metrics, compare
from tasks.storage import files

A, B = "a" * 16, "b" * 16


def box(x1: float, y1: float, x2: float, y2: float, category: str = "cat") -> Box:
    return Box(category=category, xyxy_px=(x1, y1, x2, y2))


def label(annotator: str, *boxes: Box, image: str = A, preannotations: Any = None, **changes: Any) -> LabeledImage:
    annotation = LabeledImage(
        image_id=image,
        status="labeled" if boxes else "empty",
        boxes=boxes,
        annotator=annotator,
        finished_at="2026-03-01T10:00:00+00:00",
        seconds_spent=None,
        offered_batch=1,
        preannotations=preannotations,
    )
    return annotation.model_copy(update=changes)


def agreement(
    images: list[LabeledImage], others: list[LabeledImage] | None = None, earlier: list[LabeledImage] | None = None
) -> dict[str, Any]:
    batch = LabelBatch(
        batch=1,
        provider="p",
        collected_at="2026-03-02T00:00:00+00:00",
        images=tuple(images),
        other_annotations=tuple(others or ()),
    )
    all_annotations: dict[str, list[LabeledImage]] = {}
    for one in (*(earlier or []), *batch.other_annotations, *batch.images):
        all_annotations.setdefault(one.image_id, []).append(one)
    return agreement_metrics(batch, all_annotations)


PREANNOTATIONS = (box(0, 0, 10, 10), box(20, 0, 30, 10), box(40, 0, 50, 10), box(60, 0, 70, 10))
CORRECTED = (box(0, 0.2, 10, 10), box(20, 0, 30, 8), box(40, 0, 50, 10, "dog"), box(80, 0, 90, 10))


def test_what_became_of_each_predrawn_box() -> None:
    """One kept (moved by less than half a pixel), one moved, one renamed, one removed, one added."""
    found = compare(PREANNOTATIONS, CORRECTED)
    assert (found.unchanged, found.box_adjusted, found.class_changed, found.deleted, found.added) == (1, 1, 1, 1, 1)
    assert found.f1 == pytest.approx(2 * 2 / (4 + 4))  # 2 of 4 are the same on either side
    assert found.mean_iou == pytest.approx((0.98 + 0.8) / 2)


def test_by_annotator_and_together() -> None:
    news = [
        label("ann", *CORRECTED, preannotations=PREANNOTATIONS),
        label("bob", image=B, preannotations=PREANNOTATIONS[:1]),
    ]
    found = agreement(news)["with_preannotations"]
    assert set(found["annotators"]) == {"ann", "bob"}
    assert (found["annotators"]["bob"]["deleted"], found["annotators"]["bob"]["f1"]) == (1, 0.0)
    assert (found["images"], found["deleted"], found["unchanged"]) == (2, 2, 1)
    assert found["f1"] == pytest.approx(2 * 2 / (4 + 4 + 1), abs=1e-4)
    assert agreement(news)["between_annotators"]["images"] == 0


def test_what_is_unknown_or_skipped_does_not_count() -> None:
    news = [label("ann", *CORRECTED), label("bob", image=B, preannotations=PREANNOTATIONS, status="skipped")]
    found = agreement(news)
    assert found["with_preannotations"]["images"] == 0
    assert (found["with_preannotations"]["f1"], found["with_preannotations"]["annotators"]) == (None, {})


def test_two_people_on_one_image_are_compared_once_also_across_batches() -> None:
    ann, bob = label("ann", *PREANNOTATIONS), label("bob", *CORRECTED)
    within = agreement([ann], [bob])["between_annotators"]
    across = agreement([bob], earlier=[ann])["between_annotators"]
    assert within == across
    assert (within["images"], within["unchanged"] + within["box_adjusted"], within["class_changed"]) == (1, 2, 1)
    assert within["f1"] == 0.5
    assert within["annotators"]["ann"] == within["annotators"]["bob"]


def test_pairs_without_news_and_outdated_answers_do_not_count() -> None:
    old, ann, bob = (
        label("ann", *CORRECTED),
        label("ann", *PREANNOTATIONS, finished_at="2026-03-01T11:00:00+00:00"),
        label("bob"),
    )
    assert agreement([label("ann", image=B)], earlier=[old, bob])["between_annotators"]["images"] == 0
    changed = agreement([ann], earlier=[old, bob])["between_annotators"]
    assert (changed["images"], changed["deleted"] + changed["added"]) == (1, len(PREANNOTATIONS))


def test_an_answer_that_counts_again_is_not_counted_again() -> None:
    bob = label("bob", *CORRECTED, preannotations=PREANNOTATIONS)
    skip = label("ann", image=A, status="skipped")
    found = agreement([bob], [skip], earlier=[bob])
    assert found["with_preannotations"]["images"] == 0
    assert found["between_annotators"]["images"] == 0


def test_two_who_found_nothing_agree_without_a_figure() -> None:
    found = agreement([label("ann")], [label("bob")])["between_annotators"]
    assert (found["images"], found["f1"], found["mean_iou"]) == (1, None, None)


def test_of_thousands_on_one_image_each_is_compared_with_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the comparisons of boxes nor those of answers grow with the square of the number of answers."""
    answers = [label(f"annotator-{number:04d}", *PREANNOTATIONS) for number in range(2000)]
    equal_calls = 0
    equal = LabeledImage.__eq__

    def counted(self: LabeledImage, other: object) -> bool:
        nonlocal equal_calls
        equal_calls += 1
        return equal(self, other)

    monkeypatch.setattr(LabeledImage, "__eq__", counted)
    found = agreement(answers[:1], answers[1:])["between_annotators"]
    assert found["images"] == 20 * 2000 - 20 * 21 // 2  # the last 20 have 19, 18, ... 0 after them
    assert found["f1"] == 1.0
    assert len(found["annotators"]) == 2000
    assert equal_calls < 10 * len(answers)


def test_up_to_21_annotators_of_an_image_are_compared_each_with_each() -> None:
    answers = [label(f"annotator-{number:02d}", *PREANNOTATIONS) for number in range(21)]
    assert agreement(answers[:1], answers[1:])["between_annotators"]["images"] == 21 * 20 // 2


drawn = st.lists(
    st.builds(
        lambda x, y, w, h, c: box(x, y, x + w, y + h, c),
        st.floats(0, 50), st.floats(0, 50), st.floats(1, 40), st.floats(1, 40), st.sampled_from(["cat", "dog"]),
    ),
    max_size=6,
)  # fmt: skip


@given(drawn, drawn)
def test_every_box_ends_in_one_place(first: list[Box], second: list[Box]) -> None:
    found, back = compare(first, second), compare(second, first)
    assert found.unchanged + found.box_adjusted + found.class_changed + found.deleted == len(first)
    assert found.unchanged + found.box_adjusted + found.class_changed + found.added == len(second)
    assert min(vars(found).values()) >= 0
    assert (found.f1 is None) == (not first and not second)
    assert found.f1 is None or 0 <= found.f1 <= 1
    assert found.mean_iou is None or 0.5 <= found.mean_iou <= 1 + 1e-9
    assert found.iou_sum == pytest.approx(back.iou_sum)
    assert found + Agreement() == found


@given(drawn)
def test_untouched_boxes_agree_wholly(boxes: list[Box]) -> None:
    found = compare(boxes, boxes)
    assert (found.unchanged, found.box_adjusted, found.deleted, found.added) == (len(boxes), 0, 0, 0)
    assert found.f1 == (1.0 if boxes else None)


def test_figures_are_plain_json(tmp_path) -> None:
    found = agreement([label("ann", *CORRECTED, preannotations=PREANNOTATIONS)], [label("bob", *PREANNOTATIONS)])
    files.write_json(tmp_path / "figures.json", found)
    assert files.read_json(tmp_path / "figures.json") == found


def test_a_check_says_nothing_of_how_people_agree() -> None:
    """It began with the boxes of the answer it would be compared with."""
    first, check = label("ann", box(0, 0, 9, 9)), label("bob", box(0, 0, 9, 9), offered_batch=2, checks_batch=1)
    found = agreement([check], earlier=[first])
    assert found["between_annotators"]["images"] == 0
    assert found["with_preannotations"]["images"] == 0
