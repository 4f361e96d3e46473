"""Replay automatic labels on the stored detections of one round: draw calibration images, accept, audit, many times.

The campaign was made with ``gleaner init --oracle`` and its stage ``infer`` has run; the labels that its simulated
annotator would give are the truth. Nothing is trained again: seeds differ in the images that are drawn.
Run: ``python -m tasks.study.autolabel_replay CAMPAIGN --calibration 60``
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.autolabel.acceptance import accept
from tasks.autolabel.evidence import Bools, Evidence, JudgedBoxes, judge, read_found_boxes, read_validation
from tasks.data.annotations import marked_boxes
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED
from tasks.evaluation.risk_control import Interval, exact_interval
from tasks.params import Params, load_params
from tasks.params.autolabel import AutolabelParams
from tasks.storage import files


@dataclass(frozen=True)
class Replayed:
    """One seed: what was accepted, what is true of it, and what an audit of it finds."""

    seed: int
    accepted_boxes: int
    accepted_boxes_frac: float
    true_precision: float | None
    """Of all accepted boxes; None where there is none."""
    class_precisions: tuple[float, ...]
    """Of the classes of which any was accepted."""
    boxes: Interval
    """Right ones among the drawn boxes."""
    whole_images: int
    true_right_images_frac: float | None
    images: Interval
    people_images_frac: float
    """Labeled for training and calibration, of these and the images accepted whole."""
    minutes_saved: float
    """By whole images, and by boxes in other images, at the minutes of params.yaml (docs/method.md#eq-23)."""


def read_judged(workspace: Workspace, params: Params) -> JudgedBoxes:
    """Read the detections of all images that the model was not trained on and whose labels are known, compared.

    Those are the images that only the oracle knows, and the calibration images.

    Raises:
        UserError: the campaign has no oracle, or no detections.
    """
    calibration = workspace.derived("assemble") / "calibration.parquet"
    trained_on = set(read_labels(workspace.labels).current)
    rows = [row for path in (workspace.oracle, calibration) for row in files.read_table(path, ANNOTATED).to_pylist()]
    truth = {row["image_id"]: marked_boxes(row) for row in rows if row["image_id"] not in trained_on}
    found = read_found_boxes(workspace.derived("infer"))
    return judge(found.subset(pd.Index(found.image_ids).isin(truth.keys())), truth, params.autolabel.box_iou)


def replay(
    judged: JudgedBoxes,
    validation: JudgedBoxes,
    params: Params,
    *,
    num_calibration: int,
    num_trained: int,
    seeds: Sequence[int],
) -> Iterator[Replayed]:
    """Draw calibration images anew with each seed; the other images are the pool.

    Args:
        judged: images that the model was not trained on.
        validation: which plan the tests.
        params: all sections.
        num_calibration: images that are drawn.
        num_trained: labeled images that the model was trained on.
        seeds: one draw each.
    """
    for seed in seeds:
        rng = np.random.default_rng(seed)
        is_sample = np.zeros(len(judged.found), dtype=bool)
        is_sample[rng.permutation(len(is_sample))[:num_calibration]] = True
        sample, pool = judged.subset(is_sample), judged.subset(~is_sample)
        nothing = pool.found.subset(np.zeros(len(pool.found), dtype=bool))
        evidence = Evidence(pool.found, sample, nothing, 0, num_calibration, validation)
        found = accept(evidence, params.autolabel, params.classes)
        accepted_B, whole_P = found.is_box_accepted, found.is_image_accepted
        right_P = pool.is_image_right(found.is_box_kept)
        own = params.autolabel
        in_others_B = accepted_B & ~whole_P[pool.found.image_of_box]
        scores = np.bincount(pool.found.image_of_box, weights=pool.found.scores, minlength=len(pool.found))
        cost = params.budget
        saved = (cost.minutes_per_image + cost.minutes_per_box * scores[whole_P]).sum()
        num_people = num_trained + num_calibration
        classes = pool.found.class_ids[accepted_B]
        yield Replayed(
            seed=seed,
            accepted_boxes=int(accepted_B.sum()),
            accepted_boxes_frac=float(accepted_B.mean()),
            true_precision=_mean(pool.is_right[accepted_B]),
            class_precisions=tuple(
                float(pool.is_right[accepted_B][classes == index].mean()) for index in np.unique(classes)
            ),
            boxes=_audit(pool.is_right[accepted_B], own.audit_boxes, own, rng),
            whole_images=int(whole_P.sum()),
            true_right_images_frac=_mean(right_P[whole_P]),
            images=_audit(right_P[whole_P], own.audit_images, own, rng),
            people_images_frac=num_people / (num_people + int(whole_P.sum())),
            minutes_saved=float(saved + cost.minutes_per_box * in_others_B.sum()),
        )


def _mean(values: Bools) -> float | None:
    return float(values.mean()) if len(values) else None


def _audit(is_right: Bools, size: int, params: AutolabelParams, rng: np.random.Generator) -> Interval:
    drawn = is_right[rng.permutation(len(is_right))[:size]]
    return exact_interval(int(drawn.sum()), len(drawn), params.audit_confidence_level)


def markdown(results: Sequence[Replayed], params: AutolabelParams) -> str:
    """Format the seeds as a table, and count them in sentences."""
    lines = [
        "| seed | boxes accepted | true precision | audit | whole images | right | audit | by people | minutes saved |"
    ]
    lines.append("| --- " * 9 + "|")
    for one in results:
        lines.append(
            f"| {one.seed} | {one.accepted_boxes} ({100 * one.accepted_boxes_frac:.0f} %) | "
            f"{_percent(one.true_precision)} | {_interval(one.boxes)} | {one.whole_images} | "
            f"{_percent(one.true_right_images_frac)} | {_interval(one.images)} | "
            f"{100 * one.people_images_frac:.0f} % | {one.minutes_saved:.0f} |"
        )
    return "\n".join([*lines, "", *_sentences(results, params)]) + "\n"


def _sentences(results: Sequence[Replayed], params: AutolabelParams) -> Iterator[str]:
    promises = (
        ("boxes", params.wanted_precision, [(one.boxes, one.true_precision) for one in results]),
        (
            "whole images",
            1 - params.max_wrong_images_frac,
            [(one.images, one.true_right_images_frac) for one in results],
        ),
    )
    for name, promised, pairs in promises:
        checked: list[tuple[Interval, float]] = [(found, true) for found, true in pairs if true is not None]
        kept = sum(true >= promised for _, true in checked)
        inside = sum(found.low <= promised <= found.high for found, _ in checked)
        refuted = sum(found.high < promised for found, _ in checked)
        yield (
            f"- {name.capitalize()}: accepted in {len(checked)} of {len(results)} seeds; the promise ({promised:.2f}) "
            f"is true in {kept}; it lies inside the audit's interval in {inside}, above the whole interval in "
            f"{refuted}, below it in {len(checked) - inside - refuted}."
        )
    by_class: list[Any] = [precision for one in results for precision in one.class_precisions]
    true = sum(precision >= params.wanted_precision for precision in by_class)
    yield f"- Single classes: the promise is true in {true} of {len(by_class)} cases."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _interval(found: Interval) -> str:
    if not found.num_all:
        return "–"
    return f"{found.num_right} of {found.num_all}: {100 * found.low:.0f} to {100 * found.high:.0f} %"


def main() -> None:
    """Print the table of a campaign, for each number of calibration images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--calibration", type=int, nargs="+", default=[60], help="Images drawn for calibration.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--precision", type=float, default=None, help="autolabel.wanted_precision.")
    arguments = parser.parse_args()
    workspace = Workspace(arguments.campaign)
    params = load_params(workspace.params)
    if arguments.precision is not None:
        own = params.autolabel.model_copy(update={"wanted_precision": arguments.precision})
        params = params.model_copy(update={"autolabel": own})
    judged = read_judged(workspace, params)
    threshold = params.infer.score_threshold
    validation = read_validation(workspace, min_iou=params.autolabel.box_iou, score_threshold=threshold)
    trained = files.read_table(workspace.derived("assemble") / "labeled.parquet", ANNOTATED, columns=["image_id"])
    for count in arguments.calibration:
        seeds = range(1, arguments.seeds + 1)
        results = list(
            replay(judged, validation, params, num_calibration=count, num_trained=trained.num_rows, seeds=seeds)
        )
        title = f"## {workspace.root.name}: {count} calibration images of {len(judged.found)}"
        sys.stdout.write(f"{title}\n\n{markdown(results, params.autolabel)}\n")


if __name__ == "__main__":
    main()
