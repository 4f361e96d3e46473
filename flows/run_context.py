"""Open a run: lock the campaign, run the quick preflight checks once, and build the context that the run hands down.

A flow opens its run with ``open_run``. The command line has opened it already with ``prepared_run``, so that a user's
mistake ends the command before a server is started, and the flow takes over that lock and context. What fails in either
is notified once. Nothing here imports Prefect, which must not be imported before its server is known.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.annotation.providers import create_provider
from flows.annotation.providers.base import LabelProvider, ProviderError
from flows.monitoring.notifications import notify_on_failure
from flows.preflight.checks import require_ready
from flows.preflight.runner import CheckContext
from flows.workspace.lock import Lock
from flows.workspace.owner import require_own_folder
from flows.workspace.run_lock import require_workspace, run_lock
from flows.workspace.trust import trust
from tasks.data.paths import Workspace
from tasks.params import Params


@dataclass(frozen=True)
class RunContext:
    """Hold what all parts of a run need; built once per run."""

    workspace: Workspace
    params: Params
    provider: LabelProvider
    lock: Lock
    warnings: tuple[str, ...] = ()
    """Warnings of the preflight checks."""
    provider_errors: list[ProviderError] = field(default_factory=list)
    """Errors of the label provider that did not stop the run."""
    started_s: float = field(default_factory=time.monotonic)


_prepared: dict[Path, tuple[ExitStack, RunContext]] = {}
"""Runs that ``prepared_run`` has opened and no flow has taken over yet, by campaign."""


@contextmanager
def prepared_run(root: Path) -> Iterator[Workspace]:
    """Open the run of a flow that is started within the block.

    Raises:
        UserError: ``root`` is no campaign, another run is active, a check failed, or the label provider is unusable.
    """
    workspace = require_workspace(root)
    with notify_on_failure(workspace), ExitStack() as stack:
        _prepared[workspace.root] = (stack, stack.enter_context(_opened(workspace)))
        try:
            yield workspace
        finally:
            _prepared.pop(workspace.root, None)


@contextmanager
def open_run(root: Path) -> Iterator[RunContext]:
    """Open a run within the block, or take over the one that this process has prepared.

    Raises:
        UserError: as ``prepared_run``.
    """
    workspace = require_workspace(root)
    with notify_on_failure(workspace), ExitStack() as stack:
        if workspace.root in _prepared:
            prepared_stack, context = _prepared.pop(workspace.root)
            # Closed with the flow: Prefect ends the process at the end of a flow that was stopped by SIGTERM.
            stack.enter_context(prepared_stack.pop_all())
        else:
            context = stack.enter_context(_opened(workspace))
        yield context


@contextmanager
def _opened(workspace: Workspace) -> Iterator[RunContext]:
    with run_lock(workspace) as lock:
        trust(workspace.root)
        checked = CheckContext(workspace)
        warnings = require_ready(checked)
        require_own_folder(workspace)
        provider = create_provider(workspace, checked.params)
        yield RunContext(workspace, checked.params, provider, lock, tuple(warnings))
