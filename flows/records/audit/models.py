"""Models: the SHA-256s that ledgers hold beside DVC's MD5s, and what one round's model hands to the next."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from flows.records.audit.findings import AuditScope
from flows.records.dvc_objects import MissingDataError
from flows.records.recorded import RoundSnapshot
from tasks import files


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
