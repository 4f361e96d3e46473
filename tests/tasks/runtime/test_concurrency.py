"""Results in order, few calls open at a time, and an end where one fails."""

import threading

import pytest

from tasks.runtime.concurrency import map_threads


def test_results_are_in_the_order_of_the_items() -> None:
    assert list(map_threads(lambda n: n * n, range(100), num_workers=4, num_ahead=7)) == [n * n for n in range(100)]
    assert list(map_threads(lambda n: n, [], num_workers=1)) == []


def test_no_more_items_are_taken_than_may_be_open() -> None:
    taken = []

    def items():  # type: ignore[no-untyped-def]
        for n in range(50):
            taken.append(n)
            yield n

    results = map_threads(lambda n: n, items(), num_workers=2, num_ahead=5)
    most = 0
    for count, _ in enumerate(results, start=1):
        most = max(most, len(taken) - count)
    assert (len(taken), most) == (50, 4)  # the result at hand is the fifth


def test_an_error_ends_the_work_and_what_waits_is_given_up() -> None:
    called = []
    may_go_on = threading.Event()

    def fail_first(number: int) -> int:
        called.append(number)
        if number == 0:
            raise ValueError("zero")
        may_go_on.wait(10)
        return number

    results = map_threads(fail_first, range(1000), num_workers=1, num_ahead=100)
    threading.Timer(0.2, may_go_on.set).start()
    with pytest.raises(ValueError, match="zero"):
        next(results)
    assert len(called) < 100
