"""Fit the seconds of the annotator model to the measured answers of a campaign (docs/method.md#annotator-model).

``python -m tasks.study.fit_annotator_model`` in a workspace prints the section ``annotator_model`` for ``params.yaml``.
"""

import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Box
from tasks.params import load_stage_params
from tasks.params.annotation import AnnotatorModelParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files
from tasks.study.annotator_model import AnnotatorActions, count_actions, seconds_per_action

_PRIOR_RELATIVE_STD = 1.0  # how far, in multiples of itself, a value of params.yaml may well be off
_MAX_RATIO = 10.0  # an answer that took ten times what was expected: the clock was left running
_MIN_ANSWERS_FOR_SPREAD = 10
_DIGITS = 2
_NAMES = (
    "seconds_per_image",
    "seconds_per_drawn_box",
    "seconds_per_kept_box",
    "seconds_per_moved_box",
    "seconds_per_deleted_box",
    "seconds_per_class_change",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TimedAnswer:
    """What was done on an image, and how long it took."""

    actions: AnnotatorActions
    seconds: float


def fit_annotator_model(answers: Sequence[TimedAnswer], prior: AnnotatorModelParams) -> AnnotatorModelParams:
    """Return the model that the answers and ``prior`` together make most probable.

    Least squares of relative errors with coefficients that are not negative; each prior value counts as one more
    observation with a relative standard deviation of 1. What no answer shows stays as it is. Answers that took more
    than ten times what the prior expects are left out. The spread is that of the logarithms of time over fitted mean,
    from 10 answers on.
    """
    prior_A = np.array(seconds_per_action(prior))
    actions_NA = np.array([astuple(answer.actions) for answer in answers], dtype=np.float64).reshape(-1, len(prior_A))
    seconds_N = np.array([answer.seconds for answer in answers], dtype=np.float64)
    plausible_N = seconds_N <= _MAX_RATIO * np.maximum(actions_NA @ prior_A, 1.0)
    actions_NA, seconds_N = actions_NA[plausible_N], seconds_N[plausible_N]
    fitted_A = prior_A
    for _ in range(3):  # the errors grow with the mean, which is fitted
        fitted_A = _weighted_fit(actions_NA, seconds_N, fitted_A, prior_A, prior.log_std)
    log_std = prior.log_std
    if len(seconds_N) >= _MIN_ANSWERS_FOR_SPREAD:
        log_std = float(np.std(np.log(seconds_N / np.maximum(actions_NA @ fitted_A, 1e-6)), ddof=1))
    values = dict(zip(_NAMES, (round(float(value), _DIGITS) for value in fitted_A), strict=True))
    return prior.model_copy(update={**values, "log_std": round(log_std, _DIGITS)})


def _weighted_fit(actions_NA: Floats, seconds_N: Floats, current_A: Floats, prior_A: Floats, log_std: float) -> Floats:
    mean_N = np.maximum(actions_NA @ current_A, 1.0)
    scale_N = 1 / (mean_N * max(log_std, 0.1))
    scale_A = 1 / (np.maximum(prior_A, 0.1) * _PRIOR_RELATIVE_STD)
    rows = np.vstack([actions_NA * scale_N[:, None], np.diag(scale_A)])
    values = np.concatenate([seconds_N * scale_N, prior_A * scale_A])
    return np.asarray(lsq_linear(rows, values, bounds=(0.0, np.inf), method="bvls").x)


def timed_answers(workspace: Workspace, keep_iou: float) -> list[TimedAnswer]:
    """Return every answer with a measured time to an image that was handed out.

    Raises:
        UserError: a label batch is unreadable.
    """
    found: list[TimedAnswer] = []
    predrawn = _predrawn_boxes(workspace)
    for image_id, answers in read_labels(workspace.labels).all_annotations.items():
        latest = {(answer.offered_batch, answer.annotator): answer for answer in answers}
        for (batch, _), answer in latest.items():
            boxes = predrawn.get((batch, image_id))
            if boxes is not None and answer.status != "skipped" and answer.seconds_spent:
                found.append(TimedAnswer(count_actions(boxes, answer.boxes, keep_iou), answer.seconds_spent))
    return found


def _predrawn_boxes(workspace: Workspace) -> dict[tuple[int, str], list[Box]]:
    """Boxes that annotators found, by batch and image: of the manifest, or those that replaced them."""
    boxes: dict[tuple[int, str], list[Box]] = {}
    folders = sorted((workspace.root / "deliveries").glob("batch-[0-9]*"))
    written = [folder / name for folder in folders for name in ("manifest.jsonl", "refreshed.jsonl")]
    for path in filter(Path.is_file, written):
        batch = int(path.parent.name.removeprefix("batch-"))
        for line in files.json_lines(path.read_bytes()):
            task = AnnotationTask.model_validate_json(line)
            boxes[batch, task.image_id] = [Box(category=p.category, xyxy_px=p.xyxy_px) for p in task.predictions]
    return boxes


def _body(workspace: Workspace) -> None:
    prior = load_stage_params(workspace.params, "annotator_model").annotator_model
    answers = timed_answers(workspace, prior.keep_iou)
    fitted = fit_annotator_model(answers, prior)
    document = yaml.safe_dump({"annotator_model": fitted.model_dump()}, sort_keys=False)
    sys.stdout.write(f"# {len(answers)} answers with a measured time\n{document}")


def main() -> None:
    """``python -m tasks.study.fit_annotator_model``."""
    stage_main("fit_annotator_model", _body)


if __name__ == "__main__":
    main()
