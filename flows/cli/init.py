"""Commands ``gleaner init``, ``import`` and ``adopt``: make a campaign, check a data set, move a campaign."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.cli.options import DatasetOptions, HardwareProfile, WorkspaceOption, with_dataset_options
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

if TYPE_CHECKING:
    from flows.workspace.scaffold import WorkspaceConfig
    from tasks.data.initial_split import CampaignData

_out = SafeConsole()
_DEMO_IMPORTED_AT = "2026-01-01T00:00:00+00:00"
"""A fixed time: the same images, labels and parameters give the same bytes."""
_WARNINGS = ("classes_nearly_equal", "class_without_box", "maybe_not_found", "exif_turn", "first_frame")
"""Codes of notes that are shown, too; the others are only in the report."""


@with_dataset_options
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New folder of the campaign.")],
    options: DatasetOptions,
) -> None:
    """Make a campaign: git, DVC, dvc.yaml, params.yaml, pool, fixed validation set and seed batch.

    Point it at an export with --dataset, or at images and annotations apart.
    """
    prepare_environment(directory)
    from flows.workspace.scaffold import create_workspace, summary_counts
    from tasks.params import load_params

    data = create_workspace(directory, workspace_config(options))
    _out.print(f"[bold]{escape(str(directory))}[/bold] classes: {escape(', '.join(data.classes))}")
    for label, count in summary_counts(data):
        _out.print(f"  {count:>7}  {label}")
    _print_import(data, report=directory / "data" / "import_report.json")
    if not options.oracle and load_params(Workspace(directory).params).provider.kind == "oracle":
        _out.print(
            "Without --oracle the simulated annotator has nothing to give: gleaner run will say so.",
            style="yellow",
        )
    _out.print(f"Next: cd {escape(_shell_path(directory))} && gleaner run", soft_wrap=True)


@with_dataset_options
def import_(
    options: DatasetOptions,
    check: Annotated[bool, typer.Option("--check", help="Check only; needed.")] = False,
    report: Annotated[Path | None, typer.Option(help="File for the whole report, in JSON.")] = None,
) -> None:
    """Check a data set: say what gleaner init with the same options would take, and make nothing."""
    if not check:
        problem = "--check is missing, expected it: nothing is imported outside of a campaign"
        raise UserError("gleaner import", problem, "Make a campaign with gleaner init DIR and the same options.")
    from flows.workspace.scaffold import check_import
    from tasks.data.initial_split import report_document

    data = check_import(workspace_config(replace(options, seed_labels=options.seed_labels or 1)))
    _out.print(f"classes: {escape(', '.join(data.classes))}")
    if report is not None:
        files.write_json(report, report_document(data))
    _print_import(data, report)


def workspace_config(options: DatasetOptions) -> "WorkspaceConfig":
    """Put the options of ``init`` and ``import`` together.

    Raises:
        UserError: neither an export nor images and annotations are given, or both.
    """
    from flows.workspace.scaffold import WorkspaceConfig, pool_source_override
    from tasks.data.dataset_source import DatasetSource
    from tasks.data.import_policy import ImportPolicy
    from tasks.storage.s3 import is_object_uri

    images = options.images
    _require_one_source(options.dataset, images, options.annotations)
    overrides = list(_profile_overrides(options.profile))
    if images is not None:
        overrides.append(pool_source_override(images))
    if options.follow_links:
        overrides.append("pool.follow_links=true")
    names = [name.strip() for name in (options.classes or "").split(",") if name.strip()]
    return WorkspaceConfig(
        source=DatasetSource(
            annotation_format=options.annotation_format.value if options.annotation_format else None,
            annotations=options.annotations,
            images=None if images is None else Path(images),
            val=options.val,
            val_images=options.val_images,
            dataset=options.dataset,
            classes=tuple(dict.fromkeys(names)),
            policy=ImportPolicy(
                options.polygons.value, options.unannotated.value, options.test_split.value, options.follow_links
            ),
        ),
        seed_labels=options.seed_labels,
        calibration_images=options.calibration_images,
        val_frac=options.val_frac,
        oracle=options.oracle,
        overrides=(*overrides, *(options.settings or ())),
        imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        bucket=images if images is not None and is_object_uri(images) else None,
    )


def _profile_overrides(profile: HardwareProfile | None) -> Sequence[str]:
    from flows.runtime.gpu_lock import visible_gpus
    from tasks.params.profiles import profile_overrides

    gpus = visible_gpus()
    chosen = profile or (HardwareProfile.gpu if gpus else HardwareProfile.cpu)
    return profile_overrides(chosen.value, num_gpus=len(gpus))


def _require_one_source(dataset: Path | None, images: str | None, annotations: Path | None) -> None:
    if dataset is not None and annotations is not None:
        problem = "--annotations is given beside --dataset, expected one of them"
        raise UserError("gleaner init", problem, "The annotations of --dataset are found by themselves.")
    if dataset is None and (images is None or annotations is None):
        missing = "--annotations is" if images is not None else "--images is" if annotations is not None else "data are"
        problem = f"{missing} missing, expected --dataset, or --images and --annotations"
        raise UserError("gleaner init", problem, "Point --dataset at the export of your label tool.")


def _print_import(data: "CampaignData", report: Path | None) -> None:
    """Print what was found, what was not used, and the accounts."""
    for line in data.found:
        _out.print(escape(line), soft_wrap=True, highlight=False)
    _print_examples((*data.rejected, *data.left_out, *data.refused_boxes), report)
    _print_examples([note for note in data.notes if note["code"] in _WARNINGS], report)
    for account in data.accounts:
        _out.print(escape(account.describe()), soft_wrap=True, highlight=False)
    if report is not None:
        _out.print(f"All of it: {escape(str(report))}", soft_wrap=True, highlight=False)


def _print_examples(entries: Sequence[Mapping[str, str]], report: Path | None) -> None:
    from tasks.data.import_report import examples

    for title, number, first in examples(entries):
        _out.print(f"{escape(title)}: {number:,}", style="yellow", soft_wrap=True, highlight=False)
        for entry in first:
            text = f"  {entry['item']}: {entry['reason']}"
            _out.print(escape(text), style="yellow", soft_wrap=True, highlight=False)
        if number > len(first):
            where = f", all in {report.name}" if report is not None else ""
            _out.print(f"  and {number - len(first):,} more{where}", style="yellow", highlight=False)


def _shell_path(path: Path) -> str:
    """Quote a path for a shell; one that begins with a dash would be an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def prepare_demo(target: Path) -> None:
    """Create the campaign of ``gleaner demo`` from drawn images, imported like a user's own; keep an earlier one.

    Raises:
        UserError: something else is there.
    """
    from flows.workspace.dvc import packaged_file
    from flows.workspace.run_lock import is_workspace
    from flows.workspace.scaffold import WorkspaceConfig, create_workspace
    from tasks.data.dataset_source import DatasetSource
    from tasks.data.import_policy import ImportPolicy
    from tasks.demo import DIGITS_PARAMS_FILE, generate_dataset, load_digits_params
    from tasks.params import load_params
    from tasks.params.profiles import DEMO_OVERRIDES

    if is_workspace(target):
        return
    if target.exists() and any(target.iterdir()):
        fix = "Name another folder with --dir."
        raise UserError(target, "the place is taken, expected a free one or an earlier demo", fix)
    params = load_params(packaged_file("params.yaml"))
    digits = load_digits_params(packaged_file(DIGITS_PARAMS_FILE))
    with tempfile.TemporaryDirectory(prefix="gleaner-demo-") as folder:
        dataset_dir = Path(folder)
        generate_dataset(dataset_dir, params=digits, classes=params.classes, seed=params.seed)
        source = DatasetSource(
            "coco",
            dataset_dir / "annotations.json",
            dataset_dir / "images",
            dataset_dir / "val.json",
            classes=tuple(params.classes),
            policy=ImportPolicy(unannotated="empty"),  # what was drawn is known to the last digit
        )
        campaign = WorkspaceConfig(
            source=source,
            seed_labels=digits.seed_images,
            calibration_images=digits.calibration_images,
            val_frac=0.2,  # unused: the demo brings its own validation set
            oracle=True,
            overrides=DEMO_OVERRIDES,
            imported_at=_DEMO_IMPORTED_AT,
        )
        create_workspace(target, campaign)


def adopt(
    reason: Annotated[str, typer.Option(help="Why; kept in owners.jsonl.")],
    workspace: WorkspaceOption = Path(),
) -> None:
    """Go on with a campaign in this folder, and no longer in the one it was copied, cloned or restored from.

    The other folder stops at its next run. After a move, MLflow's records of artifacts get the new place.
    """
    from flows.workspace.run_lock import require_workspace

    if not reason.strip():
        raise UserError("--reason", "the text is empty", "Give a reason for owners.jsonl.")
    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.registry.adopt import adopt as adopt_folder
    from flows.runtime.retries import translate_service_errors
    from flows.workspace import git
    from flows.workspace.run_lock import run_lock
    from flows.workspace.trust import trust
    from tasks.params import load_params

    trust(campaign.root)
    with run_lock(campaign), translate_service_errors("MLflow"):
        git.require_branch(campaign.root)
        adoption = adopt_folder(campaign, load_params(campaign.params), reason.strip())
    console = SafeConsole()
    for change in adoption.changes or ("The folder is the campaign's own already.",):
        console.print(escape(change), soft_wrap=True, highlight=False)
