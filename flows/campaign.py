"""Several nights in a row."""

from pathlib import Path

from prefect import flow

from flows.night import campaign_name, night
from flows.position import NightResult, finished_round
from flows.safety.cancellation import call_it_cancelled
from flows.workspaces import require_workspace


@flow(name="campaign", flow_run_name=campaign_name, on_crashed=[call_it_cancelled])
def campaign(root: Path, rounds: int) -> list[NightResult]:
    """Run nights until ``rounds`` more rounds are finished, or there is nothing to do."""
    workspace = require_workspace(root)
    last_round = finished_round(workspace) + rounds
    results: list[NightResult] = []
    while finished_round(workspace) < last_round:
        results.append(night(root))
        if results[-1].outcome != "finished":
            break
    return results
