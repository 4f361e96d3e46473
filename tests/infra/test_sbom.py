"""The bill of materials has every pinned package, and the fields that CycloneDX 1.5 requires."""

import json
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
from packaging.utils import canonicalize_name

from infra.sbom import LockedPackage, SbomError, bill_of_materials, read_lock, write_sbom

REPOSITORY = Path(__file__).parents[2]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
_TEXT = {"type": "string", "minLength": 1}
_LICENSES = {
    "oneOf": [
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {"type": "object", "required": ["expression"], "properties": {"expression": _TEXT},
                      "additionalProperties": False},
        },
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["license"],
                "additionalProperties": False,
                "properties": {
                    "license": {
                        "type": "object",
                        "properties": {"id": {"const": "Apache-2.0"}, "name": _TEXT},
                        "oneOf": [{"required": ["id"]}, {"required": ["name"]}],
                        "additionalProperties": False,
                    }
                },
            },
        },
    ]
}  # fmt: skip
_COMPONENT = {
    "type": "object",
    "required": ["type", "name"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["application", "library"]},
        "bom-ref": _TEXT,
        "name": _TEXT,
        "version": {"type": "string"},
        "purl": {"type": "string", "pattern": r"^pkg:pypi/[a-z0-9.-]+@[A-Za-z0-9.%-]+$"},
        "hashes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["alg", "content"],
                "additionalProperties": False,
                "properties": {"alg": {"const": "SHA-256"}, "content": {"pattern": "^[a-f0-9]{64}$"}},
            },
        },
        "licenses": _LICENSES,
    },
}
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["bomFormat", "specVersion", "version"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "http://cyclonedx.org/schema/bom-1.5.schema.json"},
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.5"},
        "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        "version": {"type": "integer", "minimum": 1},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"timestamp": {"type": "string", "format": "date-time"}, "component": _COMPONENT},
        },
        "components": {"type": "array", "uniqueItems": True, "items": _COMPONENT},
        "dependencies": {
            "type": "array",
            "uniqueItems": True,
            "items": {
                "type": "object",
                "required": ["ref"],
                "additionalProperties": False,
                "properties": {"ref": _TEXT, "dependsOn": {"type": "array", "uniqueItems": True, "items": _TEXT}},
            },
        },
    },
}
"""What bom-1.5.schema.json asks of the fields that are written here; the whole schema knows many more."""


def test_every_pinned_package_is_in_it_once_with_all_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795953600")
    path = tmp_path / "new" / "sbom.json"
    number = write_sbom(path)
    document = json.loads(path.read_text())
    jsonschema.validate(document, SCHEMA)
    lock = (REPOSITORY / "requirements.lock").read_text()
    pinned = {
        (canonicalize_name(name), found)
        for name, found in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;\\]+)", lock, flags=re.MULTILINE)
    }
    listed = {(component["name"], component["version"]) for component in document["components"]}
    assert listed == pinned | {("pb1-detectron2", "0.6")}
    assert number == len(document["components"]) == len(listed)
    digests = {found["content"] for component in document["components"] for found in component["hashes"]}
    assert set(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock)) <= digests
    refs = {component["bom-ref"] for component in document["components"]}
    root = document["metadata"]["component"]["bom-ref"]
    assert {entry["ref"] for entry in document["dependencies"]} == refs | {root}
    assert {ref for entry in document["dependencies"] for ref in entry["dependsOn"]} == refs
    assert document["metadata"]["timestamp"] == "2026-11-29T12:00:00+00:00"
    write_sbom(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_licenses_and_requirements_are_those_of_the_installed_version() -> None:
    installed = LockedPackage("pydantic", version("pydantic"), ("a" * 64,))
    needed = LockedPackage("annotated-types", "0", ("b" * 64,))
    document = bill_of_materials([needed, installed], "1.0", NOW)
    jsonschema.validate(document, SCHEMA)
    by_name = {component["name"]: component for component in document["components"]}
    assert [*by_name["pydantic"]["licenses"][0].values()] == ["MIT"]
    assert "licenses" not in by_name["annotated-types"]  # another version may have another
    edges = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert edges[installed.purl] == [needed.purl]
    assert edges["pkg:pypi/gleaner@1.0"] == [needed.purl, installed.purl]


@pytest.mark.parametrize("line", ["torch>=2", "torch==2.1", "git+https://example.org/a.git", "torch==2 --hash=md5:1"])
def test_a_line_without_a_pin_or_a_hash_is_refused(line: str) -> None:
    with pytest.raises(SbomError, match="expected NAME==VERSION --hash"):
        read_lock(f"# a comment\n\n{line}\n", "some.lock")


def test_local_versions_and_names_become_valid_addresses() -> None:
    (package,) = read_lock(f"Some_Package.x==1.0+cpu \\\n    --hash=sha256:{'c' * 64}\n", "some.lock")
    assert package.purl == "pkg:pypi/some-package-x@1.0%2Bcpu"


def test_without_a_time_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "now")
    with pytest.raises(SbomError, match="SOURCE_DATE_EPOCH: the time is 'now'"):
        write_sbom(tmp_path / "x.json")
