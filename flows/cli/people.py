"""Command ``gleaner people``: what each annotator has done, and how well."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from tasks.reporting.people import Person

_MISSING = "-"
_HEADERS = (
    *("answers", "boxes", "minutes", "seconds\nper image"),
    *("honeypots", "accuracy", "missed", "extra", "wrong\nclass", "compared", "agreement"),
)
_CAPTION = (
    "accuracy: F1 on images whose label is known (provider.honeypot_frac), with the objects missed, boxes too many\n"
    "and classes mistaken there; agreement: F1 with other annotators of the same images. Boxes match at IoU 0.5"
)


def people(as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Show the annotators: answers, boxes, minutes, accuracy on honeypots and agreement. Changes nothing."""
    from flows.workspace.run_lock import require_workspace
    from tasks.data.label_store import read_labels
    from tasks.reporting.people import measure_people

    found = measure_people(read_labels(require_workspace(workspace).labels))
    if as_json:
        typer.echo(json.dumps([person.as_json() for person in found], indent=2, ensure_ascii=False))
    elif found:
        Console().print(people_table(found))
    else:
        typer.echo("Nobody has answered yet: the labels so far are those that the campaign started with.")


def people_table(found: Sequence["Person"]) -> Table:
    """Return a line for each annotator."""
    table = Table(box=SIMPLE_HEAD, padding=0, caption=_CAPTION, caption_justify="left")
    table.add_column("annotator")
    for header in _HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for person in found:
        honeypots, agreement = person.honeypots, person.agreement
        is_scored = honeypots.images > 0
        per_image_s = None if person.minutes is None else 60 * person.minutes / person.answers
        table.add_row(
            escape(person.annotator),
            str(person.answers),
            str(person.boxes),
            _number(person.minutes, 1),
            _number(per_image_s, 0),
            str(honeypots.images),
            _number(honeypots.f1, 2),
            *(str(count) if is_scored else _MISSING for count in
              (honeypots.deleted, honeypots.added, honeypots.class_changed)),
            str(agreement.images),
            _number(agreement.f1, 2),
        )  # fmt: skip
    return table


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"
