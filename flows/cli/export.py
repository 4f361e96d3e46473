"""Command ``gleaner export``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.cli.options import WorkspaceOption
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment

if TYPE_CHECKING:
    from flows.registry.export import ExportResult


class ExportFormat(StrEnum):
    """Format of an exported network."""

    onnx = "onnx"
    openvino = "openvino"


class ExportPrecision(StrEnum):
    """Numbers that an exported network computes with."""

    fp32 = "fp32"
    int8 = "int8"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the detector.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="name@champion, name/3 or round-0003.", show_default="the champion"),
    ] = None,
    export_format: Annotated[ExportFormat, typer.Option("--format", help="Runtime it is for.")] = ExportFormat.onnx,
    precision: Annotated[
        ExportPrecision, typer.Option(help="int8 is smaller and faster; its ranges come from the calibration images.")
    ] = ExportPrecision.fp32,
    prune: Annotated[
        float,
        typer.Option(
            metavar="FRACTION",
            help="Remove this fraction of the channels, and train what is left for export.prune_finetune_iterations; "
            "from 0 to below 0.9.",
        ),
    ] = 0.0,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Write a model as a folder that detects objects without torch, measure it, and register it beside its parent.

    Refused where the mAP on the validation images falls by more than export.map_tolerance_points.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.registry.export import export_model
    from flows.runtime.retries import translate_service_errors
    from flows.workspace.run_lock import run_lock
    from flows.workspace.trust import trust

    console = SafeConsole()
    trust(campaign.root)
    with run_lock(campaign), console.status("exporting ...") as status, translate_service_errors("MLflow"):
        result = export_model(
            campaign, model, folder.absolute(), export_format.value, precision.value,
            on_step=lambda line: status.update(escape(line)), prune_frac=prune,
        )  # fmt: skip
    _print_result(result, folder, console)


def _print_result(result: "ExportResult", folder: Path, console: SafeConsole) -> None:
    record, measured = result.record, result.measured
    speeds_of = measured["speed"]
    tells_energy = any(speed["joules_per_image"] is not None for speeds in speeds_of.values() for speed in speeds)
    headers = ["", "mAP", "MB", "threads", "p50 ms", "p95 ms", "images/s", *(["J/image"] if tells_energy else [])]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in headers:
        table.add_column(header, justify="right" if header else "left")
    facts = {
        "original": (record.map_original, measured["size_original_mb"]),
        "export": (record.map_export, measured["size_mb"]),
    }
    for name, speeds in speeds_of.items():
        for speed in speeds:
            joules = speed["joules_per_image"]
            energy = ["-" if joules is None else f"{joules:.3f}"] if tells_energy else []
            table.add_row(
                name, f"{facts[name][0]:.2f}", f"{facts[name][1]:.1f}", str(speed["threads"]), f"{speed['p50_ms']:.1f}",
                f"{speed['p95_ms']:.1f}", f"{speed['images_per_s']:.1f}", *energy,
            )  # fmt: skip
    console.print(table)
    accuracy = measured["accuracy"]
    overlap = f"by an IoU of {accuracy['mean_iou']:.3f} on average, {accuracy['matched_frac']:.1%} by at least 0.99."
    registered = f"{record.name}/{record.version} of version {record.model.version}"
    console.print(
        escape(f"The original's boxes and the export's overlap {overlap}"),
        escape(f"Registered as {registered}. Try it: python {folder}/detect.pyz IMAGE"),
        sep="\n", soft_wrap=True, highlight=False,
    )  # fmt: skip
