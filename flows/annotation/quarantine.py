"""``quarantine/``: answers that did not go through the door, one file each, with all that happened to them.

A file is named by what came in, so the same answer is the same file however often it is collected. Git keeps
it. What became of an answer is read off the label batches, so no kill can leave the two at odds.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.annotation.providers.base import RawAnnotation
from flows.annotation.validation.rejection import Rejection, RejectionKind, annotation_digest
from flows.annotation.validation.resolve_conflicts import ExistingAnnotations
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

EntryState = Literal["open", "released", "taken", "superseded", "note"]
"""``open``: waits for somebody. ``released``: goes through the door with the next collection. ``taken``: is in a label
batch. ``superseded``: the image has a newer answer. ``note``: was never to be taken in."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuarantineEvent(_Document):
    """Something that happened to an answer."""

    at: str
    """ISO 8601 with time zone."""
    event: Literal["set aside", "confirmed", "released"]
    reason: str


class QuarantineEntry(_Document):
    """One file."""

    item: str
    reason: str
    kind: RejectionKind = "refused"
    batch: int
    image_id: str | None = None
    annotator: str | None = None
    url: str | None = None
    """Where a person can look at it."""
    raw_annotation: dict[str, Any]
    """What came in, as far as JSON can say it."""
    history: tuple[QuarantineEvent, ...] = ()
    """Oldest first."""

    @property
    def digest(self) -> str:
        """Of the answer."""
        return annotation_digest(self.batch, self.raw_annotation)

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return f"batch-{self.batch:04d}-{self.digest[:12]}"


def read_entries(workspace: Workspace, batch: int | None = None) -> list[QuarantineEntry]:
    """The entries of one delivery, or all, by batch and name.

    Raises:
        UserError: a file is no entry.
    """
    pattern = "batch-*.json" if batch is None else f"batch-{batch:04d}-*.json"
    return [_read_entry(workspace, path.stem) for path in sorted(workspace.quarantine.glob(pattern))]


def add_to_quarantine(workspace: Workspace, rejections: Iterable[Rejection]) -> list[Rejection]:
    """Write down what was refused; returns what of it is news.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    added = []
    for rejection in rejections:
        entry = _to_entry(rejection)
        if (workspace.quarantine / f"{entry.name}.json").is_file():
            old = _read_entry(workspace, entry.name)
            if (old.kind, old.reason) == (entry.kind, entry.reason) and not is_released(old):
                continue
            entry = entry.model_copy(update={"history": (*old.history, *entry.history)})
        write_entry(workspace, entry)
        added.append(rejection)
    return added


def write_entry(workspace: Workspace, entry: QuarantineEntry) -> None:
    """Replace one file."""
    files.write_json(workspace.quarantine / f"{entry.name}.json", entry.model_dump(mode="json"))


def append_event(
    entry: QuarantineEntry, kind: Literal["set aside", "confirmed", "released"], reason: str
) -> QuarantineEntry:
    """The entry with one more line of history."""
    event = QuarantineEvent(at=datetime.now(UTC).isoformat(timespec="seconds"), event=kind, reason=reason)
    return entry.model_copy(update={"history": (*entry.history, event)})


def entry_state(entry: QuarantineEntry, existing: ExistingAnnotations) -> EntryState:
    """What became of an answer.

    Args:
        entry: of the quarantine.
        known: every answer that label batches hold, by image id.
    """
    if entry.kind == "note":
        return "note"
    annotations = existing.get(entry.image_id or "", ())
    annotator, finished_at = (entry.raw_annotation.get(key) for key in ("annotator", "finished_at"))
    if any(
        (label.annotator, label.reported_finished_at or label.finished_at) == (annotator, finished_at)
        for label in annotations
    ):
        return "taken"
    latest_finish = _latest_finish(finished_at, entry)
    if latest_finish is not None and any(
        datetime.fromisoformat(label.finished_at) >= latest_finish for label in annotations
    ):
        return "superseded"
    return "released" if is_released(entry) else "open"


def released_annotations(workspace: Workspace, existing: ExistingAnnotations) -> dict[int, list[RawAnnotation]]:
    """Answers that somebody let go and no label batch holds yet, by batch; they go through the door once more.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    found: dict[int, list[RawAnnotation]] = {}
    for entry in read_entries(workspace):
        if entry_state(entry, existing) == "released":
            found.setdefault(entry.batch, []).append(entry.raw_annotation)
    return found


def approved_annotations(workspace: Workspace, batch: int) -> frozenset[str]:
    """Digests of the suspicious answers to one delivery that a person has confirmed."""
    return frozenset(
        entry.digest
        for entry in read_entries(workspace, batch)
        if any(event.event == "confirmed" for event in entry.history)
    )


def is_released(entry: QuarantineEntry) -> bool:
    """Whether somebody let it go, and it was not refused since."""
    return bool(entry.history) and entry.history[-1].event == "released"


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
    return append_event(entry, "set aside", entry.reason)


def _read_entry(workspace: Workspace, name: str) -> QuarantineEntry:
    path = workspace.quarantine / f"{name}.json"
    try:
        return QuarantineEntry.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the content"
        fix = f"Restore it: git checkout -- {workspace.quarantine.name}/{path.name}"
        raise UserError(path, f"{key}: {first['msg']}, expected a refused answer", fix) from None


def _latest_finish(text: Any, entry: QuarantineEntry) -> datetime | None:
    """When an answer was finished: before it was set aside, whatever its clock said."""
    try:
        finished_at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    if finished_at.tzinfo is None:
        return None
    return min([finished_at, *(datetime.fromisoformat(event.at) for event in entry.history[:1])])


def _str_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
