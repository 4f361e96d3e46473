"""Every checked label leads back to the label it was shown, and to the delivery that asked."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.provenance.audit import AuditScope
from flows.provenance.audit.records import relabel_checks
from tasks.data.schemas import LabelBatch
from tests.tasks.data.test_label_store import make_label


def scope(*batches: list[dict[str, Any]], asked: int | None = 0) -> AuditScope:
    """Batches of one campaign; delivery 1 asked to check the label of batch ``asked``."""
    read = [
        LabelBatch.model_validate({"batch": n, "provider": "p", "collected_at": "2026-01-02", "images": images})
        for n, images in enumerate(batches)
    ]
    newest = SimpleNamespace(
        number=len(read) - 1,
        label_batch=lambda number: read[number],
        manifest=lambda delivery: {"x": SimpleNamespace(checks_batch=asked)} if delivery == 1 else {},
    )
    return cast(AuditScope, SimpleNamespace(newest=newest))


FIRST = [make_label("x", offered_batch=0)]


def test_a_check_of_a_label_that_is_there_passes() -> None:
    (check,) = relabel_checks(scope(FIRST, [make_label("x", checks_batch=0)]))
    assert (check.state, check.examined) == ("pass", "1 check")


def test_a_campaign_without_checks_passes() -> None:
    (check,) = relabel_checks(scope(FIRST))
    assert (check.state, check.examined) == ("pass", "0 checks")


@pytest.mark.parametrize(
    ("answer", "asked", "finding"),
    [
        (make_label("y", checks_batch=0), 0, "expected an earlier batch with its label"),
        (make_label("x", checks_batch=1), 1, "expected an earlier batch with its label"),
        (make_label("x", checks_batch=0), None, "checks_batch is 0, expected None as in delivery 1"),
        (make_label("x", offered_batch=2, checks_batch=0), 0, "expected None as in delivery 2"),
    ],
)
def test_a_check_of_nothing_or_that_nobody_asked_for_is_found(
    answer: dict[str, Any], asked: int | None, finding: str
) -> None:
    (check,) = relabel_checks(scope(FIRST, [answer], asked=asked))
    assert check.state == "fail"
    assert any(finding in found for found in check.findings)
