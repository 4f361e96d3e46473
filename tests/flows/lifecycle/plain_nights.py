"""Nights in milliseconds: real collection, door, books and delivery; without Prefect, DVC, git, MLflow and stages.

Deriving is one step here: it picks from what is neither answered nor leased, as ``assemble`` and ``select`` do.
Every effect on the disk and at the provider is announced to a fuse, which may end the night there.
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

import flows.night
from flows.labels.deliveries import all_deliveries, read_delivery
from flows.labels.leases import ImageState, image_states
from flows.night import Tonight, one_round_further
from flows.position import NightResult
from flows.records.ledger import FORMAT
from tasks import files
from tasks.contracts import FROZEN, UNCERTAINTY, WEIGHTS, HandoffTask, LabelBatch, LabeledImage
from tasks.label_store import read_batch, read_labels
from tasks.params import Params, load_params
from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool

POOL = [f"{number:016x}" for number in range(1, 13)]
SEED = "f" * 16
BATCH = 3
_REPOSITORY = Path(__file__).parents[3]
LEASE_DAYS = 14.0


def params_with(**changes: Any) -> Params:
    """The repository's, with classes of our own; ``nightly`` and ``provider`` fields by name."""
    whole = load_params(_REPOSITORY / "params.yaml")
    sections = {
        name: section.model_copy(update={key: value for key, value in changes.items() if hasattr(section, key)})
        for name, section in (("nightly", whole.nightly), ("provider", whole.provider))
    }
    return whole.model_copy(update={"classes": ["bright", "dark"], **sections})


PARAMS = params_with(lease_days=LEASE_DAYS, max_open_images=100)


class Killed(BaseException):
    """As SIGKILL, as far as one process can be killed and go on."""


class Fuse:
    """Counts effects; ``blow`` is called at the one with the given number."""

    def __init__(self, at: int | None = None, blow: Callable[[], None] | None = None) -> None:
        self.at, self.blow, self.effects = at, blow, 0
        self.seen: list[str] = []

    def __call__(self, what: str) -> None:
        self.effects += 1
        self.seen.append(what)
        if self.effects == self.at:
            self._die()

    def _die(self) -> None:
        if self.blow is not None:
            self.blow()
        raise Killed


def make_plain_campaign(root: Path) -> Workspace:
    """Label batch 0 with one image; twelve others to pick from."""
    workspace = Workspace(root)
    label = LabeledImage(
        image_id=SEED,
        status="empty",
        boxes=(),
        annotator="imported",
        finished_at="2026-01-01T00:00:00+00:00",
        seconds_spent=None,
        offered_in=0,
    )
    batch = LabelBatch(batch=0, provider="imported", collected_at=label.finished_at, images=(label,))
    files.write_json(workspace.label_batch(0), batch.model_dump(mode="json"))
    files.write_table(workspace.frozen_batch(0), FROZEN.empty_table())
    files.write_table(workspace.previous / "uncertainty.parquet", UNCERTAINTY.empty_table())
    return workspace


def plain_night(workspace: Workspace, tool: LabelTool, params: Params, fuse: Fuse | None = None) -> NightResult:
    """One night; the fuse may end it at any effect.

    Raises:
        ProviderError: at the end, as ``flows.night.night`` does.
    """
    fuse = fuse or Fuse()
    announced = LabelTool(
        tool.path,
        before=lambda call: (tool.before(call), fuse(f"before {call}"))[0],
        after=lambda call: (tool.after(call), fuse(f"after {call}"))[0],
    )
    with _without_engine(tool, fuse):
        tonight = Tonight(workspace, params, announced)
        result = one_round_further(tonight)
        if tonight.troubles:
            raise tonight.troubles[0]
        return result


def nights_until_quiet(workspace: Workspace, tool: LabelTool, params: Params) -> list[NightResult]:
    """Nights that nobody disturbs, until one of them has nothing to do."""
    results = []
    for _ in range(10):
        results.append(plain_night(workspace, tool, params))
        if results[-1].outcome != "finished":
            return results
    raise AssertionError("the campaign never comes to rest")


