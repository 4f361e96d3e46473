"""Run a study: every arm of every seed as an ordinary campaign, round by round; then write its results.

Where it stands is read off its parts and campaigns, so a study that was killed is started again with the same command.
The run in MLflow is one per study, updated as seeds finish; the rounds of its arms have their own experiments.
Importing this imports Prefect: see ``flows.prefect_server``.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities import Metric

from flows.nightly import nightly
from flows.registry.adopt import adopt, needs_adoption
from flows.runtime.process_env import tracking_uri
from flows.study.parts import (
    Part,
    all_parts,
    full_labels_path,
    is_complete,
    part_key,
    read_full_labels,
    stop_path,
    write_part,
)
from flows.study.workspaces import (
    FULL_LABELS,
    Study,
    create_arm_workspace,
    create_base_workspace,
    create_full_labels_workspace,
)
from flows.tracking.mlflow_run import silence_mlflow
from flows.workspace import dvc
from flows.workspace.dvc import refresh_code_digests
from flows.workspace.rounds import last_published_round, newest_round
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import GuardRailError, UserError
from tasks.storage import files
from tasks.study.plot import write_plots
from tasks.study.report import comparison_tables, readme
from tasks.study.results import (
    POOL_RANKING,
    RESULTS,
    StudyResults,
    area,
    collect_results,
    compared_pairs,
    comparisons,
    final_map,
    mean_by_round,
    summary,
)
from tasks.study.training_result import measure_training, point_bootstrap, point_map


@dataclass(frozen=True)
class StudyStep:
    """One step of a study, about to start or finished."""

    seed: int
    arm: str
    round_number: int


OnStep = Callable[[StudyStep], None]


def run_seed(study: Study, seed: int, on_start: OnStep, on_finish: OnStep) -> None:
    """Run all arms of one seed to their last round; those whose parts are complete need no campaign.

    Raises:
        UserError: something that a person has to correct, or another study is running on this seed.
    """
    with run_lock(Workspace(study.out / "locks" / f"seed-{seed}")):
        unfinished = [arm for arm in study.plan.arms if not is_complete(study, seed, arm)]
        needs_full = study.plan.full is not None and read_full_labels(study, seed) is None
        if not unfinished and not needs_full:
            return
        create_base_workspace(study, seed)
        for arm, workspace in [(arm, create_arm_workspace(study, seed, arm)) for arm in unfinished]:
            reason = _run_arm(study, seed, arm, workspace, on_start, on_finish)
            _record_failure(study, seed, arm, reason)
        if needs_full:
            _record_failure(study, seed, FULL_LABELS, _run_full_labels(study, seed, on_start, on_finish))


def write_results(study: Study) -> StudyResults:
    """Write ``results/`` and the MLflow run from the parts there are."""
    plan = study.plan
    parts = list(all_parts(study))
    rows = result_rows(study, parts)
    full = {seed: read_full_labels(study, seed) for seed in plan.seeds} if plan.full is not None else {}
    full_map = {seed: point_map(part["trainings"], plan.model) for seed, part in full.items() if part is not None}
    bootstrap_maps = {
        (part["row"]["seed"], part["row"]["arm"], part["row"]["round"]): point_bootstrap(part["trainings"], plan.model)
        for part in parts
    }
    results = collect_results(plan, rows, full_map, failures(study), bootstrap_maps)
    ranking = pool_ranking_rows(parts)
    folder = study.results
    files.write_table(folder / "results.parquet", pa.Table.from_pylist(rows, schema=RESULTS))
    files.write_table(folder / "pool_ranking.parquet", pa.Table.from_pylist(ranking, schema=POOL_RANKING))
    files.write_json(folder / "summary.json", summary(results))
    files.write_bytes(folder / "table.md", comparison_tables(results).encode())
    files.write_bytes(folder / "README.md", readme(results, ranking).encode())
    write_plots(results, folder)
    log_study(study, results)
    return results


def _run_arm(
    study: Study, seed: int, arm: str, workspace: Workspace, on_start: OnStep, on_finish: OnStep
) -> str | None:
    """Run rounds until the last one; return why it stopped early, if it did."""
    if needs_adoption(workspace):  # a study's folder may be moved as a whole
        with run_lock(workspace):
            adopt(workspace, load_params(workspace.params), "moved with its study")
    while True:
        finished = last_published_round(workspace)
        if finished == newest_round(workspace):  # otherwise derived/ is on its way to the next round already
            write_part(study, seed, arm, workspace, finished)
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


def _run_full_labels(study: Study, seed: int, on_start: OnStep, on_finish: OnStep) -> str | None:
    """Train on all labels, without selecting a batch; return why it failed, if it did."""
    step = StudyStep(seed, FULL_LABELS, 0)
    on_start(step)
    workspace = create_full_labels_workspace(study, seed)
    with run_lock(workspace):
        refresh_code_digests(workspace)
        try:
            dvc.run_dvc(workspace.root, "repro", "evaluate")
        except UserError as error:  # the arms are worth their results without it
            return error.problem
    labels = files.read_json(workspace.derived("assemble") / "summary.json")
    trainings = [measure_training(workspace, load_params(workspace.params).classes)]
    files.write_json(
        full_labels_path(study, seed),
        {
            "key": part_key(study, seed, FULL_LABELS),
            "trainings": trainings,
            "labels": labels["labels"],
            "boxes": labels["boxes"],
        },
    )
    on_finish(step)
    return None


def _record_failure(study: Study, seed: int, arm: str, reason: str | None) -> None:
    path = stop_path(study, seed, arm)
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        files.write_json(path, {"reason": f"{arm}, seed {seed}, {reason}"})


def failures(study: Study) -> list[str]:
    """Return the arms that stopped before their last round, with the reason."""
    paths = [stop_path(study, seed, arm) for seed in study.plan.seeds for arm in (*study.plan.arms, FULL_LABELS)]
    return [f"{files.read_json(path)['reason']}." for path in paths if path.is_file()]


def remaining_runs(study: Study, seeds: Sequence[int]) -> int:
    """Return how many rounds are not finished, in campaigns that exist or will."""
    return sum(
        study.plan.rounds - (last_published_round(workspace) if workspace.labels.is_dir() else -1)
        for seed in seeds
        for arm in study.plan.arms
        if not is_complete(study, seed, arm)
        for workspace in [study.workspace(seed, arm)]
    )


_STUDY_TAG = "gleaner.study"
_BATCH_SIZE = 500


def result_rows(study: Study, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the rows of RESULTS; the time of a training that another arm ran is that arm's."""
    seconds = {
        part["training_key"]: part["row"]["train_seconds"] for part in parts if part["row"]["train_seconds"] is not None
    }
    return [
        part["row"]
        | {
            "map": point_map(part["trainings"], study.plan.model),
            "trainings": len(part["trainings"]),
            "train_seconds": seconds.get(part["training_key"]),
        }
        for part in parts
    ]


