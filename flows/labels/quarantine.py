"""``quarantine/``: answers that did not go through the door, one file each, with all that happened to them.

A file is named by what came in, so the same answer is the same file however often it is collected. Git keeps
it. What became of an answer is read off the label batches, so no kill can leave the two at odds.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.labels.door.choice import Known
from flows.labels.door.refusal import Kind, Refusal, answer_digest
from flows.labels.providers.base import Returned
from tasks import files
from tasks.errors import UserError
from tasks.paths import Workspace

State = Literal["open", "released", "taken", "superseded", "note"]
"""``open``: waits for somebody. ``released``: goes through the door with the next collection. ``taken``: is in a label
batch. ``superseded``: the image has a newer answer. ``note``: was never to be taken in."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(_Document):
    """Something that happened to an answer."""

    at: str
    """ISO 8601 with time zone."""
    what: Literal["set aside", "confirmed", "released"]
    why: str


class Entry(_Document):
    """One file."""

    where: str
    reason: str
    kind: Kind = "refused"
    batch: int
    image_id: str | None = None
    annotator: str | None = None
    link: str | None = None
    """Where a person can look at it."""
    returned: dict[str, Any]
    """What came in, as far as JSON can say it."""
    history: tuple[Event, ...] = ()
    """Oldest first."""

    @property
    def digest(self) -> str:
        """Of the answer."""
        return answer_digest(self.batch, self.returned)

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return f"batch-{self.batch:04d}-{self.digest[:12]}"


def read_entries(workspace: Workspace, batch: int | None = None) -> list[Entry]:
    """The entries of one delivery, or all, by batch and name.

    Raises:
        UserError: a file is no entry.
    """
    wanted = "batch-*.json" if batch is None else f"batch-{batch:04d}-*.json"
    return [_read(workspace, path.stem) for path in sorted(workspace.quarantine.glob(wanted))]


def set_aside(workspace: Workspace, refusals: Iterable[Refusal]) -> list[Refusal]:
    """Write down what was refused; returns what of it is news.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    news = []
    for refused in refusals:
        entry = _entry(refused)
        if (workspace.quarantine / f"{entry.name}.json").is_file():
            old = _read(workspace, entry.name)
            if (old.kind, old.reason) == (entry.kind, entry.reason) and not is_released(old):
                continue
            entry = entry.model_copy(update={"history": (*old.history, *entry.history)})
        write_entry(workspace, entry)
        news.append(refused)
    return news


def write_entry(workspace: Workspace, entry: Entry) -> None:
    """Replace one file."""
    files.write_json(workspace.quarantine / f"{entry.name}.json", entry.model_dump(mode="json"))


def happened(entry: Entry, what: Literal["set aside", "confirmed", "released"], why: str) -> Entry:
    """The entry with one more line of history."""
    event = Event(at=datetime.now(UTC).isoformat(timespec="seconds"), what=what, why=why)
    return entry.model_copy(update={"history": (*entry.history, event)})


def state_of(entry: Entry, known: Known) -> State:
    """What became of an answer.

    Args:
        entry: of the quarantine.
        known: every answer that label batches hold, by image id.
    """
    if entry.kind == "note":
        return "note"
    answers = known.get(entry.image_id or "", ())
    said, finished = (entry.returned.get(key) for key in ("annotator", "finished_at"))
    if any((label.annotator, label.claimed_at or label.finished_at) == (said, finished) for label in answers):
        return "taken"
    moment = _moment(finished, entry)
    if moment is not None and any(datetime.fromisoformat(label.finished_at) >= moment for label in answers):
        return "superseded"
    return "released" if is_released(entry) else "open"


def released(workspace: Workspace, known: Known) -> dict[int, list[Returned]]:
    """Answers that somebody let go and no label batch holds yet, by batch; they go through the door once more.

    Raises:
        UserError: a file of the quarantine is broken.
    """
    found: dict[int, list[Returned]] = {}
    for entry in read_entries(workspace):
        if state_of(entry, known) == "released":
            found.setdefault(entry.batch, []).append(entry.returned)
    return found


def confirmed_answers(workspace: Workspace, batch: int) -> frozenset[str]:
    """Digests of the suspicious answers to one delivery that a person has confirmed."""
    return frozenset(
        entry.digest
        for entry in read_entries(workspace, batch)
        if any(event.what == "confirmed" for event in entry.history)
    )


def is_released(entry: Entry) -> bool:
    """Whether somebody let it go, and it was not refused since."""
    return bool(entry.history) and entry.history[-1].what == "released"


def _entry(refused: Refusal) -> Entry:
    returned = dict(refused.returned)
    entry = Entry(
        **refused.quarantined.model_dump(),
        kind=refused.kind,
        batch=refused.batch,
        image_id=_text(returned.get("image_id")),
        annotator=_text(returned.get("annotator")),
        link=_text(returned.get("link")),
        returned=returned,
    )
    return happened(entry, "set aside", entry.reason)


def _read(workspace: Workspace, name: str) -> Entry:
    path = workspace.quarantine / f"{name}.json"
    try:
        return Entry.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the content"
        fix = f"Restore it: git checkout -- {workspace.quarantine.name}/{path.name}"
        raise UserError(path, f"{key}: {first['msg']}, expected a refused answer", fix) from None


def _moment(text: Any, entry: Entry) -> datetime | None:
    """When an answer was finished: before it was set aside, whatever its clock said."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        return None
    return min([moment, *(datetime.fromisoformat(event.at) for event in entry.history[:1])])


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
