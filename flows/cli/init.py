"""``gleaner init``: make a campaign from an export, or from images and annotations apart."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.runtime.process_env import prepare_environment
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

if TYPE_CHECKING:
    from flows.workspace.scaffold import WorkspaceConfig
    from tasks.data.initial_split import CampaignData

_out = Console()
_WARNINGS = ("classes_nearly_equal", "class_without_box", "maybe_not_found", "exif_turn", "first_frame")
"""Codes of notes that are shown, too; the others are only in the report."""


class AnnotationFormat(StrEnum):
    """How annotations are written."""

    coco = "coco"
    voc = "voc"
    yolo = "yolo"
    cvat = "cvat"
    label_studio = "label_studio"


class Polygons(StrEnum):
    """What polygons, masks and rotated boxes without a box count as."""

    refuse = "refuse"
    box = "box"


class Unannotated(StrEnum):
    """What an image listed without boxes means."""

    unlabeled = "unlabeled"
    empty = "empty"


class TestSplit(StrEnum):
    """What a test split becomes."""

    leave_out = "leave-out"
    train = "train"
    val = "val"


DatasetOption = Annotated[
    Path | None,
    typer.Option(help="Export of a label tool: a folder or zip with images, annotations and perhaps splits."),
]
ImagesOption = Annotated[
    str | None,
    typer.Option(help="Folder of images, or s3:// prefix; every picture below it belongs to the pool."),
]
AnnotationsOption = Annotated[
    Path | None, typer.Option(help="Annotation file (COCO, CVAT, Label Studio) or folder of them (VOC, YOLO).")
]
FormatOption = Annotated[
    AnnotationFormat | None,
    typer.Option("--format", help="Format of the annotations.", show_default="recognized by content"),
]
ValOption = Annotated[
    Path | None,
    typer.Option(
        help="Validation set: annotations, or a text file with one image a line.",
        show_default="the split of the data set, else drawn at random",
    ),
]
ValImagesOption = Annotated[Path | None, typer.Option(help="Images of --val.", show_default="--images")]
ValFracOption = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the annotated images drawn for validation, where none is given.")
]
TestSplitOption = Annotated[TestSplit, typer.Option(help="What becomes of a split called test.")]
PolygonsOption = Annotated[
    Polygons, typer.Option(help="Polygons, masks and rotated boxes: refuse them, or take their bounding boxes.")
]
UnannotatedOption = Annotated[
    Unannotated,
    typer.Option(help="What an image listed without boxes means, where the document does not say it was reviewed."),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Classes to put first, in this order, also without a box yet; the others follow by frequency.",
    ),
]
FollowLinksOption = Annotated[bool, typer.Option("--follow-links", help="Follow links to images and folders.")]
SeedLabelsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Images of the seed batch, drawn at random.", show_default="all annotated ones"),
]
CalibrationOption = Annotated[
    int, typer.Option(min=0, help="Labeled images never trained on, from which the weights of the score are learned.")
]
OracleOption = Annotated[
    bool, typer.Option("--oracle", help="Keep the other annotations where only the simulated annotator reads them.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value of params.yaml, as train.iterations=300; repeatable."),
]


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New folder of the campaign.")],
    dataset: DatasetOption = None,
    images: ImagesOption = None,
    annotations: AnnotationsOption = None,
    annotation_format: FormatOption = None,
    val: ValOption = None,
    val_images: ValImagesOption = None,
    val_frac: ValFracOption = 0.2,
    test_split: TestSplitOption = TestSplit.leave_out,
    polygons: PolygonsOption = Polygons.refuse,
    unannotated: UnannotatedOption = Unannotated.unlabeled,
    classes: ClassesOption = None,
    follow_links: FollowLinksOption = False,
    seed_labels: SeedLabelsOption = None,
    calibration_images: CalibrationOption = 0,
    oracle: OracleOption = False,
    settings: SettingsOption = None,
) -> None:
    """Make a campaign: git, DVC, dvc.yaml, params.yaml, pool, fixed validation set and seed batch.

    Point it at an export with --dataset, or at images and annotations apart.
    """
    prepare_environment(directory)
    from flows.workspace.scaffold import create_workspace, summary_counts
    from tasks.params import load_params

    config = workspace_config(
        dataset, images, annotations, annotation_format, val, val_images, val_frac, test_split, polygons, unannotated,
        classes, follow_links, seed_labels, calibration_images, oracle, settings,
    )  # fmt: skip
    data = create_workspace(directory, config)
    _out.print(f"[bold]{escape(str(directory))}[/bold] classes: {escape(', '.join(data.classes))}")
    for label, count in summary_counts(data):
        _out.print(f"  {count:>7}  {label}")
    print_import(data, report=directory / "data" / "import_report.json")
    if not oracle and load_params(Workspace(directory).params).provider.kind == "oracle":
        _out.print(
            "Without --oracle the simulated annotator has nothing to give: gleaner run will say so.",
            style="yellow",
        )
    _out.print(f"Next: cd {escape(_shell_path(directory))} && gleaner run", soft_wrap=True)


def workspace_config(
    dataset: Path | None,
    images: str | None,
    annotations: Path | None,
    annotation_format: AnnotationFormat | None,
    val: Path | None,
    val_images: Path | None,
    val_frac: float,
    test_split: TestSplit,
    polygons: Polygons,
    unannotated: Unannotated,
    classes: str | None,
    follow_links: bool,
    seed_labels: int | None,
    calibration_images: int,
    oracle: bool,
    settings: Sequence[str] | None,
) -> "WorkspaceConfig":
    """Put the options of ``init`` and ``import`` together.

    Raises:
        UserError: neither an export nor images and annotations are given, or both.
    """
    from flows.workspace.scaffold import OWN_DATA_OVERRIDES, WorkspaceConfig, pool_source_override
    from tasks.data.dataset_source import DatasetSource
    from tasks.data.import_policy import ImportPolicy
    from tasks.storage.s3 import is_object_uri

    _require_one_source(dataset, images, annotations)
    overrides = list(OWN_DATA_OVERRIDES)
    if images is not None:
        overrides.append(pool_source_override(images))
    if follow_links:
        overrides.append("pool.follow_links=true")
    names = [name.strip() for name in (classes or "").split(",") if name.strip()]
    return WorkspaceConfig(
        source=DatasetSource(
            annotation_format=annotation_format.value if annotation_format else None,
            annotations=annotations,
            images=None if images is None else Path(images),
            val=val,
            val_images=val_images,
            dataset=dataset,
            classes=tuple(dict.fromkeys(names)),
            policy=ImportPolicy(polygons.value, unannotated.value, test_split.value, follow_links),
        ),
        seed_labels=seed_labels,
        calibration_images=calibration_images,
        val_frac=val_frac,
        oracle=oracle,
        overrides=(*overrides, *(settings or ())),
        imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        bucket=images if images is not None and is_object_uri(images) else None,
    )


def _require_one_source(dataset: Path | None, images: str | None, annotations: Path | None) -> None:
    if dataset is not None and annotations is not None:
        problem = "--annotations is given beside --dataset, expected one of them"
        raise UserError("gleaner init", problem, "The annotations of --dataset are found by themselves.")
    if dataset is None and (images is None or annotations is None):
        missing = "--annotations is" if images is not None else "--images is" if annotations is not None else "data are"
        problem = f"{missing} missing, expected --dataset, or --images and --annotations"
        raise UserError("gleaner init", problem, "Point --dataset at the export of your label tool.")


def print_import(data: "CampaignData", report: Path | None) -> None:
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
