"""Keep rejected annotations in ``quarantine/``, one file each with its history, and validate them again on request.

A file is named by a digest of the annotation, so the same annotation is the same file however often it is collected.
Git tracks the files. Whether an annotation was imported since is derived from the label batches and not stored, so a
kill cannot make the two contradict each other.

``gleaner quarantine retry`` imports nothing: an annotation that is valid now is marked as released in its file, and
the next collection imports it together with what the annotators return. A kill in between loses nothing, and a second
call changes nothing.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.annotation.annotation_rules import (
    Rejection,
    RejectionKind,
    ValidationContext,
    annotation_digest,
    read_validation_context,
)
from flows.annotation.batches import read_annotation_batch
from flows.annotation.providers.base import RawAnnotation
from flows.annotation.validation import ExistingAnnotations, validate_batch
from flows.workspace import git
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

EntryState = Literal["open", "released", "imported", "superseded", "note"]
"""``open``: needs a person. ``released``: is validated with the next collection. ``imported``: is in a label batch.
``superseded``: the image has a newer annotation. ``note``: needs no action."""
EventKind = Literal["rejected", "approved", "released"]
_ACCEPTED_MESSAGE = "will be imported by the next run"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuarantineEvent(_Document):
    """One event in the history of an entry."""

    at: str
    """ISO 8601 with time zone."""
    event: EventKind
    reason: str


class QuarantineEntry(_Document):
    """One file of the quarantine."""

    item: str
    reason: str
    kind: RejectionKind = "refused"
    batch: int
    image_id: str | None = None
    annotator: str | None = None
    url: str | None = None
    """Where a person can look at the annotation."""
    raw_annotation: dict[str, Any]
    """The annotation as returned, converted to JSON values."""
    history: tuple[QuarantineEvent, ...] = ()
    """Oldest first."""

    @property
    def digest(self) -> str:
        """Digest of the annotation, as ``annotation_digest`` returns it."""
        return annotation_digest(self.batch, self.raw_annotation)

    @property
    def name(self) -> str:
        """Name of the file without its extension."""
        return f"batch-{self.batch:04d}-{self.digest[:12]}"

    @property
    def is_released(self) -> bool:
        """Whether it was released and has not been rejected since."""
        return bool(self.history) and self.history[-1].event == "released"

    def with_event(self, event: EventKind, reason: str) -> "QuarantineEntry":
        """Return the entry with an event of this moment added to its history."""
        added = QuarantineEvent(at=datetime.now(UTC).isoformat(timespec="seconds"), event=event, reason=reason)
        return self.model_copy(update={"history": (*self.history, added)})


def read_entries(workspace: Workspace, batch: int | None = None) -> list[QuarantineEntry]:
    """Read the entries of one delivery, or all, by batch and name.

    Raises:
        UserError: a file is no entry.
    """
    pattern = "batch-*.json" if batch is None else f"batch-{batch:04d}-*.json"
    return [_read_entry(workspace, path.stem) for path in sorted(workspace.quarantine.glob(pattern))]


def add_to_quarantine(workspace: Workspace, rejections: Iterable[Rejection]) -> list[Rejection]:
    """Write rejections to files; return those that are new, or have a new reason.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    added = []
    for rejection in rejections:
        entry = _to_entry(rejection)
        if (workspace.quarantine / f"{entry.name}.json").is_file():
            old = _read_entry(workspace, entry.name)
            if (old.kind, old.reason) == (entry.kind, entry.reason) and not old.is_released:
                continue
            entry = entry.model_copy(update={"history": (*old.history, *entry.history)})
        _write_entry(workspace, entry)
        added.append(rejection)
    return added


def entry_state(entry: QuarantineEntry, existing: ExistingAnnotations) -> EntryState:
    """Derive the state of an entry from the label batches.

    Args:
        entry: of the quarantine.
        existing: all annotations in the label batches, by image id.
    """
    if entry.kind == "note":
        return "note"
    labels = existing.get(entry.image_id or "", ())
    annotator, finished_at = (entry.raw_annotation.get(key) for key in ("annotator", "finished_at"))
    for label in labels:
        if (label.annotator, label.reported_finished_at or label.finished_at) == (annotator, finished_at):
            return "imported"
    latest_finish = _latest_finish(finished_at, entry)
    if latest_finish is not None and any(
        datetime.fromisoformat(label.finished_at) >= latest_finish for label in labels
    ):
        return "superseded"
    return "released" if entry.is_released else "open"


