"""Audit of checked labels: each answer names the label it was shown, and the delivery that asked for it."""

from collections.abc import Iterator, Set

from flows.provenance.audit import AuditScope, Check, make_check
from flows.provenance.snapshot import RoundSnapshot
from tasks.data.schemas import LabeledImage
from tasks.runtime.formatting import pluralize


def relabel_checks(scope: AuditScope) -> Iterator[Check]:
    """Check that every checked label can be followed back to the label it superseded or confirmed."""
    newest = scope.newest
    answers = [
        (number, label)
        for number in range(newest.number + 1)
        for batch in [newest.label_batch(number)]
        for label in (*batch.images, *batch.other_annotations)
    ]
    checks = [(number, label) for number, label in answers if label.checks_batch is not None]
    answered = {(number, label.image_id) for number, label in answers}
    found = [finding for number, label in checks for finding in _findings(newest, number, label, answered)]
    yield make_check("labels", "checks name the label they were shown", pluralize(len(checks), "check"), found)


def _findings(newest: RoundSnapshot, number: int, label: LabeledImage, answered: Set[tuple[int, str]]) -> Iterator[str]:
    where = f"data/labels/batch-{number:04d}.json: image {label.image_id}: checks_batch is {label.checks_batch}"
    if (
        label.checks_batch is None
        or label.checks_batch >= number
        or (label.checks_batch, label.image_id) not in answered
    ):
        yield f"{where}, expected an earlier batch with its label"
    task = newest.manifest(label.offered_batch).get(label.image_id)
    asked = None if task is None else task.checks_batch
    if asked != label.checks_batch:
        yield f"{where}, expected {asked} as in delivery {label.offered_batch}"
