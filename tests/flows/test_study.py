"""A whole study as a user runs it, killed in the middle, with the heavy stages replaced."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient

import flows.study.runner
import flows.study.workspaces
from flows.cli.study import run_in_processes
from flows.study.parts import full_labels_path, part_key, part_path, read_part
from flows.study.runner import StudyStep, remaining_runs, run_seed, write_results
from flows.study.workspaces import Study, create_arm_workspace, create_base_workspace
from flows.workspace import git
from flows.workspace.rounds import RunResult, last_published_round, skipped_stages, stage_log
from tasks.data.paths import Workspace
from tasks.data.schemas import LabelBatch
from tasks.params import load_params
from tasks.params.profiles import CPU_OVERRIDES
from tasks.runtime.errors import GuardRailError, UserError
from tasks.storage import files
from tasks.study.label_noise import plant_wrong_classes
from tasks.study.plan import load_study
from tasks.study.results import RESULTS
from tests.flows.cli_runner import wait_until
from tests.flows.small_campaign import (
    BUDGET,
    CALIBRATION,
    REPOSITORY,
    SEED,
    fake_heavy_stages,
    inject_fault,
    make_source,
    run_gleaner,
    subprocess_env,
)

pytestmark = pytest.mark.timeout(3600)
TEMPLATE = (REPOSITORY / "params.yaml").read_text()
STUDY = """
name: tiny
source: {kind: coco, images: source/images, annotations: source/annotations.json, val_frac: 0.2}
seeds: [1]
rounds: 1
seed_labels: 3
calibration_images: 2
settings: [budget.amount=3]
trainings_per_point: 2
arms:
  supervised: [select.strategy=random, ssl.enabled=false]
full: [ssl.enabled=false]
"""
ARMS = ("random", "equal", "supervised")


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def load_test_study(path: Path, out: Path) -> Study:
    plan = load_study(path, TEMPLATE, own_data_settings=CPU_OVERRIDES)
    return Study(plan, path.parent, out, path.parent / plan.name / "parts")


@dataclass(frozen=True)
class CompletedStudy:
    study: Study
    path: Path
    killed_after: list[str]
    """Lines the killed command had printed."""
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def completed_study(tmp_path_factory: pytest.TempPathFactory, shared_prefect_server: dict[str, str]) -> CompletedStudy:
    """Killed in the second arm's round 0, with a server of its own, then run to the end by the same command."""
    folder = tmp_path_factory.mktemp("study")
    make_source(folder / "source")
    path = write_study(folder)
    study = load_test_study(path, folder / "out")
    fake_heavy_stages(create_base_workspace(study, 1))
    hanging = inject_fault(create_arm_workspace(study, 1, "equal"), "report", "hang")
    first = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "study", str(path), "--out", str(study.out)],
        cwd=folder,
        env=subprocess_env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    log = stage_log(study.workspace(1, "equal"), 0, "report")
    deadline_s = time.monotonic() + 900
    while not (log.is_file() and "report is at work" in log.read_text()):
        assert first.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline_s, "it never got there"
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    printed, _ = first.communicate(timeout=60)
    hanging.unlink()
    again = ("study", str(path), "--out", str(study.out))
    second = run_gleaner(*again, cwd=folder, timeout_s=1200, **shared_prefect_server)
    assert second.returncode == 0, second.stdout + second.stderr
    return CompletedStudy(study, path, printed.splitlines(), second)


def num_executions(study: Study, stage: str, arm: str, number: int) -> int:
    """How often the replaced stage really ran."""
    log = stage_log(study.workspace(1, arm), number, stage)
    return log.read_text().count(f"{stage} is at work") if log.is_file() else 0


@pytest.mark.e2e
def test_the_second_call_repeats_no_finished_round(completed_study: CompletedStudy) -> None:
    assert any("seed 1, equal, round 0" in line for line in completed_study.killed_after)
    again = re.findall(r"seed 1, (\w+), round (\d)", completed_study.second.stdout)
    assert again[0] == ("equal", "0")
    assert ("random", "0") not in again
    assert {arm: last_published_round(completed_study.study.workspace(1, arm)) for arm in ARMS} == dict.fromkeys(
        ARMS, 1
    )
    for arm in ARMS:
        assert git.run_git(completed_study.study.workspace(1, arm).root, "tag").splitlines() == [
            "round-0000",
            "round-0001",
        ]


