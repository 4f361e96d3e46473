"""Collect the results of a study: a row per finished round, bootstrap samples of its mAP, and the study's MLflow run.

Rows come from ledgers, stage logs and the oracle's metrics. The bootstrap resamples the validation images. The run in
MLflow is one per study, updated as seeds finish; the rounds of its arms have their own experiments.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from flows.provenance.snapshot import RoundSnapshot, filter_by_model, load_snapshots
from flows.runtime.process_env import tracking_uri
from flows.study.workspaces import Study
from flows.tracking.mlflow_run import silence_mlflow
from flows.workspace.dvc_cache import MissingDataError
from flows.workspace.rounds import all_ledgers, skipped_stages, stage_seconds
from tasks.data.paths import Workspace
from tasks.evaluation.paired_bootstrap import bootstrap_map
from tasks.storage import files
from tasks.study.results import POOL_MEASURES, StudyResults, area, compared_pairs, comparisons, final_map, mean_by_round

BOOTSTRAP_SAMPLES = 300
_SEED = 0
BootstrapMaps = dict[tuple[int, str, int], tuple[float, ...]]
_STUDY_TAG = "gleaner.study"
_BATCH_SIZE = 500


def collect_rows(study: Study, campaigns: Mapping[tuple[int, str], Workspace]) -> list[dict[str, Any]]:
    """Return the rows of all arms, in their order."""
    rounds = [
        (seed, arm, workspace, ledger)
        for (seed, arm), workspace in campaigns.items()
        if workspace.labels.is_dir()
        for ledger in all_ledgers(workspace)
        if ledger["round"] <= study.plan.rounds
    ]
    train_seconds = dict(_train_seconds((workspace, ledger) for _, _, workspace, ledger in rounds))
    return [
        _result_row(study, seed, arm, workspace, ledger) | {"train_seconds": train_seconds.get(_training_key(ledger))}
        for seed, arm, workspace, ledger in rounds
    ]


def _result_row(study: Study, seed: int, arm: str, workspace: Workspace, ledger: Mapping[str, Any]) -> dict[str, Any]:
    number, metrics = ledger["round"], ledger["metrics"]
    measurements_path = study.measurements_path(seed, arm, number)
    pool = files.read_json(measurements_path) if measurements_path.is_file() else {}
    return {
        "seed": seed,
        "arm": arm,
        "round": number,
        "num_labeled": metrics["labels"],
        "boxes": metrics["boxes"],
        **{
            f"{model}_{name.lower()}": metrics[model][name]
            for model in ("teacher", "student")
            for name in ("mAP", "AP50")
        },
        **{name: metrics[name] for name in ("acquisition_weights", "spearman_dwa", "spearman_equal")},
        **{f"pool_spearman_{name}": pool.get(name) for name in POOL_MEASURES},
        "pool_images": pool.get("pool_images"),
        "seconds": round(sum(stage_seconds(workspace, number).values()), 3),
        "cached_stages": len(skipped_stages(workspace, number)),
    }


def _train_seconds(rounds: Iterator[tuple[Workspace, Mapping[str, Any]]]) -> Iterator[tuple[str, float]]:
    """Return the seconds of each training that was really run; after a kill, of its last attempt."""
    for workspace, ledger in rounds:
        if "train" not in skipped_stages(workspace, ledger["round"]):
            yield _training_key(ledger), stage_seconds(workspace, ledger["round"])["train"]


def _training_key(ledger: Mapping[str, Any]) -> str:
    """Return the key of a training: its inputs and parameters, as in DVC's run cache."""
    stage = ledger["stages"]["train"]
    return files.sha256_json([stage["deps"], stage["params_sha256"]])


def bootstrap_teacher_map(study: Study, rows: Iterable[Mapping[str, Any]]) -> BootstrapMaps:
    """By seed, arm and round; worked out once, from what the round stored. Arms of a seed have the same draws.

    Args:
        study: whose campaigns hold the rounds.
        rows: of ``results.parquet``; a round whose predictions are not in the cache is left out.
    """
    load = cache(lambda seed, arm: load_snapshots(study.workspace(seed, arm)))
    bootstrap_maps: BootstrapMaps = {}
    for row in rows:
        seed, arm, number = row["seed"], row["arm"], row["round"]
        path = study.measurements_path(seed, arm, number)
        path = path.with_name(f"{path.stem}-draws.json")
        try:
            if not path.is_file():
                files.write_json(path, {"teacher_map": _bootstrap(load(seed, arm)[number])})
        except MissingDataError:
            continue
        bootstrap_maps[seed, arm, number] = tuple(files.read_json(path)["teacher_map"])
    return bootstrap_maps


def _bootstrap(snapshot: RoundSnapshot) -> list[float]:
    truth, predictions = snapshot.validation_images(), filter_by_model(snapshot.predictions(), "teacher")
    map_samples = bootstrap_map(truth, predictions, classes=snapshot.classes(), samples=BOOTSTRAP_SAMPLES, seed=_SEED)
    return [round(value, 4) for value in map_samples.tolist()]


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
    for param, value in (("seeds", plan.seeds), ("rounds", plan.rounds), ("seed_labels", plan.seed_labels)):
        client.log_param(run_id, param, value)
    for arm, settings in plan.arms.items():
        client.log_param(run_id, f"arm.{arm}", " ".join(settings) or "defaults")
    return run_id


def _metrics(results: StudyResults) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    found: list[tuple[str, float | None, int]] = []
    for name, arm in results.arms.items():
        found += [(f"{name}/mean over labels", area(arm), 0), (f"{name}/last mAP", final_map(arm), 0)]
        for column in ("teacher_map", "spearman_dwa", "spearman_equal", "pool_spearman_uncertainty"):
            found += [(f"{name}/{column}", value, step) for step, value in enumerate(mean_by_round(arm, column))]
    for arm_name, reference in compared_pairs(results):
        for measure, comparison in zip(
            ("mean over labels", "last mAP"), comparisons(results, arm_name, reference) or (), strict=False
        ):
            found.append((f"{arm_name} minus {reference}/{measure}", comparison.mean, 0))
    return [Metric(name, value, now_ms, step) for name, value, step in found if value is not None]
