"""Collect one row of ``results.parquet`` per finished round, from ledgers, stage logs and the oracle's metrics."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.study.workspaces import Study
from flows.workspace.rounds import all_ledgers, skipped_stages, stage_seconds
from tasks.data.paths import Workspace
from tasks.storage import files
from tasks.study.results import POOL_MEASURES


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
