"""Source and derived data: every stored byte against the digest that the ledgers hold of it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from flows.records.audit.findings import Audited, Check, check
from flows.records.audit.models import model_findings
from flows.records.audit.records import stage_record_findings
from flows.records.dvc_objects import MissingBytesError, folder_md5, is_folder, md5_of
from flows.records.git_objects import blob, paths_at
from flows.records.recorded import RecordedRound
from tasks import files


def data_checks(audited: Audited) -> Iterator[Check]:
    """Everything that git or DVC keeps of the rounds, and the copies of it in the workspace."""
    rounds = list(audited.rounds.values())
    counted = f"{len(rounds)} rounds"
    yield _stored_objects(audited)
    yield check("data", "label batches", counted, [line for one in rounds for line in _label_findings(one)])
    yield check("data", "source files in git", counted, [line for one in rounds for line in _git_source_findings(one)])
    yield check("data", "parameters and code", counted, [line for one in rounds for line in _setting_findings(one)])
    yield check("data", "dvc.lock is that of the ledger", counted, _safely(rounds, stage_record_findings))
    yield check("data", "models and what they hand over", counted, model_findings(audited))
    if audited.whole:
        yield _workspace_copies(audited)


def _stored_objects(audited: Audited) -> Check:
    """Hash every object of every round, once; fetch what the cache lacks."""
    used = _used_objects(audited)
    objects = audited.newest.objects
    objects.fetch(used)
    for md5 in list(used):
        for member, name in _members(audited, md5):
            used[member].update(f"{owner}/{name}" for owner in used[md5])
    objects.fetch(used)
    size = 0
    for md5 in used:
        path = objects.path(md5)
        if not path.is_file():
            audited.damaged[md5] = "its bytes are neither in the DVC cache nor in a remote"
            continue
        size += path.stat().st_size
        actual = md5_of(path)
        if actual != md5.removesuffix(".dir"):
            audited.damaged[md5] = f"it is altered: {path} has MD5 {actual}, recorded is {md5}"
    found = [f"{_shortest(used[md5])}: {trouble}" for md5, trouble in audited.damaged.items()]
    return check("data", "stored objects", f"{len(used)} objects, {size / 2**20:.1f} MiB", found)


def _used_objects(audited: Audited) -> dict[str, set[str]]:
    """MD5 of what DVC keeps of the rounds, and where each is used."""
    used: dict[str, set[str]] = defaultdict(set)
    for recorded in audited.rounds.values():
        for path, md5 in recorded.digests().items():
            if not _in_git(recorded, path):
                used[md5].add(f"{recorded.name}:{path}")
    return used


def _in_git(recorded: RecordedRound, path: str) -> bool:
    return bool([kept for kept in paths_at(recorded.workspace.root, recorded.revision, path) if _is_at(kept, path)])


def _is_at(kept: str, path: str) -> bool:
    """Whether a tracked path is that file or inside that folder; DVC's own .gitignore and .dvc files are neither."""
    inside = kept == path or kept.startswith(f"{path}/")
    return inside and not kept.endswith((".gitignore", ".dvc"))


def _members(audited: Audited, md5: str) -> list[tuple[str, str]]:
    if not is_folder(md5):
        return []
    try:
        return [(member, path) for path, member in audited.newest.objects.folder(md5, "a folder").items()]
    except MissingBytesError:
        return []


def _shortest(owners: set[str]) -> str:
    """Where an object is used: the whole list would be one line a round."""
    first, *rest = sorted(owners, key=lambda owner: (len(owner), owner))
    return f"{first} (and {len(rest)} more)" if rest else first


def _label_findings(recorded: RecordedRound) -> Iterator[str]:
    batches = recorded.ledger.get("labels") or [
        {"batch": recorded.number, "sha256": recorded.ledger["labels_sha256"]}  # format 1 names the newest only
    ]
    for batch in batches:
        name = f"data/labels/batch-{batch['batch']:04d}.json"
        kept = blob(recorded.workspace.root, recorded.revision, name)
        if kept is None or hashlib.sha256(kept).hexdigest() != batch["sha256"]:
            yield f"{name} at {recorded.name} is altered: its digest is not that of the ledger"
        here = recorded.workspace.root / name
        if not here.is_file() or files.sha256_file(here) != batch["sha256"]:
            yield f"{name} in the workspace is altered: its digest is not the one {recorded.name} holds"