@contextmanager
def _without_engine(tool: LabelTool, fuse: Fuse) -> Iterator[None]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return tool.now.astimezone(tz)

    night = "flows.night"
    replaced: dict[str, Any] = {
        f"{night}.get_run_logger": lambda: logging.getLogger("night"),
        f"{night}.collect_labels": flows.night.collect_labels.fn,
        f"{night}.deliver_batch": flows.night.deliver_batch.fn,
        f"{night}.derive_and_publish": lambda tonight, number: _derived(tonight.workspace, number),
        f"{night}.datetime": Clock,
        "flows.labels.deliveries.datetime": Clock,
        "flows.vcs.commit": lambda *_: fuse("commit"),
        "flows.vcs.campaign_id": lambda _: "campaign",
        "flows.vcs.has_tag": lambda *_: True,
        "flows.data_versions.add": lambda *_: fuse("add"),
        "tasks.files.replacing": _announced_replacing(fuse),
        "flows.labels.deliveries.shutil.copyfile": _announced(fuse, shutil.copyfile, "copy"),
        "pathlib.Path.rename": _announced(fuse, Path.rename, "rename"),
        "pathlib.Path.unlink": _announced(fuse, Path.unlink, "unlink"),
    }
    with ExitStack() as stack:
        for name, stand_in in replaced.items():
            stack.enter_context(patch(name, stand_in))
        yield


def _announced(fuse: Fuse, effect: Callable[..., Any], what: str) -> Callable[..., Any]:
    def announced(*arguments: Any, **options: Any) -> Any:
        fuse(f"before {what}")
        result = effect(*arguments, **options)
        fuse(f"after {what}")
        return result

    return announced


def _announced_replacing(fuse: Fuse) -> Callable[[Path], Any]:
    """As the real one, without fsync: what is tested here is the order of effects."""

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        fuse(f"before {path.name}")
        yield temporary
        temporary.replace(path)
        fuse(f"after {path.name}")

    return replacing


def _derived(workspace: Workspace, number: int) -> SimpleNamespace:
    store = read_labels(workspace.labels)
    assert store.newest_batch == number
    free = [image_id for image_id in POOL if image_id not in store.answers and image_id not in store.leased]
    free.sort(key=lambda image_id: hashlib.sha256(f"{number}{image_id}".encode()).hexdigest())
    tasks = [
        HandoffTask(
            image_id=image_id,
            uri=f"{image_id}.png",
            width_px=40,
            height_px=32,
            rank=rank,
            reason="test",
            uncertainty=0.5,
            predictions=(),
            model_digest=str(number),
        )
        for rank, image_id in enumerate(free[:BATCH], start=1)
    ]
    out = workspace.derived("handoff")
    _put(out / "manifest.jsonl", "".join(f"{task.model_dump_json()}\n" for task in tasks))
    for stage, name in (
        ("handoff", "detections.parquet"),
        ("report", "history.json"),
        ("weigh", "class_weights.json"),
        ("train", "teacher.pth"),
    ):
        _put(workspace.derived(stage) / name, f"of round {number}")
    rows = [{"image_id": SEED, "w_confidence": 1.0, "w_entropy": 0.0, "w_overlap": 0.0, "uncertainty": 0.5}]
    files.write_table(workspace.derived("weigh") / "weights.parquet", pa.Table.from_pylist(rows, schema=WEIGHTS))

    ledger = {"format": FORMAT, "figures": {"teacher": {"AP50": 0.0}}}
    manifest = files.sha256_file(out / "manifest.jsonl")
    files.write_json(workspace.ledger(number), {**ledger, "manifest_sha256": manifest})
    return SimpleNamespace(message=f"Round {number} is finished.")


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def images(workspace: Workspace, batch: int) -> tuple[str, ...]:
    delivery = read_delivery(workspace, batch)
    assert delivery is not None
    return delivery.image_ids


def batch_file(workspace: Workspace, batch: int) -> LabelBatch:
    return read_batch(workspace.label_batch(batch))


def states(workspace: Workspace) -> dict[ImageState, int]:
    found = image_states(all_deliveries(workspace), read_labels(workspace.labels))
    return {state: count for state, count in found.items() if count}