def pool_ranking_rows(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the rows of POOL_RANKING."""
    return [
        {**{key: part["row"][key] for key in ("seed", "arm", "round")}, "rule": rule, "spearman": value}
        for part in parts
        for rule, value in part["pool_spearman"].items()
    ]


def log_study(study: Study, results: StudyResults) -> str:
    """Log metrics and files and return the run's id; the same study folder finds its run again."""
    run_id = open_study_run(study)
    client = MlflowClient(tracking_uri(study.out))
    metrics = list(_metrics(results))
    for start in range(0, len(metrics), _BATCH_SIZE):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_SIZE])
    for path in sorted(study.results.iterdir()):
        client.log_artifact(run_id, str(path), "results")
    complete = all(len(arm.curves) == len(results.config.seeds) for arm in results.arms.values())
    client.set_terminated(run_id, "FINISHED" if complete else "KILLED")
    return run_id


def open_study_run(study: Study) -> str:
    """Find or create the study's run, and the database before several seeds write to it."""
    silence_mlflow()
    client = MlflowClient(tracking_uri(study.out))
    name, key = f"study-{study.plan.name}", str(study.out.resolve())
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        remote = tracking_uri(study.out).startswith(("http:", "https:", "databricks"))
        location = None if remote else (study.out.resolve() / "mlartifacts").as_uri()
        experiment_id = client.create_experiment(name, artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    found = client.search_runs([experiment_id], f"tags.`{_STUDY_TAG}` = '{key}'")
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, run_name=study.plan.name, tags={_STUDY_TAG: key})
    run_id = str(run.info.run_id)
    plan = study.plan
    for param, value in (("seeds", plan.seeds), ("rounds", plan.rounds), ("seed_labels", plan.seed_size)):
        client.log_param(run_id, param, value)
    for arm, settings in plan.arms.items():
        client.log_param(run_id, f"arm.{arm}", " ".join(settings) or "defaults")
    return run_id


def _metrics(results: StudyResults) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    found: list[tuple[str, float | None, int]] = []
    for name, arm in results.arms.items():
        found += [(f"{name}/mean over minutes", area(arm), 0), (f"{name}/last mAP", final_map(arm), 0)]
        for column in ("map", "minutes", "boxes", "spearman_dwa", "spearman_equal"):
            found += [(f"{name}/{column}", value, step) for step, value in enumerate(mean_by_round(arm, column))]
    for arm_name, reference in compared_pairs(results):
        for measure, comparison in zip(
            ("mean over minutes", "last mAP"), comparisons(results, arm_name, reference) or (), strict=False
        ):
            found.append((f"{arm_name} minus {reference}/{measure}", comparison.mean, 0))
    return [Metric(name, value, now_ms, step) for name, value, step in found if value is not None]
