"""The command ``gleaner``."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from flows.commands.audit import audit
from flows.commands.doctor import doctor
from flows.commands.gc import gc
from flows.commands.lineage import lineage
from flows.commands.options import WorkspaceOption
from flows.commands.pool import pool
from flows.commands.promote import promote, rollback
from flows.commands.quarantine import quarantine
from flows.commands.reproduce import reproduce
from flows.commands.serve import serve
from flows.commands.study import study
from flows.environment import prepare_environment
from flows.watching.structured_log import LogFormat, asked_for_json, choose_log, error_line, wants_json
from tasks.errors import UserError
from tasks.paths import Workspace

_INTERRUPTED = 130

app = typer.Typer(
    name="gleaner",
    help="Finds, every night, the images whose labels will help a detector most, and learns from the rest "
    "without labels.",
    epilog="Exit codes: 0 done, 1 a stage or a service failed, 2 something to mend (said in one line), 3 training "
    "out of bounds, 4 out of memory, 5 disk full, 6 object store out of reach, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_out = Console()
_err = Console(stderr=True)


class Layout(StrEnum):
    """How annotations are written."""

    coco = "coco"
    voc = "voc"


LogOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log", help="json: one JSON object a line.", show_default="GLEANER_LOG, or text", callback=choose_log
    ),
]


def main() -> None:
    """Entry point: every mistake of the user ends in one line on stderr and its exit code."""
    handler = RichHandler(console=_err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.captureWarnings(True)  # of libraries, to developers; MLflow prints some whatever the filter says
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _say_error("Interrupted. The same command goes on from here.")
        raise


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New folder of the campaign.")],
    images: Annotated[
        str,
        typer.Option(help="Folder of images, or s3:// prefix; every picture below it belongs to the pool."),
    ],
    annotations: Annotated[Path, typer.Option(help="COCO: a JSON file. VOC: a folder of XML files.")],
    layout: Annotated[Layout, typer.Option("--format", help="Layout of the annotations.")],
    val: Annotated[
        Path | None,
        typer.Option(
            help="Validation set: a COCO file, a VOC folder, or a text file with one image a line; "
            "drawn at random otherwise."
        ),
    ] = None,
    val_images: Annotated[Path | None, typer.Option(help="Images of --val.", show_default="--images")] = None,
    val_frac: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the annotated images drawn for validation, without --val."),
    ] = 0.2,
    seed_labels: Annotated[
        int | None,
        typer.Option(min=1, help="Images of the seed batch, drawn at random.", show_default="all annotated ones"),
    ] = None,
    calibration_images: Annotated[
        int,
        typer.Option(min=0, help="Labeled images never trained on, from which the weights of the score are learned."),
    ] = 0,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Keep the other annotations where only the simulated annotator reads them."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of params.yaml, as train.iterations=300; repeatable."),
    ] = None,
) -> None:
    """Make a campaign: git, DVC, dvc.yaml, params.yaml, pool, fixed validation set and seed batch."""
    prepare_environment(directory)
    from flows.create import OWN_DATA_SETTINGS, NewCampaign, create_workspace, data_counts, pool_setting
    from tasks.importers.gather import Source
    from tasks.object_store import is_object_uri
    from tasks.params import load_params

    campaign = NewCampaign(
        source=Source(layout.value, annotations, Path(images), val, val_images),
        classes=None,
        seed_labels=seed_labels,
        calibration_images=calibration_images,
        val_frac=val_frac,
        oracle=oracle,
        settings=(*OWN_DATA_SETTINGS, pool_setting(images), *(settings or ())),
        imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        bucket=images if is_object_uri(images) else None,
    )
    data = create_workspace(directory, campaign)
    _out.print(f"[bold]{escape(str(directory))}[/bold] classes: {escape(', '.join(data.classes))}")
    for label, count in data_counts(data):
        _out.print(f"  {count:>7}  {label}")
    for entry in data.set_aside:
        _out.print(f"  set aside {escape(entry['where'])}: {escape(entry['reason'])}", style="yellow", soft_wrap=True)
    if not oracle and load_params(Workspace(directory).params).provider.kind == "simulated":
        _out.print(
            "Without --oracle the simulated annotator has nothing to give: gleaner night will say so.",
            style="yellow",
        )
    _out.print(f"Next: cd {escape(str(directory))} && gleaner night")


@app.command()
def night(workspace: WorkspaceOption = Path(), log: LogOption = None) -> None:
    """Run one nightly round: collect labels, derive, publish, deliver the next batch.

    A night that was cut off goes on where it was.
    """
    _run_nights(workspace, _one_night)


@app.command()
def campaign(
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds to finish.")],
    workspace: WorkspaceOption = Path(),
    log: LogOption = None,
) -> None:
    """Run several nights in a row; stops early when no labels come back or nothing is left to ask for."""
    _run_nights(workspace, lambda root: _several_nights(root, rounds))


@app.command()
def status(workspace: WorkspaceOption = Path()) -> None:
    """Show the rounds so far, what is with the annotators, what was refused, and what comes next."""
    from flows.watching.status import print_status
    from flows.workspaces import require_workspace

    print_status(require_workspace(workspace), _out)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo campaign.")] = Path("demo"),
) -> None:
    """Draw a data set from real pixels and run a campaign of three rounds on it.

    One that was cut off goes on where it was.
    """
    prepare_environment(directory)
    from flows.demo import prepare_demo, rounds_to_go

    prepare_demo(directory)
    to_go = rounds_to_go(Workspace(directory.resolve()))
    if to_go > 0:
        _run_nights(directory, lambda root: _several_nights(root, to_go))
    else:
        _print_rounds(Workspace(directory.resolve()))
        _print_places(Workspace(directory.resolve()))


def _run_nights(folder: Path, run: Callable[[Path], object]) -> None:
    """Everything that can be refused quickly is, before a server is started."""
    from flows.watching.alarm import alarmed
    from flows.workspaces import require_workspace

    workspace = require_workspace(folder)
    prepare_environment(workspace.root)
    with alarmed(workspace):
        _require_ready(workspace)
        from flows.engine import ensure_prefect_api

        ensure_prefect_api(workspace.root)
        import flows.campaign  # noqa: F401 (importing Prefect sets its logging up, which `shown` then changes)
        from flows.safety.causes import named_causes
        from flows.watching.console import shown

        with shown(_out, lambda _: _print_rounds(workspace)), named_causes("Prefect"):
            run(workspace.root)
    _print_places(workspace)


def _require_ready(workspace: Workspace) -> None:
    from flows.doctor.before_night import require_fit
    from flows.labels.providers.base import ProviderError
    from flows.labels.providers.choose import choose_provider
    from flows.workspaces import require_free
    from tasks.params import load_params

    require_fit(workspace)
    with suppress(ProviderError):  # the night says so, after all that it can do without the provider
        choose_provider(workspace, load_params(workspace.params)).check()
    require_free(workspace)


def _one_night(root: Path) -> None:
    from flows.night import night as night_flow

    night_flow(root)


def _several_nights(root: Path, rounds: int) -> None:
    from flows.campaign import campaign as campaign_flow

    campaign_flow(root, rounds)


def _print_rounds(workspace: Workspace) -> None:
    from flows.records.ledger import all_ledgers
    from flows.watching.tables import rounds_table

    if not wants_json():
        _out.print(rounds_table(all_ledgers(workspace)))


def _print_places(workspace: Workspace) -> None:
    if wants_json():
        return
    _out.print(f"Report: {workspace.derived('report') / 'report.html'}", soft_wrap=True)
    if "MLFLOW_TRACKING_URI" not in os.environ:  # theirs they know, and it may hold a password
        _out.print(f"MLflow: {workspace.root / 'mlflow.db'}", soft_wrap=True)


def _say_error(message: str) -> None:
    if asked_for_json():
        sys.stdout.write(error_line(message) + "\n")
    else:
        _err.print(escape(message), style="red", soft_wrap=True, highlight=False)


# After those of this file, in the order in which `gleaner --help` shows them.
app.command()(doctor)
app.add_typer(quarantine, name="quarantine")
app.add_typer(pool, name="pool")
app.command()(lineage)
app.command()(audit)
app.command()(promote)
app.command()(rollback)
app.command()(reproduce)
app.command()(gc)
app.command()(serve)
app.command()(study)

if __name__ == "__main__":
    main()