def released_annotations(workspace: Workspace, existing: ExistingAnnotations) -> dict[int, list[RawAnnotation]]:
    """Read the released annotations that no label batch holds yet, by batch; each is validated once more.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    found: dict[int, list[RawAnnotation]] = {}
    for entry in read_entries(workspace):
        if entry_state(entry, existing) == "released":
            found.setdefault(entry.batch, []).append(entry.raw_annotation)
    return found


def approved_annotations(workspace: Workspace, batch: int) -> frozenset[str]:
    """Read the digests of the implausible annotations of one delivery that a person has approved."""
    return frozenset(
        entry.digest
        for entry in read_entries(workspace, batch)
        if any(event.event == "approved" for event in entry.history)
    )


@dataclass(frozen=True)
class RetryResult:
    """Result of validating one entry again."""

    entry: QuarantineEntry
    accepted: bool
    message: str


def retry(workspace: Workspace, names: Sequence[str], *, approve: bool) -> list[RetryResult]:
    """Validate rejected annotations again, release those that are valid now, and commit the changed files.

    Args:
        workspace: the campaign; the caller holds its lock.
        names: of the files, with or without extension; none: every open entry.
        approve: release implausible annotations too. Invalid ones stay.

    Raises:
        UserError: an unknown name, an entry that is not open, or a broken file.
    """
    git.require_branch(workspace.root)
    existing = read_labels(workspace.labels).all_answers
    entries = _select_entries(workspace, names, existing)
    contexts = _validation_contexts(workspace, {entry.batch for entry in entries})
    results = [_revalidate(entry, contexts[entry.batch], approve=approve) for entry in entries]
    for old, new in zip(entries, results, strict=True):
        if new.entry != old:
            _write_entry(workspace, new.entry)
    if results:
        num_accepted = sum(result.accepted for result in results)
        message = f"Retry quarantine: {num_accepted} of {len(results)} released"
        git.commit(workspace, message, (workspace.quarantine.name,))
    return results


def _select_entries(workspace: Workspace, names: Sequence[str], existing: ExistingAnnotations) -> list[QuarantineEntry]:
    entries = {entry.name: entry for entry in read_entries(workspace)}
    if not names:
        return [entry for entry in entries.values() if entry_state(entry, existing) == "open"]
    selected = []
    for name in dict.fromkeys(name.removesuffix(".json") for name in names):
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1, cutoff=0.3)
            fix = f"Did you mean {close[0]}?" if close else ""
            problem = f"the name is {name[:100]!r}, expected one that gleaner quarantine list shows"
            raise UserError(workspace.quarantine, problem, fix)
        state = entry_state(entries[name], existing)
        if state not in ("open", "released"):
            problem = f"the state of {name} is {state}, expected open or released"
            raise UserError(workspace.quarantine, problem, "It needs no action.")
        selected.append(entries[name])
    return selected


def _validation_contexts(workspace: Workspace, batches: set[int]) -> Mapping[int, ValidationContext]:
    params = load_params(workspace.params)
    contexts = {}
    for batch in sorted(batches):
        delivery = read_annotation_batch(workspace, batch)
        if delivery is None:
            folder = workspace.delivery(batch)
            fix = f"Restore it: git checkout -- deliveries/{folder.name}"
            raise UserError(folder, "the delivery of quarantined annotations is missing", fix)
        approved = approved_annotations(workspace, batch)
        contexts[batch] = read_validation_context(workspace, params, delivery, datetime.now(UTC), approved)
    return contexts


def _revalidate(entry: QuarantineEntry, context: ValidationContext, *, approve: bool) -> RetryResult:
    found = validate_batch([entry.raw_annotation], context, {}).rejections
    rejection = next((rejection for rejection in found if rejection.kind != "note"), None)
    if rejection is None:
        return _release(entry)
    reason = rejection.quarantined.reason
    if rejection.kind == "suspicious" and approve:  # plausibility is checked last: the annotation is valid
        return _release(entry.with_event("approved", reason))
    if (entry.kind, entry.reason) != (rejection.kind, reason) or entry.is_released:
        entry = entry.with_event("rejected", reason).model_copy(update={"kind": rejection.kind, "reason": reason})
    return RetryResult(entry, False, reason)


def _release(entry: QuarantineEntry) -> RetryResult:
    released = entry if entry.is_released else entry.with_event("released", "valid on retry")
    return RetryResult(released, True, _ACCEPTED_MESSAGE)


def _to_entry(rejection: Rejection) -> QuarantineEntry:
    raw = dict(rejection.raw_annotation)
    entry = QuarantineEntry(
        **rejection.quarantined.model_dump(),
        kind=rejection.kind,
        batch=rejection.batch,
        image_id=_str_or_none(raw.get("image_id")),
        annotator=_str_or_none(raw.get("annotator")),
        url=_str_or_none(raw.get("url")),
        raw_annotation=raw,
    )
    return entry.with_event("rejected", entry.reason)


def _read_entry(workspace: Workspace, name: str) -> QuarantineEntry:
    path = workspace.quarantine / f"{name}.json"
    try:
        return QuarantineEntry.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the content"
        fix = f"Restore it: git checkout -- {workspace.quarantine.name}/{path.name}"
        raise UserError(path, f"{key}: {first['msg']}, expected a quarantined annotation", fix) from None


def _write_entry(workspace: Workspace, entry: QuarantineEntry) -> None:
    files.write_json(workspace.quarantine / f"{entry.name}.json", entry.model_dump(mode="json"))


def _latest_finish(text: Any, entry: QuarantineEntry) -> datetime | None:
    """Latest time at which an annotation was finished: before it was quarantined, whatever its clock says."""
    try:
        finished_at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    if finished_at.tzinfo is None:
        return None
    return min([finished_at, *(datetime.fromisoformat(event.at) for event in entry.history[:1])])


def _str_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
