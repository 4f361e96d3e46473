"""``gleaner demo``: create the demo campaign from drawn images, imported like a user's own."""

import tempfile
from pathlib import Path

from flows.workspace.code_version import packaged_file
from flows.workspace.rounds import last_published_round
from flows.workspace.run_lock import is_workspace
from flows.workspace.scaffold import WorkspaceConfig, create_workspace
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.paths import Workspace
from tasks.demo import DIGITS_PARAMS_FILE, generate_dataset, load_digits_params
from tasks.params import load_params
from tasks.runtime.errors import UserError

LAST_ROUND = 2
_IMPORTED_AT = "2026-01-01T00:00:00+00:00"  # a fixed time: the same images, labels and parameters give the same bytes


def prepare_demo(target: Path) -> None:
    """Create the demo campaign, unless an earlier call has.

    Raises:
        UserError: something else is there.
    """
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
            overrides=(),
            imported_at=_IMPORTED_AT,
        )
        create_workspace(target, campaign)


def remaining_rounds(workspace: Workspace) -> int:
    """Return how many rounds the demo still needs."""
    return LAST_ROUND - last_published_round(workspace)
