"""The GPUs of this machine, without importing torch, which takes seconds."""

import os
from pathlib import Path

_DEVICES_DIR = Path("/dev")


def visible_gpus() -> list[str]:
    """List the GPUs that a stage may use, named as in ``CUDA_VISIBLE_DEVICES`` or as device files; [] on a CPU."""
    nodes = sorted(path.name for path in _DEVICES_DIR.glob("nvidia[0-9]*"))
    if not nodes:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [name.removeprefix("nvidia") for name in nodes]
    names = [name.strip() for name in named.split(",")]
    return sorted({name for name in names if name and not name.startswith("-")})