def _git_source_findings(recorded: RecordedRound) -> Iterator[str]:
    """Files and folders that git keeps, with the MD5 that DVC saw."""
    for path, md5 in recorded.digests().items():
        if not _in_git(recorded, path):
            continue
        actual = folder_md5(_git_members(recorded, path)) if is_folder(md5) else _git_md5(recorded, path)
        if actual != md5:
            yield f"{path} at {recorded.name} is altered: its MD5 is {actual}, recorded is {md5}"


def _git_members(recorded: RecordedRound, folder: str) -> dict[str, str]:
    """MD5 by relative path of a folder in git; of what DVC keeps in it (evaluate's boxes), the recorded one."""
    inside = f"{folder}/"
    kept = paths_at(recorded.workspace.root, recorded.revision, folder)  # a .gitignore that DVC put there counts
    stored = {path: md5 for path, md5 in recorded.digests().items() if path.startswith(inside)}
    every = stored | {path: _git_md5(recorded, path) for path in kept}
    return {path.removeprefix(inside): md5 for path, md5 in every.items()}


def _git_md5(recorded: RecordedRound, path: str) -> str:
    content = blob(recorded.workspace.root, recorded.revision, path)
    return "missing" if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()


def _setting_findings(recorded: RecordedRound) -> Iterator[str]:
    try:
        if hashlib.sha256(recorded.blob("params.yaml")).hexdigest() != recorded.ledger["params_sha256"]:
            yield f"params.yaml at {recorded.name} is altered: its digest is not that of the ledger"
        if yaml.safe_load(recorded.blob("code.json")) != recorded.ledger["code"]:
            yield f"code.json at {recorded.name} is altered: its digests are not those of the ledger"
    except MissingBytesError as error:
        yield str(error)


def _safely(rounds: list[RecordedRound], findings: Callable[[RecordedRound], Iterable[str]]) -> list[str]:
    found: list[str] = []
    for recorded in rounds:
        try:
            found += findings(recorded)
        except MissingBytesError as error:
            found.append(str(error))
    return found


def _workspace_copies(audited: Audited) -> Check:
    """What lies in the workspace under names that DVC keeps, hashed unless it is the very file of the cache."""
    root, newest = audited.workspace.root, audited.newest
    expected = _current(audited)
    found, looked = [], 0
    for path, md5 in expected.items():
        members = [(f"{path}/{name}", member) for member, name in _members(audited, md5)] or [(path, md5)]
        for name, digest in members:
            here = root / name
            if is_folder(digest) or not here.is_file():
                continue  # not checked out here, as in a fresh clone
            looked += 1
            cached = newest.objects.path(digest)
            if not (cached.is_file() and here.samefile(cached)) and md5_of(here) != digest:
                found.append(f"{name} in the workspace is altered: its MD5 is not the recorded {digest}")
    return check("data", "copies in the workspace", f"{looked} files", found)


def _current(audited: Audited) -> dict[str, str]:
    """MD5 by path of what DVC keeps at the commit that is checked out."""
    root = audited.workspace.root
    pointers = [path for path in paths_at(root, "HEAD", "data") if path.endswith(".dvc")]
    current: dict[str, str] = {}
    for pointer in pointers:
        out = yaml.safe_load(blob(root, "HEAD", pointer) or b"outs: []")["outs"][0]
        current[(Path(pointer).parent / out["path"]).as_posix()] = out["md5"]
    stages = yaml.safe_load(blob(root, "HEAD", "dvc.lock") or b"stages: {}")["stages"]
    for entry in () if audited.deriving else stages.values():
        current |= {out["path"]: out["md5"] for out in entry.get("outs", ())}
    return current
