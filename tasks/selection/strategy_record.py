"""Say what each strategy's picks have cost and found so far (docs/method.md#portfolio)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tasks.selection.earlier_picks import EarlierPick
from tasks.selection.thompson import LOSS_KINDS, loss_of, loss_per_minute

_DIGITS = 4


def strategy_records(picks: Sequence[EarlierPick]) -> dict[str, dict[str, Any]]:
    """Return answered images, minutes, and what a minute found, by the strategy that the image was picked by.

    What was found is the realized loss of the teacher that had not seen the image, divided by the loss per minute of
    the whole batch: 1 is as much as the batch as a whole. None where no batch of the strategy found anything. Nothing
    is discounted or shrunk here, other than in what the portfolio believes.

    Args:
        picks: answered picks of all batches.
    """
    by_name: defaultdict[str, list[EarlierPick]] = defaultdict(list)
    for pick in picks:
        by_name[pick.picked_by or "unknown"].append(pick)
    records: dict[str, dict[str, Any]] = {}
    for name, own in sorted(by_name.items()):
        records[name] = {"images": len(own), "minutes": round(sum(pick.minutes for pick in own), _DIGITS)}
        for kind in LOSS_KINDS:
            scale = loss_per_minute(picks, kind)
            counted = [pick for pick in own if scale[pick.batch] > 0]
            minutes = sum(pick.minutes for pick in counted)
            found = sum(loss_of(pick, kind) / scale[pick.batch] for pick in counted)
            records[name][kind] = round(found / minutes, _DIGITS) if counted else None
    return records
