"""One row of ``results.parquet`` per finished round, from ledgers, stage logs and the oracle's figures."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.records.ledger import all_ledgers
from flows.stage_log import skipped_stages, stage_seconds
from flows.study.campaigns import Study
from tasks import files
from tasks.paths import Workspace
from tasks.study.results import POOL_MEASURES


def arm_rows(study: Study, campaigns: Mapping[tuple[int, str], Workspace]) -> list[dict[str, Any]]:
    """Rows of all arms, in their order."""
    rounds = [
        (seed, arm, workspace, ledger)
        for (seed, arm), workspace in campaigns.items()
        if workspace.labels.is_dir()
        for ledger in all_ledgers(workspace)
        if ledger["round"] <= study.plan.rounds
    ]
    train_seconds = dict(_train_seconds((workspace, ledger) for _, _, workspace, ledger in rounds))
    return [
        _row(study, seed, arm, workspace, ledger) | {"train_seconds": train_seconds.get(_training(ledger))}
        for seed, arm, workspace, ledger in rounds
    ]


def _row(study: Study, seed: int, arm: str, workspace: Workspace, ledger: Mapping[str, Any]) -> dict[str, Any]:
    number, figures = ledger["round"], ledger["figures"]
    measured = study.measured(seed, arm, number)
    pool = files.read_json(measured) if measured.is_file() else {}
    return {
        "seed": seed,
        "arm": arm,
        "round": number,
        "labels": figures["labels"],
        "boxes": figures["boxes"],
        **{
            f"{model}_{name.lower()}": figures[model][name]
            for model in ("teacher", "student")
            for name in ("mAP", "AP50")
        },
        **{name: figures[name] for name in ("weights_used", "spearman_dwa", "spearman_equal")},
        **{f"pool_spearman_{name}": pool.get(name) for name in POOL_MEASURES},
        "pool_images": pool.get("pool_images"),
        "seconds": round(sum(stage_seconds(workspace, number).values()), 3),
        "restored_stages": len(skipped_stages(workspace, number)),
    }


def _train_seconds(rounds: Iterator[tuple[Workspace, Mapping[str, Any]]]) -> Iterator[tuple[str, float]]:
    """Seconds of each training that was really run; after a kill, of its last attempt."""
    for workspace, ledger in rounds:
        if "train" not in skipped_stages(workspace, ledger["round"]):
            yield _training(ledger), stage_seconds(workspace, ledger["round"])["train"]


def _training(ledger: Mapping[str, Any]) -> str:
    """What a training is told apart by: its inputs and parameters, as for DVC's run cache."""
    stage = ledger["stages"]["train"]
    return files.sha256_json([stage["deps"], stage["params_sha256"]])
