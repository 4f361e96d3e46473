"""Keep one entry per round, all that the page of the next round knows about this one."""

from collections.abc import Sequence
from typing import Any

from tasks.params.stages import StoppingParams
from tasks.reporting.report_data import Document, ReportData
from tasks.reporting.stopping import stopping_advice

_ASSEMBLED = (
    "round", "labels", "labeled_images", "boxes", "boxes_per_class", "minutes_spent", "unlabeled_images",
)  # fmt: skip
_COSTS = ("minutes_per_image", "minutes_per_box", "is_fitted", "num_timed", "num_outliers")
_CANDIDATE = ("spearman", "standard_error", "gain", "gain_standard_error")
_WEIGHED = ("mean_weights", "weight_quantiles", "class_weights")


def round_entry(data: ReportData) -> dict[str, Any]:
    """Summarize this round in figures, without values such as times that differ when it is computed again."""
    dwa, uncertainty = data.dwa, data.pool_metrics["uncertainty"]
    return {
        **{key: data.assemble_summary[key] for key in _ASSEMBLED},
        "teacher": data.metrics["teacher"],
        "student": data.metrics["student"],
        **{key: dwa[key] for key in _WEIGHED},
        "dwa_used": dwa["used"] == "learned",
        "acquisition_weights": dwa["used"],
        "dwa_reason": dwa["reason"],
        **{key: dwa[key] for key in ("spearman_dwa", "spearman_equal", "num_samples")},
        "dwa_candidates": {
            candidate["name"]: {key: candidate[key] for key in _CANDIDATE} for candidate in dwa["candidates"]
        },
        "pool_error": data.pool_error,
        **{key: data.selection_summary[key] for key in ("selected", "random_picks")},
        "expected_boxes_per_class": data.expected_boxes_per_class,
        "annotation_cost": {key: data.selection_summary["annotation_cost"][key] for key in _COSTS},
        "teacher_agreement": data.teacher_agreement,
        "agreement": data.agreement,
        **{key: data.train_summary[key] for key in ("pseudo_boxes_per_image", "loss_ratio")},
        "pseudo_labels": _pseudo_labels(data.train_summary["pseudo_labels"]),
        "mean_uncertainty": float(uncertainty.mean()) if len(uncertainty) else None,
    }


def _pseudo_labels(found: Document) -> dict[str, Any]:
    """Return whether unlabeled images took part, and threshold and measured precision by class."""
    by_class = {
        key: {name: one[key] for name, one in found["classes"].items()}
        for key in ("threshold", "precision", "takes_part")
    }
    return {"took_part": found["takes_part"], "by_class": by_class}


def append_round(previous: Sequence[Document], entry: Document) -> list[Document]:
    """Append this round to the earlier ones, oldest first; a round that is computed again replaces its older entry."""
    earlier = [past_round for past_round in previous if past_round["round"] < entry["round"]]
    return [*sorted(earlier, key=lambda known: int(known["round"])), entry]


def with_stopping_advice(history: Sequence[Document], stopping: StoppingParams) -> list[Document]:
    """Add to the newest round whether further labels still pay (docs/method.md#stopping)."""
    return [*history[:-1], {**history[-1], "stopping": stopping_advice(history, stopping)}]
