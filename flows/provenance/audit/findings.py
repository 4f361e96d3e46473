"""What a check found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flows.provenance.snapshot import RoundSnapshot
from tasks.data.paths import Workspace

Result = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """One line of an audit."""

    area: str
    name: str
    examined: str
    """How much was looked at, in words."""
    findings: tuple[str, ...] = ()
    """What is not as recorded, each naming the file, tag, run or image."""
    skipped: str = ""
    """Why nothing could be looked at; empty: it was."""

    @property
    def result(self) -> Result:
        """Whether everything was as recorded."""
        if self.findings:
            return "fail"
        return "skip" if self.skipped else "pass"


@dataclass(frozen=True)
class AuditScope:
    """What is audited: rounds 0 to that of the model, and the workspace around them."""

    workspace: Workspace
    rounds: Mapping[int, RoundSnapshot]
    is_complete: bool
    """The newest round is among them, so that the workspace itself is part of it."""
    is_deriving: bool
    """A night was cut off while it derived the next round: what it has written is not yet committed."""
    damaged_objects: dict[str, str] = field(default_factory=dict)
    """MD5 of stored objects that turned out altered or missing, and what is wrong; filled by the first check, so
    that the others need not trip over them."""

    @property
    def newest(self) -> RoundSnapshot:
        """The last round that is audited."""
        return self.rounds[max(self.rounds)]


def make_check(area: str, name: str, examined: str, findings: Sequence[str]) -> Check:
    """A check that looked at something; the same finding counts once."""
    return Check(area, name, examined, tuple(dict.fromkeys(findings)))
