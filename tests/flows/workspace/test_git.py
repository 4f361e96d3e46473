import subprocess
from pathlib import Path

import pytest

from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError


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
    (repository.root / "rounds" / "a.json").write_text("{}")
    git.commit(repository, "second")
    (repository.root / "rounds" / "a.json").unlink()
    (repository.root / "params.yaml").write_text("a: 2\n")
    git.commit(repository, "third")
    assert git.run_git(repository.root, "show", "--name-status", "--format=").splitlines() == [
        "M\tparams.yaml",
        "D\trounds/a.json",
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
