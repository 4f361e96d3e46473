"""Stand-ins for the stages that need torch: ``python fake_stages.py <stage>`` writes what the contracts ask.

Nothing is learned, but everything depends on the labels, so a new batch changes every output. A file
``.gleaner/trouble-<stage>`` makes a stage misbehave: ``hang`` sleeps, ``exit 2 <words>`` says them and ends so, ``die``
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

from tasks import files
from tasks.coco_map import coco_map
from tasks.contracts import ANNOTATED, DETECTIONS, PREDICTIONS, SCORES, UNLABELED, WEIGHTS
from tasks.entry import batch_divisor, die_with_parent
from tasks.label_store import read_batch, read_labels
from tasks.params import load_params
from tasks.paths import Workspace
from tasks.reporting.agreement import agreement_figures

EQUAL = {"confidence": 1 / 3, "entropy": 1 / 3, "overlap": 1 / 3}


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
    assembled = workspace.derived("assemble")
    labels = files.read_json(assembled / "summary.json")["labels"]
    trouble = workspace.root / ".gleaner" / "trouble-evaluate"
    lost = trouble.read_text().split()[1:] if trouble.is_file() else sys.argv[3:]
    truth = files.read_table(assembled / "val.parquet", ANNOTATED)
    rows, metrics = [], {}
    for model, extra_px in (("teacher", 0.0), ("student", 0.5)):
        shift_px = max(6 - labels / 2, 0.0) + extra_px
        own = [
            _predictions(model, image, shift_px, [classes.index(name) for name in lost]) for image in truth.to_pylist()
        ]
        metrics[model] = coco_map(truth, pa.Table.from_pylist(own, PREDICTIONS), classes)
        rows += own
    out = workspace.derived("evaluate")
    files.write_json(out / "metrics.json", {**metrics, "val_images": truth.num_rows})
    files.write_table(out / "predictions.parquet", pa.Table.from_pylist(rows, PREDICTIONS))


def _predictions(model: str, image: dict[str, Any], shift_px: float, lost: list[int]) -> dict[str, Any]:
    corners, labels = image["boxes_xyxy"], image["classes"]
    kept = [number for number, label in enumerate(labels) if label not in lost]
    boxes = [corners[4 * number : 4 * number + 4] for number in kept]
    return {
        "model": model,
        "image_id": image["image_id"],
        "boxes_xyxy": [corner for x1, y1, x2, y2 in boxes for corner in (x1 + shift_px, y1, x2 + shift_px, y2)],
        "scores": [0.9] * len(kept),
        "labels": [labels[number] for number in kept],
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
            "labels": [0],
            "posteriors": [0.7, *[rest] * len(classes)],
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
            **{f"w_{name}": weight for name, weight in EQUAL.items()},
            "uncertainty": int(hashlib.sha256(image_id.encode()).hexdigest()[:4], 16) / 0xFFFF,
        }
        for image_id in scores["image_id"].to_pylist()
    ]
    files.write_table(out / "weights.parquet", pa.Table.from_pylist(rows, schema=WEIGHTS))
    files.write_json(out / "class_weights.json", dict.fromkeys(classes, 1.0))
    files.write_json(out / "dwa.json", {"mode": "learned", "used": "equal", "why": "too few pairs"})


def report(workspace: Workspace, classes: list[str]) -> None:
    summary = files.read_json(workspace.derived("assemble") / "summary.json")
    metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    given = read_labels(workspace.labels).given
    entry: dict[str, Any] = {
        **{key: summary[key] for key in ("round", "labels", "labeled_images", "boxes", "boxes_per_class")},
        "minutes_spent": None,
        "teacher": metrics["teacher"],
        "student": metrics["student"],
        "mean_weights": EQUAL,
        "weight_quantiles": {name: [0.3, 0.33, 0.4] for name in EQUAL},
        "class_weights": dict.fromkeys(classes, 1.0),
        "dwa_used": False,
        "weights_used": "equal",
        "spearman_dwa": None,
        "spearman_equal": 0.25,
        "agreement": agreement_figures(read_batch(workspace.label_batch(summary["round"])), given),
    }
    history = [*files.read_json(workspace.previous / "history.json"), entry]
    files.write_json(workspace.derived("report") / "history.json", history)
    files.write_bytes(workspace.derived("report") / "report.html", json.dumps(entry).encode())


STAGES = {"train": train, "evaluate": evaluate, "infer": infer, "weigh": weigh, "report": report}


def main(stage: str) -> None:
    die_with_parent()
    workspace = Workspace(Path.cwd())
    trouble = workspace.root / ".gleaner" / f"trouble-{stage}"
    sys.stdout.write(f"{stage} is at work\n")
    sys.stdout.flush()
    if batch_divisor() > 1:
        sys.stdout.write(f"{stage} divides its batches by {batch_divisor()}\n")
    if trouble.is_file():
        text = trouble.read_text()
        if text.startswith("once "):
            trouble.unlink()
        kind, *words = text.removeprefix("once ").split(maxsplit=2)
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(600)
        if kind == "exit":
            sys.stderr.write(words[1] + "\n")
            sys.exit(int(words[0]))
    STAGES[stage](workspace, list(load_params(workspace.params).classes))


if __name__ == "__main__":
    main(sys.argv[1])
