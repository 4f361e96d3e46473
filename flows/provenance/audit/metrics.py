"""mAP: from the stored boxes, and with ``--recompute`` from the stored weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.snapshot import RoundSnapshot, filter_by_model
from flows.runtime.subprocess import run_streaming
from flows.workspace.dvc import dvc_env
from flows.workspace.dvc_cache import MissingDataError, is_folder_md5
from tasks.evaluation.coco_map import coco_map
from tasks.runtime.errors import UserError
from tasks.storage import files

TOLERANCE_POINTS = 1e-3
_METRICS_PATH = "derived/evaluate/metrics.json"
_MODELS = ("teacher", "student")


def evaluation_checks(scope: AuditScope, recompute: bool) -> Iterator[Check]:
    """The measured mAP of every round; the audited model's once more from its weights, if asked for."""
    rounds = scope.rounds.values()
    found = [line for snapshot in rounds for line in evaluation_findings(snapshot)]
    yield make_check("evaluation", "stored boxes give the recorded mAP", f"{len(rounds)} rounds", found)
    name = "stored weights give the recorded mAP"
    if not recompute:
        yield Check("evaluation", name, scope.newest.tag, skipped="asked for with --recompute")
        return
    try:
        yield make_check("evaluation", name, scope.newest.tag, _recompute_findings(scope.newest))
    except MissingDataError as error:
        yield make_check("evaluation", name, scope.newest.tag, [str(error)])


def evaluation_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Where the predictions, the metrics and the ledger of one round say different things."""
    try:
        metrics: dict[str, Any] = json.loads(snapshot.read_blob(_METRICS_PATH))
        truth, predictions = snapshot.validation_images(), snapshot.predictions()
        classes = snapshot.classes()
    except (UserError, ValueError, OSError) as error:  # altered bytes may be anything
        yield f"{snapshot.tag}: {error}"
        return
    for model in _MODELS:
        recomputed = coco_map(truth, filter_by_model(predictions, model), classes)
        where = f"{snapshot.tag}: {model} mAP"
        yield from _metric_differences(where, "the ledger", snapshot.ledger["metrics"][model], recomputed)
        yield from _metric_differences(where, _METRICS_PATH, metrics[model], recomputed)


def _metric_differences(where: str, source: str, recorded_metrics: Any, recomputed: Any) -> Iterator[str]:
    for name in ("mAP", "AP50", "AP75"):
        if abs(float(recorded_metrics[name]) - float(recomputed[name])) > TOLERANCE_POINTS:
            yield f"{where}: {name} in {source} is {recorded_metrics[name]}, the stored boxes give {recomputed[name]}"
    for name, value in recorded_metrics.get("per_class", {}).items():
        other = recomputed["per_class"].get(name)
        if (value is None) != (other is None) or (value is not None and abs(value - other) > TOLERANCE_POINTS):
            yield f"{where}: AP of {name} in {source} is {value}, the stored boxes give {other}"


def _recompute_findings(snapshot: RoundSnapshot) -> list[str]:
    """Run evaluate of that round in a folder of its own, on what the round had stored."""
    folder = snapshot.workspace.root / ".gleaner" / "audit" / snapshot.tag
    shutil.rmtree(folder, ignore_errors=True)
    try:
        command = _link_inputs(snapshot, folder)
        lines: list[str] = []
        code = run_streaming(["bash", "-c", f"exec {command}"], cwd=folder, env=dvc_env(), on_line=lines.append)
        if code:
            return [f"{snapshot.tag}: evaluate ended with code {code}: {lines[-1] if lines else 'it said nothing'}"]
        recomputed: dict[str, Any] = files.read_json(folder / _METRICS_PATH)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = []
    for model in _MODELS:
        recorded_map = snapshot.ledger["metrics"][model]["mAP"]
        if abs(recorded_map - recomputed[model]["mAP"]) > TOLERANCE_POINTS:
            found.append(
                f"{snapshot.tag}: {model} mAP in the ledger is {recorded_map}, a fresh one {recomputed[model]['mAP']}"
            )
    return found


def _link_inputs(snapshot: RoundSnapshot, folder: Path) -> str:
    """Link what evaluate reads into ``folder``; return its command."""
    stage = yaml.safe_load(snapshot.read_blob("dvc.yaml"))["stages"]["evaluate"]
    files.write_bytes(folder / "params.yaml", snapshot.read_blob("params.yaml"))
    files.write_bytes(folder / "code_versions.json", snapshot.read_blob("code_versions.json"))
    for path in _input_paths(snapshot):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(snapshot.cached_path(path))
    return str(stage["cmd"])


def _input_paths(snapshot: RoundSnapshot) -> list[str]:
    """Every file that evaluate read; of the images, those of the validation set."""
    images = {uri for uri in snapshot.validation_images()["uri"].to_pylist() if "://" not in uri}
    deps = snapshot.ledger["stages"]["evaluate"]["deps"]
    assembled = [f"derived/assemble/{name}" for name in ("val.parquet", "summary.json")]
    return [
        *assembled,
        *(path for path, md5 in deps.items() if not is_folder_md5(md5) and path not in assembled),
        *images,
    ]
