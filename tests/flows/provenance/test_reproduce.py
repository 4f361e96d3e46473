"""A round made again in a fresh clone that has nothing but the remote."""

import json
from pathlib import Path

import pytest

import flows.provenance.reproduce
from flows.provenance.reproduce import Reproduction, StageComparison, environment_differences, reproduce_round
from flows.registry.publish import push
from flows.workspace import dvc, git
from flows.workspace.rounds import read_ledger
from tasks.data.paths import STAGES, Workspace
from tasks.runtime.errors import UserError
from tests.flows.small_campaign import run_gleaner

e2e = pytest.mark.e2e


@pytest.fixture
def clone(after_two_rounds: Workspace, tmp_path: Path) -> Workspace:
    """Of a campaign whose data is in a remote only."""
    root = after_two_rounds.root
    dvc.run_dvc(root, "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    git.commit(after_two_rounds, "Name a remote")
    push(after_two_rounds)
    bare = tmp_path / "origin.git"
    git.run_git(root, "clone", "--quiet", "--bare", str(root), str(bare))
    git.run_git(tmp_path, "clone", "--quiet", str(bare), str(tmp_path / "clone"))
    return Workspace(tmp_path / "clone")


@e2e
def test_a_round_comes_out_the_same_to_the_byte(clone: Workspace) -> None:
    done = run_gleaner("reproduce", "round-0001", "--json", cwd=clone.root)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["is_reproduced"], result["is_bit_identical"], result["environment_differences"]) == (True, True, [])
    assert {output["stage"] for output in result["outputs"]} == set(STAGES)
    assert result["reproduced_map"] == result["recorded_map"] == 60.0
    assert done.stderr.count("Running stage") == len(STAGES)  # each was made here, none taken from a cache
    assert not Path(result["folder"]).exists()
    assert git.run_git(clone.root, "status", "--porcelain") == ""


@e2e
def test_what_comes_out_otherwise_is_named(clone: Workspace, tmp_path: Path) -> None:
    """The round's evaluation is altered in the history itself."""
    text = clone.dvc_yaml.read_text()
    clone.dvc_yaml.write_text(text.replace("fake_stages.py evaluate", "fake_stages.py evaluate --lost bright"))
    git.run_git(clone.root, "commit", "--quiet", "--all", "--message", "x")
    git.run_git(clone.root, "tag", "--force", "round-0001")
    done = run_gleaner("reproduce", "round-0001", "--into", str(tmp_path / "again"), cwd=clone.root)
    assert done.returncode == 1
    assert "Not reproduced: outputs differ in the same environment. mAP is 0.0000, recorded is 60.0000" in done.stdout
    assert (tmp_path / "again" / "derived" / "evaluate" / "metrics.json").is_file()
    taken = run_gleaner("reproduce", "round-0001", "--into", str(tmp_path / "again"), cwd=clone.root)
    assert (taken.returncode, "the folder is not empty" in taken.stderr) == (2, True)


@e2e
def test_only_rounds_that_exist(two_rounds: Workspace) -> None:
    for wrong in ("round-0009", "1", "main"):
        with pytest.raises(UserError, match="the round is"):
            reproduce_round(two_rounds, wrong, None, tolerance_points=1.0, on_line=lambda _: None)


@e2e
def test_what_may_matter_is_said(two_rounds: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = read_ledger(two_rounds, 1)
    assert environment_differences(ledger) == ()
    monkeypatch.setattr(flows.provenance.reproduce, "cpu_model", lambda: "another")
    ledger["code"]["train"] = "0"
    ledger["environment"]["device"] = "NVIDIA H100"
    found = environment_differences(ledger)
    assert len(found) == 3
    assert found[0].startswith("processor is another, was ")
    assert "was NVIDIA H100" in found[1]
    assert found[2] == "the code of stage train has changed"


@pytest.mark.parametrize(
    ("same", "differences", "made_map", "reproduced"),
    [
        (True, (), 50.0, True),
        (False, (), 50.0, False),  # nothing differs that could excuse other bytes
        (False, ("another processor",), 51.5, True),
        (False, ("another processor",), 52.5, False),
    ],
)
def test_the_tolerance_counts_only_where_something_differs(
    same: bool, differences: tuple[str, ...], made_map: float, reproduced: bool
) -> None:
    output = StageComparison("train", "derived/train", "a", "a" if same else "b", same)
    result = Reproduction(1, Path(), differences, (output,), 50.0, made_map, 2.0)
    assert result.is_reproduced is reproduced
