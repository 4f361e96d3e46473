"""``gleaner quarantine retry``: refused answers go to the door once more.

Nothing is taken in here. An answer that passes is marked in its file, and the next night's collection takes it
along with what the annotators send; so a kill in between loses nothing, and a second call changes nothing.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flows import vcs
from flows.labels.deliveries import read_delivery
from flows.labels.door.admit import admit
from flows.labels.door.choice import Known
from flows.labels.door.offer import Offer, offer_of
from flows.labels.door.refusal import Refusal
from flows.labels.quarantine import Entry, happened, is_released, read_entries, state_of, write_entry
from tasks.errors import UserError
from tasks.label_store import read_labels
from tasks.params import load_params
from tasks.paths import Workspace

_IN = "goes in with the next night"


@dataclass(frozen=True)
class Retried:
    """How one answer fared."""

    entry: Entry
    passed: bool
    verdict: str


def retry(workspace: Workspace, names: Sequence[str], *, accept: bool) -> list[Retried]:
    """Send answers to the door again, mark those that pass, and commit the marks.

    Args:
        workspace: whose quarantine it is; the caller holds its lock.
        names: of the files, with or without ending; none: every answer that waits for somebody.
        accept: let suspicious answers pass. What is refused for any other reason stays where it is.

    Raises:
        UserError: an unknown name, one that waits for nobody, or a broken file.
    """
    vcs.require_branch(workspace.root)
    known = read_labels(workspace.labels).given
    waiting = _chosen(workspace, names, known)
    offers = _offers(workspace, {entry.batch for entry in waiting})
    retried = [_once_more(entry, offers[entry.batch], accept=accept) for entry in waiting]
    for old, new in zip(waiting, retried, strict=True):
        if new.entry != old:
            write_entry(workspace, new.entry)
    if retried:
        passed = sum(result.passed for result in retried)
        vcs.commit(workspace, f"Retry {len(retried)} refused answers: {passed} pass", (workspace.quarantine.name,))
    return retried


def _chosen(workspace: Workspace, names: Sequence[str], known: Known) -> list[Entry]:
    entries = {entry.name: entry for entry in read_entries(workspace)}
    if not names:
        return [entry for entry in entries.values() if state_of(entry, known) == "open"]
    chosen = []
    for name in dict.fromkeys(name.removesuffix(".json") for name in names):
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1, cutoff=0.3)
            fix = f"Did you mean {close[0]}?" if close else ""
            problem = f"the name is {name[:100]!r}, expected one that gleaner quarantine list shows"
            raise UserError(workspace.quarantine, problem, fix)
        state = state_of(entries[name], known)
        if state not in ("open", "released"):
            problem = f"the answer {name} is {state}, expected one that is open"
            raise UserError(workspace.quarantine, problem, "There is nothing to do about it.")
        chosen.append(entries[name])
    return chosen


def _offers(workspace: Workspace, batches: set[int]) -> Mapping[int, Offer]:
    params = load_params(workspace.params)
    offers = {}
    for batch in sorted(batches):
        delivery = read_delivery(workspace, batch)
        if delivery is None:
            folder = workspace.delivery(batch)
            fix = f"Restore it: git checkout -- deliveries/{folder.name}"
            raise UserError(folder, "the delivery is missing, expected it as long as its answers wait", fix)
        offers[batch] = offer_of(workspace, params, delivery, datetime.now(UTC))
    return offers


def _once_more(entry: Entry, offer: Offer, *, accept: bool) -> Retried:
    refused = _refused(entry, offer)
    if refused is None:
        return _passed(entry)
    reason = refused.quarantined.reason
    if refused.kind == "suspicious" and accept:  # the door looks for suspicion last: all else is in order
        return _passed(happened(entry, "confirmed", reason))
    if (entry.kind, entry.reason) != (refused.kind, reason) or is_released(entry):
        entry = happened(entry, "set aside", reason).model_copy(update={"kind": refused.kind, "reason": reason})
    return Retried(entry, False, reason)


def _passed(entry: Entry) -> Retried:
    return Retried(entry if is_released(entry) else happened(entry, "released", "passed the door on retry"), True, _IN)


def _refused(entry: Entry, offer: Offer) -> Refusal | None:
    return next((found for found in admit([entry.returned], offer, {}).refusals if found.kind != "note"), None)
