"""Draw the demo campaign of a checkout, so that `dvc repro` has data to work on: the stage of examples/digits/dvc.yaml.

Reads  nothing
Writes data/images, data/index.parquet, data/val.parquet, data/val_names.parquet, data/calibration.parquet, data/import_report.json, data/labels, data/detections_at_selection, data/warm_start, oracle/annotations.parquet
Params seed, classes, examples/digits/params.yaml
"""  # noqa: E501

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.initial_split import CampaignData, CampaignPlan, create_campaign_data
from tasks.data.paths import Workspace
from tasks.demo import DIGITS_PARAMS_FILE, DigitsParams, generate_dataset, load_digits_params
from tasks.params import load_stage_params
from tasks.runtime.stage_main import stage_main

_CREATED_AT = "2026-01-01T00:00:00+00:00"  # a fixed time: the same seed gives the same files
_MAX_PIXELS = 1_000_000


def draw(params: DigitsParams, *, classes: Sequence[str], seed: int, workspace: Workspace) -> CampaignData:
    """Draw the demo data in COCO layout and take them in as a user's would be, with the rest as oracle.

    Args:
        params: numbers of images.
        classes: names of digits.
        seed: of drawing and of all splits.
        workspace: gets ``data/`` and ``oracle/``; what they hold is replaced.

    Raises:
        UserError: a class is no digit's name, or the pool is too small for its parts.
    """
    _clear(workspace)
    plan = CampaignPlan(
        seed=seed,
        seed_images=params.seed_images,
        calibration_images=params.calibration_images,
        val_frac=0.0,  # the drawn data bring their own validation set
        oracle=True,
        imported_at=_CREATED_AT,
        max_pixels=_MAX_PIXELS,
    )
    with tempfile.TemporaryDirectory(prefix="gleaner-draw-") as scratch:
        folder = Path(scratch)
        generate_dataset(folder, params=params, classes=classes, seed=seed)
        source = DatasetSource(
            "coco",
            folder / "annotations.json",
            folder / "images",
            folder / "val.json",
            classes=tuple(classes),
            policy=ImportPolicy(unannotated="empty"),  # what was drawn is known to the last digit
        )
        return create_campaign_data(source, plan, workspace)


def _clear(workspace: Workspace) -> None:
    """DVC removes outputs before it runs a stage; `python -m tasks.demo.draw` by hand does the same."""
    for folder in (workspace.images, workspace.labels, workspace.detections_at_selection, workspace.warm_start):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (
        workspace.index,
        workspace.val,
        workspace.val_names,
        workspace.calibration,
        workspace.import_report,
        workspace.oracle,
    ):
        file.unlink(missing_ok=True)


def _body(workspace: Workspace) -> None:
    sections = load_stage_params(workspace.params, "seed", "classes")
    digits = load_digits_params(workspace.root / DIGITS_PARAMS_FILE)
    draw(digits, classes=sections.classes, seed=sections.seed, workspace=workspace)


def main() -> None:
    """Stage entry point."""
    stage_main("draw", _body)


if __name__ == "__main__":
    main()
