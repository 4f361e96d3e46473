"""The made-up tables of the benchmark are what the stage reads, and all kinds of objectives take part."""

from pathlib import Path

from infra.bench.selection import measure
from tasks.data.paths import Workspace
from tasks.data.schemas import SELECTION
from tasks.storage import files


def test_the_stage_selects_from_the_made_up_tables(tmp_path: Path) -> None:
    costs = measure(tmp_path, num_images=400, num_labeled=30, strategies=["portfolio", "composite"])
    assert all(min(cost.peak_mib, cost.wall_s) > 0 for cost in costs.values())
    workspace = Workspace(tmp_path)
    rows = files.read_table(workspace.derived("select") / "selection.parquet", SELECTION).to_pylist()
    assert len(rows) == 400  # the budget of 1,000 takes the whole pool
    reasons = " ".join(row["reason"] for row in rows)
    assert all(name in reasons for name in ("uncertainty", "rarity", "localization", "novelty", "diversity"))
