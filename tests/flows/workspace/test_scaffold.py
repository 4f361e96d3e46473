import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from mlflow import MlflowClient

from flows.cli.init import prepare_demo
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_run import find_or_create_experiment, use_tracking_uri
from flows.workspace import dvc, git
from flows.workspace.dvc import code_digests, refresh_code_digests, stale_stages
from flows.workspace.owner import settle
from flows.workspace.rounds import last_published_round
from flows.workspace.run_lock import run_lock
from flows.workspace.scaffold import create_workspace, workspace_dvc_yaml
from tasks.data.paths import STAGES, Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.hostile_machine import hostile_machine
from tests.flows.small_campaign import (
    CLASSES,
    POOL,
    REPOSITORY,
    make_source,
    run_gleaner,
    subprocess_env,
    workspace_config,
)


def test_a_new_campaign_is_committed_whole(small_campaign: Workspace) -> None:
    assert git.run_git(small_campaign.root, "status", "--porcelain") == ""
    tracked = set(git.run_git(small_campaign.root, "ls-files").splitlines())
    assert {
        "params.yaml",
        "dvc.yaml",
        "code_versions.json",
        "data/images.dvc",
        "data/index.parquet.dvc",
        "data/detections_at_selection.dvc",
        "data/warm_start.dvc",
        "data/val.parquet",
        "data/val_names.parquet",
        "data/calibration.parquet",
        "data/import_report.json",
        "data/labels/batch-0000.json",
    } <= tracked
    assert not any(name.startswith(("oracle", "data/images/", ".gleaner")) for name in tracked)
    assert small_campaign.oracle.is_file()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("n" * 201, "its name has 201 bytes"), ("ü" * 101, "its name has 202 bytes"), ("a'b", "the path contains")],
)
def test_a_name_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path, name: str, problem: str) -> None:
    config = workspace_config(make_source(tmp_path / "source"))
    with pytest.raises(UserError, match=problem):
        create_workspace(tmp_path / name, config)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_git_settings_of_the_machine_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC refuses its own files where the user's git ignores them."""
    hostile_machine(tmp_path / "machine", monkeypatch)
    create_workspace(tmp_path / "new", workspace_config(make_source(tmp_path / "source")))
    assert git.run_git(tmp_path / "new", "status", "--porcelain") == ""
    assert {"params.yaml", "dvc.yaml", ".gitignore", "data/images.dvc", "data/labels/batch-0000.json"} <= set(
        git.list_paths(tmp_path / "new", "HEAD", ".")
    )


def test_dvc_reports_nothing_home_and_stages_nothing(small_campaign: Workspace) -> None:
    config = (small_campaign.root / ".dvc" / "config").read_text()
    for line in ("analytics = false", "autostage = false", "check_update = false", "type = reflink,hardlink,copy"):
        assert line in config
    assert dvc.run_dvc(small_campaign.root, "config", "core.analytics") == "false"
    assert not dvc.has_default_remote(small_campaign.root)


def test_params_are_the_repositorys_with_the_campaigns_classes(small_campaign: Workspace) -> None:
    ours, theirs = (yaml.safe_load((root / "params.yaml").read_text()) for root in (small_campaign.root, REPOSITORY))
    assert ours["classes"] == list(CLASSES)
    assert ours["budget"]["amount"] == 3
    assert {**ours, "classes": theirs["classes"], "budget": theirs["budget"]} == theirs


def test_the_graph_is_the_repositorys_with_code_digests() -> None:
    ours = yaml.safe_load(workspace_dvc_yaml())["stages"]
    theirs = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert list(ours) == list(STAGES)
    for stage, entry in ours.items():
        assert not any(path.startswith(("tasks/", "detectron_ext")) for path in entry["deps"])
        assert {"code_versions.json": [stage]} in entry["params"]
        assert set(theirs[stage]["deps"]) - set(entry["deps"]) == {
            path for path in theirs[stage]["deps"] if path.startswith(("tasks/", "detectron_ext"))
        }
        assert (entry["cmd"], entry["outs"]) == (theirs[stage]["cmd"], theirs[stage]["outs"])


def test_a_second_init_of_the_same_place_is_refused_and_changes_nothing(
    small_campaign: Workspace, tmp_path: Path
) -> None:
    before = git.head_commit(small_campaign.root)
    source = make_source(tmp_path / "again")
    with pytest.raises(UserError, match="Continue it with: gleaner run"):
        create_workspace(small_campaign.root, workspace_config(source))
    assert git.head_commit(small_campaign.root) == before


@pytest.mark.parametrize("name", ["it's", "what?", "{x}", "new\nline", "a'b/c"])
def test_a_path_that_mlflow_or_dvc_cannot_use_is_refused_at_init(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the path contains"):
        create_workspace(tmp_path / name, workspace_config(make_source(tmp_path / "source")))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_path_behind_a_link_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "it's").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / "it's")
    with pytest.raises(UserError, match="the path contains"):
        create_workspace(tmp_path / "plain" / "new", workspace_config(make_source(tmp_path / "source")))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["camp [v2] ü 50% #1", 'a"b$HOME;`x`', "-b\\c *&|"])
