"""Source and derived data: every stored byte against the digest that the ledgers hold of it.

Models: the SHA-256s that ledgers hold beside DVC's MD5s, and what one round's model hands to the next.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.audit.ledger_chain import stage_record_findings
from flows.provenance.snapshot import RoundSnapshot
from flows.workspace.dvc_cache import MissingDataError, file_md5, folder_md5, is_folder_md5
from flows.workspace.git import list_paths, read_blob
from tasks.storage import files


def data_checks(scope: AuditScope) -> Iterator[Check]:
    """Everything that git or DVC keeps of the rounds, and the copies of it in the workspace."""
    rounds = list(scope.rounds.values())
    counted = f"{len(rounds)} rounds"
    yield _stored_object_check(scope)
    yield make_check("data", "label batches", counted, [line for one in rounds for line in _label_findings(one)])
    yield make_check(
        "data", "source files in git", counted, [line for one in rounds for line in _git_source_findings(one)]
    )
    yield make_check(
        "data", "parameters and code", counted, [line for one in rounds for line in _params_and_code_findings(one)]
    )
    yield make_check("data", "dvc.lock is that of the ledger", counted, _guarded(rounds, stage_record_findings))
    yield make_check("data", "models and what they hand over", counted, model_findings(scope))
    if scope.is_complete:
        yield _workspace_copy_check(scope)


def _stored_object_check(scope: AuditScope) -> Check:
    """Hash every object of every round, once; fetch what the cache lacks."""
    referenced = _referenced_objects(scope)
    cache = scope.newest.dvc_cache
    cache.fetch(referenced)
    for md5 in list(referenced):
        for member, name in _folder_members(scope, md5):
            referenced[member].update(f"{owner}/{name}" for owner in referenced[md5])
    cache.fetch(referenced)
    size = 0
    for md5 in referenced:
        path = cache.object_path(md5)
        if not path.is_file():
            scope.damaged_objects[md5] = "its bytes are neither in the DVC cache nor in a remote"
            continue
        size += path.stat().st_size
        actual = file_md5(path)
        if actual != md5.removesuffix(".dir"):
            scope.damaged_objects[md5] = f"it is altered: {path} has MD5 {actual}, recorded is {md5}"
    found = [f"{_shortest_owner(referenced[md5])}: {trouble}" for md5, trouble in scope.damaged_objects.items()]
    return make_check("data", "stored objects", f"{len(referenced)} objects, {size / 2**20:.1f} MiB", found)


def _referenced_objects(scope: AuditScope) -> dict[str, set[str]]:
    """MD5 of what DVC keeps of the rounds, and where each is used."""
    referenced: dict[str, set[str]] = defaultdict(set)
    for snapshot in scope.rounds.values():
        for path, md5 in snapshot.md5s().items():
            if not _is_in_git(snapshot, path):
                referenced[md5].add(f"{snapshot.tag}:{path}")
    return referenced


def _is_in_git(snapshot: RoundSnapshot, path: str) -> bool:
    return bool(
        [kept for kept in list_paths(snapshot.workspace.root, snapshot.revision, path) if _is_within(kept, path)]
    )


def _is_within(tracked_path: str, path: str) -> bool:
    """Whether a tracked path is that file or inside that folder; DVC's own .gitignore and .dvc files are neither."""
    inside = tracked_path == path or tracked_path.startswith(f"{path}/")
    return inside and not tracked_path.endswith((".gitignore", ".dvc"))


def _folder_members(scope: AuditScope, md5: str) -> list[tuple[str, str]]:
    if not is_folder_md5(md5):
        return []
    try:
        return [(member, path) for path, member in scope.newest.dvc_cache.read_folder(md5, "a folder").items()]
    except MissingDataError:
        return []


def _shortest_owner(owners: set[str]) -> str:
    """Where an object is used: the whole list would be one line a round."""
    first, *rest = sorted(owners, key=lambda owner: (len(owner), owner))
    return f"{first} (and {len(rest)} more)" if rest else first


