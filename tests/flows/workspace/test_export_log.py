"""Lines of the log of exports stay as they were written."""

from pathlib import Path

from flows.workspace.export_log import ExportRecord, append_export, read_exports
from flows.workspace.promotion_log import ModelRecord
from tasks.data.paths import Workspace

OF_BEFORE_PRUNING = (
    '{"key":"a","timestamp":"2026-11-29T00:00:00+00:00","author":"A","model":{"version":1,"round":0,"sha256":"ab"},'
    '"format":"onnx","precision":"int8","sha256_by_file":{"network.onnx":"cd"},"map_original":40.0,"map_export":39.5,'
    '"name":"m-onnx-int8","version":1}\n'
)


def test_a_line_without_a_fraction_is_read_and_kept_as_it_is(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.exports.write_text(OF_BEFORE_PRUNING)
    [whole] = read_exports(workspace)
    assert whole.prune_frac == 0
    pruned = ExportRecord(**{**whole.model_dump(exclude={"model"}), "key": "b", "prune_frac": 0.3}, model=whole.model)
    assert pruned.model == ModelRecord(version=1, round=0, sha256="ab")
    append_export(workspace, pruned)
    first, second = workspace.exports.read_text().splitlines(keepends=True)
    assert first == OF_BEFORE_PRUNING
    assert second.endswith('"prune_frac":0.3}\n')
    assert read_exports(workspace) == [whole, pruned]
