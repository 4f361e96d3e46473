"""``python -m tasks.model.smoke_test``: whether the newest weights load and detect on this machine, and at what cost.

Reads params.yaml, the newest teacher (before the first round: the weights a training starts from) and one
validation image; writes nothing. Prints one JSON object. A process of its own, because ``flows`` hold no tensors.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED
from tasks.model.detector import ImageReader, default_device, detect, load_detector, new_detector
from tasks.params import StageParams, load_stage_params
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import set_pdeathsig
from tasks.storage import files

_KIB = 1 << 10


def smoke_test(workspace: Workspace, params: StageParams) -> dict[str, Any]:
    """Load the detector and run it on one image twice; the second run is timed.

    Args:
        workspace: a campaign.
        params: sections classes, model, ssl and train.

    Returns:
        weights (what was loaded), device, device_name, torch, load_seconds, forward_seconds, detections,
        peak_memory_bytes (of this process) and peak_gpu_bytes.

    Raises:
        UserError: weights or image are missing, broken or of another model.
    """
    device = default_device()
    started_s = time.monotonic()
    name, detector = _load_newest_detector(workspace, params, device)
    loaded_s = time.monotonic()
    image = (
        files.read_table(_validation_images(workspace), ANNOTATED)
        .select(["image_id", "uri"])
        .slice(0, 1)
        .to_pylist()[0]
    )
    pixels = ImageReader(workspace.root, [image])(image["uri"])
    detect(detector, [pixels], params.model, params.train.mixed_precision)  # the first run pays for memory and kernels
    warm_s = time.monotonic()
    detections = detect(detector, [pixels], params.model, params.train.mixed_precision)[0]
    return {
        "weights": name,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else "the CPU",
        "torch": torch.__version__,
        "load_seconds": round(loaded_s - started_s, 3),
        "forward_seconds": round(time.monotonic() - warm_s, 3),
        "detections": len(detections.scores),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }


def _validation_images(workspace: Workspace) -> Path:
    """Those that ``prepare`` found usable; before the first round, all."""
    assembled = workspace.derived("assemble") / "val.parquet"
    return assembled if assembled.is_file() else workspace.val


def _load_newest_detector(workspace: Workspace, params: StageParams, device: str) -> tuple[str, Any]:
    teacher = workspace.derived("train") / "teacher.pth"
    num_classes = len(params.classes)
    if teacher.is_file():
        return "the teacher", load_detector(params.model, num_classes, teacher, device)
    detector = new_detector(params.model, num_classes, params.ssl.focal_gamma, workspace.root, device)
    detector.eval()
    return f"the start weights ({params.model.pretrained_weights})", detector


def main() -> None:
    """Try the detector of the campaign in the current folder."""
    logging.disable(logging.WARNING)
    set_pdeathsig()
    workspace = Workspace(Path.cwd())
    try:
        result = smoke_test(workspace, load_stage_params(workspace.params, "classes", "model", "ssl", "train"))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
