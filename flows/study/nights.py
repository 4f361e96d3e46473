"""A study: every arm of every seed an ordinary campaign, night by night; then what may be claimed from it.

Where it stands is read off the campaigns, so a study that was killed is started again with the same command.
Importing this imports Prefect: see ``flows.engine``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from flows import data_versions
from flows.code_digests import refresh_code_digests
from flows.data_versions import child_environment
from flows.night import night
from flows.position import finished_round, newest_round
from flows.safety.process import stream
from flows.study.campaigns import FULL, Study, make_arm, make_base, make_full
from flows.study.draws import image_draws
from flows.study.rows import arm_rows
from flows.study.tracking import track_study
from flows.workspaces import night_lock
from tasks import files
from tasks.errors import GuardRailError, UserError
from tasks.paths import Workspace
from tasks.study.plot import draw
from tasks.study.results import RESULTS, StudyResults, collect_results, summary
from tasks.study.words import reading, table


@dataclass(frozen=True)
class Progress:
    """One step, about to begin or done."""

    seed: int
    arm: str
    round_number: int


OnProgress = Callable[[Progress], None]


def run_seed(study: Study, seed: int, before: OnProgress, after: OnProgress) -> None:
    """Bring all arms of one seed to their last round.

    Raises:
        UserError: something a person has to mend; or another study is at work on this seed.
    """
    with night_lock(Workspace(study.out / "locks" / f"seed-{seed}")):
        make_base(study, seed)
        arms = {arm: make_arm(study, seed, arm) for arm in study.plan.arms}
        for arm, workspace in arms.items():
            reason = _run_arm(study, seed, arm, workspace, before, after)
            _note_stop(study, seed, arm, reason)
        if study.plan.full is not None:
            _note_stop(study, seed, FULL, _run_full(study, seed, before, after))


def write_results(study: Study) -> StudyResults:
    """Everything in ``results/``, from what is finished by now, and in MLflow."""
    plan = study.plan
    campaigns = {(seed, arm): study.campaign(seed, arm) for seed in plan.seeds for arm in plan.arms}
    rows = arm_rows(study, campaigns)
    done = [seed for seed in plan.seeds if plan.full is not None and study.full_result(seed).is_file()]
    full_map = {seed: float(files.read_json(study.full_result(seed))["teacher"]["mAP"]) for seed in done}
    results = collect_results(plan, rows, full_map, stops(study), image_draws(study, rows))
    folder = study.results
    files.write_table(folder / "results.parquet", pa.Table.from_pylist(rows, schema=RESULTS))
    files.write_json(folder / "summary.json", summary(results))
    files.write_bytes(folder / "table.md", table(results).encode())
    files.write_bytes(folder / "README.md", reading(results).encode())
    draw(results, folder)
    track_study(study, results)
    return results


def _run_arm(
    study: Study, seed: int, arm: str, workspace: Workspace, before: OnProgress, after: OnProgress
) -> str | None:
    """Nights until the last round; returns why it ended sooner, if it did."""
    while True:
        finished = finished_round(workspace)
        if finished == newest_round(workspace):  # otherwise derived/ is on its way to the next round already
            _measure(study, seed, arm, workspace, finished)
        if finished >= study.plan.rounds:
            return None
        step = Progress(seed, arm, finished + 1)
        before(step)
        try:
            result = night(workspace.root)
        except GuardRailError as error:  # a finding about the arm; the others go on
            return f"round {finished + 1}: {error.problem}"
        if finished_round(workspace) == finished:
            return f"round {finished + 1}: {result.message.rstrip('.')}"
        after(step)


def _measure(study: Study, seed: int, arm: str, workspace: Workspace, round_number: int) -> None:
    """Ask the oracle, once a round, while ``derived/`` is that of the round."""
    target = study.measured(seed, arm, round_number)
    if target.is_file():
        return
    _python(workspace, "tasks.study.pool")
    files.write_json(target, files.read_json(workspace.scratch("study") / "pool.json"))


def _python(workspace: Workspace, module: str) -> None:
    lines: list[str] = []
    command = [sys.executable, "-W", "ignore", "-m", module]
    code = stream(command, cwd=workspace.root, env=child_environment(), on_line=lines.append)
    if code:
        said = lines[-1] if lines else "it said nothing"
        raise UserError(workspace.root, f"python -m {module} ended with code {code} ({said}), expected 0")


def _run_full(study: Study, seed: int, before: OnProgress, after: OnProgress) -> str | None:
    """Train on all labels; no night, because there is nothing to ask for. Returns why it failed, if it did."""
    if study.full_result(seed).is_file():
        return None
    step = Progress(seed, FULL, 0)
    before(step)
    workspace = make_full(study, seed)
    with night_lock(workspace):
        refresh_code_digests(workspace)
        try:
            data_versions.dvc(workspace.root, "repro", "evaluate")
        except UserError as error:  # the arms are worth their results without it
            return error.problem
    metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    labels = files.read_json(workspace.derived("assemble") / "summary.json")
    files.write_json(study.full_result(seed), {**metrics, "labels": labels["labels"], "boxes": labels["boxes"]})
    after(step)
    return None


def _note_stop(study: Study, seed: int, arm: str, reason: str | None) -> None:
    path = _stop_file(study, seed, arm)
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        files.write_json(path, {"reason": f"{arm}, seed {seed}, {reason}"})


def stops(study: Study) -> list[str]:
    """Arms that ended before their last round, and why."""
    paths = [_stop_file(study, seed, arm) for seed in study.plan.seeds for arm in (*study.plan.arms, FULL)]
    return [f"{files.read_json(path)['reason']}." for path in paths if path.is_file()]


def _stop_file(study: Study, seed: int, arm: str) -> Path:
    return study.measured(seed, arm, 0).with_name("stopped.json")


def nights_to_go(study: Study, seeds: Sequence[int]) -> int:
    """Rounds that are not finished yet, in campaigns that exist or will."""
    return sum(
        study.plan.rounds - (finished_round(workspace) if workspace.labels.is_dir() else -1)
        for seed in seeds
        for workspace in (study.campaign(seed, arm) for arm in study.plan.arms)
    )
