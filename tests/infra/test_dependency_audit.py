from pathlib import Path

import pytest

from infra import dependency_audit

RESULT = {
    "dependencies": [
        {"name": "fine", "version": "1.0", "vulns": []},
        {"name": "private", "skip_reason": "Dependency not found on PyPI"},
        {
            "name": "weak",
            "version": "2.0",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"], "aliases": ["CVE-1"], "description": ""},
                {"id": "PYSEC-2", "fix_versions": [], "aliases": ["CVE-2", "GHSA-2"], "description": ""},
            ],
        },
    ],
    "fixes": [],
}
"""As pip-audit 2.10 writes it."""


def test_findings_name_package_version_and_fix() -> None:
    findings = dependency_audit.read_findings(RESULT)
    assert (findings.num_packages, findings.unknown) == (3, ["private"])
    assert findings.vulnerable == ["weak 2.0: PYSEC-1, mended in 2.1, 3.0", "weak 2.0: PYSEC-2, mended in none"]


def test_an_accepted_vulnerability_is_left_out_under_any_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependency_audit, "ACCEPTED", {"GHSA-2": "nothing calls it", "PYSEC-1": "not reached"})
    assert dependency_audit.read_findings(RESULT).vulnerable == []


def test_without_a_network_nothing_is_said_to_be_safe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one.lock").write_text(f"certifi==2026.1.1 --hash=sha256:{'0' * 64}\n")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(dependency_audit.NotLookedUp):
        dependency_audit.audit(tmp_path / "one.lock")
