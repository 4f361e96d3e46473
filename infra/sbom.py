"""Write the software bill of materials: CycloneDX 1.5 in JSON, of what requirements.lock pins.

Reads  requirements.lock, infra/detectron2/source.txt, pyproject.toml, and the licenses and requirements that the
       packages installed beside this Python state
Writes dist/gleaner.cdx.json, or the file named by ``--output``

Run: ``make sbom``. Two runs over the same lock differ in nothing: the time is SOURCE_DATE_EPOCH, or that of the commit.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tasks.storage import files

_ROOT = Path(__file__).parents[1]
_LOCKS = (_ROOT / "requirements.lock", _ROOT / "infra" / "detectron2" / "source.txt")
_OUTPUT = _ROOT / "dist" / "gleaner.cdx.json"
_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:(?P<digest>[0-9a-f]{64})\b")
_MAX_LICENSE_LENGTH = 100  # longer ones are whole license texts


class SbomError(RuntimeError):
    """The bill cannot be written, and why."""


@dataclass(frozen=True)
class LockedPackage:
    """A package as the lock pins it."""

    name: str
    """In its canonical form."""
    version: str
    sha256s: tuple[str, ...]
    """Of every file that may be installed: one a platform."""

    @property
    def purl(self) -> str:
        """Package URL, which also identifies it within the document."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


def read_lock(text: str, where: str) -> list[LockedPackage]:
    """Read the packages of a lock in pip's format.

    Args:
        text: content of the file.
        where: name of the file, for errors.

    Raises:
        SbomError: a line that is neither empty, a comment, nor a pinned package with a hash.
    """
    packages = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pinned, digests = _PINNED.match(line), _HASH.findall(line)
        if pinned is None or not digests:
            raise SbomError(f"{where}: a line is {line[:80]!r}, expected NAME==VERSION --hash=sha256:DIGEST. Lock it.")
        packages.append(LockedPackage(canonicalize_name(pinned["name"]), pinned["version"], tuple(sorted(digests))))
    return packages


def bill_of_materials(packages: Iterable[LockedPackage], version: str, timestamp: datetime) -> dict[str, Any]:
    """Build the document.

    Args:
        packages: of the locks, in any order.
        version: of Gleaner.
        timestamp: of the document, with time zone.
    """
    by_name = {package.name: package for package in sorted(packages, key=lambda package: package.name)}
    root = LockedPackage("gleaner", version, ())
    dependencies = [_dependency(root, by_name, by_name)]
    dependencies += [_dependency(package, _required_names(package), by_name) for package in by_name.values()]
    components = [_component(package) for package in by_name.values()]
    content = json.dumps([version, components, dependencies], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "timestamp": timestamp.astimezone(UTC).isoformat(timespec="seconds"),
            "component": {
                "type": "application",
                "bom-ref": root.purl,
                "name": root.name,
                "version": version,
                "purl": root.purl,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": components,
        "dependencies": dependencies,
    }


def _component(package: LockedPackage) -> dict[str, Any]:
    licenses = _licenses(package)
    return {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.sha256s],
        **({"licenses": licenses} if licenses else {}),
    }


def _licenses(package: LockedPackage) -> list[dict[str, Any]]:
    """Return what the installed package states: an SPDX expression, else names; nothing where it says none."""
    metadata = _metadata(package)
    if metadata is None:
        return []
    expression = metadata.get("License-Expression")
    if expression:
        return [{"expression": expression}]
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    names = sorted({text.rpartition(" :: ")[2] for text in classifiers} - {"OSI Approved"})
    stated = (metadata.get("License") or "").strip()
    if not names and stated and "\n" not in stated and len(stated) <= _MAX_LICENSE_LENGTH:
        names = [stated]
    return [{"license": {"name": name}} for name in names]


def _dependency(package: LockedPackage, needed: Iterable[str], by_name: Mapping[str, LockedPackage]) -> dict[str, Any]:
    names = sorted(set(needed) - {package.name})
    return {"ref": package.purl, "dependsOn": [by_name[name].purl for name in names if name in by_name]}


def _required_names(package: LockedPackage) -> Iterator[str]:
    """Yield what the installed package asks for on this machine, without its extras."""
    metadata = _metadata(package)
    for text in (metadata.get_all("Requires-Dist") or []) if metadata is not None else ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # of an old package; what it needs is in the lock all the same
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def _metadata(package: LockedPackage) -> Any:
    """Return the metadata of the package where this very version is installed, else None."""
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return distribution.metadata if distribution.version == package.version else None


def _timestamp() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        command = ["git", "-C", str(_ROOT), "log", "-1", "--format=%ct"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        epoch = done.stdout.strip()
    if not epoch.isdecimal():
        raise SbomError(f"SOURCE_DATE_EPOCH: the time is {epoch!r}, expected seconds. Set it, or run in a checkout.")
    return datetime.fromtimestamp(int(epoch), UTC)


def write_sbom(output: Path) -> int:
    """Write the document and return the number of its components.

    Raises:
        SbomError: a lock is not one, or the time is unknown.
    """
    packages = [package for lock in _LOCKS for package in read_lock(lock.read_text(), lock.name)]
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    document = bill_of_materials(packages, version, _timestamp())
    files.write_json(output, document)
    return len(document["components"])


def main() -> None:
    """Write the bill and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="the file to write")
    output = parser.parse_args().output
    try:
        number = write_sbom(output)
    except SbomError as error:
        sys.exit(f"[sbom] {error}")
    print(f"[sbom] {number} packages are in {output}")


if __name__ == "__main__":
    main()
