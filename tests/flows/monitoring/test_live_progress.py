import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from flows.monitoring.progress import live_progress
from tasks.runtime.errors import UserError

LOGGER = logging.getLogger("prefect.task_runs")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    text = io.StringIO()
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    with live_progress(Console(file=text, width=80), lambda number: text.write(f"table after {number}\n")):
        yield text
    LOGGER.setLevel(level)


def test_of_many_lines_a_few_are_shown_and_the_last_one(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("flows.monitoring.progress.time.monotonic", lambda: now_s[0])
    LOGGER.info("train", extra={"gleaner_stage": "train"})
    for number in range(100):
        now_s[0] += 0.11
        LOGGER.info("iteration %d", number, extra={"gleaner_line": "train"})
    LOGGER.info("infer", extra={"gleaner_stage": "infer"})
    lines = [line.strip() for line in screen.getvalue().splitlines()]
    assert lines[0].endswith("train")
    assert lines[-2:] == ["iteration 99", lines[-1]]
    assert lines[-1].endswith("infer")
    assert [line for line in lines if line.startswith("iteration")] == [
        "iteration 0",
        "iteration 46",
        "iteration 92",
        "iteration 99",
    ]


def test_a_published_round_calls_for_its_table(screen: io.StringIO) -> None:
    LOGGER.info("Round 3 is finished [ok]", extra={"gleaner_published": 3})
    assert screen.getvalue() == "Round 3 is finished [ok]\ntable after 3\n"


def test_a_users_mistake_is_left_to_the_last_line_and_other_trouble_is_shown(screen: io.StringIO) -> None:
    try:
        raise UserError("params.yaml", "x is 1, expected 2")
    except UserError:
        LOGGER.exception("Encountered exception during execution")
    LOGGER.info("Finished in state Completed()")
    LOGGER.warning("The data of this round was not pushed")
    assert screen.getvalue() == "The data of this round was not pushed\n"


def test_afterwards_prefect_logs_as_before() -> None:
    with live_progress(Console(file=io.StringIO()), lambda _: None):
        assert not LOGGER.propagate
    assert LOGGER.propagate
