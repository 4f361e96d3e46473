import os
import subprocess
from pathlib import Path

import pytest

from flows.preflight.campaign import check_rounds
from flows.preflight.runner import CheckContext
from flows.registry.publish import _require_own_tag
from flows.workspace import git
from flows.workspace.rounds import LEDGER_FORMAT
from flows.workspace.scaffold import gitignore_text
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage.files import write_json
from tests.flows.hostile_machine import hostile_machine


@pytest.fixture
def repository(tmp_path: Path) -> Workspace:
    git.init_repository(tmp_path)
    (tmp_path / "params.yaml").write_text("a: 1\n")
    git.commit(Workspace(tmp_path), "first")
    return Workspace(tmp_path)


def test_a_user_git_knows_commits_under_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    root = tmp_path / "campaign"
    root.mkdir()
    git.init_repository(root)
    (root / "params.yaml").write_text("a: 1\n")
    git.commit(Workspace(root), "first")
    assert git.run_git(root, "log", "--format=%an %ae") == "Ada ada@example.org"


def test_a_commit_without_changes_makes_none(repository: Workspace) -> None:
    before = git.head_commit(repository.root)
    assert git.commit(repository, "again") == before


def test_a_commit_takes_new_changed_and_deleted_files(repository: Workspace) -> None:
    (repository.root / "rounds").mkdir()
    (repository.root / "rounds" / "round-0000.json").write_text("{}")
    git.commit(repository, "second")
    (repository.root / "rounds" / "round-0000.json").unlink()
    (repository.root / "params.yaml").write_text("a: 2\n")
    git.commit(repository, "third")
    assert git.run_git(repository.root, "show", "--name-status", "--format=").splitlines() == [
        "M\tparams.yaml",
        "D\trounds/round-0000.json",
    ]
    assert git.run_git(repository.root, "status", "--porcelain") == ""


def test_what_the_user_has_staged_stays_staged(repository: Workspace) -> None:
    (repository.root / "notes.txt").write_text("mine")
    git.run_git(repository.root, "add", "notes.txt")
    (repository.root / "params.yaml").write_text("a: 2\n")
    git.commit(repository, "ours")
    assert git.run_git(repository.root, "status", "--porcelain") == "A  notes.txt"


def test_a_file_name_with_blanks_and_umlauts_is_committed(repository: Workspace) -> None:
    (repository.root / "quarantine").mkdir()
    (repository.root / "quarantine" / "ein Büchlein.json").write_text("{}")
    git.commit(repository, "odd")
    assert git.run_git(repository.root, "status", "--porcelain") == ""


def test_a_tag_stays_where_it_was_first_set(repository: Workspace) -> None:
    git.set_tag(repository.root, "round-0000", "one")
    at = git.run_git(repository.root, "rev-list", "-n1", "round-0000")
    (repository.root / "params.yaml").write_text("a: 3\n")
    git.commit(repository, "more")
    git.set_tag(repository.root, "round-0000", "two")
    assert git.run_git(repository.root, "rev-list", "-n1", "round-0000") == at


