"""A label provider whose state is a file, which survives the crash of a run as a server does.

It implements the protocol of ``flows.annotation.providers.base`` and asserts what must never happen: one batch
delivered as two, or an image open in two batches.
"""

import json
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, ProviderError, RawAnnotation
from tasks.data.schemas import AnnotationTask

_T = TypeVar("_T")
_START = datetime(2026, 3, 1, tzinfo=UTC)


def no_op(_: str) -> None:
    """Do nothing."""


class FakeProvider:
    """``before`` and ``after`` are called around each call's effect with the call's name; they may raise."""

    name = "tool"

    def __init__(self, path: Path, before: Callable[[str], None] = no_op, after: Callable[[str], None] = no_op) -> None:
        self.path, self.before, self.after = path, before, after
        if not path.is_file():
            self._write({"minutes": 0, "batches": {}})

    # --- as a provider ---

    def check(self) -> None:
        self._with_hooks("check", lambda: None)

    def deliver(self, delivery: AnnotationBatch) -> str:
        def effect() -> str:
            content = self.state
            known = content["batches"].get(str(delivery.batch))
            assert known is None or known["key"] == delivery.key, f"batch {delivery.batch} was delivered as two"
            if known is None:
                taken = self.open_images() & set(delivery.image_ids)
                assert not taken, f"images are open in two batches: {taken}"
                tasks = {image_id: {"open": True, "annotation": None} for image_id in delivery.image_ids}
                content["batches"][str(delivery.batch)] = {"key": delivery.key, "tasks": tasks}
                self._write(content)
            return f"batch {delivery.batch}"

        return self._with_hooks("deliver", effect)

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        def effect() -> LabelingProgress:
            tasks = self._tasks(self.state, delivery.batch).values()
            finished = sum(task["annotation"] is not None for task in tasks)
            return LabelingProgress(finished, sum(task["open"] for task in tasks))

        return self._with_hooks("status", effect)

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        def effect() -> Sequence[RawAnnotation]:
            tasks = self._tasks(self.state, delivery.batch).values()
            return [task["annotation"] for task in tasks if task["annotation"] is not None]

        return self._with_hooks("collect", effect)

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        def effect() -> None:
            content = self.state
            for image_id in image_ids:
                self._tasks(content, delivery.batch)[image_id]["open"] = False
            self._write(content)

        self._with_hooks("withdraw", effect)

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Give open tasks the teacher of ``tasks``, unless somebody has begun."""

        def effect() -> Collection[str]:
            content = self.state
            known = self._tasks(content, delivery.batch)
            for task in tasks:
                found = known[task.image_id]
                # Closed here and open for the campaign: its answer was refused, or the response to its withdrawal lost.
                if found["open"] and found["annotation"] is None and not found.get("begun"):
                    found["teacher"] = task.model_digest
            self._write(content)
            return {task.image_id for task in tasks if known[task.image_id].get("teacher") == task.model_digest}

        return self._with_hooks("refresh", effect)

    # --- as annotators use it ---

    def begin(self, batch: int, image_id: str) -> None:
        """Begin with a task without finishing it."""
        content = self.state
        self._tasks(content, batch)[image_id]["begun"] = True
        self._write(content)

    @property
    def now(self) -> datetime:
        """Time of the provider's clock; a minute passes with every annotation."""
        return _START + timedelta(minutes=self.state["minutes"])

    def advance_days(self, days: float) -> None:
        content = self.state
        content["minutes"] += round(days * 24 * 60)
        self._write(content)

    def annotate(
        self,
        batch: int,
        image_id: str,
        status: str = "labeled",
        width_px: float = 10,
        *,
        clock_skew_days: float = 0,
        **changes: Any,
    ) -> None:
        """Annotate a task, or change its annotation; a withdrawn task may still be annotated.

        ``clock_skew_days``: by how much the annotator's clock is ahead.
        """
        self.advance_days(1 / 24 / 60)
        boxes = [{"category": "dark", "xyxy_px": [2, 2, 2 + width_px, 12]}] if status == "labeled" else []
        content = self.state
        times = {"finished_at": (self.now + timedelta(days=clock_skew_days)).isoformat(), "seconds_spent": 30.0}
        annotation = {"image_id": image_id, "status": status, "boxes": boxes, "annotator": "ann", **times, **changes}
        self._tasks(content, batch)[image_id] |= {"open": False, "annotation": annotation}
        self._write(content)

    def all_tasks(self) -> list[tuple[int, str]]:
        """Return batch and image of every task."""
        batches = self.state["batches"]
        return [(int(batch), image_id) for batch in batches for image_id in batches[batch]["tasks"]]

    def current_annotations(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the current annotations, each with the batch in which its image was offered."""
        content = self.state
        found = [(batch, self._tasks(content, batch)[image_id]["annotation"]) for batch, image_id in self.all_tasks()]
        return [(batch, annotation) for batch, annotation in found if annotation is not None]

    def open_images(self) -> set[str]:
        content = self.state
        return {image for batch, image in self.all_tasks() if self._tasks(content, batch)[image]["open"]}

    @property
    def state(self) -> dict[str, Any]:
        """Content of the file."""
        content: dict[str, Any] = json.loads(self.path.read_text())
        return content

    def _tasks(self, content: dict[str, Any], batch: int) -> dict[str, Any]:
        if str(batch) not in content["batches"]:
            raise ProviderError("tool", f"batch {batch} is unknown, expected one that was delivered")
        tasks: dict[str, Any] = content["batches"][str(batch)]["tasks"]
        return tasks

    def _write(self, content: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self.path)

    def _with_hooks(self, call: str, effect: Callable[[], _T]) -> _T:
        self.before(call)
        result = effect()
        self.after(call)
        return result
