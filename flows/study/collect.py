"""Collect the results of a study from its parts: the rows of its tables, and the study's MLflow run.

The run in MLflow is one per study, updated as seeds finish; the rounds of its arms have their own experiments.
"""

import time
from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from flows.runtime.process_env import tracking_uri
from flows.study.parts import Part
from flows.study.workspaces import Study
from flows.tracking.mlflow_run import silence_mlflow
from tasks.study.results import StudyResults, area, compared_pairs, comparisons, final_map, mean_by_round
from tasks.study.training_result import point_map

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
    for param, value in (("seeds", plan.seeds), ("rounds", plan.rounds), ("seed_labels", plan.seed_labels)):
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
