"""Figures of annotators, counted by hand."""

from pathlib import Path
from typing import Any

from tasks.data.label_store import read_labels
from tasks.reporting.people import measure_people
from tests.tasks.data.test_label_store import make_label, write_batch


def boxes(*corners: tuple[float, float, float, float], category: str = "a") -> list[dict[str, Any]]:
    return [{"category": category, "xyxy_px": list(box)} for box in corners]


FIRST, SECOND, THIRD = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)


def answer(image_id: str, annotator: str, drawn: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    status = "labeled" if drawn else "empty"
    return make_label(image_id, boxes=drawn, status=status, annotator=annotator, **changes)


def test_work_accuracy_and_agreement_of_each_annotator(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, answer("s1", "imported", boxes(FIRST, SECOND), offered_batch=0, seconds_spent=None),
                answer("s2", "imported", boxes(THIRD), offered_batch=0, seconds_spent=None))  # fmt: skip
    write_batch(
        tmp_path,
        1,
        answer("x", "ann", boxes(FIRST, SECOND), seconds_spent=60.0),
        answer("y", "bob", boxes(FIRST), seconds_spent=30.0),
        other_annotations=[answer("x", "bob", boxes(FIRST, THIRD), seconds_spent=90.0)],
        honeypots=[
            # s1: FIRST found, SECOND missed, one box too many; s2: right place, wrong class.
            answer("s1", "ann", boxes(FIRST, THIRD), is_honeypot=True, seconds_spent=30.0),
            answer("s2", "ann", boxes(THIRD, category="b"), is_honeypot=True, seconds_spent=30.0),
            answer("s1", "bob", boxes(FIRST, SECOND), is_honeypot=True, seconds_spent=None),
            make_label("s2", status="skipped", boxes=[], annotator="bob", is_honeypot=True, seconds_spent=6.0),
        ],
    )
    ann, bob = measure_people(read_labels(tmp_path))
    assert (ann.annotator, ann.answers, ann.skipped, ann.boxes, ann.minutes) == ("ann", 3, 0, 5, 2.0)
    assert (bob.annotator, bob.answers, bob.skipped, bob.boxes, bob.minutes) == ("bob", 4, 1, 5, 2.1)
    hits = ann.as_json()["honeypots"]
    # F1 = 2 * 1 / (2 * (1 + 1) + 1 + 1): one box of three is right, one has another class.
    assert hits == {"images": 2, "accuracy_f1": 0.3333, "mean_iou": 1.0, "missed_objects": 1, "extra_boxes": 1,
                    "wrong_classes": 1}  # fmt: skip
    assert bob.as_json()["honeypots"]["accuracy_f1"] == 1.0
    assert bob.honeypots.images == 1  # a skipped one is no score
    for person in (ann, bob):  # on x: FIRST in common, SECOND against THIRD
        assert person.as_json()["agreement"] == {"comparisons": 1, "f1": 0.5, "mean_iou": 1.0}


def test_a_honeypot_measures_nobody_by_their_own_label_and_follows_a_corrected_one(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, answer("s", "imported", boxes(FIRST), offered_batch=0))
    honeypots = [answer("x", "ann", boxes(SECOND), offered_batch=2, is_honeypot=True),
                 answer("s", "ann", boxes(FIRST), offered_batch=2, is_honeypot=True)]  # fmt: skip
    write_batch(tmp_path, 1, answer("x", "ann", boxes(FIRST)), other_annotations=[answer("x", "bob", boxes(FIRST))])
    write_batch(tmp_path, 2, answer("z", "bob", boxes(FIRST)), honeypots=honeypots)
    ann, _ = measure_people(read_labels(tmp_path))
    assert (ann.honeypots.images, ann.honeypots.f1, ann.answers) == (1, 1.0, 3)
    write_batch(tmp_path, 3, answer("s", "bob", boxes(THIRD), offered_batch=3, checks_batch=0))
    ann, bob = measure_people(read_labels(tmp_path))
    assert (ann.honeypots.f1, bob.honeypots.images) == (0.0, 0)


def test_the_latest_answer_to_a_honeypot_counts_and_none_is_a_label(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, answer("s", "imported", boxes(FIRST), offered_batch=0, seconds_spent=None))
    first = answer("s", "ann", boxes(SECOND), is_honeypot=True, seconds_spent=60.0)
    write_batch(tmp_path, 1, answer("x", "ann", boxes(FIRST), seconds_spent=60.0), honeypots=[first])
    corrected = answer("s", "ann", boxes(FIRST), is_honeypot=True, seconds_spent=90.0)
    write_batch(
        tmp_path, 2, answer("y", "ann", boxes(FIRST), offered_batch=2, seconds_spent=60.0), honeypots=[corrected]
    )
    store = read_labels(tmp_path)
    (ann,) = measure_people(store)
    assert (ann.honeypots.f1, ann.answers, ann.minutes) == (1.0, 3, 3.5)
    assert store.minutes_spent == 3.5
    assert store.current["s"].label.annotator == "imported"
    assert [given.annotator for given in store.all_annotations["s"]] == ["imported"]


def test_seed_labels_are_nobodys_answers(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, answer("s", "imported", boxes(FIRST), offered_batch=0))
    assert measure_people(read_labels(tmp_path)) == []
