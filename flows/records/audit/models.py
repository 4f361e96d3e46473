"""Models: the SHA-256s that ledgers hold beside DVC's MD5s, and what one round's model hands to the next."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from flows.records.audit.findings import Audited
from flows.records.dvc_objects import MissingBytesError
from flows.records.recorded import RecordedRound
from tasks import files


def model_findings(audited: Audited) -> list[str]:
    """What is not as the ledgers say of selection, manifest, teacher, frozen detections and detections."""
    found: list[str] = []
    for recorded in audited.rounds.values():
        named = {"derived/select/selection.parquet": recorded.ledger["selection_sha256"],
                 "derived/handoff/manifest.jsonl": recorded.ledger["manifest_sha256"]}  # fmt: skip
        if recorded.ledger["format"] > 1:
            named["derived/train/teacher.pth"] = recorded.ledger["teacher"]["sha256"]
            for number, digest in recorded.ledger["frozen_sha256"].items():
                named[f"data/frozen/batch-{int(number):04d}.parquet"] = digest
        found += _sha256_findings(audited, recorded, named)
        found += _handed_over(audited, recorded)
        found += _detector_findings(audited, recorded)
    return found


def _sha256_findings(audited: Audited, recorded: RecordedRound, named: Mapping[str, str]) -> Iterator[str]:
    for path, digest in named.items():
        stored = _stored(audited, recorded, path)
        if stored is None:
            yield f"{path} of {recorded.name} is not stored, though its ledger holds a digest of it"
        elif stored and files.sha256_file(Path(stored)) != digest:
            yield f"{path} of {recorded.name} is altered: its SHA-256 is not that of the ledger"


def _stored(audited: Audited, recorded: RecordedRound, path: str) -> str | None:
    """Where a file's bytes are; empty where an earlier check has named them already; None where nobody has them."""
    try:
        md5 = recorded.digest(path)
        if md5 is None:
            return None
        return "" if md5 in audited.damaged else str(recorded.stored(path))
    except MissingBytesError:
        return ""


def _handed_over(audited: Audited, recorded: RecordedRound) -> Iterator[str]:
    before = audited.rounds.get(recorded.number - 1)
    ledger = recorded.ledger
    if before is None or ledger["format"] == 1 or before.ledger["format"] == 1:
        return
    if ledger["previous_model"]["sha256"] != before.ledger["teacher"]["sha256"]:
        yield f"{recorded.name} was handed another teacher than that of {before.name}"
    started = ledger["teacher"]["started_from_sha256"]
    if started is not None and started != before.ledger["teacher"]["sha256"]:
        yield f"{recorded.name} started from another teacher than that of {before.name}"


def _detector_findings(audited: Audited, recorded: RecordedRound) -> Iterator[str]:
    """Detections say which weights made them."""
    if recorded.ledger["format"] == 1:
        return
    teacher = recorded.ledger["teacher"]["sha256"]
    try:
        shards = recorded.members("derived/infer")
    except MissingBytesError:
        return
    for name in sorted(shards):
        stored = _stored(audited, recorded, f"derived/infer/{name}") if name.endswith(".parquet") else ""
        if stored:
            makers = set(pq.read_table(stored, columns=["model_digest"])["model_digest"].to_pylist())
            if makers - {teacher}:
                yield f"derived/infer/{name} of {recorded.name} is not of that round's teacher"
