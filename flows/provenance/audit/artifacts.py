"""Audit of the stored files: their bytes against the digests in the ledgers, and the mAP recomputed from them."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.provenance.audit import AuditScope, Check, count_rounds, make_check
from flows.provenance.audit.records import stage_record_findings
from flows.provenance.snapshot import RoundSnapshot, filter_by_model
from flows.runtime.subprocess import run_streaming
from flows.workspace.dvc import dvc_env
from flows.workspace.dvc_cache import MissingDataError, file_md5, folder_md5, is_folder_md5
from flows.workspace.git import list_paths, read_blob
from tasks.evaluation.coco_map import coco_map
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize
from tasks.storage import files

MAP_TOLERANCE_POINTS = 1e-3
_METRICS_PATH = "derived/evaluate/metrics.json"
_MODELS = ("teacher", "student")
_MAX_OWNERS = 3


def artifact_checks(scope: AuditScope) -> Iterator[Check]:
    """Check all files that git or DVC keeps of the rounds, and the copies of them in the workspace."""
    counted = count_rounds(scope)
    yield _stored_object_check(scope)
    for name, findings in (
        ("label batches", _label_findings),
        ("source files in git", _git_source_findings),
        ("parameters and code", _params_and_code_findings),
        ("dvc.lock is that of the ledger", stage_record_findings),
    ):
        yield make_check("data", name, counted, _guarded(scope, findings))
    yield make_check("data", "models, selections and detections", counted, list(_model_findings(scope)))
    if scope.is_complete:
        yield _workspace_copy_check(scope)


def evaluation_checks(scope: AuditScope, recompute: bool) -> Iterator[Check]:
    """Recompute the mAP of every round from the stored boxes, and with ``recompute`` the newest from its weights."""
    found = [finding for snapshot in scope.rounds.values() for finding in evaluation_findings(snapshot)]
    yield make_check("evaluation", "stored boxes give the recorded mAP", count_rounds(scope), found)
    name = "stored weights give the recorded mAP"
    if not recompute:
        yield Check("evaluation", name, scope.newest.tag, skip_reason="only with --recompute")
        return
    try:
        yield make_check("evaluation", name, scope.newest.tag, _recompute_findings(scope.newest))
    except MissingDataError as error:
        yield make_check("evaluation", name, scope.newest.tag, [str(error)])


def _guarded(scope: AuditScope, findings: Callable[[RoundSnapshot], Iterable[str]]) -> list[str]:
    found: list[str] = []
    for snapshot in scope.rounds.values():
        try:
            found += findings(snapshot)
        except MissingDataError as error:
            found.append(str(error))
    return found


# Objects in the DVC cache


def _stored_object_check(scope: AuditScope) -> Check:
    """Hash every object of every round once, after fetching what the cache lacks."""
    referenced = _referenced_objects(scope)
    cache = scope.newest.dvc_cache
    cache.fetch(referenced)
    for md5 in list(referenced):
        for member, name in _folder_members(scope, md5):
            referenced[member].update(f"{owner}/{name}" for owner in referenced[md5])
    cache.fetch(referenced)
    size_bytes = 0
    for md5 in referenced:
        path = cache.object_path(md5)
        if not path.is_file():
            scope.damaged_objects[md5] = f"the file with MD5 {md5} is neither in the DVC cache nor in a remote"
            continue
        size_bytes += path.stat().st_size
        actual = file_md5(path)
        if actual != md5.removesuffix(".dir"):
            scope.damaged_objects[md5] = f"MD5 of {path} is {actual}, expected {md5}"
    found = [f"{_format_owners(referenced[md5])}: {problem}" for md5, problem in scope.damaged_objects.items()]
    return make_check(
        "data", "stored objects", f"{pluralize(len(referenced), 'object')}, {size_bytes / 2**20:.1f} MiB", found
    )


def _referenced_objects(scope: AuditScope) -> dict[str, set[str]]:
    """Where each object that DVC keeps of the rounds is used, by MD5."""
    referenced: dict[str, set[str]] = defaultdict(set)
    for snapshot in scope.rounds.values():
        for path, md5 in snapshot.md5s().items():
            if not _is_in_git(snapshot, path):
                referenced[md5].add(f"{snapshot.tag}:{path}")
    return referenced


def _is_in_git(snapshot: RoundSnapshot, path: str) -> bool:
    tracked = list_paths(snapshot.workspace.root, snapshot.revision, path)
    return any(_is_within(tracked_path, path) for tracked_path in tracked)


def _is_within(tracked_path: str, path: str) -> bool:
    """Whether a tracked path is ``path`` or inside it; the .gitignore and .dvc files that DVC writes do not count."""
    inside = tracked_path == path or tracked_path.startswith(f"{path}/")
    return inside and not tracked_path.endswith((".gitignore", ".dvc"))


def _folder_members(scope: AuditScope, md5: str) -> list[tuple[str, str]]:
    """MD5 and relative path of the files of a stored folder; empty for a file, or an unreadable list."""
    if not is_folder_md5(md5):
        return []
    try:
        return [(member, path) for path, member in scope.newest.dvc_cache.read_folder(md5, "a folder").items()]
    except MissingDataError:
        return []


def _format_owners(owners: set[str]) -> str:
    """Where an object is used, shortest path first; cut off, since most objects are used in every round."""
    ordered = sorted(owners, key=lambda owner: (len(owner), owner))
    more = f" and {len(ordered) - _MAX_OWNERS} more" if len(ordered) > _MAX_OWNERS else ""
    return ", ".join(ordered[:_MAX_OWNERS]) + more


# Files in git


def _label_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    for batch in snapshot.ledger["labels"]:
        name = f"data/labels/batch-{batch['batch']:04d}.json"
        committed = read_blob(snapshot.workspace.root, snapshot.revision, name)
        actual = None if committed is None else hashlib.sha256(committed).hexdigest()
        if actual != batch["sha256"]:
            yield f"{name} at {snapshot.tag}: SHA-256 is {actual}, expected {batch['sha256']}"
        workspace_file = snapshot.workspace.root / name
        actual = files.sha256_file(workspace_file) if workspace_file.is_file() else None
        if actual != batch["sha256"]:
            yield f"{name} in the workspace: SHA-256 is {actual}, expected {batch['sha256']} ({snapshot.tag})"


def _git_source_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Compare stage inputs and outputs that git keeps with the MD5 that DVC recorded."""
    for path, md5 in snapshot.md5s().items():
        if not _is_in_git(snapshot, path):
            continue
        actual = folder_md5(_git_folder_md5s(snapshot, path)) if is_folder_md5(md5) else _git_md5(snapshot, path)
        if actual != md5:
            yield f"{path} at {snapshot.tag}: MD5 is {actual}, expected {md5}"


