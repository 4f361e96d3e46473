"""The command line as a user meets it."""

import importlib.metadata
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from flows.annotation.annotation_rules import reject
from flows.annotation.quarantine import add_to_quarantine
from flows.runtime.process_env import has_prefect_server, prepare_environment
from tasks.data.paths import Workspace
from tests.flows import small_campaign as campaigns
from tests.flows.small_campaign import CLASSES, REPOSITORY, make_source, subprocess_env

run_gleaner = partial(campaigns.run_gleaner, new_interpreter=True)


def init(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    source = make_source(folder / "source")
    given = ["--images", str(source.images), "--annotations", str(source.annotations), "--format", "coco"]
    return run_gleaner("init", "new", *given, *more, cwd=folder)


def one_line(process: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert process.returncode == code, process.stdout + process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    return process.stderr


@pytest.mark.parametrize("command", ["", "init", "run", "schedule", "status", "select", "demo"])
def test_help_says_what_a_command_does(tmp_path: Path, command: str) -> None:
    shown = run_gleaner(*command.split(), "--help", cwd=tmp_path, COLUMNS="120")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) > 6


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    shown = run_gleaner("--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"gleaner {importlib.metadata.version('gleaner')}\n")


def test_help_and_status_load_neither_prefect_nor_mlflow_nor_torch(small_campaign: Workspace) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['gleaner', *sys.argv[1:]]\n"
        "from flows.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'prefect', 'mlflow', 'torch', 'dvc', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    for arguments in (["--help"], ["run", "--help"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=small_campaign.root,
            env=subprocess_env(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_init_tells_what_was_made_and_what_comes_next(tmp_path: Path) -> None:
    made = init(tmp_path, "--seed-labels", "3", "--calibration-images", "2", "--oracle", "--set", "budget.amount=2")
    assert made.returncode == 0, made.stderr
    assert re.search(r"^ +3  seed images$", made.stdout, re.MULTILINE)
    assert re.search(r"^ +2  calibration images$", made.stdout, re.MULTILINE)
    assert set(CLASSES) <= set(re.findall(r"\w+", made.stdout))
    assert "Next: cd new && gleaner run" in made.stdout
    assert "amount: 2" in (tmp_path / "new" / "params.yaml").read_text()


def test_init_without_oracle_warns(tmp_path: Path) -> None:
    assert "Without --oracle" in init(tmp_path, "--seed-labels", "3").stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "train.iterations=lots"], "train.iterations is 'lots'"),
        (["--set", "trian.iterations=3"], "trian.iterations is an unknown parameter"),
        (["--seed-labels", "400"], "annotated images besides validation are"),
        (["--val", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_init_refuses_in_one_line_and_leaves_nothing(tmp_path: Path, more: list[str], words: str) -> None:
    assert words in one_line(init(tmp_path, *more))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_broken_parameter_is_one_line_before_anything_starts(small_campaign: Workspace) -> None:
    text = small_campaign.params.read_text()
    small_campaign.params.write_text(text.replace("ema_decay:", "ema_dekay:"))
    said = one_line(run_gleaner("run", cwd=small_campaign.root))
    assert "ssl.ema_dekay is an unknown parameter" in said
    assert "ssl.ema_decay is missing" in said
    assert not (small_campaign.root / ".prefect").exists()
    assert "ema_dekay" in one_line(
        run_gleaner("run", "--rounds", "2", "--workspace", str(small_campaign.root), cwd=small_campaign.root)
    )


def test_the_repository_itself_is_sent_to_the_demo() -> None:
    assert "Run gleaner demo" in one_line(run_gleaner("run", cwd=REPOSITORY))


def test_a_folder_that_is_no_campaign_is_told_how_to_make_one(tmp_path: Path) -> None:
    for command in (["run"], ["status"], ["run", "--rounds", "1"]):
        assert "gleaner init" in one_line(run_gleaner(*command, cwd=tmp_path))


def test_an_unknown_option_is_no_traceback(tmp_path: Path) -> None:
    wrong = run_gleaner("run", "--fast", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--fast" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_status_of_a_new_campaign_says_what_comes_first(small_campaign: Workspace) -> None:
    shown = run_gleaner("status", "--workspace", str(small_campaign.root), cwd=Path("/"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "Next: gleaner run derives round 0.\n"


def test_status_counts_refusals(small_campaign: Workspace) -> None:
    add_to_quarantine(
        small_campaign, [reject("refused", 1, "no area", {"image_id": "[x]"}), reject("note", 1, "twice", {})]
    )
    shown = run_gleaner("status", cwd=small_campaign.root)
    assert "Refused labels: 1, shown by gleaner quarantine list" in shown.stdout
    assert "image [x]: no area" in shown.stdout


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_LOGGING_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    prepare_environment(tmp_path)
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")
    assert not has_prefect_server()


@pytest.mark.parametrize("way", ["environment", "profile"])
def test_a_server_of_the_users_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if way == "environment":
        monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    else:
        (tmp_path / ".prefect").mkdir()
        profiles = 'active = "site"\n[profiles.site]\nPREFECT_API_URL = "http://prefect:4200/api"\n'
        (tmp_path / ".prefect" / "profiles.toml").write_text(profiles)
    prepare_environment(tmp_path / "campaign")
    assert has_prefect_server()
    assert "PREFECT_HOME" not in os.environ
