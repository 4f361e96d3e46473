"""The repository's own campaign."""

from pathlib import Path

from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.demo import DigitsParams
from tasks.demo.draw import draw
from tasks.storage import files

SMALL = DigitsParams(pool_images=40, val_images=12, seed_images=8, calibration_images=4)
CLASSES = ["zero", "one", "two"]


def test_drawn_campaign_is_whole_and_drawn_again_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first = draw(SMALL, classes=CLASSES, seed=3, workspace=workspace)
    assert first.classes == tuple(CLASSES)
    assert first.counts["duplicates_collapsed"] == 1
    assert first.counts["seed_images"] == 8
    assert first.counts["calibration_images"] == 4
    assert first.counts["oracle_images"] == 40 - 1 - 8 - 4
    assert files.read_table(workspace.index, INDEX).num_rows == 39
    digest = files.sha256_tree(tmp_path)
    (workspace.images / "left-over.png").write_bytes(b"of another seed")
    draw(SMALL, classes=CLASSES, seed=3, workspace=workspace)
    assert files.sha256_tree(tmp_path) == digest
