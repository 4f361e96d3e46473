"""Compare everything that is stored of a campaign with the digests in its ledgers: ``gleaner audit``.

Here: what an audit covers, and the result of one check.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flows.provenance.snapshot import RoundSnapshot
from tasks.data.paths import Workspace
from tasks.runtime.formatting import pluralize

State = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    area: str
    name: str
    examined: str
    """How much was examined, as text."""
    findings: tuple[str, ...] = ()
    """Every deviation from the record: ``<file, tag, run or image>: <what> is <value>, expected <value>``."""
    skip_reason: str = ""
    """Why nothing was examined; empty where it was."""

    @property
    def state(self) -> State:
        """``fail`` with any finding, ``skip`` where nothing was examined, else ``pass``."""
        if self.findings:
            return "fail"
        return "skip" if self.skip_reason else "pass"


@dataclass(frozen=True)
class AuditScope:
    """The audited rounds, from 0 to that of the model, and the workspace around them."""

    workspace: Workspace
    rounds: Mapping[int, RoundSnapshot]
    is_complete: bool
    """Whether the newest round is among them; then the workspace is audited, too."""
    is_deriving: bool
    """Whether a run was interrupted while it derived the next round; its files are not yet committed."""
    damaged_objects: dict[str, str] = field(default_factory=dict)
    """Problem by MD5 of each stored object that is altered or missing.

    Filled by the check of stored objects, so that later checks do not report the same file again.
    """

    @property
    def newest(self) -> RoundSnapshot:
        """The newest audited round."""
        return self.rounds[max(self.rounds)]


def make_check(area: str, name: str, examined: str, findings: Sequence[str]) -> Check:
    """Build the result of a check that examined something; equal findings are listed once."""
    return Check(area, name, examined, tuple(dict.fromkeys(findings)))


def count_rounds(scope: AuditScope) -> str:
    """Return the number of audited rounds as text: ``1 round``, ``3 rounds``."""
    return pluralize(len(scope.rounds), "round")
