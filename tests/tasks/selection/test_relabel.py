"""Labels to be checked: the most doubtful that fit in their share of the budget."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.schemas import RELABEL
from tasks.evaluation.label_check import DoubtfulLabel
from tasks.params.stages import BudgetParams
from tasks.selection.annotation_cost import AnnotationCost
from tasks.selection.relabel import pick_relabels, reason_in_words

COST = AnnotationCost(0.2, 0.5, True, 20, 0, "fitted")


def doubt(image_id: str, kind: Any = "swapped", strength: float = 0.5) -> DoubtfulLabel:
    return DoubtfulLabel(image_id, 3, strength, kind, "cat", (1.2, 2.6, 9.4, 8.5), True)


def budget(unit: Any, amount: float, relabel_frac: float) -> BudgetParams:
    return BudgetParams(
        unit=unit, amount=amount, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=20,
        relabel_frac=relabel_frac,
    )  # fmt: skip


@given(
    st.lists(st.integers(0, 12), max_size=20),
    st.sets(st.integers(0, 19)),
    st.sampled_from(["images", "boxes", "minutes"]),
    st.floats(1, 40),
    st.floats(0, 0.99),
)
def test_the_most_doubtful_that_fit_and_never_more_than_their_share(
    num_boxes: list[int], left_out: set[int], unit: str, amount: float, relabel_frac: float
) -> None:
    boxes = {str(number): boxes for number, boxes in enumerate(num_boxes)}
    outside = {str(number) for number in left_out}
    picked = pick_relabels([doubt(i) for i in boxes], boxes, outside, COST, budget(unit, amount, relabel_frac))
    ids = [label.image_id for label in picked.labels]
    cost = {
        "images": dict.fromkeys(boxes, 1.0),
        "boxes": {i: max(count, 1.0) for i, count in boxes.items()},
        "minutes": {i: 0.2 + 0.5 * count for i, count in boxes.items()},
    }[unit]
    assert picked.spent == pytest.approx(sum(cost[i] for i in ids))
    assert picked.spent <= relabel_frac * amount + 1e-6
    assert not outside & set(ids)
    assert ids == [i for i in boxes if i in ids]  # in the order of doubt
    rest = relabel_frac * amount - picked.spent
    last = int(ids[-1]) if ids else -1
    assert all(cost[i] > rest - 1e-6 for i in boxes if i not in outside and int(i) > last)


def test_a_share_of_nothing_checks_nothing() -> None:
    assert pick_relabels([doubt("a")], {"a": 0}, (), COST, budget("images", 24, 0.0)).labels == []


def test_a_box_that_may_be_missing_costs_as_one() -> None:
    picked = pick_relabels([doubt("a", "missing")], {"a": 2}, (), COST, budget("boxes", 30, 0.1))
    assert (picked.spent, picked.minutes) == (3.0, {"a": pytest.approx(1.7)})


def test_rows_stand_behind_the_selection() -> None:
    table = pick_relabels([doubt("a"), doubt("b")], {"a": 1, "b": 1}, (), COST, budget("images", 20, 0.1)).as_table(7)
    assert table.schema.equals(RELABEL)
    assert [(row["image_id"], row["rank"], row["batch"]) for row in table.to_pylist()] == [("a", 7, 3), ("b", 8, 3)]


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("missing", "a cat at (1, 3) to (9, 8) may not be labeled"),
        ("misplaced", "the box of a cat at (1, 3) to (9, 8) may be badly placed"),
        ("swapped", "the box at (1, 3) to (9, 8) may show a cat"),
    ],
)
def test_the_reason_asks_a_question(kind: str, question: str) -> None:
    reason = reason_in_words(doubt("a", kind))
    assert reason.startswith(f"check of the label of batch 3: {question} (doubt 0.50)")
    assert ("would add" in reason) == (kind == "missing")
