"""What the command line shows of a campaign."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_MISSING = "-"
_HEADERS = (
    "round", "labels", "boxes", "teacher\nmAP", "student\nmAP", "mean\nconf.", "weights\nentropy", "\noverlap",
    "corr.\nDWA", "corr.\nequal", "weights\nused",
)  # fmt: skip
_CAPTION = (
    "mAP in percent; corr.: rank correlation of the score with the realised\n"
    "loss on held-out pairs, with DWA's weights and with equal ones"
)


def rounds_table(ledgers: Sequence[Mapping[str, Any]]) -> Table:
    """One line a round."""
    table = Table(box=SIMPLE_HEAD, padding=0, caption=_CAPTION, caption_justify="left")
    for header in _HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for ledger in ledgers:
        figures = ledger["metrics"]
        table.add_row(
            str(ledger["round"]),
            str(figures["labels"]),
            str(figures["boxes"]),
            _format_number(figures["teacher"]["mAP"], 1),
            _format_number(figures["student"]["mAP"], 1),
            *(_format_number(figures["mean_weights"][name], 2) for name in ("confidence", "entropy", "overlap")),
            _format_number(figures["spearman_dwa"], 2),
            _format_number(figures["spearman_equal"], 2),
            str(figures["acquisition_weights"]),
        )
    return table


def _format_number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"