def _label_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    batches = snapshot.ledger.get("labels") or [
        {"batch": snapshot.number, "sha256": snapshot.ledger["labels_sha256"]}  # format 1 names the newest only
    ]
    for batch in batches:
        name = f"data/labels/batch-{batch['batch']:04d}.json"
        committed = read_blob(snapshot.workspace.root, snapshot.revision, name)
        if committed is None or hashlib.sha256(committed).hexdigest() != batch["sha256"]:
            yield f"{name} at {snapshot.tag} is altered: its digest is not that of the ledger"
        workspace_file = snapshot.workspace.root / name
        if not workspace_file.is_file() or files.sha256_file(workspace_file) != batch["sha256"]:
            yield f"{name} in the workspace is altered: its digest is not the one {snapshot.tag} holds"


def _git_source_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Files and folders that git keeps, with the MD5 that DVC saw."""
    for path, md5 in snapshot.md5s().items():
        if not _is_in_git(snapshot, path):
            continue
        actual = folder_md5(_git_folder_md5s(snapshot, path)) if is_folder_md5(md5) else _git_md5(snapshot, path)
        if actual != md5:
            yield f"{path} at {snapshot.tag} is altered: its MD5 is {actual}, recorded is {md5}"


def _git_folder_md5s(snapshot: RoundSnapshot, folder: str) -> dict[str, str]:
    """MD5 by relative path of a folder in git; of what DVC keeps in it (evaluate's boxes), the recorded one."""
    inside = f"{folder}/"
    kept = list_paths(snapshot.workspace.root, snapshot.revision, folder)  # a .gitignore that DVC put there counts
    stored = {path: md5 for path, md5 in snapshot.md5s().items() if path.startswith(inside)}
    every = stored | {path: _git_md5(snapshot, path) for path in kept}
    return {path.removeprefix(inside): md5 for path, md5 in every.items()}


def _git_md5(snapshot: RoundSnapshot, path: str) -> str:
    content = read_blob(snapshot.workspace.root, snapshot.revision, path)
    return "missing" if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()


def _params_and_code_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    try:
        if hashlib.sha256(snapshot.read_blob("params.yaml")).hexdigest() != snapshot.ledger["params_sha256"]:
            yield f"params.yaml at {snapshot.tag} is altered: its digest is not that of the ledger"
        if yaml.safe_load(snapshot.read_blob("code_versions.json")) != snapshot.ledger["code"]:
            yield f"code_versions.json at {snapshot.tag} is altered: its digests are not those of the ledger"
    except MissingDataError as error:
        yield str(error)


def _guarded(rounds: list[RoundSnapshot], findings: Callable[[RoundSnapshot], Iterable[str]]) -> list[str]:
    found: list[str] = []
    for snapshot in rounds:
        try:
            found += findings(snapshot)
        except MissingDataError as error:
            found.append(str(error))
    return found


def _workspace_copy_check(scope: AuditScope) -> Check:
    """What lies in the workspace under names that DVC keeps, hashed unless it is the very file of the cache."""
    root, newest = scope.workspace.root, scope.newest
    expected = _head_md5s(scope)
    found, num_hashed = [], 0
    for path, md5 in expected.items():
        members = [(f"{path}/{name}", member) for member, name in _folder_members(scope, md5)] or [(path, md5)]
        for name, digest in members:
            workspace_file = root / name
            if is_folder_md5(digest) or not workspace_file.is_file():
                continue  # not checked out here, as in a fresh clone
            num_hashed += 1
            cached = newest.dvc_cache.object_path(digest)
            if not (cached.is_file() and workspace_file.samefile(cached)) and file_md5(workspace_file) != digest:
                found.append(f"{name} in the workspace is altered: its MD5 is not the recorded {digest}")
    return make_check("data", "copies in the workspace", f"{num_hashed} files", found)


def _head_md5s(scope: AuditScope) -> dict[str, str]:
    """MD5 by path of what DVC keeps at the commit that is checked out."""
    root = scope.workspace.root
    pointers = [path for path in list_paths(root, "HEAD", "data") if path.endswith(".dvc")]
    current: dict[str, str] = {}
    for pointer in pointers:
        out = yaml.safe_load(read_blob(root, "HEAD", pointer) or b"outs: []")["outs"][0]
        current[(Path(pointer).parent / out["path"]).as_posix()] = out["md5"]
    stages = yaml.safe_load(read_blob(root, "HEAD", "dvc.lock") or b"stages: {}")["stages"]
    for entry in () if scope.is_deriving else stages.values():
        current |= {out["path"]: out["md5"] for out in entry.get("outs", ())}
    return current


def model_findings(scope: AuditScope) -> list[str]:
    """What is not as the ledgers say of selection, manifest, teacher, frozen detections and detections."""
    found: list[str] = []
    for snapshot in scope.rounds.values():
        named = {"derived/select/selection.parquet": snapshot.ledger["selection_sha256"],
                 "derived/handoff/manifest.jsonl": snapshot.ledger["manifest_sha256"]}  # fmt: skip
        if snapshot.ledger["format"] > 1:
            named["derived/train/teacher.pth"] = snapshot.ledger["teacher"]["sha256"]
            for number, digest in snapshot.ledger["detections_at_selection_sha256"].items():
                named[f"data/detections_at_selection/batch-{int(number):04d}.parquet"] = digest
        found += _sha256_findings(scope, snapshot, named)
        found += _teacher_chain_findings(scope, snapshot)
        found += _detection_findings(scope, snapshot)
    return found


def _sha256_findings(scope: AuditScope, snapshot: RoundSnapshot, named: Mapping[str, str]) -> Iterator[str]:
    for path, digest in named.items():
        stored = _stored_path(scope, snapshot, path)
        if stored is None:
            yield f"{path} of {snapshot.tag} is not stored, though its ledger holds a digest of it"
        elif stored and files.sha256_file(Path(stored)) != digest:
            yield f"{path} of {snapshot.tag} is altered: its SHA-256 is not that of the ledger"


def _stored_path(scope: AuditScope, snapshot: RoundSnapshot, path: str) -> str | None:
    """Where a file's bytes are; empty where an earlier check has named them already; None where nobody has them."""
    try:
        md5 = snapshot.md5(path)
        if md5 is None:
            return None
        return "" if md5 in scope.damaged_objects else str(snapshot.cached_path(path))
    except MissingDataError:
        return ""


def _teacher_chain_findings(scope: AuditScope, snapshot: RoundSnapshot) -> Iterator[str]:
    previous = scope.rounds.get(snapshot.number - 1)
    ledger = snapshot.ledger
    if previous is None or ledger["format"] == 1 or previous.ledger["format"] == 1:
        return
    if ledger["selection_model"]["sha256"] != previous.ledger["teacher"]["sha256"]:
        yield f"{snapshot.tag} was handed another teacher than that of {previous.tag}"
    started_from = ledger["teacher"]["started_from_sha256"]
    if started_from is not None and started_from != previous.ledger["teacher"]["sha256"]:
        yield f"{snapshot.tag} started from another teacher than that of {previous.tag}"


def _detection_findings(scope: AuditScope, snapshot: RoundSnapshot) -> Iterator[str]:
    """Detections say which weights made them."""
    if snapshot.ledger["format"] == 1:
        return
    teacher = snapshot.ledger["teacher"]["sha256"]
    try:
        shards = snapshot.folder_md5s("derived/infer")
    except MissingDataError:
        return
    for name in sorted(shards):
        stored = _stored_path(scope, snapshot, f"derived/infer/{name}") if name.endswith(".parquet") else ""
        if stored:
            model_digests = set(pq.read_table(stored, columns=["model_digest"])["model_digest"].to_pylist())
            if model_digests - {teacher}:
                yield f"derived/infer/{name} of {snapshot.tag} is not of that round's teacher"
