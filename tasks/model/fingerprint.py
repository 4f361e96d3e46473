"""Digest of the software that decides what a network computes."""

import importlib.metadata
from pathlib import Path

import detectron_ext
import tasks.model
from tasks.storage import files

_LIBRARIES = ("detectron2", "numpy", "pillow", "timm", "torch", "torchvision")


def software_fingerprint(*modules: Path) -> str:
    """Return one digest of the detector's code, of ``modules`` and of the versions of the libraries below.

    Scratch results of an interrupted stage carry it in their key, so that none is used after an upgrade.
    """
    packages = [Path(str(package.__file__)).parent for package in (detectron_ext, tasks.model)]
    return files.sha256_json(
        [
            [files.sha256_tree(folder, keep=lambda path: path.suffix == ".py") for folder in packages],
            [files.sha256_file(module) for module in modules],
            {name: importlib.metadata.version(name) for name in _LIBRARIES},
        ]
    )
