"""Signed tags: who signs a round's tag signs its ledger, and the audit holds them to it."""

import subprocess
from pathlib import Path

import pytest

from flows.provenance.audit import Check
from flows.provenance.audit.run import run_audit
from flows.workspace import git
from flows.workspace.git import read_tag_object
from tasks.data.paths import Workspace

pytestmark = pytest.mark.integration
TAG = "round-0001"


def create_ssh_key(path: Path) -> str:
    """Make an SSH key; returns the line by which the team trusts it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return f"lead@plant.example {path.with_suffix('.pub').read_text()}"


@pytest.fixture
def signed_campaign(after_two_rounds: Workspace, tmp_path: Path) -> Workspace:
    """The newest round's tag signed with an SSH key that the team trusts."""
    root, key, signers = after_two_rounds.root, tmp_path / "key", tmp_path / "signers"
    signers.write_text(create_ssh_key(key))
    for name, value in (
        ("user.email", "lead@plant.example"),
        ("gpg.format", "ssh"),
        ("user.signingKey", str(key)),
        ("gpg.ssh.allowedSignersFile", str(signers)),
    ):
        git.run_git(root, "config", "--local", name, value)
    tag = read_tag_object(root, TAG)
    assert tag is not None
    git.run_git(root, "tag", "--sign", "--force", "--message", tag.message, TAG, tag.commit)
    return after_two_rounds


def signature_check(workspace: Workspace) -> Check:
    checks = run_audit(workspace, None, recompute=False, on_check=lambda _: None)
    others = [finding for check in checks for finding in check.findings if check.name != "signatures of tags"]
    assert others == []
    (check,) = [check for check in checks if check.name == "signatures of tags"]
    return check


def test_a_tag_signed_with_a_trusted_key_passes(signed_campaign: Workspace) -> None:
    check = signature_check(signed_campaign)
    assert (check.state, check.examined) == ("pass", "1 signed tag")


def test_a_tag_changed_after_it_was_signed_is_named(signed_campaign: Workspace) -> None:
    content = git.run_git(signed_campaign.root, "cat-file", "tag", TAG)
    assert content.count("labels, ") == 1
    forged = subprocess.run(
        ["git", "hash-object", "-t", "tag", "-w", "--stdin"],
        cwd=signed_campaign.root, input=content.replace("labels, ", "labels and ") + "\n", text=True,
        capture_output=True, check=True,
    ).stdout.strip()  # fmt: skip
    git.run_git(signed_campaign.root, "update-ref", f"refs/tags/{TAG}", forged)
    check = signature_check(signed_campaign)
    assert check.state == "fail"
    assert check.findings[0].startswith(f"tag {TAG}: ")


def test_a_tag_signed_by_a_stranger_is_named(signed_campaign: Workspace, tmp_path: Path) -> None:
    (tmp_path / "signers").write_text(create_ssh_key(tmp_path / "stranger"))
    check = signature_check(signed_campaign)
    assert check.state == "fail"
    assert check.findings[0].startswith(f"tag {TAG}: ")
