"""What ``gleaner autolabel`` needs of the campaign's history and of people: a model's detections, and audit answers."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import AnnotationBatch, RawAnnotation
from flows.annotation.providers.folder import read_inbox
from flows.annotation.providers.folder_outbox import offered_images, publish_batch
from flows.annotation.providers.oracle import OracleProvider
from flows.provenance.snapshot import RoundSnapshot, load_snapshots, resolve_model_ref
from flows.workspace.module_runner import run_module
from tasks.autolabel.evidence import ModelRef, find_stored_detections
from tasks.autolabel.run import AutolabelResult
from tasks.data.annotations import MarkedBoxes, labeled_boxes
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Box, LabeledImage
from tasks.params import Params, validate_params
from tasks.runtime.errors import UserError
from tasks.selection.inputs import input_paths
from tasks.storage import files
from tasks.storage.backends import LocalStorage

_AUDIT = "audit"
_TEACHER = "derived/train/teacher.pth"
_DONE = "done.json"


@dataclass(frozen=True)
class FoundModel:
    """A model of the campaign, and the round that trained it."""

    ref: ModelRef
    snapshot: RoundSnapshot


def find_model(workspace: Workspace, model_ref: str | None) -> FoundModel:
    """Find the champion, or the model of a reference.

    Raises:
        UserError: there is no finished round, or no such model.
    """
    number = resolve_model_ref(workspace, model_ref)
    snapshot = load_snapshots(workspace)[number]
    return FoundModel(ModelRef(number, snapshot.model_version, snapshot.ledger["teacher"]["sha256"]), snapshot)


def require_outputs(workspace: Workspace) -> None:
    """Refuse a clone that holds the record of a round but not its files.

    Raises:
        UserError: names the first one that is missing.
    """
    paths = [workspace.derived("prepare") / "pool.parquet", *input_paths(workspace).values()]
    for path in (*paths, workspace.derived("assemble") / "calibration.parquet"):
        if not path.exists():
            raise UserError(path, "the output of the newest round is missing, expected it here", "Run: dvc checkout")


def detections_of(workspace: Workspace, params: Params, found: FoundModel, on_line: Callable[[str], None]) -> Path:
    """Return a folder with the model's detections: that of the newest round where they are its own, else a new one.

    New ones are kept below ``.gleaner`` until the images change; a killed detection goes on where it was.

    Raises:
        UserError: the model has other classes than the campaign has today, or its detection fails.
    """
    stored = find_stored_detections(workspace, found.ref)
    if stored is not None:
        return stored
    raw_params = found.snapshot.raw_params()
    if list(raw_params["classes"]) != list(params.classes):
        problem = f"the classes of {found.snapshot.tag} are {raw_params['classes']}, expected {list(params.classes)}"
        raise UserError("MODEL", problem, "Name a model that was trained on today's classes: --model @candidate")
    document = files.parse_yaml(workspace.params.read_text(encoding="utf-8")) | {"model": raw_params["model"]}
    validate_params(document, f"params.yaml of {found.snapshot.tag}")
    assembled = workspace.derived("assemble")
    tables = [files.sha256_file(assembled / f"{name}.parquet") for name in ("unlabeled", "calibration", "labeled")]
    key = files.sha256_json([found.ref.sha256, document["model"], document["infer"], tables])
    folder = workspace.scratch("autolabel") / key[:16]
    if not (folder / _DONE).is_file():
        files.write_bytes(folder / "params.yaml", yaml.safe_dump(document, allow_unicode=True).encode())
        _detect(workspace, found.snapshot.cached_path(_TEACHER), folder, on_line)
        files.write_json(folder / _DONE, {"model_sha256": found.ref.sha256})
    return folder / "infer"


def _detect(workspace: Workspace, teacher: Path, folder: Path, on_line: Callable[[str], None]) -> None:
    arguments = (str(teacher), str(folder / "params.yaml"), str(folder / "infer"))
    run_module(workspace, "tasks.autolabel.detect", arguments, on_line)


def publish_audit(workspace: Workspace, result: AutolabelResult, folder: Path) -> None:
    """Write ``audit/outbox/audit`` as a batch of the folder provider: pictures, accepted boxes and instructions."""
    if not result.audit_tasks:
        return
    content = "".join(task.model_dump_json() + "\n" for task in result.audit_tasks)
    files.write_bytes(folder / _AUDIT / MANIFEST, content.encode())
    delivery = _delivery(folder, result.audit_tasks, result.summary["inputs_sha256"])
    storage = LocalStorage(folder / _AUDIT)
    publish_batch(storage, _AUDIT, delivery, result.audit_tasks, result.classes, workspace.root)


def _delivery(folder: Path, tasks: Sequence[AnnotationTask], key: str) -> AnnotationBatch:
    return AnnotationBatch(
        batch=0,
        key=key,
        folder=folder / _AUDIT,
        image_ids=tuple(task.image_id for task in tasks),
        created_at="1970-01-01T00:00:00+00:00",
        state="delivered",
        receipt=None,
    )


def ask_oracle(workspace: Workspace, params: Params, folder: Path) -> dict[str, MarkedBoxes]:
    """Let the simulated annotator answer the audit.

    Raises:
        UserError: the campaign has no ground truth for it.
    """
    tasks = _tasks(folder)
    provider = OracleProvider(workspace.oracle, params.classes, params.annotator_model, params.seed)
    return _answers(provider.collect(_delivery(folder, tasks, "")), params.classes)[0]


def read_answers(
    folder: Path, labels: Path, classes: Sequence[str], scratch: Path
) -> tuple[dict[str, MarkedBoxes], list[str]]:
    """Read what people made of the audit's images, in any format of the folder provider, by the same readers.

    As with that provider, an image counts as finished where the document says so, where ``reviewed.csv`` names it, or
    where its boxes differ from those that were drawn in.

    Args:
        folder: of the labels.
        labels: file, zip archive or folder.
        classes: class names.
        scratch: empty folder.

    Returns:
        Boxes of the finished images, and what could not be used, in words.

    Raises:
        UserError: the path is missing.
    """
    if not labels.exists():
        raise UserError(labels, "the path is missing, expected a file or folder of annotations")
    parent, name = labels.absolute().parent, labels.name
    if labels.is_file():  # the readers list folders
        (scratch / "inbox").mkdir()
        shutil.copy2(labels, scratch / "inbox" / name)  # with its time: a file that just changed is waited for
        parent, name = scratch, "inbox"
    inbox = read_inbox(LocalStorage(parent), name, offered_images(_tasks(folder), {}), classes, "annotator")
    answers, problems = _answers(inbox.annotations, classes)
    return answers, [*problems, *(str(raw["problem"]) for raw in inbox.problems), *inbox.unfinished]


def _tasks(folder: Path) -> list[AnnotationTask]:
    path = folder / _AUDIT / MANIFEST
    return read_manifest(path) if path.is_file() else []


def _answers(annotations: Sequence[RawAnnotation], classes: Sequence[str]) -> tuple[dict[str, MarkedBoxes], list[str]]:
    """Convert finished annotations; of several of one image the last counts."""
    answers: dict[str, MarkedBoxes] = {}
    problems = []
    for raw in annotations:
        unknown = sorted({str(box["category"]) for box in raw.get("boxes", ())} - set(classes))
        if unknown:
            problems.append(f"{raw['image_id']}: the classes are {unknown}, expected some of {list(classes)}")
        elif "problem" in raw:
            problems.append(f"{raw['image_id']}: {raw['problem']}")
        elif raw["status"] in ("labeled", "empty"):
            answers[raw["image_id"]] = labeled_boxes(_label(raw), classes)
    return answers, problems


def _label(raw: RawAnnotation) -> LabeledImage:
    boxes: list[tuple[Any, bool]] = [(box, bool(box.get("is_crowd"))) for box in raw["boxes"]]
    plain, crowd = (
        tuple(
            Box(category=box["category"], xyxy_px=tuple(box["xyxy_px"])) for box, is_crowd in boxes if is_crowd == kind
        )
        for kind in (False, True)
    )
    return LabeledImage(
        image_id=raw["image_id"],
        status=raw["status"],
        boxes=plain,
        annotator=str(raw["annotator"]),
        finished_at=str(raw["finished_at"]),
        seconds_spent=None,
        offered_batch=0,
        crowd_regions=crowd,
    )