def test_a_hook_of_another_repository_does_not_lead_astray(
    repository: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    subprocess.run(["git", "init", "--quiet", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    (repository.root / "params.yaml").write_text("a: 4\n")
    git.commit(repository, "here")
    assert git.run_git(repository.root, "log", "-1", "--format=%s") == "here"


def test_git_refusing_is_one_sentence(repository: Workspace) -> None:
    with pytest.raises(UserError, match=r"git switch ended with code 128 .*invalid reference: nowhere"):
        git.run_git(repository.root, "switch", "nowhere")


def test_a_detached_head_is_refused_with_the_way_back(repository: Workspace) -> None:
    git.require_branch(repository.root)
    git.run_git(repository.root, "checkout", "--quiet", "--detach")
    with pytest.raises(UserError, match="git switch main && dvc checkout"):
        git.require_branch(repository.root)


def test_every_clone_has_the_same_campaign_id(repository: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = tmp_path_factory.mktemp("clone") / "c"
    subprocess.run(["git", "clone", "--quiet", str(repository.root), str(clone)], check=True)
    assert git.campaign_id(clone) == git.campaign_id(repository.root)


def test_the_git_settings_of_the_machine_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_machine(tmp_path / "machine", monkeypatch)
    root = tmp_path / "campaign"
    root.mkdir()
    git.init_repository(root)
    (root / "params.yaml").write_bytes(b"a: 1\r\nb: 2\n")
    git.commit(Workspace(root), "first")
    git.set_tag(root, "round-0000", "one")
    assert git.run_git(root, "branch", "--show-current") == "main"
    assert git.read_blob(root, "HEAD", "params.yaml") == b"a: 1\r\nb: 2\n"
    assert git.run_git(root, "log", "--format=%an %ae") == "Gleaner gleaner@localhost"
    tag = git.read_tag_object(root, "round-0000")
    assert tag is not None
    assert not tag.signed
    (root / "note").write_text("new")
    assert git.run_git(root, "status", "--porcelain") == "?? note"


def test_hooks_set_for_the_repository_are_not_run(repository: Workspace) -> None:
    hook = repository.root / "hooks" / "pre-commit"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    git.run_git(repository.root, "config", "core.hooksPath", str(hook.parent))
    (repository.root / "params.yaml").write_text("a: 2\n")
    before = git.head_commit(repository.root)
    assert git.commit(repository, "second") != before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_user_is_used(repository: Workspace) -> None:
    for path in (repository.root, *repository.root.rglob("*")):
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "status"], cwd=repository.root, capture_output=True, check=False)
    assert b"dubious ownership" in refused.stderr  # else the test would show nothing
    assert git.run_git(repository.root, "log", "--format=%s") == "first"
    assert git.read_blob(repository.root, "HEAD", "params.yaml") == b"a: 1\n"


def test_a_renamed_file_is_committed_whole(repository: Workspace) -> None:
    (repository.root / "rounds").mkdir()
    (repository.root / "rounds" / "round-0000.json").write_text("the same text, long enough to be found again\n" * 20)
    git.commit(repository, "second")
    (repository.root / "rounds" / "round-0000.json").rename(repository.root / "rounds" / "round-0001.json")
    git.commit(repository, "third")
    assert git.run_git(repository.root, "status", "--porcelain") == ""


def test_brackets_in_a_file_name_are_no_pattern(repository: Workspace) -> None:
    (repository.root / "quarantine").mkdir()
    for name in ("image [1].json", "image 1.json", "it's *.json"):
        (repository.root / "quarantine" / name).write_text(name)
    git.commit(repository, "odd")
    assert git.run_git(repository.root, "status", "--porcelain") == ""
    assert git.read_blob(repository.root, "HEAD", "quarantine/image [1].json") == b"image [1].json"


def test_what_no_run_has_written_is_named_and_left_alone(
    repository: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = repository.root
    (root / "quarantine").mkdir()
    (root / "deliveries" / "batch-0001").mkdir(parents=True)
    (root / "data" / "labels").mkdir(parents=True)
    own = {"data/labels/batch-0001.json", "quarantine/a.json", "deliveries/batch-0001/delivery.json"}
    foreign = {
        "data/photos.zip",
        "data/.env",
        "data/labels/batch-0001.json.bak",
        "deliveries/batch-0001/x",
        "rounds/n.txt",
    }
    (root / "rounds").mkdir()
    for name in own | foreign:
        (root / name).write_text("x" * 10)
    (root / "quarantine" / "huge.json").write_text("x" * 50)
    (root / "data" / "staged.txt").write_text("mine")
    git.run_git(root, "add", "data/staged.txt")
    monkeypatch.setattr(git, "_MAX_OTHERS_BYTES", 20)
    git.commit(repository, "night")
    assert set(git.run_git(root, "show", "--name-only", "--format=").splitlines()) == own
    left = set(git.run_git(root, "status", "--porcelain", "--untracked-files=all").splitlines())
    assert left == {f"?? {name}" for name in (*foreign, "quarantine/huge.json")} | {"A  data/staged.txt"}
    assert "data/.env, data/labels/batch-0001.json.bak, data/photos.zip and 4 more" in caplog.text
    before = git.head_commit(root)
    assert git.commit(repository, "again") == before


def test_what_gitignore_lets_through_of_deliveries_is_committed() -> None:
    kept = [line[2:] for line in gitignore_text().splitlines() if line.startswith("!/deliveries/")]
    assert len(kept) >= 2
    for name in kept:
        assert git._COMMITTED.fullmatch(name.replace("*", "batch-0001")), name


def test_an_empty_name_in_the_users_settings_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n\tname =\n\temail =\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    root = tmp_path / "campaign"
    root.mkdir()
    git.init_repository(root)
    (root / "params.yaml").write_text("a: 1\n")
    git.commit(Workspace(root), "first")
    assert git.run_git(root, "log", "--format=%an %ae") == "Gleaner gleaner@localhost"


def test_a_round_that_was_reset_away_is_no_published_one(repository: Workspace) -> None:
    root = repository.root
    write_json(repository.label_batch(0), {})
    write_json(repository.ledger(0), {"format": LEDGER_FORMAT, "round": 0, "previous_ledger_sha256": None})
    git.commit(repository, "Round 0")
    git.set_tag(root, "round-0000", "published")
    assert check_rounds(CheckContext(repository)).state == "pass"
    _require_own_tag(repository, "round-0000")
    git.run_git(root, "reset", "--quiet", "--hard", "HEAD~1")
    write_json(repository.label_batch(0), {"images": "others"})
    git.commit(repository, "Collect")
    finding = check_rounds(CheckContext(repository))
    assert (finding.state, finding.fix.count("git merge round-0000")) == ("fail", 1)
    with pytest.raises(UserError, match="not in the history of this branch"):
        _require_own_tag(repository, "round-0000")
    git.run_git(root, "tag", "--delete", "round-0000")
    _require_own_tag(repository, "round-0000")
    assert check_rounds(CheckContext(repository)).state == "pass"