def test_other_odd_folder_names_work(tmp_path: Path, name: str) -> None:
    """Git, DVC, a stage and MLflow's database with its files; parents count as well."""
    workspace = Workspace(tmp_path / "its [parent] %41" / name)
    create_workspace(workspace.root, workspace_config(make_source(tmp_path / "source [1] 100%")))
    dvc.run_dvc(workspace.root, "repro", "prepare")
    assert (workspace.derived("prepare") / "pool.parquet").is_file()
    with use_tracking_uri(tracking_uri(workspace.root)):
        client = MlflowClient()
        experiment_id, _ = find_or_create_experiment(
            client, workspace, git.campaign_id(workspace.root), settle(workspace, None)
        )
        run_id = client.create_run(experiment_id).info.run_id
        client.log_text(run_id, "text", "note.txt")
        assert [entry.path for entry in client.list_artifacts(run_id)] == ["note.txt"]
    assert (workspace.root / "mlflow.db").is_file()
    assert len(list((workspace.root / "mlartifacts").rglob("note.txt"))) == 1


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="expected an empty or a new one"):
        create_workspace(tmp_path / "taken", workspace_config(source))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_missing_parents_will_do(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    target = tmp_path / "deep" / "down"
    target.mkdir(parents=True)
    data = create_workspace(target, workspace_config(source))
    assert data.counts["pool_images"] == POOL
    assert [path.name for path in target.parent.iterdir()] == ["down"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.iteration=3", "train.iteration is an unknown parameter"),
        ("train.iterations=-3", "train.iterations is -3"),
        ("train.iterations", "expected section.key=value"),
    ],
)
def test_a_mistyped_setting_leaves_nothing_behind(tmp_path: Path, setting: str, problem: str) -> None:
    source = make_source(tmp_path / "source")
    with pytest.raises(UserError, match=problem):
        create_workspace(tmp_path / "new", workspace_config(source, setting))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_killed_init_leaves_no_campaign_and_the_next_one_works(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    command = [sys.executable, "-m", "flows.cli", "init", "new", "--format", "coco", "--oracle", "--seed-labels", "3"]
    command += ["--images", str(source.images), "--annotations", str(source.annotations)]
    building = tmp_path / ".new.gleaner-init"
    process = subprocess.Popen(command, cwd=tmp_path, env=subprocess_env(), stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not (building / ".git").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "new").exists()
    assert subprocess.run(command, cwd=tmp_path, env=subprocess_env(), capture_output=True, check=True).stdout
    assert {path.name for path in tmp_path.iterdir()} == {"source", "new"}
    assert git.run_git(tmp_path / "new", "status", "--porcelain") == ""


def test_init_inside_another_repository_makes_its_own(tmp_path: Path) -> None:
    git.init_repository(tmp_path)
    source = make_source(tmp_path / "source")
    create_workspace(tmp_path / "new", workspace_config(source))
    assert Path(git.run_git(tmp_path / "new", "rev-parse", "--show-toplevel")) == (tmp_path / "new").resolve()


def test_the_users_images_are_copied_not_linked(small_campaign: Workspace, tmp_path: Path) -> None:
    source = make_source(tmp_path / "mine")
    create_workspace(tmp_path / "campaign", workspace_config(source))
    assert all(os.access(path, os.W_OK) and path.stat().st_nlink == 1 for path in source.images.iterdir())


def test_a_change_of_gleaner_is_seen_and_taken_over(small_campaign: Workspace) -> None:
    assert stale_stages(small_campaign) == []
    recorded = files.read_json(small_campaign.code_versions)
    assert set(recorded) == set(STAGES)
    files.write_json(small_campaign.code_versions, {**recorded, "train": "0" * 64})
    assert stale_stages(small_campaign) == ["train"]
    shown = run_gleaner("status", cwd=small_campaign.root)
    assert "Gleaner's code has changed for train" in shown.stdout
    refresh_code_digests(small_campaign)
    assert files.read_json(small_campaign.code_versions) == recorded


def test_a_stages_digest_covers_its_own_sources_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "packages"
    for name in ("tasks", "detectron_ext"):
        shutil.copytree(REPOSITORY / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, copied / name)
    monkeypatch.setattr("flows.workspace.dvc._PACKAGE_ROOT", copied)
    before = code_digests()
    (copied / "tasks" / "__pycache__").mkdir()
    (copied / "tasks" / "__pycache__" / "select.pyc").write_text("x")
    assert code_digests() == before
    (copied / "tasks" / "select.py").write_text("# changed\n")
    assert {stage for stage, digest in code_digests().items() if digest != before[stage]} == {"select"}


@pytest.mark.integration
def test_the_demo_campaign_is_made_once(tmp_path: Path) -> None:
    prepare_demo(tmp_path / "demo")
    revision = git.head_commit(tmp_path / "demo")
    prepare_demo(tmp_path / "demo")
    assert git.head_commit(tmp_path / "demo") == revision
    assert last_published_round(Workspace(tmp_path / "demo")) == -1


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="Name another folder with --dir"):
        prepare_demo(tmp_path)


def test_a_second_init_of_the_same_folder_is_told_so(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    with FileLock(tmp_path / ".new.gleaner-init.lock"), pytest.raises(UserError, match="another gleaner init makes it"):
        create_workspace(tmp_path / "new", workspace_config(source))
    assert not (tmp_path / "new").exists()


def test_a_mounted_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    with pytest.raises(UserError, match="the folder is a mount point") as raised:
        create_workspace(target, workspace_config(make_source(tmp_path / "source")))
    assert str(target / "campaign") in raised.value.fix


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    with pytest.raises(UserError, match=f"{tmp_path}: the folder cannot be written"):
        create_workspace(tmp_path / "deep" / "new", workspace_config(source))
    with (
        pytest.raises(UserError, match="expected the campaign on a writable file system"),
        run_lock(Workspace(tmp_path)),
    ):
        pass
