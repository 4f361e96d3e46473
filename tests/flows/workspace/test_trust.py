"""A stranger's campaign is looked at without running anything of it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.workspace import git
from flows.workspace.dvc_cache import ignored_remote_settings, open_dvc_cache, open_repo
from flows.workspace.trust import require_harmless_git, trust
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tests.flows.small_campaign import run_gleaner

MARK = "pwned"


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEANER_TRUSTED_CAMPAIGN", "")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "campaign"
    root.mkdir()
    git.init_repository(root)
    (root / "a.txt").write_text("a")
    git.run_git(root, "add", "a.txt")
    git.run_git(root, "commit", "--quiet", "--message", "first")
    return root


def plant_credential_process(root: Path) -> Path:
    """Let the default remote's AWS configuration name a program."""
    mark = root.parent / MARK
    script = root / "steal.sh"
    script.write_text(
        f'#!/bin/sh\ntouch {mark}\necho \'{{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b"}}\'\n'
    )
    script.chmod(0o755)
    (root / ".dvc").mkdir(exist_ok=True)
    (root / ".dvc" / "aws.cfg").write_text(f"[default]\ncredential_process = {script}\n")
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = store\n    no_scm = false\n"
        "['remote \"store\"']\n    url = s3://bucket/x\n    endpointurl = http://127.0.0.1:9\n"
        "    configpath = aws.cfg\n    read_timeout = 1\n    connect_timeout = 1\n"
    )
    return mark


def fetch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE", "AWS_PROFILE"):
        monkeypatch.setenv(name, "")  # or what DVC sets in this process would be there in the next test
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError):
        open_dvc_cache(root).require("0" * 32, "a file")


@pytest.mark.integration
@pytest.mark.parametrize("trusted", [False, True])
def test_a_remotes_credential_process_runs_only_where_the_campaign_is_trusted(
    repository: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    mark = plant_credential_process(repository)
    if trusted:
        trust(repository)
    fetch(repository, monkeypatch)
    assert mark.exists() is trusted
    assert "AWS_CONFIG_FILE" not in os.environ  # another client of S3 in this process would take it for its own
    assert ignored_remote_settings(repository) == ([] if trusted else ["store.configpath"])


@pytest.mark.parametrize(
    "setting", ["url = webdav://h/x\n    bearer_token_command = touch pwned", "url = ssh://h/x\n    keyfile = k"]
)
def test_other_settings_that_lead_to_programs_or_files_are_left_out(repository: Path, setting: str) -> None:
    (repository / ".dvc").mkdir()
    (repository / ".dvc" / "config").write_text(f"['remote \"store\"']\n    {setting}\n")
    (name,) = ignored_remote_settings(repository)
    with open_repo(repository) as repo:
        assert set(repo.config["remote"]["store"]) & {name.split(".")[1]} == set()
        assert "url" in repo.config["remote"]["store"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filter.x.clean", "touch pwned"),
        ("diff.x.textconv", "touch pwned"),
        ("diff.external", "touch"),
        ("core.fsmonitor", "touch"),
        ("core.sshCommand", "touch"),
        ("gpg.program", "touch"),
        ("gpg.ssh.program", "touch"),
        ("include.path", "../other"),
        ("includeIf.gitdir:/.path", "../other"),
        ("credential.https://h.helper", "!touch"),
        ("remote.origin.uploadpack", "touch"),
        ("extensions.worktreeConfig", "true"),
        ("pager.log", "touch"),
    ],
)
def test_git_settings_that_name_programs_are_refused_by_name(repository: Path, name: str, value: str) -> None:
    require_harmless_git(repository)
    subprocess.run(["git", "config", "--local", name, value], cwd=repository, check=True)
    with pytest.raises(UserError, match="--trust") as raised:
        require_harmless_git(repository)
    assert name.split(".")[0].lower() in str(raised.value).lower()
    trust(repository)
    require_harmless_git(repository)


def test_the_settings_of_a_plain_repository_are_harmless(repository: Path) -> None:
    for name, value in (
        ("user.name", "Ada"),
        ("gpg.format", "ssh"),
        ("remote.origin.url", "/x"),
        ("core.bare", "false"),
    ):
        subprocess.run(["git", "config", "--local", name, value], cwd=repository, check=True)
    require_harmless_git(repository)


@pytest.mark.e2e
def test_no_command_that_looks_at_a_campaign_runs_its_code(after_two_rounds: Workspace) -> None:
    """DVC configuration, a class of its own, modules in its folder, Prefect's settings, git hooks."""
    root = after_two_rounds.root
    mark = plant_credential_process(root)
    shutil.rmtree(root / ".dvc" / "cache")
    body = f"open({str(mark)!r}, 'w')\n"
    for name in ("yaml.py", "select.py", "own.py", "sitecustomize.py"):
        (root / name).write_text(body)
    (root / "prefect.toml").write_text('[logging]\nconfig_path = "evil.yml"\n')
    (root / "evil.yml").write_text("version: 1\nhandlers:\n  h:\n    (): own.Handler\nroot:\n  handlers: [h]\n")
    for hook in ("post-checkout", "reference-transaction", "fsmonitor-watchman"):
        (root / ".git" / "hooks").mkdir(exist_ok=True)
        (root / ".git" / "hooks" / hook).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (root / ".git" / "hooks" / hook).chmod(0o755)
    params = after_two_rounds.params.read_text()
    after_two_rounds.params.write_text(params.replace("kind: oracle", "kind: own:Provider"))
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "PYTHONSAFEPATH": "1"}
    for command in (("status",), ("lineage",), ("audit",), ("gc",), ("doctor", "--quick"), ("doctor",)):
        run_gleaner(*command, cwd=root, new_interpreter=True, **environment)
        assert not mark.exists(), command
    run_gleaner("doctor", "--trust", cwd=root, new_interpreter=True, **environment)
    assert mark.exists()