def _git_folder_md5s(snapshot: RoundSnapshot, folder: str) -> dict[str, str]:
    """MD5 by relative path of a folder in git; of the files in it that DVC keeps instead, the recorded MD5."""
    prefix = f"{folder}/"
    tracked = list_paths(snapshot.workspace.root, snapshot.revision, folder)  # DVC's .gitignore is part of the folder
    stored = {path: md5 for path, md5 in snapshot.md5s().items() if path.startswith(prefix)}
    md5_by_path = stored | {path: _git_md5(snapshot, path) for path in tracked}
    return {path.removeprefix(prefix): md5 for path, md5 in md5_by_path.items()}


def _git_md5(snapshot: RoundSnapshot, path: str) -> str:
    content = read_blob(snapshot.workspace.root, snapshot.revision, path)
    return "missing" if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()


def _params_and_code_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    recorded = snapshot.ledger["params_sha256"]
    actual = hashlib.sha256(snapshot.read_blob("params.yaml")).hexdigest()
    if actual != recorded:
        yield f"params.yaml at {snapshot.tag}: SHA-256 is {actual}, expected {recorded}"
    code_versions = files.parse_yaml(snapshot.read_blob("code_versions.json"))
    if code_versions != snapshot.ledger["code"]:
        yield f"code_versions.json at {snapshot.tag}: digests are {code_versions}, expected {snapshot.ledger['code']}"


# Copies in the workspace


