"""Several nights in a row."""

from pathlib import Path

from prefect import flow

from flows.night import campaign_name, nightly
from flows.position import RunResult, last_published_round
from flows.safety.cancellation import mark_cancelled
from flows.workspaces import require_workspace


@flow(name="nightly-rounds", flow_run_name=campaign_name, on_crashed=[mark_cancelled])
def run_rounds(root: Path, rounds: int) -> list[RunResult]:
    """Run nights until ``rounds`` more rounds are finished, or there is nothing to do."""
    workspace = require_workspace(root)
    target_round = last_published_round(workspace) + rounds
    results: list[RunResult] = []
    while last_published_round(workspace) < target_round:
        results.append(nightly(root))
        if results[-1].outcome != "completed":
            break
    return results
