"""Answers that are well-formed and hard to believe, going by the teacher that drew the boxes."""

from flows.labels.door.offer import Offer
from flows.labels.door.refusal import Suspicious
from tasks.contracts import LabeledImage


def require_plausible(label: LabeledImage, offer: Offer) -> None:
    """Two slips leave well-formed answers: handing in an untouched empty page, and a tool gone wild.

    That an annotator and the teacher differ is no slip: telling the teacher so is what labels are for. So only
    the grossest differences count, and only against a teacher that has proved itself on the validation set.

    Raises:
        Suspicious: somebody should confirm the answer.
    """
    if not offer.teacher_trusted:
        return
    rules, predictions = offer.rules, offer.tasks[label.image_id].predictions
    sure = sum(found.score >= rules.sure_score for found in predictions)
    if label.status == "empty" and sure >= rules.sure_boxes:
        claim = f"the teacher is very sure of {sure} boxes (score at least {rules.sure_score:g})"
        raise Suspicious(f"status is 'empty' where {claim}, expected fewer than {rules.sure_boxes} such boxes")
    at_most = rules.most_boxes_times * max(offer.most_predrawn, 1)
    if len(label.boxes) > at_most:
        most = f"{rules.most_boxes_times:g} times what is pre-drawn on any image of the batch"
        raise Suspicious(f"the number of boxes is {len(label.boxes)}, expected at most {at_most:g}: {most}")
