"""Answers that are well-formed and hard to believe, going by the teacher that drew the boxes."""

from flows.annotation.validation.context import ValidationContext
from flows.annotation.validation.rejection import ImplausibleAnnotation
from tasks.data.schemas import LabeledImage


def require_plausible(label: LabeledImage, context: ValidationContext) -> None:
    """Two slips leave well-formed answers: handing in an untouched empty page, and a tool gone wild.

    That an annotator and the teacher differ is no slip: telling the teacher so is what labels are for. So only
    the grossest differences count, and only against a teacher that has proved itself on the validation set.

    Raises:
        Suspicious: somebody should confirm the answer.
    """
    if not context.is_teacher_trusted:
        return
    limits, predictions = context.limits, context.tasks[label.image_id].predictions
    num_confident = sum(found.score >= limits.confident_score for found in predictions)
    if label.status == "empty" and num_confident >= limits.min_confident_boxes:
        claim = f"the teacher is very sure of {num_confident} boxes (score at least {limits.confident_score:g})"
        raise ImplausibleAnnotation(
            f"status is 'empty' where {claim}, expected fewer than {limits.min_confident_boxes} such boxes"
        )
    max_boxes = limits.max_box_count_ratio * max(context.max_preannotated, 1)
    if len(label.boxes) > max_boxes:
        most = f"{limits.max_box_count_ratio:g} times what is pre-drawn on any image of the batch"
        raise ImplausibleAnnotation(
            f"the number of boxes is {len(label.boxes)}, expected at most {max_boxes:g}: {most}"
        )
