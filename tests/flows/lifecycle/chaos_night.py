"""A night in milliseconds with everything but the numbers: real ownership, lock, collection, labels, promotion log and
``derive_and_publish``; fake stages, registry and git. Every effect passes a fault injector, which may end the night."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import flows.nightly
from flows.run_context import RunContext
from flows.workspace import lock
from flows.workspace.owner import require_own_folder
from flows.workspace.promotion_log import ModelRecord, append_decision, current_champion
from flows.workspace.rounds import RunResult
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.storage import files
from tests.flows.lifecycle import fake_pipeline
from tests.flows.lifecycle.fake_pipeline import FaultInjector
from tests.flows.lifecycle.fake_provider import FakeProvider
from tests.flows.lifecycle.fake_registry import FakeRegistry

_REAL_DERIVE_AND_PUBLISH = flows.nightly.derive_and_publish
TAGS, STAGE_LOG = ".tags", ".gleaner/finished_stages.jsonl"


def run_chaos_night(
    workspace: Workspace, provider: FakeProvider, registry: FakeRegistry, params: Params, injector: FaultInjector
) -> RunResult:
    """Run one night as ``flows.nightly.nightly`` does.

    Raises:
        UserError: the folder is not the campaign's own, another process holds it, or a service is away.
    """
    registry.on_call = injector
    traced = FakeProvider(
        provider.path,
        before=lambda call: (provider.before(call), injector(f"before {call}"))[0],
        after=lambda call: (provider.after(call), injector(f"after {call}"))[0],
    )
    with (
        lock.acquire(workspace.lock, workspace.root, lambda _: None) as held,
        _patched(provider, registry, injector),
    ):
        owner = require_own_folder(workspace)
        registry.require_owner(owner)
        context = RunContext(workspace, params, traced, held)
        result = flows.nightly.advance_round(context)
        if context.provider_errors:
            raise context.provider_errors[0]
        return result


@contextmanager
def _patched(provider: FakeProvider, registry: FakeRegistry, injector: FaultInjector) -> Iterator[None]:
    def run_stage(root: Path, stage: str, number: int, limit_s: float) -> None:
        del limit_s
        _run_stage(Workspace(root), stage, number, injector)

    def publish(workspace: Workspace, params: Params, number: int) -> SimpleNamespace:
        del params
        return _publish(workspace, registry, number, injector)

    flow = "flows.nightly"
    replaced: dict[str, Any] = {
        f"{flow}.derive_and_publish": _REAL_DERIVE_AND_PUBLISH,
        f"{flow}.run_stage": run_stage,
        f"{flow}.publish_round": publish,
        f"{flow}.push_data": lambda _: injector("push"),
        f"{flow}.refresh_code_digests": lambda _: injector("refresh"),
        f"{flow}.after_publish": lambda *_: injector("after_publish"),
        "flows.workspace.git.has_tag": lambda root, tag: (root / TAGS / tag).is_file(),
    }
    with ExitStack() as stack:
        stack.enter_context(fake_pipeline._patched_services(provider, injector))
        for name, replacement in replaced.items():
            stack.enter_context(patch(name, replacement))
        yield


def _run_stage(workspace: Workspace, stage: str, number: int, injector: Callable[[str], None]) -> None:
    """Do nothing where the stage's record has the same inputs, as DVC does; else write outputs, then the record."""
    inputs = files.sha256_json([number, stage, labels_digest(workspace, number)])
    record = workspace.derived(stage) / "stage.json"
    if record.is_file() and json.loads(record.read_text())["inputs"] == inputs:
        return
    injector(f"begin {stage}")
    if stage == "handoff":
        fake_pipeline.write_round_outputs(workspace, number)
    files.write_json(record, {"inputs": inputs})
    log = workspace.root / STAGE_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        stream.write(json.dumps([number, stage, inputs]) + "\n")
    injector(f"end {stage}")


def _publish(
    workspace: Workspace, registry: FakeRegistry, number: int, injector: Callable[[str], None]
) -> SimpleNamespace:
    """The order of ``flows.registry.publish``: run, ledger, decision, alias, tag."""
    owner = require_own_folder(workspace)
    registry.require_owner(owner)
    registry.claim(owner)
    key = files.sha256_json([number, labels_digest(workspace, number)])
    version = registry.log_run(number, key, owner)
    previous = workspace.ledger(number - 1)
    ledger = {
        "previous_ledger_sha256": files.sha256_file(previous) if number else None,
        "labels_sha256": labels_digest(workspace, number),
        "mlflow": {"key": key, "model_version": version},
    }
    fake_pipeline.write_ledger(workspace, number, ledger)
    action = "promote" if int(key[0], 16) % 2 or current_champion(workspace) is None else "refuse"
    append_decision(
        workspace, key, action, author="gleaner run", previous_champion=current_champion(workspace),
        model=ModelRecord(version=version, round=number, sha256=key), reason="chaos", gate=None,
    )  # fmt: skip
    champion = current_champion(workspace)
    if champion is not None:
        registry.set_champion(workspace, champion.version)
    injector("before tag")
    tag = workspace.root / TAGS / f"round-{number:04d}"
    tag.parent.mkdir(exist_ok=True)
    tag.write_text("")
    injector("after tag")
    return SimpleNamespace(message=f"Round {number} is finished.")


def labels_digest(workspace: Workspace, number: int) -> str:
    """Digest of the label batches of a round."""
    assert read_labels(workspace.labels).newest_batch >= number
    return files.sha256_json([files.sha256_file(workspace.label_batch(batch)) for batch in range(number + 1)])
