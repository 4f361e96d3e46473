"""Apply a function to many items in threads, with a bounded number of open calls."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_NUM_AHEAD = 256


def map_threads(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    num_workers: int | None = None,
    num_ahead: int = _NUM_AHEAD,
) -> Iterator[_Result]:
    """Yield the results in the order of the items.

    ``ThreadPoolExecutor.map`` would submit all calls at once: a gigabyte for a million of them, and none of them is
    given up when one fails.

    Args:
        function: called from several threads.
        items: taken as the results are.
        num_workers: threads; None: Python's choice.
        num_ahead: calls that are open or whose results wait, at least 1.
    """
    rest = iter(items)
    with ThreadPoolExecutor(num_workers) as threads:
        futures: deque[Future[_Result]] = deque(threads.submit(function, item) for item in islice(rest, num_ahead))
        try:
            while futures:
                yield futures.popleft().result()
                futures.extend(threads.submit(function, item) for item in islice(rest, 1))
        finally:
            for future in futures:
                future.cancel()
