"""Show a progress bar for work of more than two seconds, on a terminal only."""

from collections.abc import Iterable
from typing import TypeVar

from rich import progress
from rich.console import Console

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, *, total: int) -> Iterable[Item]:
    """Yield ``items``; when stderr is a terminal, show how many of ``total`` are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return progress.track(items, description, total=total, console=console, transient=True)
