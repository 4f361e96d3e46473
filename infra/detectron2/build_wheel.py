"""Repacks the published sources of Detectron2 0.6 as a pure-Python wheel for today's PyTorch and NumPy.

Reads  infra/detectron2/source.txt, and the archive it names from the package index that pip is set up for
Writes .cache/detectron2/detectron2-0.6+gleaner.1-py3-none-any.whl, byte for byte the same on every machine

Run it from the root of the repository: ``python -m infra.detectron2.build_wheel``. Standard library only.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from infra.detectron2.patches import PATCHES, VERSION, Patch

WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
SOURCE_FILE = Path(__file__).with_name("source.txt")
CACHE_DIR = Path(__file__).parents[2] / ".cache" / "detectron2"

METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: Detectron2 0.6 as a pure-Python package, repacked by Gleaner without the C++ extension
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: cloudpickle
Requires-Dist: fvcore>=0.1.5,<0.1.6
Requires-Dist: hydra-core>=1.1
Requires-Dist: iopath>=0.1.7,<0.1.10
Requires-Dist: matplotlib
Requires-Dist: numpy
Requires-Dist: omegaconf>=2.1
Requires-Dist: Pillow>=10
Requires-Dist: pycocotools>=2.0.2
Requires-Dist: tabulate
Requires-Dist: tensorboard
Requires-Dist: termcolor>=1.1
Requires-Dist: torch>=2.4
Requires-Dist: torchvision
Requires-Dist: tqdm>4.29.0
Requires-Dist: yacs>=0.1.8
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: gleaner\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

# pip learns an archive's name by running its build backend. This archive's setup.py needs PyTorch for that,
# and newer pips refuse what it declares. So this backend answers, and no code of the archive is run.
METADATA_BACKEND = """\
from pathlib import Path

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = Path(metadata_directory, "pb1_detectron2-0.6.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: pb1-detectron2\\nVersion: 0.6\\n")
    return folder.name

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


class BuildError(Exception):
    """The wheel cannot be built or installed as things are."""


def build(folder: Path = CACHE_DIR, archive: Path | None = None) -> Path:
    """Build the wheel in ``folder``, from ``archive`` or else from a fresh download, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = read_source(archive or download(folder), pinned_hash())
    return write_wheel(apply_patches(files, PATCHES), folder)


def pinned_hash() -> str:
    """Return the SHA-256 that source.txt pins."""
    match = re.search(r"--hash=sha256:([0-9a-f]{64})", SOURCE_FILE.read_text())
    if match is None:
        raise BuildError(f"{SOURCE_FILE}: no SHA-256 found, expected pb1-detectron2==0.6 --hash=sha256:...")
    return match[1]


def download(folder: Path) -> Path:
    """Fetch the archive with pip, so that pip's settings (mirror, certificates, proxy) hold here too."""
    with tempfile.TemporaryDirectory() as temporary:
        backend = Path(temporary, "setuptools")
        backend.mkdir()
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(METADATA_BACKEND)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--use-pep517", "--no-build-isolation", "--require-hashes"]
        command += ["--dest", str(folder), "--requirement", str(SOURCE_FILE)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": temporary})
    return next(folder.glob("pb1*detectron2-0.6.tar.gz"))


def read_source(archive: Path, sha256: str) -> dict[str, bytes]:
    """Return the archive's files by path below its top folder; refuse any archive but the pinned one."""
    content = archive.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BuildError(f"{archive}: SHA-256 is {found}, expected {sha256}. Delete the file and run again.")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for member in tar.getmembers():
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                files[member.name.partition("/")[2]] = stream.read()
    return files


def apply_patches(files: dict[str, bytes], patches: Iterable[Patch]) -> dict[str, bytes]:
    """Return the files with the changes applied, each changed file with a note of the reasons at its end."""
    patched = dict(files)
    reasons: dict[str, list[str]] = {}
    for patch in patches:
        old = patched.get(patch.path, b"").decode()
        text, count = re.subn(patch.pattern, patch.replacement, old, flags=re.MULTILINE)
        if count != patch.count:
            raise BuildError(
                f"{patch.path}: {patch.pattern} matches {count} times, expected {patch.count}. "
                "The table of changes was written for other sources."
            )
        patched[patch.path] = text.encode()
        reasons.setdefault(patch.path, []).append(patch.reason)
    for path in reasons.keys() & files.keys():
        patched[path] += f"\n# Changed by Gleaner: {'; '.join(dict.fromkeys(reasons[path]))}.\n".encode()
    return patched


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write package and metadata as a wheel: sorted, undated, uncompressed, so always the same bytes."""
    info = f"detectron2-{VERSION}.dist-info"
    content = {path: data for path, data in files.items() if path.startswith("detectron2/")}
    content[f"{info}/METADATA"] = METADATA.encode()
    content[f"{info}/WHEEL"] = WHEEL.encode()
    content[f"{info}/LICENSE"] = files["LICENSE"]
    record = "".join(f"{path},{_record_hash(data)},{len(data)}\n" for path, data in sorted(content.items()))
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    target = folder / WHEEL_NAME
    partial = target.with_suffix(".partial")  # a build that is killed leaves no half wheel
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as wheel:
        for path, data in sorted(content.items()):
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, data)
    partial.replace(target)
    return target


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Repack Detectron2 0.6 as a pure-Python wheel.")
    parser.add_argument("--out", type=Path, default=CACHE_DIR, help="folder of the wheel (%(default)s)")
    parser.add_argument("--source", type=Path, help="the source archive, where it cannot be downloaded")
    arguments = parser.parse_args()
    print(build(arguments.out, arguments.source))
