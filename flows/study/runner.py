"""Run a study: every arm of every seed as an ordinary campaign, round by round; then write its results.

Where it stands is read off the campaigns, so a study that was killed is started again with the same command.
Importing this imports Prefect: see ``flows.prefect_server``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from flows.nightly import nightly
from flows.runtime.subprocess import run_streaming
from flows.study.collect import bootstrap_teacher_map, collect_rows, log_study
from flows.study.workspaces import (
    FULL_LABELS,
    Study,
    create_arm_workspace,
    create_base_workspace,
    create_full_labels_workspace,
)
from flows.workspace import dvc
from flows.workspace.dvc import dvc_env, refresh_code_digests
from flows.workspace.rounds import last_published_round, newest_round
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace
from tasks.runtime.errors import GuardRailError, UserError
from tasks.storage import files
from tasks.study.plot import write_plots
from tasks.study.report import comparison_tables, readme
from tasks.study.results import RESULTS, StudyResults, collect_results, summary


@dataclass(frozen=True)
class StudyStep:
    """One step of a study, about to start or finished."""

    seed: int
    arm: str
    round_number: int


OnStep = Callable[[StudyStep], None]


def run_seed(study: Study, seed: int, on_start: OnStep, on_finish: OnStep) -> None:
    """Run all arms of one seed to their last round.

    Raises:
        UserError: something that a person has to correct, or another study is running on this seed.
    """
    with run_lock(Workspace(study.out / "locks" / f"seed-{seed}")):
        create_base_workspace(study, seed)
        arms = {arm: create_arm_workspace(study, seed, arm) for arm in study.plan.arms}
        for arm, workspace in arms.items():
            reason = _run_arm(study, seed, arm, workspace, on_start, on_finish)
            _record_failure(study, seed, arm, reason)
        if study.plan.full is not None:
            _record_failure(study, seed, FULL_LABELS, _run_full_labels(study, seed, on_start, on_finish))


def write_results(study: Study) -> StudyResults:
    """Write ``results/`` and the MLflow run from the rounds finished so far."""
    plan = study.plan
    campaigns = {(seed, arm): study.workspace(seed, arm) for seed in plan.seeds for arm in plan.arms}
    rows = collect_rows(study, campaigns)
    finished_seeds = [
        seed for seed in plan.seeds if plan.full is not None and study.full_labels_result_path(seed).is_file()
    ]
    full_map = {
        seed: float(files.read_json(study.full_labels_result_path(seed))["teacher"]["mAP"]) for seed in finished_seeds
    }
    results = collect_results(plan, rows, full_map, failures(study), bootstrap_teacher_map(study, rows))
    folder = study.results
    files.write_table(folder / "results.parquet", pa.Table.from_pylist(rows, schema=RESULTS))
    files.write_json(folder / "summary.json", summary(results))
    files.write_bytes(folder / "table.md", comparison_tables(results).encode())
    files.write_bytes(folder / "README.md", readme(results).encode())
    write_plots(results, folder)
    log_study(study, results)
    return results


def _run_arm(
    study: Study, seed: int, arm: str, workspace: Workspace, on_start: OnStep, on_finish: OnStep
) -> str | None:
    """Run rounds until the last one; return why it stopped early, if it did."""
    while True:
        finished = last_published_round(workspace)
        if finished == newest_round(workspace):  # otherwise derived/ is on its way to the next round already
            _measure(study, seed, arm, workspace, finished)
        if finished >= study.plan.rounds:
            return None
        step = StudyStep(seed, arm, finished + 1)
        on_start(step)
        try:
            result = nightly(workspace.root)
        except GuardRailError as error:  # a finding about the arm; the others go on
            return f"round {finished + 1}: {error.problem}"
        if last_published_round(workspace) == finished:
            return f"round {finished + 1}: {result.message.rstrip('.')}"
        on_finish(step)


def _measure(study: Study, seed: int, arm: str, workspace: Workspace, round_number: int) -> None:
    """Measure against the oracle, once per round, while ``derived/`` is that of the round."""
    target = study.measurements_path(seed, arm, round_number)
    if target.is_file():
        return
    _run_module(workspace, "tasks.study.pool_spearman")
    files.write_json(target, files.read_json(workspace.scratch("study") / "pool.json"))


def _run_module(workspace: Workspace, module: str) -> None:
    lines: list[str] = []
    command = [sys.executable, "-W", "ignore", "-m", module]
    code = run_streaming(command, cwd=workspace.root, env=dvc_env(), on_line=lines.append)
    if code:
        last_line = lines[-1] if lines else "it said nothing"
        raise UserError(workspace.root, f"python -m {module} ended with code {code} ({last_line}), expected 0")


def _run_full_labels(study: Study, seed: int, on_start: OnStep, on_finish: OnStep) -> str | None:
    """Train on all labels, without selecting a batch; return why it failed, if it did."""
    if study.full_labels_result_path(seed).is_file():
        return None
    step = StudyStep(seed, FULL_LABELS, 0)
    on_start(step)
    workspace = create_full_labels_workspace(study, seed)
    with run_lock(workspace):
        refresh_code_digests(workspace)
        try:
            dvc.run_dvc(workspace.root, "repro", "evaluate")
        except UserError as error:  # the arms are worth their results without it
            return error.problem
    metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    labels = files.read_json(workspace.derived("assemble") / "summary.json")
    files.write_json(
        study.full_labels_result_path(seed), {**metrics, "labels": labels["labels"], "boxes": labels["boxes"]}
    )
    on_finish(step)
    return None


def _record_failure(study: Study, seed: int, arm: str, reason: str | None) -> None:
    path = _failure_file(study, seed, arm)
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        files.write_json(path, {"reason": f"{arm}, seed {seed}, {reason}"})


def failures(study: Study) -> list[str]:
    """Return the arms that stopped before their last round, with the reason."""
    paths = [_failure_file(study, seed, arm) for seed in study.plan.seeds for arm in (*study.plan.arms, FULL_LABELS)]
    return [f"{files.read_json(path)['reason']}." for path in paths if path.is_file()]


def _failure_file(study: Study, seed: int, arm: str) -> Path:
    return study.measurements_path(seed, arm, 0).with_name("stopped.json")


def remaining_runs(study: Study, seeds: Sequence[int]) -> int:
    """Return how many rounds are not finished, in campaigns that exist or will."""
    return sum(
        study.plan.rounds - (last_published_round(workspace) if workspace.labels.is_dir() else -1)
        for seed in seeds
        for workspace in (study.workspace(seed, arm) for arm in study.plan.arms)
    )
