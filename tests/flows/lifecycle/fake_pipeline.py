"""Run rounds in milliseconds: real collection, validation, label batches and delivery; no Prefect, DVC, git or stages.

The stages are one step here, which selects from the images that are neither annotated nor leased, as ``assemble`` and
``select`` do. Every effect on the disk and at the provider passes a fault injector, which may end the run there.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa

import flows.nightly
from flows.annotation.batches import ImageState, all_annotation_batches, image_states, read_annotation_batch
from flows.nightly import advance_round
from flows.run_context import RunContext
from flows.workspace.lock import Lock, LockOwner, ProcessIdentity
from flows.workspace.rounds import LEDGER_FORMAT, RunResult
from tasks.data.label_store import LabelStore, read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    DETECTIONS_AT_SELECTION,
    PREVIOUS_UNCERTAINTY,
    UNCERTAINTY,
    AnnotationTask,
    LabelBatch,
    LabeledImage,
    Prediction,
)
from tasks.params import Params, load_params
from tasks.storage import files
from tests.flows.lifecycle.fake_provider import FakeProvider

POOL = [f"{number:016x}" for number in range(1, 13)]
SEED = "f" * 16
BATCH_SIZE = 3
_REPOSITORY = Path(__file__).parents[3]
LEASE_DAYS = 14.0
ADVISES_TO_STOP = "advises-to-stop"
"""File in the campaign; while it exists, rounds advise to stop."""
CHECKS_A_LABEL = "checks-a-label"
"""File in the campaign; while it exists, every batch asks to check one label that was not checked yet."""


def params_with(**changes: Any) -> Params:
    """Load the repository's parameters, with other classes and changed fields of ``nightly`` and ``provider``."""
    whole = load_params(_REPOSITORY / "params.yaml")
    sections = {
        name: section.model_copy(update={key: value for key, value in changes.items() if hasattr(section, key)})
        for name, section in (("nightly", whole.nightly), ("provider", whole.provider))
    }
    return whole.model_copy(update={"classes": ["bright", "dark"], **sections})


PARAMS = params_with(lease_days=LEASE_DAYS, max_pending_images=100)


class SimulatedCrash(BaseException):
    """A kill, which no code under test catches."""


class FaultInjector:
    """Counts effects, and ends the run at the one with number ``at``."""

    def __init__(self, at: int | None = None, on_fault: Callable[[], None] | None = None) -> None:
        self.at, self.on_fault, self.num_effects = at, on_fault, 0
        self.effect_names: list[str] = []

    def __call__(self, what: str) -> None:
        self.num_effects += 1
        self.effect_names.append(what)
        if self.num_effects == self.at:
            self._crash()

    def _crash(self) -> None:
        if self.on_fault is not None:
            self.on_fault()
        raise SimulatedCrash


def make_fake_campaign(root: Path) -> Workspace:
    """Create a campaign with one image in label batch 0 and twelve to select from."""
    workspace = Workspace(root)
    label = LabeledImage(
        image_id=SEED,
        status="empty",
        boxes=(),
        annotator="imported",
        finished_at="2026-01-01T00:00:00+00:00",
        seconds_spent=None,
        offered_batch=0,
    )
    batch = LabelBatch(batch=0, provider="imported", collected_at=label.finished_at, images=(label,))
    files.write_json(workspace.label_batch(0), batch.model_dump(mode="json"))
    files.write_table(workspace.detections_at_selection_batch(0), DETECTIONS_AT_SELECTION.empty_table())
    files.write_table(workspace.warm_start / "uncertainty.parquet", PREVIOUS_UNCERTAINTY.empty_table())
    return workspace


def run_fake_round(
    workspace: Workspace, provider: FakeProvider, params: Params, injector: FaultInjector | None = None
) -> RunResult:
    """Run one round; the fault injector may end it at any effect.

    Raises:
        ProviderError: at the end, as ``flows.nightly.nightly`` does.
    """
    injector = injector or FaultInjector()
    traced = FakeProvider(
        provider.path,
        before=lambda call: (provider.before(call), injector(f"before {call}"))[0],
        after=lambda call: (provider.after(call), injector(f"after {call}"))[0],
    )
    with _patched_services(provider, injector):
        context = RunContext(workspace, params, traced, Lock(workspace.lock, LockOwner(ProcessIdentity.own(), "")))
        result = advance_round(context)
        if context.provider_errors:
            raise context.provider_errors[0]
        return result


def run_until_idle(workspace: Workspace, provider: FakeProvider, params: Params) -> list[RunResult]:
    """Run rounds without faults until one of them has nothing to do."""
    results = []
    for _ in range(10):
        results.append(run_fake_round(workspace, provider, params))
        if results[-1].outcome != "completed":
            return results
    raise AssertionError("the campaign never becomes idle")


