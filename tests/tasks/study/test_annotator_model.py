import math
from pathlib import Path

import numpy as np
import pytest

from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Box
from tasks.params import load_params
from tasks.params.annotation import AnnotatorModelParams
from tasks.storage import files
from tasks.study.annotator_model import AnnotatorActions, count_actions, draw_seconds, mean_seconds, seconds_per_action
from tasks.study.fit_annotator_model import TimedAnswer, fit_annotator_model, timed_answers

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml").annotator_model


def box(x1: float, *, category: str = "a", side: float = 10) -> Box:
    return Box(category=category, xyxy_px=(x1, 0, x1 + side, 10))


def with_spread(log_std: float) -> AnnotatorModelParams:
    return PARAMS.model_copy(update={"log_std": log_std})


def test_every_kind_of_action_is_counted_once() -> None:
    predrawn = [box(0), box(101), box(203), box(300, category="b"), box(400), box(500)]
    true_boxes = [
        box(0),  # IoU 1: kept
        box(100),  # IoU 9/11 = 0.818: kept
        box(200),  # IoU 7/13 = 0.538: moved
        box(300),  # IoU 1, another class: kept, class changed
        box(600),  # drawn
    ]
    assert count_actions(predrawn, true_boxes, keep_iou=0.8) == AnnotatorActions(
        images=1, drawn=1, kept=3, moved=1, deleted=2, class_changed=1
    )


def test_the_seconds_are_the_written_out_sum() -> None:
    actions = AnnotatorActions(images=1, drawn=2, kept=3, moved=1, deleted=2, class_changed=1)
    expected = 7.8 + 2 * 25.5 + 3 * 1.6 + 10.0 + 2 * 2.6 + 3.0
    assert mean_seconds(actions, PARAMS) == pytest.approx(expected)
    assert draw_seconds(actions, with_spread(0), seed=1, image_id="x") == pytest.approx(expected)


def test_without_predrawn_boxes_every_box_is_drawn() -> None:
    assert count_actions([], [box(0), box(100)], 0.8) == AnnotatorActions(1, 2, 0, 0, 0, 0)
    assert count_actions([box(0), box(1)], [], 0.8) == AnnotatorActions(1, 0, 0, 0, 2, 0)
    assert mean_seconds(count_actions([], [], 0.8), PARAMS) == 7.8


def test_two_predrawn_boxes_of_one_object_cost_a_deletion() -> None:
    assert count_actions([box(0), box(1)], [box(0)], 0.8) == AnnotatorActions(1, 0, 1, 0, 1, 0)


def test_times_are_lognormal_around_the_mean_and_follow_from_seed_and_image() -> None:
    actions, params = AnnotatorActions(1, 1, 0, 0, 0, 0), with_spread(0.4)
    mean = mean_seconds(actions, params)
    drawn = np.array([draw_seconds(actions, params, seed=1, image_id=str(n)) for n in range(4000)])
    assert drawn.mean() == pytest.approx(mean, rel=4 * math.sqrt(math.expm1(0.16) / 4000))
    logs = np.log(drawn / mean)
    assert logs.std() == pytest.approx(0.4, rel=0.05)
    assert logs.mean() == pytest.approx(-0.08, abs=4 * 0.4 / math.sqrt(4000))
    assert draw_seconds(actions, params, seed=1, image_id="7") == drawn[7]
    assert draw_seconds(actions, params, seed=2, image_id="7") != drawn[7]


def test_arms_share_the_luck_of_an_image() -> None:
    """Whatever boxes an arm hands out: the ratio of time to mean is that of the seed and the image."""
    few, many = AnnotatorActions(1, 0, 1, 0, 0, 0), AnnotatorActions(1, 5, 0, 0, 3, 0)
    ratios = [draw_seconds(a, PARAMS, seed=4, image_id="i") / mean_seconds(a, PARAMS) for a in (few, many)]
    assert ratios[0] == pytest.approx(ratios[1])


def planted_answers(count: int, truth: AnnotatorModelParams, *, with_drawing: bool = True) -> list[TimedAnswer]:
    rng = np.random.default_rng(5)
    answers = []
    for number in range(count):
        drawn, kept, moved, deleted = (int(n) for n in rng.integers(0, 6, size=4))
        actions = AnnotatorActions(
            1, drawn if with_drawing else 0, kept, moved, deleted, int(rng.integers(0, kept + 1))
        )
        answers.append(TimedAnswer(actions, draw_seconds(actions, truth, seed=1, image_id=str(number))))
    return answers


def test_the_fit_finds_the_planted_seconds() -> None:
    truth = PARAMS.model_copy(
        update={
            "seconds_per_image": 15.0,
            "seconds_per_drawn_box": 7.0,
            "seconds_per_kept_box": 4.0,
            "seconds_per_moved_box": 5.0,
            "seconds_per_deleted_box": 6.0,
            "seconds_per_class_change": 9.0,
            "log_std": 0.2,
        }
    )
    fitted = fit_annotator_model(planted_answers(1500, truth), PARAMS)
    for found, expected in zip(seconds_per_action(fitted), seconds_per_action(truth), strict=True):
        assert found == pytest.approx(expected, rel=0.15)
    assert fitted.log_std == pytest.approx(0.2, abs=0.03)
    assert fitted.keep_iou == PARAMS.keep_iou


def test_what_no_answer_shows_stays_as_params_say() -> None:
    assert fit_annotator_model([], PARAMS) == PARAMS
    truth = with_spread(0.1).model_copy(update={"seconds_per_kept_box": 5.0})
    fitted = fit_annotator_model(planted_answers(300, truth, with_drawing=False), PARAMS)
    assert fitted.seconds_per_drawn_box == PARAMS.seconds_per_drawn_box
    assert fitted.seconds_per_kept_box == pytest.approx(5.0, rel=0.15)


def test_a_clock_that_ran_on_is_left_out() -> None:
    answers = planted_answers(200, with_spread(0.1))
    forgotten = [TimedAnswer(answers[0].actions, 36_000.0)]
    assert fit_annotator_model([*answers, *forgotten], PARAMS) == fit_annotator_model(answers, PARAMS)


def test_answers_are_compared_with_the_boxes_that_were_handed_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    task = {"uri": "x", "width_px": 900, "height_px": 10, "rank": 1, "reason": "", "uncertainty": 0.5}
    predictions = [{"category": "a", "xyxy_px": [0, 0, 10, 10], "score": 0.9}]
    line = AnnotationTask.model_validate({**task, "image_id": "i", "predictions": predictions, "model_digest": "m"})
    files.write_bytes(workspace.delivery(1) / "manifest.jsonl", (line.model_dump_json() + "\n").encode())
    answer = {"status": "labeled", "annotator": "p", "finished_at": "2026-01-01T00:00:00+00:00"}
    true_boxes = [box(0).model_dump(), box(100).model_dump()]
    for batch, image, seconds in ((0, "seed", None), (1, "i", 30.0)):
        image_answer = {**answer, "image_id": image, "boxes": true_boxes, "seconds_spent": seconds}
        images = [image_answer | {"offered_batch": batch}]
        document = {"batch": batch, "provider": "p", "collected_at": answer["finished_at"], "images": images}
        files.write_json(workspace.label_batch(batch), document)
    assert timed_answers(workspace, 0.8) == [TimedAnswer(AnnotatorActions(1, 1, 1, 0, 0, 0), 30.0)]
