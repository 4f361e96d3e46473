"""Options that several commands share, defined once: campaign, output, and the data set of ``init`` and ``import``."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flows.runtime.process_env import prepare_environment

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the campaign.", show_default="the current folder")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust", help="Trust the campaign's authors: use settings and classes that run their programs."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def look_at(root: Path, *, trust_campaign: bool) -> None:
    """Prepare a command that only looks at a campaign, which may be a stranger's.

    Raises:
        UserError: git's configuration there names programs, and the campaign is not trusted.
    """
    prepare_environment(root)
    from flows.workspace.trust import require_harmless_git, trust

    if trust_campaign:
        trust(root)
    require_harmless_git(root)


class AnnotationFormat(StrEnum):
    """How annotations are written."""

    coco = "coco"
    voc = "voc"
    yolo = "yolo"
    cvat = "cvat"
    label_studio = "label_studio"
    dota = "dota"
    visdrone = "visdrone"
    ground_truth = "ground_truth"


class Polygons(StrEnum):
    """What polygons, masks and rotated boxes without a box count as."""

    refuse = "refuse"
    box = "box"


class Unannotated(StrEnum):
    """What an image listed without boxes means."""

    unlabeled = "unlabeled"
    empty = "empty"


class HardwareProfile(StrEnum):
    """Hardware that the initial parameters are for."""

    cpu = "cpu"
    gpu = "gpu"


class TestSplit(StrEnum):
    """What a test split becomes."""

    leave_out = "leave-out"
    train = "train"
    val = "val"


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Options that say where a data set is and how it is imported; a field is an option of the command line."""

    dataset: Annotated[
        Path | None,
        typer.Option(help="Export of a label tool: a folder or zip with images, annotations and perhaps splits."),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(help="Folder of images, or s3:// prefix; every picture below it belongs to the pool."),
    ] = None
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="Annotation file (COCO, CVAT, Label Studio, manifest) or folder of them (VOC, YOLO, DOTA, VisDrone)."
        ),
    ] = None
    annotation_format: Annotated[
        AnnotationFormat | None,
        typer.Option("--format", help="Format of the annotations.", show_default="recognized by content"),
    ] = None
    val: Annotated[
        Path | None,
        typer.Option(
            help="Validation set: annotations, or a text file with one image a line.",
            show_default="the split of the data set, else drawn at random",
        ),
    ] = None
    val_images: Annotated[Path | None, typer.Option(help="Images of --val.", show_default="--images")] = None
    val_frac: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the annotated images drawn for validation, where none is given."),
    ] = 0.2
    test_split: Annotated[TestSplit, typer.Option(help="What becomes of a split called test.")] = TestSplit.leave_out
    polygons: Annotated[
        Polygons, typer.Option(help="Polygons, masks and rotated boxes: refuse them, or take their bounding boxes.")
    ] = Polygons.refuse
    unannotated: Annotated[
        Unannotated,
        typer.Option(help="What an image listed without boxes means, where the document does not say it was reviewed."),
    ] = Unannotated.unlabeled
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Classes to put first, in this order, also without a box yet; the others follow by frequency.",
        ),
    ] = None
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links to images and folders.")] = False
    seed_labels: Annotated[
        int | None,
        typer.Option(min=1, help="Images of the seed batch, drawn at random.", show_default="all annotated ones"),
    ] = None
    calibration_images: Annotated[
        int,
        typer.Option(min=0, help="Labeled images never trained on, from which the weights of the score are learned."),
    ] = 0
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Keep the other annotations where only the simulated annotator reads them.")
    ] = False
    profile: Annotated[
        HardwareProfile | None,
        typer.Option(
            help="Detector, resolution, schedule and batch: for rounds of minutes on a CPU, or of hours on a GPU.",
            show_default="gpu where the machine has one",
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of params.yaml, as train.iterations=300; repeatable."),
    ] = None


def with_dataset_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``DatasetOptions`` after its own; it receives them as ``options``."""
    types = get_type_hints(DatasetOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
        )
        for field in fields(DatasetOptions)
    ]
    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "options"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {parameter.name: values.pop(parameter.name) for parameter in shared}
        command(**values, options=DatasetOptions(**given))

    signature = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    )
    wrapper.__signature__ = signature  # type: ignore[attr-defined]  # Typer reads options from it
    wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return wrapper
