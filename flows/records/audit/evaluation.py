"""mAP: from the stored boxes, and with ``--recompute`` from the stored weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.data_versions import child_environment
from flows.records.audit.findings import Audited, Check, check
from flows.records.dvc_objects import MissingBytesError, is_folder
from flows.records.recorded import RecordedRound, of_model
from flows.safety.process import stream
from tasks import files
from tasks.coco_map import coco_map
from tasks.errors import UserError

TOLERANCE_POINTS = 1e-3
_METRICS = "derived/evaluate/metrics.json"
_MODELS = ("teacher", "student")


def evaluation_checks(audited: Audited, recompute: bool) -> Iterator[Check]:
    """The measured mAP of every round; the audited model's once more from its weights, if asked for."""
    rounds = audited.rounds.values()
    found = [line for recorded in rounds for line in evaluation_findings(recorded)]
    yield check("evaluation", "stored boxes give the recorded mAP", f"{len(rounds)} rounds", found)
    name = "stored weights give the recorded mAP"
    if not recompute:
        yield Check("evaluation", name, audited.newest.name, skipped="asked for with --recompute")
        return
    try:
        yield check("evaluation", name, audited.newest.name, _recompute(audited.newest))
    except MissingBytesError as error:
        yield check("evaluation", name, audited.newest.name, [str(error)])


def evaluation_findings(recorded: RecordedRound) -> Iterator[str]:
    """Where the predictions, the metrics and the ledger of one round say different things."""
    try:
        metrics: dict[str, Any] = json.loads(recorded.blob(_METRICS))
        truth, predictions = recorded.validation_images(), recorded.predictions()
        classes = recorded.classes()
    except (UserError, ValueError, OSError) as error:  # altered bytes may be anything
        yield f"{recorded.name}: {error}"
        return
    for model in _MODELS:
        fresh = coco_map(truth, of_model(predictions, model), classes)
        where = f"{recorded.name}: {model} mAP"
        yield from _differences(where, "the ledger", recorded.ledger["figures"][model], fresh)
        yield from _differences(where, _METRICS, metrics[model], fresh)


def _differences(where: str, source: str, said: Any, fresh: Any) -> Iterator[str]:
    for name in ("mAP", "AP50", "AP75"):
        if abs(float(said[name]) - float(fresh[name])) > TOLERANCE_POINTS:
            yield f"{where}: {name} in {source} is {said[name]}, the stored boxes give {fresh[name]}"
    for name, value in said.get("per_class", {}).items():
        other = fresh["per_class"].get(name)
        if (value is None) != (other is None) or (value is not None and abs(value - other) > TOLERANCE_POINTS):
            yield f"{where}: AP of {name} in {source} is {value}, the stored boxes give {other}"


def _recompute(recorded: RecordedRound) -> list[str]:
    """Run evaluate of that round in a folder of its own, on what the round had stored."""
    folder = recorded.workspace.root / ".gleaner" / "audit" / recorded.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        command = _lay_out(recorded, folder)
        lines: list[str] = []
        code = stream(["bash", "-c", f"exec {command}"], cwd=folder, env=child_environment(), on_line=lines.append)
        if code:
            return [f"{recorded.name}: evaluate ended with code {code}: {lines[-1] if lines else 'it said nothing'}"]
        fresh: dict[str, Any] = files.read_json(folder / _METRICS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = []
    for model in _MODELS:
        said = recorded.ledger["figures"][model]["mAP"]
        if abs(said - fresh[model]["mAP"]) > TOLERANCE_POINTS:
            found.append(f"{recorded.name}: {model} mAP in the ledger is {said}, a fresh one {fresh[model]['mAP']}")
    return found


def _lay_out(recorded: RecordedRound, folder: Path) -> str:
    """Link what evaluate reads into ``folder``; return its command."""
    stage = yaml.safe_load(recorded.blob("dvc.yaml"))["stages"]["evaluate"]
    files.write_bytes(folder / "params.yaml", recorded.blob("params.yaml"))
    files.write_bytes(folder / "code.json", recorded.blob("code.json"))
    for path in _inputs(recorded):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(recorded.stored(path))
    return str(stage["cmd"])


def _inputs(recorded: RecordedRound) -> list[str]:
    """Every file that evaluate read; of the images, those of the validation set."""
    images = {uri for uri in recorded.validation_images()["uri"].to_pylist() if "://" not in uri}
    deps = recorded.ledger["stages"]["evaluate"]["deps"]
    assembled = [f"derived/assemble/{name}" for name in ("val.parquet", "summary.json")]
    return [*assembled, *(path for path, md5 in deps.items() if not is_folder(md5) and path not in assembled), *images]
