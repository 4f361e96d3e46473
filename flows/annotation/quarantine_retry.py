"""``gleaner quarantine retry``: refused answers go to the door once more.

Nothing is taken in here. An answer that passes is marked in its file, and the next night's collection takes it
along with what the annotators send; so a kill in between loses nothing, and a second call changes nothing.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flows.annotation.batches import read_annotation_batch
from flows.annotation.quarantine import (
    QuarantineEntry,
    append_event,
    entry_state,
    is_released,
    read_entries,
    write_entry,
)
from flows.annotation.validation.context import ValidationContext, read_validation_context
from flows.annotation.validation.rejection import Rejection
from flows.annotation.validation.resolve_conflicts import ExistingAnnotations
from flows.annotation.validation.validate_batch import validate_batch
from flows.workspace import git
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError

_ACCEPTED_MESSAGE = "goes in with the next night"


@dataclass(frozen=True)
class RetryResult:
    """How one answer fared."""

    entry: QuarantineEntry
    accepted: bool
    message: str


def retry(workspace: Workspace, names: Sequence[str], *, approve: bool) -> list[RetryResult]:
    """Send answers to the door again, mark those that pass, and commit the marks.

    Args:
        workspace: whose quarantine it is; the caller holds its lock.
        names: of the files, with or without ending; none: every answer that waits for somebody.
        accept: let suspicious answers pass. What is refused for any other reason stays where it is.

    Raises:
        UserError: an unknown name, one that waits for nobody, or a broken file.
    """
    git.require_branch(workspace.root)
    existing = read_labels(workspace.labels).all_annotations
    open_entries = _select_entries(workspace, names, existing)
    contexts = _validation_contexts(workspace, {entry.batch for entry in open_entries})
    results = [_revalidate(entry, contexts[entry.batch], approve=approve) for entry in open_entries]
    for old, new in zip(open_entries, results, strict=True):
        if new.entry != old:
            write_entry(workspace, new.entry)
    if results:
        num_accepted = sum(result.accepted for result in results)
        git.commit(
            workspace, f"Retry {len(results)} refused answers: {num_accepted} pass", (workspace.quarantine.name,)
        )
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
            problem = f"the answer {name} is {state}, expected one that is open"
            raise UserError(workspace.quarantine, problem, "There is nothing to do about it.")
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
            raise UserError(folder, "the delivery is missing, expected it as long as its answers wait", fix)
        contexts[batch] = read_validation_context(workspace, params, delivery, datetime.now(UTC))
    return contexts


def _revalidate(entry: QuarantineEntry, context: ValidationContext, *, approve: bool) -> RetryResult:
    rejection = _rejection(entry, context)
    if rejection is None:
        return _accepted_result(entry)
    reason = rejection.quarantined.reason
    if rejection.kind == "suspicious" and approve:  # the door looks for suspicion last: all else is in order
        return _accepted_result(append_event(entry, "confirmed", reason))
    if (entry.kind, entry.reason) != (rejection.kind, reason) or is_released(entry):
        entry = append_event(entry, "set aside", reason).model_copy(update={"kind": rejection.kind, "reason": reason})
    return RetryResult(entry, False, reason)


def _accepted_result(entry: QuarantineEntry) -> RetryResult:
    return RetryResult(
        entry if is_released(entry) else append_event(entry, "released", "passed the door on retry"),
        True,
        _ACCEPTED_MESSAGE,
    )


def _rejection(entry: QuarantineEntry, context: ValidationContext) -> Rejection | None:
    return next(
        (found for found in validate_batch([entry.raw_annotation], context, {}).rejections if found.kind != "note"),
        None,
    )
