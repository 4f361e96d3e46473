"""A made-up campaign in the shape of the contracts, for tests of what only reads and shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image, ImageDraw

from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ANNOTATED,
    DETECTIONS,
    PREDICTIONS,
    SCORES,
    SELECTION,
    UNCERTAINTY,
    UNLABELED,
    AnnotationTask,
    Prediction,
    with_class_names,
)
from tasks.storage import files

REPOSITORY = Path(__file__).parents[2]
METRICS = ("confidence", "entropy", "overlap")


COST = {
    "minutes_per_image": 0.25,
    "minutes_per_box": 0.5,
    "is_fitted": True,
    "num_timed": 44,
    "num_outliers": 1,
    "reason": "fitted to 43 answers",
}
POOL_ERROR = {
    "level": 0.95,
    "drawn": {
        "num_images": 18,
        "loss": {"mean": 2.5, "low": 1.5, "high": 4.25},
        "misses": {"mean": 0.75, "low": 0.25, "high": 1.5},
    },
    "calibration": {"num_images": 4, "loss": None, "misses": None},
    "chosen": {"num_images": 90, "loss": {"mean": 4.0}, "misses": {"mean": 1.25}},
}
NOTHING = dict.fromkeys(("images", "unchanged", "box_adjusted", "class_changed", "deleted", "added"), 0) | {
    "f1": None,
    "mean_iou": None,
}
NO_COMPARISONS = NOTHING | {"annotators": {}}
AGREED = {
    "images": 3,
    "unchanged": 4,
    "box_adjusted": 2,
    "class_changed": 1,
    "deleted": 1,
    "added": 3,
    "f1": 0.6667,
    "mean_iou": 0.91,
}
AGREED = AGREED | {"annotators": {"ann": AGREED}}


@dataclass
class SyntheticCampaign:
    """Figures that could be true, and agree with each other; the same ones every time."""

    root: Path
    rounds: int = 4
    classes: Sequence[str] = ("zero", "one", "two", "three", "four", "seven")
    pool_images: int = 120
    num_selected: int = 12
    acquisition_weights: str = "learned"
    uris: Sequence[str] = ()
    """Images to show; drawn where none are given."""
    boxes: dict[str, list[tuple[str, float, tuple[float, float, float, float]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(11)
        self.workspace = Workspace(self.root)
        self.ids = [f"{i * 2654435761 % 2**64:016x}" for i in range(self.pool_images)]

    def write(self) -> Workspace:
        """Everything the report reads."""
        self._write_params()
        history = [self.entry(number) for number in range(self.rounds)]
        self._write_documents(history)
        self._write_tables(history[-1])
        files.write_table(self.workspace.derived("train") / "curves.parquet", self._curves())
        for number, stage in enumerate(("prepare", "assemble", "train", "evaluate", "infer", "weigh", "report")):
            files.write_json(
                self.workspace.timing(stage), {"stage": stage, "seconds": (0.7, 0.3, 214.2, 9, 31, 3.1, 9)[number]}
            )
        return self.workspace

    def entry(self, number: int) -> dict[str, Any]:
        """History of one round; models get better, slower each time."""
        reached = 24.0 + 26 * (1 - 0.55**number)
        labels = 48 + 24 * number
        used = self.acquisition_weights == "learned" and number > 1
        means = (
            [1 / 3, 1 / 3, 1 / 3]
            if not used
            else [0.31 - 0.03 * min(number, 5), 0.45 + 0.05 * min(number, 5), 0.24 - 0.02 * min(number, 5)]
        )
        cold = number == 0 or self.acquisition_weights == "cold"
        return {
            "round": number,
            "labels": labels,
            "labeled_images": labels - 27,
            "boxes": 4 * labels,
            "boxes_per_class": {name: labels * 2 // (i + 1) for i, name in enumerate(self.classes)},
            "minutes_spent": None if number == 0 else 41.5 * number,
            "unlabeled_images": self.pool_images,
            "teacher": self._metrics(reached),
            "student": self._metrics(reached - 1.4 + 0.9 * (number % 2)),
            "mean_weights": dict(zip(METRICS, means, strict=True)),
            "weight_quantiles": {
                name: [max(0, mean - 0.09 * used), mean, mean + 0.1 * used]
                for name, mean in zip(METRICS, means, strict=True)
            },
            "class_weights": {
                "positive": {name: round(0.7 + 0.12 * i, 3) for i, name in enumerate(self.classes)},
                "claimed_background": {name: round(1.3 - 0.12 * i, 3) for i, name in enumerate(self.classes)},
            },
            "dwa_used": used,
            "acquisition_weights": "learned" if used else "equal",
            "dwa_reason": self._dwa_reason(number),
            "spearman_dwa": None if cold else round(0.24 + 0.09 * number, 3),
            "spearman_equal": None if cold else round(0.31 + 0.02 * number, 3),
            "num_samples": 12 + 22 * number,
            "pool_error": POOL_ERROR,
            "dwa_candidates": {},
            "pseudo_labels": {},
            "annotation_cost": {key: value for key, value in COST.items() if key != "reason"},
            "agreement": {"with_preannotations": AGREED, "between_annotators": NO_COMPARISONS},
            "selected": self.num_selected,
            "random_picks": round(0.1 * self.num_selected),
            "pseudo_boxes_per_image": 1.9,
            "loss_ratio": 0.21,
            "mean_uncertainty": 0.48,
            "expected_boxes_per_class": {name: 1.5 * n for n, name in enumerate(self.classes)},
            "teacher_agreement": None if number == 0 else 0.81,
            "stopping": {"advice": "go_on", "reason": "1 round with new labels", "rounds": 1},
        }

    def _dwa_reason(self, number: int) -> str:
        if number == 0 or self.acquisition_weights == "cold":
            return f"cold start: {12 + 22 * number} pairs, dwa.min_training_samples is 24"
        figures = f"{0.24 + 0.09 * number:.2f} against {0.31 + 0.02 * number:.2f}"
        return f"held-out rank correlation {figures} of equal weights"

    def _metrics(self, reached: float) -> dict[str, Any]:
        per_class = {name: round(max(0.0, reached + 14 - 5.5 * i), 2) for i, name in enumerate(self.classes)}
        per_class |= {self.classes[-1]: None} if len(self.classes) > 5 else {}
        return {
            "mAP": round(reached, 2),
            "AP50": round(reached + 31, 2),
            "AP75": round(reached - 6, 2),
            "per_class": per_class,
        }

    def _write_params(self) -> None:
        params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "params.yaml").write_text(yaml.safe_dump({**params, "classes": list(self.classes)}))

    def _write_documents(self, history: list[dict[str, Any]]) -> None:
        now, derived = history[-1], self.workspace.derived
        files.write_json(self.workspace.warm_start / "history.json", history[:-1])
        self._write_labels(history[-1]["round"])
        quarantined = [
            {
                "item": "IMG_0042.jpg",
                "reason": "the image is unreadable (image file is truncated), expected a whole image",
            }
        ]
        files.write_json(derived("prepare") / "quarantine.json", quarantined)
        files.write_json(
            self.workspace.import_report,
            {
                "set_aside": [{"item": "b.xml", "reason": "box 2 has area 0, expected more"}],
                "counts": {"duplicates_collapsed": 31, "val_duplicates_dropped": 0, "clipped_boxes": 1},
            },
        )
        summary = {
            key: now[key] for key in ("round", "labels", "labeled_images", "boxes", "boxes_per_class", "minutes_spent")
        }
        summary |= {
            "empty_images": 3,
            "skipped_images": 1,
            "calibration_images": 24,
            "unlabeled_images": self.pool_images,
        }
        files.write_json(
            derived("assemble") / "summary.json",
            summary | {"val_images": 60, "pool_images": self.pool_images + now["labels"]},
        )
        trained = {"iterations": 240, "labeled_images": now["labeled_images"], "unlabeled_images": self.pool_images}
        trained |= {
            "pseudo_boxes_per_image": 1.9,
            "pseudo_boxes_per_image_by_class": dict.fromkeys(self.classes, 1.9 / len(self.classes)),
            "pseudo_labels": self._pseudo_labels(),
            "loss_ratio": 0.21,
            "loss_sup": 0.61,
            "loss_unsup": 0.13,
            "mean_image_weight": 0.5,
        }
        trained |= {"teacher_sha256": "ab" * 32, "student_sha256": "cd" * 32, "init_from": "pretrained"}
        files.write_json(derived("train") / "summary.json", trained)
        files.write_json(
            derived("evaluate") / "metrics.json",
            {
                "teacher": now["teacher"],
                "student": now["student"],
                "protocols": {"teacher": self._protocols(), "student": {}},
                "val_images": 60,
            },
        )
        for path in (
            derived("evaluate") / "predictions.parquet",
            self.workspace.warm_start / "val_predictions.parquet",
        ):
            files.write_table(path, with_class_names(PREDICTIONS, self.classes).empty_table())
        dwa = {
            "mode": "learned",
            "used": now["acquisition_weights"],
            "reason": now["dwa_reason"],
            "num_samples": now["num_samples"],
            "num_holdout_samples": now["num_samples"],
        }
        dwa |= {
            key: now[key]
            for key in ("spearman_dwa", "spearman_equal", "class_weights", "mean_weights", "weight_quantiles")
        }
        dwa |= {"spearman_by_metric": {"confidence": 0.11, "entropy": 0.47, "overlap": -0.04}, "class_difficulty": {}}
        dwa |= {"complexity": "common", "best_simple": "entropy", "candidates": self._candidates(now)}
        dwa |= {"feature_importance": self._drivers() if now["dwa_used"] else None}
        files.write_json(derived("weigh") / "dwa.json", dwa)
        files.write_json(derived("score") / "pool_error.json", POOL_ERROR)

    def _candidates(self, now: dict[str, Any]) -> list[dict[str, Any]]:
        if now["spearman_dwa"] is None:
            return []
        used = now["acquisition_weights"]
        figures = {"equal": now["spearman_equal"], "entropy": 0.47, "common": 0.49, "per_image_c=10": 0.44}
        return [
            {"name": name, "spearman": value, "standard_error": 0.06, "gain": value - 0.47, "gain_standard_error": 0.02}
            | {"chosen": name == used or (used == "learned" and name in ("learned", "common"))}
            for name, value in (figures | {"learned": now["spearman_dwa"]}).items()
        ]

    def _protocols(self) -> dict[str, Any]:
        """Half of the objects found, a tenth taken for the next class; as many detections of nothing."""
        point = {"score_threshold": 0.4, "precision": 0.8, "recall": 0.5, "cost_per_image": 1.2}
        nothing = {"score_threshold": None, "precision": None, "recall": 0.0, "cost_per_image": 2.0}
        by_class = {name: {"at_precision": nothing, "least_cost": point} for name in (*self.classes, "all classes")}
        size = len(self.classes) + 1
        matrix = [[50 if i == j else 10 if (i + 1) % size == j else 0 for j in range(size)] for i in range(size)]
        return {
            "operating_point": {
                "wanted_precision": 0.9,
                "false_alarm_cost": 1.0,
                "miss_cost": 1.0,
                "by_class": by_class,
            },
            "confusion": {"score_threshold": 0.4, "matrix": matrix, "examples": self._error_examples()},
            "slices": {
                "brightness": {
                    "dark": {"images": 20, "objects": 31, "mAP": 12.5, "mAP_low": 8.0, "mAP_high": 18.0},
                    "bright": {"images": 40, "objects": 60, "mAP": 44.0, "mAP_low": 35.0, "mAP_high": 52.0},
                },
                "time": {"06 to 12": {"images": 2, "objects": 0, "mAP": None, "mAP_low": None, "mAP_high": None}},
            },
        }

    def _error_examples(self) -> list[dict[str, Any]]:
        """A detection of another class, an object that was missed, and an image that is not here."""
        Image.new("RGB", (200, 100), (90, 120, 150)).save(self.root / "val0.png")
        box = [20.0, 30.0, 60.0, 50.0]
        rows = [
            {"image_id": name, "uri": f"{name}.png", "width_px": 200, "height_px": 100, "batch": -1}
            for name in ("val0", "val1")
        ]
        files.write_table(self.workspace.derived("assemble") / "val.parquet", pa.Table.from_pylist(rows, ANNOTATED))
        return [
            {"image_id": "val0", "true_class": 0, "predicted_class": 1, "box_xyxy": box, "score": 0.87},
            {"image_id": "val0", "true_class": 0, "predicted_class": len(self.classes), "box_xyxy": box, "score": None},
            {"image_id": "val1", "true_class": len(self.classes), "predicted_class": 0, "box_xyxy": box, "score": 0.5},
        ]

    def _pseudo_labels(self) -> dict[str, Any]:
        """The last class is never right; the first is measured; of the others nothing is known."""
        unknown = {"threshold": 0.7, "is_measured": False, "num_terms": 3, "precision": 1.0, "lower_bound": None}
        classes = {name: unknown | {"takes_part": True} for name in self.classes}
        measured = {"threshold": 0.45, "is_measured": True, "num_terms": 40, "precision": 0.9, "lower_bound": 0.81}
        wrong = {"threshold": 0.7, "is_measured": False, "num_terms": 30, "precision": 0.1, "lower_bound": 0.04}
        classes |= {self.classes[0]: measured | {"takes_part": True}, self.classes[-1]: wrong | {"takes_part": False}}
        return {"takes_part": True, "reason": "", "excluded_classes": [self.classes[-1]], "classes": classes}

    def _drivers(self) -> dict[str, Any]:
        features = ("log_boxes", "entropy", "scores_0.2_to_0.4_frac", f"boxes_frac:{self.classes[0]}")
        return {
            "std": 0.031,
            "features": [
                {
                    "feature": name,
                    "importance": 0.02 / (i + 1),
                    "effect_per_std": dict(zip(METRICS, (0.011, -0.02, 0.009), strict=True)),
                }
                for i, name in enumerate(features)
            ],
        }

    def _write_labels(self, newest: int) -> None:
        """Empty batches, as far as the report looks."""
        for batch in range(newest + 1):
            content = {"batch": batch, "provider": "test", "collected_at": "2026-03-01T00:00:00+00:00", "images": []}
            files.write_json(self.workspace.label_batch(batch), content)

    def _write_tables(self, now: dict[str, Any]) -> None:
        count, derived = self.pool_images, self.workspace.derived
        raw = np.column_stack(
            [self.random.gamma(4, 0.6, count), self.random.gamma(2, 0.7, count), self.random.beta(1, 14, count)]
        )
        empty = np.arange(count) % 29 == 3
        raw[empty] = 0
        metrics = raw.argsort(0).argsort(0) / max(count, 1)
        metrics[3:4] = 0.9  # scoring.no_detection_score: max
        mean = np.array([now["mean_weights"][name] for name in METRICS])
        weights = (
            np.clip(mean + self.random.normal(0, 0.05, (count, 3)), 0.01, None)
            if now["dwa_used"]
            else np.tile(mean, (count, 1))
        )
        weights /= weights.sum(1, keepdims=True)
        uncertainty = (weights * metrics).sum(1)
        self._write_embeddings()
        scores = {"image_id": self.ids, "num_boxes": np.where(empty, 0, 3), "has_no_detections": empty}
        scores |= {"num_distinct_classes": np.where(empty, 0, 2), "expected_boxes": np.where(empty, 0.0, 2.4)}
        scores |= {"expected_boxes_per_class": [[0.4] * 6] * count, "features": [[0.0] * 24] * count}
        scores |= {"residual_mass": [0.5] * count, "expected_misses": [0.4] * count, "value": [1.5] * count}
        scores |= {f"{name}_raw": raw[:, i] for i, name in enumerate(METRICS)} | {
            name: metrics[:, i] for i, name in enumerate(METRICS)
        }
        scores |= {"objectness_entropy_raw": [None] * count, "objectness_entropy": [0.0] * count}
        files.write_table(
            derived("score") / "scores.parquet", pa.table({name: scores[name] for name in SCORES.names}, schema=SCORES)
        )
        weighed = {
            "image_id": self.ids,
            **{f"w_{name}": weights[:, i] for i, name in enumerate(METRICS)},
            "w_objectness_entropy": [0.0] * count,
            "uncertainty": uncertainty,
        }
        files.write_table(derived("weigh") / "uncertainty.parquet", pa.table(weighed, schema=UNCERTAINTY))
        self._write_selection(uncertainty, metrics, weights, empty)

    def _write_embeddings(self) -> None:
        """The pool in two clouds, with eight labeled images in one of them."""
        assembled, infer = self.workspace.derived("assemble"), self.workspace.derived("infer")
        labeled = [f"{i:016x}" for i in range(8)]
        for name, ids, kind in (("unlabeled", self.ids, "shard"), ("labeled", labeled, "labeled")):
            schema = UNLABELED if name == "unlabeled" else ANNOTATED
            box = {"boxes_xyxy": [10, 10, 60, 60], "class_ids": [0], "batch": 1} if kind == "labeled" else {}
            place = {"width_px": 200, "height_px": 150}
            rows = [{"image_id": i, "uri": f"data/images/{i}.png", **place, **box} for i in ids]
            files.write_table(assembled / f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))
            vectors = [(np.eye(6)[n % 2] + self.random.normal(0, 0.2, 6)).astype(np.float16) for n in range(len(ids))]
            probs = {
                "boxes_xyxy": [10, 10, 60, 60],
                "class_probs": [0.125] * 7,
                "scores": [0.875],
                "residual_mass": 0.0,
            }
            found = [
                {"image_id": i, "embedding": vector, **probs, "class_ids": [int(n == 3)]}  # the fourth is contradicted
                for n, (i, vector) in enumerate(zip(ids, vectors, strict=True))
            ]
            files.write_table(infer / f"{kind}-000000.parquet", pa.Table.from_pylist(found, schema=DETECTIONS))

    def _write_selection(
        self, uncertainty: np.ndarray, metrics: np.ndarray, weights: np.ndarray, empty: np.ndarray
    ) -> None:
        order = sorted(range(self.pool_images), key=lambda i: -uncertainty[i])
        chosen = order[: self.num_selected]
        if self.num_selected > 4 and len(order) > self.num_selected:
            chosen[4] = order[len(order) // 2]
        rows, lines = [], []
        for rank, i in enumerate(chosen, start=1):
            (c, e, o), (wc, we, wo) = metrics[i], weights[i]
            place = order.index(i) + 1
            reason = f"uncertainty {uncertainty[i]:.2f} (rank {place} of {len(order)}): "
            reason += f"entropy {e:.2f}, overlap {o:.2f}, confidence {c:.2f}; weights {we:.2f}/{wo:.2f}/{wc:.2f}"
            reason += "; no detections: the teacher saw nothing here" if empty[i] else ""
            reason = f"random pick; {reason}" if place > self.num_selected else reason
            rows.append(
                {
                    "image_id": self.ids[i],
                    "rank": rank,
                    "uncertainty": uncertainty[i],
                    "expected_boxes": 2.4,
                    "expected_minutes": 1.4,
                    "is_random_pick": reason.startswith("random pick"),
                    "picked_by": "uncertainty",
                    "num_candidates": self.pool_images,
                    "reason": reason,
                }
            )
            lines.append(self._task(self.ids[i], rank, reason, float(uncertainty[i]), bool(empty[i])).model_dump_json())
        derived = self.workspace.derived
        files.write_table(derived("select") / "selection.parquet", pa.Table.from_pylist(rows, schema=SELECTION))
        summary = {
            "selected": len(rows),
            "random_picks": sum(row["reason"].startswith("random pick") for row in rows),
            "budget_unit": "images",
            "budget_amount": 12.0,
        }
        summary |= {"expected_boxes": 2.4 * len(rows), "expected_minutes": 1.4 * len(rows), "strategy": "uncertainty"}
        summary["annotation_cost"] = COST
        files.write_json(
            derived("select") / "summary.json", summary | {"candidates": self.pool_images, "pool_exhausted": False}
        )
        files.write_bytes(derived("handoff") / "manifest.jsonl", "".join(line + "\n" for line in lines).encode())

    def _task(self, image_id: str, rank: int, reason: str, uncertainty: float, empty: bool) -> AnnotationTask:
        if self.uris:
            uri = self.uris[(rank - 1) % len(self.uris)]
            with Image.open(self.root / uri) as image:
                width, height = image.size
            found = self.boxes[uri]
        else:
            uri, width, height, found = self._draw_image(image_id, rank)
        predictions = [
            Prediction(category=name, xyxy_px=xyxy, score=score) for name, score, xyxy in ([] if empty else found)
        ]
        return AnnotationTask(
            image_id=image_id, uri=uri, width_px=width, height_px=height, rank=rank, reason=reason,
            uncertainty=uncertainty, predictions=tuple(predictions), model_digest="ab" * 32,
        )  # fmt: skip

    def _draw_image(
        self, image_id: str, rank: int
    ) -> tuple[str, int, int, list[tuple[str, float, tuple[float, float, float, float]]]]:
        width, height = 200 + 10 * (rank % 5), 150 + 20 * (rank % 3)
        image, found = Image.new("RGB", (width, height), (90, 110, 100)), []
        for i in range(rank % 4):
            x, y = 12 + 45 * i, 20 + 25 * i
            ImageDraw.Draw(image).rectangle((x, y, x + 40, y + 30), fill=(220, 200 - 40 * i, 90))
            found.append((self.classes[i % len(self.classes)], 0.95 - 0.17 * i, (x, y, x + 40, y + 30)))
        uri = f"data/images/{image_id}.png"
        (self.root / uri).parent.mkdir(parents=True, exist_ok=True)
        image.save(self.root / uri)
        return uri, width, height, found

    def _curves(self) -> pa.Table:
        iteration = np.arange(1, 241)
        noise = self.random.normal(0, 0.06, (2, 240))
        with_teacher = iteration > 160
        return pa.table(
            {
                "iteration": iteration,
                "learning_rate": np.full(240, 8e-4),
                "loss_sup": 0.5 + 1.6 * np.exp(-iteration / 55) + noise[0],
                "loss_unsup": np.where(with_teacher, 0.16 + 0.05 * np.exp(-(iteration - 160) / 30) + noise[1] / 4, 0.0),
                "lambda_unsup": np.where(with_teacher, np.minimum((iteration - 160) / 40, 1) * 0.5, 0.0),
                "pseudo_boxes_per_image": np.where(with_teacher, 1.5 + (iteration - 160) / 150 + 4 * noise[1], 0.0),
                "mean_image_weight": np.full(240, 0.5),
            }
        )


@pytest.fixture
def synthetic_campaign(tmp_path: Path) -> Callable[..., Workspace]:
    """A workspace with everything the report reads; keyword arguments are those of MadeUpCampaign."""
    return lambda **options: SyntheticCampaign(tmp_path, **options).write()