@pytest.mark.e2e
def test_round_0_is_trained_once_for_all_arms_that_train_alike(completed_study: CompletedStudy) -> None:
    assert [num_executions(completed_study.study, "train", arm, 0) for arm in ARMS] == [
        1,
        0,
        1,
    ]  # supervised trains otherwise
    assert [num_executions(completed_study.study, "infer", arm, 0) for arm in ARMS] == [
        1,
        0,
        0,
    ]  # its fake teacher has the same bytes
    assert "train" in skipped_stages(completed_study.study.workspace(1, "equal"), 0)
    assert [num_executions(completed_study.study, "train", arm, 1) for arm in ARMS] == [1, 1, 1]
    caches = [completed_study.study.workspace(1, arm).root / ".dvc" / "cache" for arm in ARMS]
    assert not any(cache.exists() for cache in caches)


@pytest.mark.e2e
def test_arms_differ_in_their_settings_and_in_nothing_else(completed_study: CompletedStudy) -> None:
    params = {arm: load_params(completed_study.study.workspace(1, arm).params) for arm in ARMS}
    assert params["random"].select.strategy == "random"
    assert params["equal"].dwa.mode == "equal"
    assert params["supervised"].ssl.enabled is False
    assert {p.seed for p in params.values()} == {1}
    campaigns = [completed_study.study.workspace(1, arm) for arm in ARMS]
    for path in ("val.parquet", "calibration.parquet", "labels/batch-0000.json", "index.parquet"):
        assert len({files.sha256_file(campaign.root / "data" / path) for campaign in campaigns}) == 1
    assert len({git.campaign_id(campaign.root) for campaign in campaigns}) == len(ARMS)


@pytest.mark.e2e
def test_arms_that_choose_at_random_ask_for_the_same_images(completed_study: CompletedStudy) -> None:
    first, second = (
        files.read_json(completed_study.study.workspace(1, arm).delivery(1) / "delivery.json")["image_ids"]
        for arm in ("random", "supervised")
    )
    assert first == second


@pytest.mark.e2e
def test_results_have_a_row_per_arm_and_round(completed_study: CompletedStudy) -> None:
    table = pq.read_table(completed_study.study.results / "results.parquet")
    assert table.schema.equals(RESULTS)
    rows = table.to_pylist()
    assert [(row["arm"], row["round"]) for row in rows] == [(arm, number) for arm in ARMS for number in (0, 1)]
    labels = [SEED + CALIBRATION, SEED + CALIBRATION + BUDGET]
    assert [row["num_labeled"] for row in rows] == labels * 3
    assert [row["teacher_map"] for row in rows] == [30.0, 60.0] * 3  # what the replaced evaluate says of 5 and 8 labels
    assert [row["map"] for row in rows] == [30.0, 60.0] * 3
    assert [row["trainings"] for row in rows] == [2] * 6
    assert [row["pool_images"] for row in rows] == [8, 5] * 3
    minutes = {row["arm"]: row["minutes"] for row in rows if row["round"] == 1}
    assert [row["minutes"] for row in rows if row["round"] == 0] == [0.0] * 3
    assert 0.1 < minutes["random"] == minutes["supervised"] < 10  # they ask for the same images
    assert all(row["train_seconds"] > 0 for row in rows)
    by_arm = {row["arm"]: row for row in rows if row["round"] == 0}
    assert by_arm["equal"]["train_seconds"] == by_arm["random"]["train_seconds"]
    assert by_arm["equal"]["cached_stages"] >= 5


@pytest.mark.e2e
def test_the_reading_claims_nothing_from_one_seed(completed_study: CompletedStudy) -> None:
    words = (completed_study.study.results / "README.md").read_text()
    assert "One seed has no interval: nothing can be claimed" in words
    assert "Added, because no study may leave them out: random, equal." in words
    assert "`supervised` against `random`, over equal minutes: identical" in words
    assert "Arms added" in completed_study.second.stdout
    assert {path.name for path in completed_study.study.results.iterdir()} == {
        "results.parquet", "pool_ranking.parquet", "summary.json", "table.md", "README.md", "plot.svg", "plot.png",
    }  # fmt: skip


