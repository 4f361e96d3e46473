"""``gleaner import --check``: say what ``gleaner init`` would make of a data set, without making anything."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.init import (
    AnnotationsOption,
    CalibrationOption,
    ClassesOption,
    DatasetOption,
    FollowLinksOption,
    FormatOption,
    ImagesOption,
    OracleOption,
    Polygons,
    PolygonsOption,
    SeedLabelsOption,
    SettingsOption,
    TestSplit,
    TestSplitOption,
    Unannotated,
    UnannotatedOption,
    ValFracOption,
    ValImagesOption,
    ValOption,
    print_import,
    workspace_config,
)
from tasks.runtime.errors import UserError
from tasks.storage import files

_out = Console()


def import_(
    check: Annotated[bool, typer.Option("--check", help="Check only; needed.")] = False,
    report: Annotated[Path | None, typer.Option(help="File for the whole report, in JSON.")] = None,
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
    """Check a data set: say what gleaner init with the same options would take, and make nothing."""
    if not check:
        problem = "--check is missing, expected it: nothing is imported outside of a campaign"
        raise UserError("gleaner import", problem, "Make a campaign with gleaner init DIR and the same options.")
    from flows.workspace.scaffold import check_import
    from tasks.data.initial_split import report_document

    config = workspace_config(
        dataset, images, annotations, annotation_format, val, val_images, val_frac, test_split, polygons, unannotated,
        classes, follow_links, seed_labels or 1, calibration_images, oracle, settings,
    )  # fmt: skip
    data = check_import(config)
    _out.print(f"classes: {escape(', '.join(data.classes))}")
    if report is not None:
        files.write_json(report, report_document(data))
    print_import(data, report)