def _workspace_copy_check(scope: AuditScope) -> Check:
    """Hash the workspace's copies of what DVC keeps, except links to the cached file itself."""
    root, cache = scope.workspace.root, scope.newest.dvc_cache
    found, num_examined = [], 0
    for path, md5 in _head_md5s(scope).items():
        members = [(f"{path}/{name}", member) for member, name in _folder_members(scope, md5)] or [(path, md5)]
        for name, recorded in members:
            workspace_file = root / name
            if is_folder_md5(recorded) or not workspace_file.is_file():
                continue  # not checked out here, as in a fresh clone
            num_examined += 1
            cached = cache.object_path(recorded)
            if cached.is_file() and workspace_file.samefile(cached):
                continue
            actual = file_md5(workspace_file)
            if actual != recorded:
                found.append(f"{name} in the workspace: MD5 is {actual}, expected {recorded}")
    return make_check("data", "copies in the workspace", pluralize(num_examined, "file"), found)


def _head_md5s(scope: AuditScope) -> dict[str, str]:
    """MD5 by path of what DVC keeps at the commit that is checked out."""
    root = scope.workspace.root
    pointers = [path for path in list_paths(root, "HEAD", "data") if path.endswith(".dvc")]
    current: dict[str, str] = {}
    for pointer in pointers:
        out = files.parse_yaml(read_blob(root, "HEAD", pointer) or b"outs: []")["outs"][0]
        current[(Path(pointer).parent / out["path"]).as_posix()] = out["md5"]
    if not scope.is_deriving:
        stages = files.parse_yaml(read_blob(root, "HEAD", "dvc.lock") or b"stages: {}")["stages"]
        current |= {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", ())}
    return current


# Models, and what they handed to the next round


def _model_findings(scope: AuditScope) -> Iterator[str]:
    """Compare selections, manifests, teachers and detections with the SHA-256s in the ledgers."""
    for snapshot in scope.rounds.values():
        ledger = snapshot.ledger
        sha256_by_path = {
            "derived/select/selection.parquet": ledger["selection_sha256"],
            "derived/handoff/manifest.jsonl": ledger["manifest_sha256"],
            "derived/train/teacher.pth": ledger["teacher"]["sha256"],
        }
        for batch, digest in ledger["detections_at_selection_sha256"].items():
            sha256_by_path[f"data/detections_at_selection/batch-{int(batch):04d}.parquet"] = digest
        yield from _sha256_findings(scope, snapshot, sha256_by_path)
        yield from _teacher_chain_findings(scope, snapshot)
        yield from _detection_findings(scope, snapshot)


def _sha256_findings(scope: AuditScope, snapshot: RoundSnapshot, sha256_by_path: Mapping[str, str]) -> Iterator[str]:
    for path, recorded in sha256_by_path.items():
        stored = _undamaged_path(scope, snapshot, path)
        if stored is None:
            continue
        actual = files.sha256_file(stored)
        if actual != recorded:
            yield f"{path} of {snapshot.tag}: SHA-256 is {actual}, expected {recorded}"


def _undamaged_path(scope: AuditScope, snapshot: RoundSnapshot, path: str) -> Path | None:
    """The stored file; None where it is missing or damaged, which the check of stored objects has reported.

    Raises:
        UserError: no stage of the ledger has such a file.
    """
    try:
        md5 = snapshot.md5(path)
        if md5 is None:
            raise UserError(f"{path} of {snapshot.tag}", "the ledger has its SHA-256, but no stage with that file")
        return None if md5 in scope.damaged_objects else snapshot.cached_path(path)
    except MissingDataError:
        return None


def _teacher_chain_findings(scope: AuditScope, snapshot: RoundSnapshot) -> Iterator[str]:
    """Compare the models a round received with the teacher of the round before."""
    previous = scope.rounds.get(snapshot.number - 1)
    if previous is None:
        return
    expected = previous.ledger["teacher"]["sha256"]
    selection_model = snapshot.ledger["selection_model"]["sha256"]
    if selection_model != expected:
        yield f"{snapshot.tag}: selection_model is {selection_model}, expected {expected} (teacher of {previous.tag})"
    started_from = snapshot.ledger["teacher"]["started_from_sha256"]
    if started_from not in (None, expected):
        yield f"{snapshot.tag}: started_from_sha256 is {started_from}, expected {expected} (teacher of {previous.tag})"


def _detection_findings(scope: AuditScope, snapshot: RoundSnapshot) -> Iterator[str]:
    """Compare the model digest inside the detections with the round's teacher."""
    teacher = snapshot.ledger["teacher"]["sha256"]
    try:
        shards = snapshot.folder_md5s("derived/infer")
    except MissingDataError:
        return  # reported by the check of stored objects
    for name in sorted(shard for shard in shards if shard.endswith(".parquet")):
        stored = _undamaged_path(scope, snapshot, f"derived/infer/{name}")
        if stored is None:
            continue
        models = set(pq.read_table(stored, columns=["model_digest"])["model_digest"].to_pylist())
        if models - {teacher}:
            yield f"derived/infer/{name} of {snapshot.tag}: model_digest is {sorted(models)}, expected {teacher}"


# Evaluation


def evaluation_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Recompute a round's mAP from its stored boxes; yield every difference from ledger and metrics.json."""
    try:
        metrics: dict[str, Any] = json.loads(snapshot.read_blob(_METRICS_PATH))
        truth, predictions = snapshot.validation_images(), snapshot.predictions()
        classes = snapshot.classes()
    except (UserError, ValueError, OSError) as error:  # altered bytes raise any of them
        yield f"{snapshot.tag}: {error}"
        return
    for model in _MODELS:
        recomputed = coco_map(truth, filter_by_model(predictions, model), classes)
        where = f"{snapshot.tag}: {model}"
        yield from _metric_differences(f"{where} in the ledger", snapshot.ledger["metrics"][model], recomputed)
        yield from _metric_differences(f"{where} in {_METRICS_PATH}", metrics[model], recomputed)


def _metric_differences(where: str, recorded: Any, recomputed: Any) -> Iterator[str]:
    for name in ("mAP", "AP50", "AP75"):
        if abs(float(recorded[name]) - float(recomputed[name])) > MAP_TOLERANCE_POINTS:
            yield f"{where}: {name} is {recorded[name]}, expected {recomputed[name]} by the stored boxes"
    for name, value in recorded.get("per_class", {}).items():
        expected = recomputed["per_class"].get(name)
        is_missing = (value is None) != (expected is None)
        if is_missing or (value is not None and abs(value - expected) > MAP_TOLERANCE_POINTS):
            yield f"{where}: AP of {name} is {value}, expected {expected} by the stored boxes"


def _recompute_findings(snapshot: RoundSnapshot) -> list[str]:
    """Run the round's evaluate stage in a temporary folder on the round's stored inputs."""
    folder = snapshot.workspace.root / ".gleaner" / "audit" / snapshot.tag
    shutil.rmtree(folder, ignore_errors=True)
    try:
        command = _link_inputs(snapshot, folder)
        lines: list[str] = []
        code = run_streaming(["bash", "-c", f"exec {command}"], cwd=folder, env=dvc_env(), on_line=lines.append)
        if code:
            last_line = lines[-1] if lines else "no output"
            return [f"{snapshot.tag}: exit code of evaluate is {code} ({last_line}), expected 0"]
        recomputed: dict[str, Any] = files.read_json(folder / _METRICS_PATH)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    maps = {model: (snapshot.ledger["metrics"][model]["mAP"], recomputed[model]["mAP"]) for model in _MODELS}
    return [
        f"{snapshot.tag}: {model} in the ledger: mAP is {recorded}, expected {actual} by the stored weights"
        for model, (recorded, actual) in maps.items()
        if abs(recorded - actual) > MAP_TOLERANCE_POINTS
    ]


def _link_inputs(snapshot: RoundSnapshot, folder: Path) -> str:
    """Link the inputs of evaluate into ``folder`` and return the stage's command."""
    stage = files.parse_yaml(snapshot.read_blob("dvc.yaml"))["stages"]["evaluate"]
    files.write_bytes(folder / "params.yaml", snapshot.read_blob("params.yaml"))
    files.write_bytes(folder / "code_versions.json", snapshot.read_blob("code_versions.json"))
    for path in _evaluation_inputs(snapshot):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_in_git(snapshot, path):
            files.write_bytes(target, snapshot.read_blob(path))
        else:
            target.symlink_to(snapshot.cached_path(path))
    return str(stage["cmd"])


def _evaluation_inputs(snapshot: RoundSnapshot) -> list[str]:
    """Every file that evaluate reads; of the image folder, only the validation images."""
    images = {uri for uri in snapshot.validation_images()["uri"].to_pylist() if "://" not in uri}
    assembled = [f"derived/assemble/{name}" for name in ("val.parquet", "summary.json")]
    deps = snapshot.ledger["stages"]["evaluate"]["deps"]
    other_files = [path for path, md5 in deps.items() if not is_folder_md5(md5) and path not in assembled]
    return [*assembled, *other_files, *images]