@pytest.mark.e2e
def test_full_is_trained_on_every_label(completed_study: CompletedStudy) -> None:
    full = files.read_json(full_labels_path(completed_study.study, 1))
    assert full["labels"] == 13
    assert full["trainings"][0]["teacher"]["map"] == 100.0
    summary = files.read_json(completed_study.study.results / "summary.json")
    assert summary["full_map"] == {"1": 100.0}
    # from 30 mAP to 60: 90 % of 100 is not reached
    assert summary["arms"]["random"]["minutes_needed"]["0.90"] == {"by_seed": {"1": None}, "median": None}


@pytest.mark.e2e
def test_a_finished_study_needs_its_parts_alone(
    completed_study: CompletedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new clone there are no campaigns: nothing is run again, and the results are the same."""
    plan, parts = completed_study.study.plan, tmp_path / "parts"
    shutil.copytree(completed_study.study.parts, parts)
    clone = Study(plan, tmp_path / "no-data", tmp_path / "out", parts)
    monkeypatch.setattr(flows.study.runner, "log_study", lambda *_: None)
    run_seed(clone, 1, refuse_step, refuse_step)
    assert remaining_runs(clone, [1]) == 0
    write_results(clone)
    for name in ("README.md", "table.md", "summary.json", "results.parquet", "pool_ranking.parquet"):
        assert (clone.results / name).read_bytes() == (completed_study.study.results / name).read_bytes()
    assert not (clone.out / "campaigns").exists()
    part_path(clone, 1, "equal", 1).unlink()
    assert remaining_runs(clone, [1]) == plan.rounds + 1


def refuse_step(step: StudyStep) -> None:
    raise AssertionError(f"{step} is run again")


@pytest.mark.e2e
def test_parts_are_small_and_hold_no_label(completed_study: CompletedStudy) -> None:
    found = sorted(completed_study.study.parts.rglob("round-*.json"))
    assert len(found) == len(ARMS) * 2
    assert max(path.stat().st_size for path in found) < 12_000
    part = read_part(completed_study.study, 1, "random", 1)
    assert part is not None
    assert set(part) == {"key", "training_key", "row", "pool_spearman", "trainings"}
    assert len(part["trainings"]) == 2
    # two arms that train alike share the second training too
    trainings = list((completed_study.study.out / "trainings").iterdir())
    assert len(trainings) == len({files.read_json(path)["training_key"] for path in found})


@pytest.mark.e2e
def test_a_part_of_other_settings_is_refused(completed_study: CompletedStudy, tmp_path: Path) -> None:
    text = STUDY.replace("budget.amount=3", "budget.amount=4")
    changed = load_test_study(write_study(tmp_path, text), tmp_path / "out")
    shutil.copytree(completed_study.study.parts, changed.parts)
    with pytest.raises(UserError, match="the part is of other settings than the study file now says"):
        read_part(changed, 1, "random", 0)


@pytest.mark.e2e
def test_mlflow_holds_the_study_and_its_nights_in_one_database(completed_study: CompletedStudy) -> None:
    client = MlflowClient(f"sqlite:///{completed_study.study.out / 'mlflow.db'}")
    study = client.get_experiment_by_name("study-tiny")
    assert study is not None
    (run,) = client.search_runs([study.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["random/last mAP"] == 60.0
    assert run.data.metrics["supervised minus random/last mAP"] == 0.0
    nights = [e.experiment_id for e in client.search_experiments() if e.name.startswith("seed-1-")]
    assert len(nights) == len(ARMS)
    assert len(client.search_runs(nights)) == len(ARMS) * 2


@pytest.mark.e2e
def test_an_arm_of_other_parameters_is_not_mixed_in(completed_study: CompletedStudy) -> None:
    changed = write_study(completed_study.path.parent, STUDY.replace("budget.amount=3", "budget.amount=4"))
    with pytest.raises(UserError, match="the parameters are others than the study file now says"):
        create_arm_workspace(load_test_study(changed, completed_study.study.out), 1, "random")
    changed = write_study(completed_study.path.parent, STUDY.replace("seed_labels: 3", "seed_labels: 2"))
    with pytest.raises(UserError, match="seed_labels is 3, expected 2"):
        create_base_workspace(load_test_study(changed, completed_study.study.out), 1)


@pytest.mark.integration
def test_an_arm_with_wrong_classes_has_them_in_its_seed_labels_alone(tmp_path: Path, isolated_git_config: None) -> None:
    make_source(tmp_path / "source")
    text = STUDY.replace("rounds: 1", "rounds: 0").replace("full: [ssl.enabled=false]", "")
    plain = load_test_study(write_study(tmp_path, text), tmp_path / "out")
    study = load_test_study(write_study(tmp_path, text + "wrong_classes: {supervised: 0.5}\n"), tmp_path / "out")
    base = create_base_workspace(study, 1)
    clean, noisy = (create_arm_workspace(study, 1, arm) for arm in ("random", "supervised"))
    classes = load_params(base.params).classes
    assert clean.label_batch(0).read_bytes() == base.label_batch(0).read_bytes()
    truth = LabelBatch.model_validate(files.read_json(base.label_batch(0)))
    expected = plant_wrong_classes(truth, classes, 0.5, seed=1)
    assert LabelBatch.model_validate(files.read_json(noisy.label_batch(0))) == expected != truth
    assert part_key(study, 1, "random") == part_key(plain, 1, "random")
    assert part_key(study, 1, "supervised") != part_key(plain, 1, "supervised")


@pytest.mark.integration
def test_all_arms_have_the_seed_labels_that_a_rule_draws(tmp_path: Path, isolated_git_config: None) -> None:
    make_source(tmp_path / "source")
    few_shot = STUDY.replace("seed_labels: 3", "seed_labels: {per_class: 2}")
    study = load_test_study(write_study(tmp_path, few_shot), tmp_path / "out")
    base = create_base_workspace(study, 1)
    arms = [create_arm_workspace(study, 1, arm) for arm in ("random", "supervised")]
    labels = [workspace.label_batch(0).read_bytes() for workspace in (base, *arms)]
    assert labels[0] == labels[1] == labels[2]
    boxes = Counter(
        box["category"] for image in files.read_json(base.label_batch(0))["images"] for box in image["boxes"]
    )
    assert min(boxes[name] for name in load_params(base.params).classes) >= 2
    assert create_base_workspace(study, 1).root == base.root
    keys = {part_key(study, 1, "random")}
    for rule, words in (
        ("{per_class: 3}", "at least 3 boxes of every class"),
        ("{percent: 10}", "10 % of the images"),
        ("4", "4"),
    ):
        changed = load_test_study(
            write_study(tmp_path, STUDY.replace("seed_labels: 3", f"seed_labels: {rule}")), study.out
        )
        keys.add(part_key(changed, 1, "random"))
        with pytest.raises(UserError, match=f"seed_labels is at least 2 boxes of every class, expected {words} as in"):
            create_base_workspace(changed, 1)
    assert len(keys) == 4  # a part of another rule is never taken for one of this study


@pytest.fixture
def scripted_rounds(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Made-up campaigns: finished rounds by arm; the night of ``equal`` leaves its bounds."""
    rounds = dict.fromkeys(ARMS, -1)

    def empty_workspace(study: Study, seed: int, arm: str) -> Workspace:
        workspace = study.workspace(seed, arm)
        workspace.root.mkdir(parents=True, exist_ok=True)
        return workspace

    def night(root: Path) -> RunResult:
        arm = root.name.removeprefix("seed-1-")
        if arm == "equal":
            raise GuardRailError("train", "the loss ratio is 30, expected at most 20")
        if arm == "supervised" and rounds[arm] == 0:
            return RunResult(0, "waiting_for_labels", "None of 3 images is labeled yet.")
        rounds[arm] += 1
        return RunResult(rounds[arm], "completed", "")

    monkeypatch.setattr(flows.study.runner, "nightly", night)
    monkeypatch.setattr(flows.study.runner, "create_base_workspace", lambda study, seed: study.base_workspace(seed))
    monkeypatch.setattr(flows.study.runner, "create_arm_workspace", empty_workspace)
    for name in ("last_published_round", "newest_round"):
        monkeypatch.setattr(
            flows.study.runner, name, lambda workspace: rounds[workspace.root.name.removeprefix("seed-1-")]
        )
    monkeypatch.setattr(flows.study.runner, "write_part", lambda *_: None)
    return rounds


def test_an_arm_out_of_bounds_or_out_of_labels_stops_alone_and_says_so(
    tmp_path: Path, scripted_rounds: dict[str, int]
) -> None:
    text = STUDY.replace("full: [ssl.enabled=false]", "")
    study = load_test_study(write_study(tmp_path, text), tmp_path / "out")
    steps: list[tuple[str, int]] = []
    flows.study.runner.run_seed(study, 1, lambda _: None, lambda step: steps.append((step.arm, step.round_number)))
    assert steps == [("random", 0), ("random", 1), ("supervised", 0)]
    assert flows.study.runner.failures(study) == [
        "equal, seed 1, round 0: the loss ratio is 30, expected at most 20.",
        "supervised, seed 1, round 1: None of 3 images is labeled yet.",
    ]


def test_in_a_new_clone_only_arms_without_their_last_part_are_run(
    tmp_path: Path, scripted_rounds: dict[str, int]
) -> None:
    """Killed in the middle, and nothing but the parts is left: ``random`` is finished, ``supervised`` is not."""
    study = load_test_study(write_study(tmp_path, STUDY.replace("full: [ssl.enabled=false]", "")), tmp_path / "out")
    for arm, rounds in (("random", (0, 1)), ("supervised", (0,))):
        for number in rounds:
            files.write_json(part_path(study, 1, arm, number), {"key": part_key(study, 1, arm)})
    steps: list[tuple[str, int]] = []
    run_seed(study, 1, lambda step: steps.append((step.arm, step.round_number)), lambda _: None)
    assert steps == [("equal", 0), ("supervised", 0), ("supervised", 1)]
    assert remaining_runs(study, [1]) == 2 * (study.plan.rounds + 1)


def test_a_seed_whose_process_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"failed seeds are .*, expected none") as raised:
        run_in_processes([str(tmp_path / "missing.yaml")], [1, 2, 3], 2)
    assert all(f"{seed} (code 2)" in str(raised.value) for seed in (1, 2, 3))


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "3"), ("5", "5")])
def test_seeds_side_by_side_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, expected: str
) -> None:
    """Unless the user says how many threads each may have."""
    given: list[str] = []

    class Seed:
        returncode = 0

        def __init__(self, _: object, *, env: dict[str, str], **__: object) -> None:
            given.append(env["OMP_NUM_THREADS"])

        def poll(self) -> int:
            return 0

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr("subprocess.Popen", Seed)
    run_in_processes([], [1, 2, 3], 2)
    assert given == [expected] * 3


