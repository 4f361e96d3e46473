"""How far a stage is and how long it will take, read off the lines it prints (``train 40/160  supervised ...``)."""

import re
from dataclasses import dataclass

_COUNT_PATTERN = re.compile(r"^\w+(?: \w+)? (\d+)/(\d+)\b")
_MINUTE_S, _HOUR_S = 60, 3600


@dataclass(frozen=True)
class Progress:
    """Progress of a stage at one moment."""

    done: int
    total: int
    remaining_s: float | None
    """None for the first line: there is no pace yet."""

    @property
    def percent(self) -> float:
        """In [0, 100]."""
        return 100 * self.done / self.total

    def __str__(self) -> str:
        left = (
            "" if self.remaining_s is None or self.done == self.total else f", {format_duration(self.remaining_s)} left"
        )
        return f"{self.done} of {self.total}{left}"


class StageProgress:
    """Follow one stage. The pace counts from the first line seen, so that a resumed stage does not look fast."""

    def __init__(self) -> None:
        """Start without any line."""
        self._first: tuple[int, float] | None = None

    def update(self, line: str, now_s: float) -> Progress | None:
        """Return the progress that a line states; None if it states none.

        Args:
            line: as the stage printed it.
            now_s: of a clock that never goes back.
        """
        match = _COUNT_PATTERN.match(line)
        if match is None or not 0 < int(match[1]) <= int(match[2]):
            return None
        done, total = int(match[1]), int(match[2])
        if self._first is None or done <= self._first[0]:
            self._first = (done, now_s)
            return Progress(done, total, None)
        first, since_s = self._first
        return Progress(done, total, (total - done) * (now_s - since_s) / (done - first))


def format_duration(seconds: float) -> str:
    """Format seconds as ``2 h 05 min``, ``12 min`` or ``40 s``."""
    if seconds >= _HOUR_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S):02d} min"
    return f"{round(seconds / _MINUTE_S)} min" if seconds >= 2 * _MINUTE_S else f"{round(seconds)} s"
