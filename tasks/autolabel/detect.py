"""``python -m tasks.autolabel.detect``: run a model on the pool where the stored detections are another model's.

The code is that of the stage ``infer``; only where it reads the model and where it writes differ. A process of its own,
because ``flows`` hold no tensors. A killed run goes on where it was.
"""

import sys
from pathlib import Path

from tasks.data.paths import Workspace
from tasks.infer import infer
from tasks.params import load_stage_params
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.stage_main import stage_main


def detect_pool(workspace: Workspace, *, teacher: Path, params: Path, out: Path) -> None:
    """Write the detections of a model on unlabeled, calibration and labeled images, as the stage ``infer`` does.

    Args:
        workspace: the campaign.
        teacher: state file of the model.
        params: today's parameters, with the section ``model`` of the round that trained it.
        out: folder of the shards.
    """
    assembled = workspace.derived("assemble")
    infer(
        load_stage_params(params, "classes", "model", "infer", "train"),
        root=workspace.root,
        unlabeled=assembled / "unlabeled.parquet",
        calibration=assembled / "calibration.parquet",
        labeled=assembled / "labeled.parquet",
        teacher=teacher,
        scratch=out.with_name(f"{out.name}-unfinished"),
        out=out,
    )


def main() -> None:
    """Detect with the model file, the parameter file and the folder that the command line names, in this campaign."""
    teacher, params, out = map(Path, sys.argv[1:4])
    keep_freed_memory()
    stage_main("autolabel", lambda workspace: detect_pool(workspace, teacher=teacher, params=params, out=out))


if __name__ == "__main__":
    main()
