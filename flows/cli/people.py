"""Command ``gleaner people``: what each annotator has done, and how well."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from tasks.data.paths import Workspace
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


def people(
    wanted_map: Annotated[
        float | None,
        typer.Option("--wanted-map", min=0, max=100, help="Forecast the minutes of labeling to this mAP (percent)."),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show the annotators: answers, boxes, minutes, accuracy on honeypots and agreement. Changes nothing."""
    from flows.workspace.run_lock import require_workspace
    from tasks.data.label_store import read_labels
    from tasks.reporting.people import measure_people

    campaign = require_workspace(workspace)
    if wanted_map is not None:
        _forecast(campaign, wanted_map, as_json=as_json)
        return
    found = measure_people(read_labels(campaign.labels))
    if as_json:
        typer.echo(json.dumps([person.as_json() for person in found], indent=2, ensure_ascii=False))
    elif found:
        Console().print(people_table(found))
    else:
        typer.echo("Nobody has answered yet: the labels so far are those that the campaign started with.")


def _forecast(campaign: "Workspace", wanted_map: float, *, as_json: bool) -> None:
    from tasks.params import load_params
    from tasks.reporting.forecast import describe, forecast_minutes
    from tasks.storage import files

    path = campaign.derived("report") / "history.json"
    history = files.read_json(path) if path.is_file() else []
    forecast = forecast_minutes(history, wanted_map, load_params(campaign.params).stopping.confidence_level)
    typer.echo(json.dumps(asdict(forecast), indent=2) if as_json else describe(forecast, wanted_map))


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
