"""What nothing needs goes; afterwards everything that was needed is still there."""

import json
from pathlib import Path

import pytest

from flows.provenance.audit.run import run_audit
from flows.registry.publish import push
from flows.workspace import dvc, git
from flows.workspace.dvc_cache import find_garbage, open_dvc_cache, remove_garbage
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import run_gleaner

pytestmark = pytest.mark.integration
ORPHAN_BYTES = b"left by a derivation that was cut off" * 100


def write_orphan_object(workspace: Workspace) -> Path:
    """A stored output that no file refers to any more; its object."""
    junk = workspace.root / "data" / "junk.bin"
    files.write_bytes(junk, ORPHAN_BYTES)
    dvc.add(workspace, junk)
    if dvc.has_default_remote(workspace.root):
        dvc.run_dvc(workspace.root, "push", "--quiet")
    (md5,) = [line.split()[-1] for line in Path(f"{junk}.dvc").read_text().splitlines() if "md5:" in line]
    Path(f"{junk}.dvc").unlink()
    junk.unlink()
    git.run_git(workspace.root, "checkout", "--quiet", "--", "data")
    return open_dvc_cache(workspace.root).object_path(md5)


def test_only_what_nothing_needs_is_freed(after_two_rounds: Workspace) -> None:
    root = after_two_rounds.root
    assert find_garbage(after_two_rounds, remote=False) == []
    junk = write_orphan_object(after_two_rounds)
    told = run_gleaner("gc", "--json", cwd=root)
    assert json.loads(told.stdout) == [
        {"location": "cache", "path": "unknown", "objects": 1, "bytes": len(ORPHAN_BYTES)}
    ]
    assert "Nothing was deleted" in told.stderr
    assert junk.is_file()
    done = run_gleaner("gc", "--yes", cwd=root)
    assert (done.returncode, "Freed 0.00 MiB." in done.stdout) == (0, True), done.stdout + done.stderr
    assert not junk.exists()
    checks = run_audit(after_two_rounds, None, recompute=False, on_check=lambda _: None)
    assert [finding for check in checks for finding in check.findings] == []
    for tag in ("round-0000", "round-0001"):
        git.run_git(root, "checkout", "--quiet", tag)
        dvc.run_dvc(root, "checkout", "--quiet")
        assert dvc.is_clean(root)


def test_a_replaced_derivation_is_garbage_by_name(after_two_rounds: Workspace) -> None:
    """Committed, then taken back before it was tagged."""
    root = after_two_rounds.root
    files.write_bytes(after_two_rounds.derived("train") / "teacher.pth", b"another teacher")
    dvc.run_dvc(root, "commit", "--quiet", "--force", "train")
    git.run_git(root, "commit", "--quiet", "--all", "--message", "Derive round 1 otherwise")
    git.run_git(root, "reset", "--quiet", "--hard", "HEAD~1")
    dvc.run_dvc(root, "checkout", "--quiet", "--force")
    (group,) = find_garbage(after_two_rounds, remote=False)
    assert (group.path, len(group.md5s)) == ("derived/train", 2)  # the teacher, and the list of the folder
    remove_garbage(after_two_rounds, [group])
    remove_garbage(after_two_rounds, [group])
    assert find_garbage(after_two_rounds, remote=False) == []
    assert dvc.is_clean(root)


def test_the_remote_is_freed_too_when_asked(after_two_rounds: Workspace, tmp_path: Path) -> None:
    root = after_two_rounds.root
    with pytest.raises(UserError, match="a default remote is not set"):
        find_garbage(after_two_rounds, remote=True)
    dvc.run_dvc(root, "remote", "add", "--quiet", "--local", "--default", "store", str(tmp_path / "store"))
    push(after_two_rounds)
    write_orphan_object(after_two_rounds)
    before = {path for path in (tmp_path / "store").rglob("*") if path.is_file()}
    garbage = find_garbage(after_two_rounds, remote=True)
    assert [(group.location, len(group.md5s)) for group in garbage] == [("cache", 1), ("remote", 1)]
    remove_garbage(after_two_rounds, garbage)
    after = {path for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert after < before
    assert len(before - after) == 1
    assert find_garbage(after_two_rounds, remote=True) == []


def test_what_a_colleagues_branch_needs_is_kept(after_two_rounds: Workspace) -> None:
    """Fetched, not merged: no local branch and no tag has it."""
    root = after_two_rounds.root
    own = after_two_rounds.root / "data" / "theirs.bin"
    files.write_bytes(own, ORPHAN_BYTES)
    dvc.add(after_two_rounds, own)
    git.run_git(root, "add", "--all", "data")
    git.run_git(root, "commit", "--quiet", "--message", "Theirs")
    git.run_git(root, "update-ref", "refs/remotes/origin/main", "HEAD")
    git.run_git(root, "reset", "--quiet", "--hard", "HEAD~1")
    own.unlink()
    assert find_garbage(after_two_rounds, remote=False) == []
    git.run_git(root, "update-ref", "-d", "refs/remotes/origin/main")
    (group,) = find_garbage(after_two_rounds, remote=False)
    assert (group.path, group.size_bytes) == ("data/theirs.bin", len(ORPHAN_BYTES))


def test_a_shared_cache_is_left_alone(after_two_rounds: Workspace, tmp_path: Path) -> None:
    config = after_two_rounds.root / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    with pytest.raises(UserError, match="outside the campaign"):
        find_garbage(after_two_rounds, remote=False)


def test_a_link_to_a_shared_cache_is_left_alone(after_two_rounds: Workspace, tmp_path: Path) -> None:
    cache = after_two_rounds.root / ".dvc" / "cache"
    cache.rename(tmp_path / "shared")
    cache.symlink_to(tmp_path / "shared")
    with pytest.raises(UserError, match="outside the campaign"):
        find_garbage(after_two_rounds, remote=False)
