"""One entry per round; the only thing the page of the next round knows about this one."""

from collections.abc import Sequence
from typing import Any

from tasks.reporting.evidence import Document, Evidence

_ASSEMBLED = (
    "round", "labels", "labeled_images", "boxes", "boxes_per_class", "minutes_spent", "unlabeled_images",
)  # fmt: skip
_COSTS = ("minutes_per_image", "minutes_per_box", "fitted", "timed_answers", "left_out")
_WEIGHED = ("mean_weights", "weight_quantiles", "class_weights")


def entry_of(evidence: Evidence) -> dict[str, Any]:
    """This round in figures, without anything that changes when it is computed again."""
    dwa, uncertainty = evidence.dwa, evidence.metrics_of["uncertainty"]
    return {
        **{key: evidence.assembled[key] for key in _ASSEMBLED},
        "teacher": evidence.metrics["teacher"],
        "student": evidence.metrics["student"],
        **{key: dwa[key] for key in _WEIGHED},
        "dwa_used": dwa["used"] == "learned",
        "weights_used": dwa["used"],
        "dwa_why": dwa["why"],
        **{key: dwa[key] for key in ("spearman_dwa", "spearman_equal", "pairs")},
        **{key: evidence.picked[key] for key in ("picked", "explored")},
        "annotation_cost": {key: evidence.picked["annotation_cost"][key] for key in _COSTS},
        "agreement": evidence.agreement,
        **{key: evidence.trained[key] for key in ("pseudo_boxes_per_image", "loss_ratio")},
        "mean_uncertainty": float(uncertainty.mean()) if len(uncertainty) else None,
    }


def extended(previous: Sequence[Document], entry: Document) -> list[Document]:
    """Earlier rounds and this one, oldest first; a round that is computed again replaces its older self."""
    earlier = [known for known in previous if known["round"] < entry["round"]]
    return [*sorted(earlier, key=lambda known: int(known["round"])), entry]