@contextmanager
def _patched_services(provider: FakeProvider, injector: FaultInjector) -> Iterator[None]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return provider.now.astimezone(tz)

    flow = "flows.nightly"
    replaced: dict[str, Any] = {
        f"{flow}.get_run_logger": lambda: logging.getLogger("nightly"),
        f"{flow}.collect_labels": flows.nightly.collect_labels.fn,
        f"{flow}.deliver_batch": flows.nightly.deliver_batch.fn,
        f"{flow}.derive_and_publish": lambda context, number: _fake_round_outputs(context.workspace, number),
        f"{flow}.datetime": Clock,
        "flows.annotation.batches.datetime": Clock,
        "flows.workspace.git.commit": lambda *_: injector("commit"),
        "flows.workspace.git.campaign_id": lambda _: "campaign",
        "flows.workspace.git.has_tag": lambda *_: True,
        "flows.workspace.dvc.add": lambda *_: injector("add"),
        "tasks.storage.files.atomic_write": _traced_replacing(injector),
        "flows.annotation.batches.shutil.copyfile": _traced(injector, shutil.copyfile, "copy"),
        "pathlib.Path.rename": _traced(injector, Path.rename, "rename"),
        "pathlib.Path.unlink": _traced(injector, Path.unlink, "unlink"),
    }
    with ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(patch(name, replacement))
        yield


def _traced(injector: FaultInjector, effect: Callable[..., Any], what: str) -> Callable[..., Any]:
    def traced(*arguments: Any, **options: Any) -> Any:
        injector(f"before {what}")
        result = effect(*arguments, **options)
        injector(f"after {what}")
        return result

    return traced


def _traced_replacing(injector: FaultInjector) -> Callable[[Path], Any]:
    """Replace files like the real one, without fsync: the order of effects is tested here."""

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        injector(f"before {path.name}")
        yield temporary
        temporary.replace(path)
        injector(f"after {path.name}")

    return replacing


def _fake_round_outputs(workspace: Workspace, number: int) -> SimpleNamespace:
    write_round_outputs(workspace, number)
    write_ledger(workspace, number, {})
    return SimpleNamespace(message=f"Round {number} is finished.")


def write_round_outputs(workspace: Workspace, number: int) -> None:
    """Write what the stages of a round hand to the delivery."""
    store = read_labels(workspace.labels)
    assert store.newest_batch == number
    free = [image_id for image_id in POOL if image_id not in store.current and image_id not in store.leased]
    free.sort(key=lambda image_id: hashlib.sha256(f"{number}{image_id}".encode()).hexdigest())
    opened = [image_id for image_id in POOL if image_id in store.leased and image_id not in store.current]
    out = workspace.derived("handoff")
    for name, image_ids in (("manifest.jsonl", free[:BATCH_SIZE]), ("open_tasks.jsonl", opened)):
        tasks = [_fake_task(image_id, rank, number) for rank, image_id in enumerate(image_ids, start=1)]
        if name == "manifest.jsonl" and tasks and (workspace.root / CHECKS_A_LABEL).exists():
            tasks += _check_tasks(store, len(tasks) + 1, number)
        _write_text(out / name, "".join(f"{task.model_dump_json()}\n" for task in tasks))
    for stage, name in (
        ("handoff", "detections.parquet"),
        ("report", "history.json"),
        ("weigh", "class_weights.json"),
        ("weigh", "calibration_outcomes.parquet"),
        ("train", "teacher.pth"),
        ("evaluate", "predictions.parquet"),
    ):
        _write_text(workspace.derived(stage) / name, f"of round {number}")
    rows = [{"image_id": SEED, "w_confidence": 1.0, "w_entropy": 0.0, "w_overlap": 0.0, "uncertainty": 0.5}]
    files.write_table(
        workspace.derived("weigh") / "uncertainty.parquet", pa.Table.from_pylist(rows, schema=UNCERTAINTY)
    )


def write_ledger(workspace: Workspace, number: int, content: dict[str, Any]) -> None:
    """Write the record of a round."""
    advice = "consider_stopping" if (workspace.root / ADVISES_TO_STOP).exists() else "go_on"
    stopping = {"advice": advice, "reason": "nothing more will come"}
    ledger = {"format": LEDGER_FORMAT, "metrics": {"teacher": {"AP50": 0.0}, "stopping": stopping}}
    manifest = files.sha256_file(workspace.derived("handoff") / "manifest.jsonl")
    files.write_json(workspace.ledger(number), {**ledger, "manifest_sha256": manifest, **content})


def _fake_task(image_id: str, rank: int, round_number: int) -> AnnotationTask:
    return AnnotationTask(
        image_id=image_id,
        uri=f"{image_id}.png",
        width_px=40,
        height_px=32,
        rank=rank,
        reason="test",
        uncertainty=0.5,
        predictions=(),
        model_digest=str(round_number),
    )


def _check_tasks(store: LabelStore, rank: int, round_number: int) -> list[AnnotationTask]:
    """Ask to check the first label that was not checked and is not with the annotators, as ``select`` does."""
    doubted = [image_id for image_id in store.current if image_id not in {*store.checks, *store.leased}][:1]
    return [
        _fake_task(image_id, rank, round_number).model_copy(
            update={
                "checks_batch": store.current[image_id].batch,
                "predictions": tuple(
                    Prediction(category=box.category, xyxy_px=box.xyxy_px, score=1.0)
                    for box in store.current[image_id].label.boxes
                ),
            }
        )
        for image_id in doubted
    ]


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def batch_images(workspace: Workspace, batch: int) -> tuple[str, ...]:
    delivery = read_annotation_batch(workspace, batch)
    assert delivery is not None
    return delivery.image_ids


def read_label_batch(workspace: Workspace, batch: int) -> LabelBatch:
    return read_batch(workspace.label_batch(batch))


def count_states(workspace: Workspace) -> dict[ImageState, int]:
    found = image_states(all_annotation_batches(workspace), read_labels(workspace.labels))
    return {state: count for state, count in found.items() if count}
