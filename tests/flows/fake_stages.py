"""Stand-ins for the stages that need torch: ``python fake_stages.py <stage>`` writes what the contracts ask.

Nothing is learned, but everything depends on the labels, so a new batch changes every output. A file
``.gleaner/fault-<stage>`` makes a stage misbehave: ``hang`` sleeps, ``exit 2 <words>`` says them and ends so, ``die``
is killed, ``worse <class>`` (of evaluate) measures a model that has lost that class; with ``once`` before it, the
first time only.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.data.label_store import read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ANNOTATED,
    DETECTIONS,
    OUTCOMES,
    PREDICTIONS,
    SCORES,
    UNCERTAINTY,
    UNLABELED,
    with_class_names,
)
from tasks.params import load_params
from tasks.runtime.stage_main import num_micro_batches, set_pdeathsig, skip_pandas_import
from tasks.storage import files

EQUAL_WEIGHTS = {"confidence": 1 / 3, "entropy": 1 / 3, "overlap": 1 / 3}


def train(workspace: Workspace, classes: list[str]) -> None:
    summary = files.read_json(workspace.derived("assemble") / "summary.json")
    out = workspace.derived("train")
    for model in ("teacher", "student"):
        files.write_bytes(out / f"{model}.pth", f"{model} of {summary['labels']} labels".encode())
    files.write_json(
        out / "summary.json",
        {
            "iterations": 1,
            "labeled_images": summary["labeled_images"],
            "pseudo_boxes_per_image": 0.5,
            "pseudo_boxes_per_image_by_class": dict.fromkeys(classes, 0.1),
            "loss_ratio": 0.1,
        },
    )
    files.write_table(out / "curves.parquet", pa.table({"iteration": [1], "loss_sup": [0.5]}))


def evaluate(workspace: Workspace, classes: list[str]) -> None:
    """Boxes beside the true ones, the nearer the more labels there are; ``worse <class>`` loses that class."""
    from tasks.evaluation.coco_map import coco_map  # the other stages start without it

    assembled = workspace.derived("assemble")
    labels = files.read_json(assembled / "summary.json")["labels"]
    fault = workspace.root / ".gleaner" / "fault-evaluate"
    dropped_classes = fault.read_text().split()[1:] if fault.is_file() else sys.argv[3:]
    truth = files.read_table(assembled / "val.parquet", ANNOTATED)
    rows, metrics = [], {}
    for model, extra_px in (("teacher", 0.0), ("student", 0.5)):
        shift_px = max(6 - labels / 2, 0.0) + extra_px
        own = [
            _predictions(model, image, shift_px, [classes.index(name) for name in dropped_classes])
            for image in truth.to_pylist()
        ]
        metrics[model] = coco_map(truth, pa.Table.from_pylist(own, PREDICTIONS), classes)
        rows += own
    out = workspace.derived("evaluate")
    protocols: dict[str, Any] = {model: {} for model in metrics}
    files.write_json(out / "metrics.json", {**metrics, "protocols": protocols, "val_images": truth.num_rows})
    files.write_table(out / "predictions.parquet", pa.Table.from_pylist(rows, with_class_names(PREDICTIONS, classes)))


def _predictions(model: str, image: dict[str, Any], shift_px: float, dropped_classes: list[int]) -> dict[str, Any]:
    corners, labels = image["boxes_xyxy"], image["class_ids"]
    kept = [number for number, label in enumerate(labels) if label not in dropped_classes]
    boxes = [corners[4 * number : 4 * number + 4] for number in kept]
    return {
        "model": model,
        "image_id": image["image_id"],
        "boxes_xyxy": [corner for x1, y1, x2, y2 in boxes for corner in (x1 + shift_px, y1, x2 + shift_px, y2)],
        "scores": [0.9] * len(kept),
        "class_ids": [labels[number] for number in kept],
    }


def infer(workspace: Workspace, classes: list[str]) -> None:
    assembled = workspace.derived("assemble")
    images = files.read_table(assembled / "unlabeled.parquet", UNLABELED).select(["image_id"]).to_pylist()
    images += files.read_table(assembled / "calibration.parquet", ANNOTATED).select(["image_id"]).to_pylist()
    digest = files.sha256_file(workspace.derived("train") / "teacher.pth")
    rest = (1 - 0.7) / len(classes)
    rows = [
        {
            "image_id": image["image_id"],
            "boxes_xyxy": [4.0, 4.0, 20.0, 20.0],
            "scores": [0.7],
            "class_ids": [0],
            "class_probs": [0.7, *[rest] * len(classes)],
            "residual_mass": 0.25,
            "embedding": [0.0],
            "model_digest": digest,
        }
        for image in sorted(images, key=lambda image: image["image_id"])
    ]
    table = pa.Table.from_pylist(rows, schema=DETECTIONS)
    files.write_table(workspace.derived("infer") / "shard-0000.parquet", table)


def weigh(workspace: Workspace, classes: list[str]) -> None:
    out = workspace.derived("weigh")
    scores = files.read_table(workspace.derived("score") / "scores.parquet", SCORES)
    rows = [
        {
            "image_id": image_id,
            **{f"w_{name}": weight for name, weight in EQUAL_WEIGHTS.items()},
            "w_objectness_entropy": 0.0,
            "uncertainty": int(hashlib.sha256(image_id.encode()).hexdigest()[:4], 16) / 0xFFFF,
        }
        for image_id in scores["image_id"].to_pylist()
    ]
    files.write_table(out / "uncertainty.parquet", pa.Table.from_pylist(rows, schema=UNCERTAINTY))
    ones = dict.fromkeys(classes, 1.0)
    files.write_json(out / "class_weights.json", {"positive": ones, "claimed_background": ones})
    files.write_table(out / "calibration_outcomes.parquet", OUTCOMES.empty_table())
    files.write_json(out / "dwa.json", {"mode": "learned", "used": "equal", "reason": "too few pairs"})


def report(workspace: Workspace, classes: list[str]) -> None:
    from tasks.reporting.agreement import agreement_metrics  # the other stages start without them
    from tasks.reporting.history import with_stopping_advice

    summary = files.read_json(workspace.derived("assemble") / "summary.json")
    metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    all_annotations = read_labels(workspace.labels).all_annotations
    entry: dict[str, Any] = {
        **{key: summary[key] for key in ("round", "labels", "labeled_images", "boxes", "boxes_per_class")},
        "minutes_spent": summary["minutes_spent"],
        "teacher": metrics["teacher"],
        "student": metrics["student"],
        "mean_weights": EQUAL_WEIGHTS,
        "weight_quantiles": {name: [0.3, 0.33, 0.4] for name in EQUAL_WEIGHTS},
        "class_weights": {"positive": dict.fromkeys(classes, 1.0)},
        "dwa_used": False,
        "acquisition_weights": "equal",
        "spearman_dwa": None,
        "spearman_equal": 0.25,
        "agreement": agreement_metrics(read_batch(workspace.label_batch(summary["round"])), all_annotations),
    }
    history = [*files.read_json(workspace.warm_start / "history.json"), entry]
    history[-1]["annotation_cost"] = {"minutes_per_image": 1.0, "minutes_per_box": 0.0}
    history = with_stopping_advice(history, load_params(workspace.params).stopping)
    files.write_json(workspace.derived("report") / "history.json", history)
    files.write_bytes(workspace.derived("report") / "report.html", json.dumps(entry).encode())


STAGES = {"train": train, "evaluate": evaluate, "infer": infer, "weigh": weigh, "report": report}


def main(stage: str) -> None:
    set_pdeathsig()
    skip_pandas_import()
    workspace = Workspace(Path.cwd())
    fault = workspace.root / ".gleaner" / f"fault-{stage}"
    sys.stdout.write(f"{stage} is at work\n")
    sys.stdout.flush()
    if num_micro_batches() > 1:
        sys.stdout.write(f"{stage} divides its batches by {num_micro_batches()}\n")
    if fault.is_file():
        text = fault.read_text()
        if text.startswith("once "):
            fault.unlink()
        kind, *arguments = text.removeprefix("once ").split(maxsplit=2)
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(600)
        if kind == "exit":
            sys.stderr.write(arguments[1] + "\n")
            sys.exit(int(arguments[0]))
    STAGES[stage](workspace, list(load_params(workspace.params).classes))


if __name__ == "__main__":
    main(sys.argv[1])