def test_a_study_told_to_end_waits_for_its_seeds(tmp_path: Path) -> None:
    """They close their runs at the Prefect server that goes when the study goes."""
    seed = (
        "import pathlib, signal, sys, time\n"
        "def leave(*_):\n    time.sleep(0.5)\n    pathlib.Path('closed').touch()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "pathlib.Path('begun').touch()\n"
        "time.sleep(60)"
    )
    study = (
        "import subprocess, sys\nfrom flows.cli.study import run_in_processes\n"
        "class Seed(subprocess.Popen):\n"
        "    def __init__(self, _, **options):\n"
        f"        super().__init__([sys.executable, '-c', {seed!r}], **options)\n"
        "subprocess.Popen = Seed\n"
        "run_in_processes([], [1], 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", study], cwd=tmp_path, env=subprocess_env())
    wait_until((tmp_path / "begun").exists)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "closed").exists()


def test_seeds_put_their_images_into_the_cache_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "source")
    study = load_test_study(write_study(tmp_path), tmp_path / "out")

    def another_seed(*_: object) -> None:
        with pytest.raises(Timeout):
            FileLock(study.cache_lock, timeout=0).acquire()

    monkeypatch.setattr(flows.study.workspaces, "create_workspace", another_seed)
    create_base_workspace(study, 1)
    with FileLock(study.cache_lock, timeout=0):
        pass


def test_a_broken_study_file_ends_in_one_line(tmp_path: Path) -> None:
    path = write_study(tmp_path, STUDY.replace("ssl.enabled=false]", "ssl.enable=false]", 1))
    refused = run_gleaner("study", str(path), cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "arms.supervised: ssl.enable is an unknown parameter" in refused.stderr
    assert "Did you mean ssl.enabled?" in refused.stderr


def test_a_seed_that_is_not_of_the_study_is_refused(tmp_path: Path) -> None:
    refused = run_gleaner("study", str(write_study(tmp_path)), "--seed", "5", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--seed is 5, expected one of seeds [1]" in refused.stderr
    assert not (tmp_path / "studies").exists()
