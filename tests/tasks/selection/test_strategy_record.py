"""What a strategy has bought, counted by hand."""

from tasks.reporting.tables import bought_rows
from tasks.selection.earlier_picks import EarlierPick
from tasks.selection.strategy_record import strategy_records


def pick(name: str, batch: int, classification: float, localization: float, minutes: float) -> EarlierPick:
    return EarlierPick("", batch, name, classification, localization, minutes)


PICKS = [pick("a", 1, 6, 0, 1), pick("b", 1, 2, 0, 3), pick("a", 2, 1, 4, 2), pick("random", 2, 3, 4, 2)]
"""Class loss per minute: 2 in batch 1 (8 in 4 minutes), 1 in batch 2; place loss: 0 and 2."""


def test_what_a_minute_found_is_relative_to_the_batch() -> None:
    assert strategy_records(PICKS) == {
        "a": {"images": 2, "minutes": 3.0, "classification": round((6 / 2 + 1 / 1) / 3, 4), "localization": 1.0},
        "b": {"images": 1, "minutes": 3.0, "classification": round((2 / 2) / 3, 4), "localization": None},
        "random": {"images": 1, "minutes": 2.0, "classification": 1.5, "localization": 1.0},
    }
    assert strategy_records([]) == {}


def test_one_strategy_alone_finds_what_its_batch_finds() -> None:
    alone = [pick("a", batch, 1.0 + batch, 2.0, 3.0 * batch) for batch in (1, 2, 3)]
    assert strategy_records(alone)["a"] == {"images": 3, "minutes": 18.0, "classification": 1.0, "localization": 1.0}


def test_rows_hold_what_has_a_share_and_what_has_been_paid() -> None:
    summary = {"portfolio": {"a": {"share": 0.75}, "new": {"share": 0.25}}, "bought": strategy_records(PICKS)}
    rows = [(row["name"], row["share"], row["images"], row["minutes"]) for row in bought_rows(summary)]
    assert rows == [("a", 0.75, 2, 3.0), ("b", None, 1, 3.0), ("random", None, 1, 2.0), ("new", 0.25, 0, 0.0)]
    assert bought_rows({}) == []
