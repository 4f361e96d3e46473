"""A label provider of one's own: batches and annotations are exchanged as files of JSON lines.

``provider.url`` is a folder. A batch goes out as ``batch-0001.tasks.jsonl``, the lines of the manifest. Annotations
come back in ``batch-0001.annotations.jsonl``: one line per annotation, with the keys of ``RawAnnotation`` in
``flows/annotation/providers/base.py``. Gleaner checks every annotation; a provider only has to hand them over.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, ProviderError, RawAnnotation
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params import Params
from tasks.storage import files


class JsonLinesProvider:
    """Every method may be called again with the same batch: a run that was killed repeats its calls."""

    name = "json-lines"

    def __init__(self, workspace: Workspace, params: Params) -> None:
        """Keep the folder; a relative one is relative to the campaign."""
        self._folder = workspace.root / params.provider.url

    def check(self) -> None:
        """Refuse a folder that is not there, before the stages of a run."""
        if not self._folder.is_dir():
            raise ProviderError(self._folder, "the folder is missing, expected provider.url", "Make the folder.")

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Write the tasks of the batch; the file is the same however often it is written."""
        self.check()
        path = self._path(delivery, "tasks.jsonl")
        files.write_bytes(path, (delivery.folder / "manifest.jsonl").read_bytes())
        return path.name

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count the images with an annotation, and the others."""
        finished = {raw.get("image_id") for raw in self.collect(delivery)} & set(delivery.image_ids)
        return LabelingProgress(finished=len(finished), open=len(delivery.image_ids) - len(finished))

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return every annotation written so far."""
        path = self._path(delivery, "annotations.jsonl")
        if not path.is_file():
            return []
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise ProviderError(path, f"a line is not JSON ({error}), expected one object per line") from None

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """List the images that nobody needs to label any more, beside those that were withdrawn before."""
        path = self._path(delivery, "withdrawn.json")
        before = files.read_json(path) if path.is_file() else []
        files.write_json(path, sorted({*before, *image_ids}))

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Keep the tasks as they are: annotators of this tool may have begun with any of them."""
        return ()

    def _path(self, delivery: AnnotationBatch, suffix: str) -> Path:
        return self._folder / f"batch-{delivery.batch:04d}.{suffix}"
