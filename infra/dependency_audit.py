"""Look up the packages of a lock among known vulnerabilities, with pip-audit.

    python -m infra.dependency_audit [--lock requirements.lock] [--required]

Exit status 1 where one is vulnerable. Without the network, or where the index has no vulnerability data, nothing can
be looked up: that is said, and an error only with ``--required``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCEPTED: Mapping[str, str] = {}
"""Vulnerabilities that stay for now: id, and why they do not reach a user of Gleaner."""


@dataclass(frozen=True)
class Findings:
    """What pip-audit found."""

    num_packages: int
    unknown: Sequence[str]
    """Names of packages that were not looked up."""
    vulnerable: Sequence[str]
    """A line for each vulnerability: name, version, id, and the versions that have it mended."""


class NotLookedUp(Exception):
    """The vulnerability data are out of reach."""


def audit(lock: Path) -> Findings:
    """Look up each package of ``lock``; nothing is installed.

    Raises:
        NotLookedUp: pip-audit wrote no result; the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
        options = ["--format", "json", "--output", str(result), "--progress-spinner", "off", "--timeout", "15"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if not result.is_file() or not result.stat().st_size:
            raise NotLookedUp((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        return read_findings(json.loads(result.read_text()))


def read_findings(result: Mapping[str, Any]) -> Findings:
    """Read pip-audit's result; accepted vulnerabilities are left out."""
    packages = result["dependencies"]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", ())
        if ACCEPTED.keys().isdisjoint({found["id"], *found.get("aliases", ())})
    ]
    return Findings(len(packages), [one["name"] for one in packages if "skip_reason" in one], lines)


def main() -> None:
    """Run the lookup, print what was found, and exit."""
    parser = argparse.ArgumentParser(description="Look up locked packages among known vulnerabilities.")
    parser.add_argument("--lock", type=Path, default=Path("requirements.lock"))
    parser.add_argument("--required", action="store_true", help="fail where packages cannot be looked up")
    options = parser.parse_args()
    try:
        findings = audit(options.lock)
    except NotLookedUp as error:
        print(f"[audit] {options.lock}: no vulnerability data, nothing was looked up: {error}", file=sys.stderr)
        sys.exit(int(options.required))
    for line in findings.vulnerable:
        print(f"[audit] {line}", file=sys.stderr)
    looked_up = findings.num_packages - len(findings.unknown)
    print(
        f"[audit] {options.lock}: {looked_up} of {findings.num_packages} packages looked up, "
        f"vulnerabilities: {len(findings.vulnerable)}"
    )
    sys.exit(bool(findings.vulnerable) or (options.required and bool(findings.unknown)))


if __name__ == "__main__":
    main()
