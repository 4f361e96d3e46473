"""Convert tasks of the manifest to tasks of Label Studio and back: labeling configuration, images and boxes.

The configuration shows the image, why it was selected, and a button for each class. Label Studio gives boxes in percent
of the image's sides. Its COCO export is not used: class ids there follow the alphabet, file names are Label Studio's
own, and Gleaner's image ids are missing.

Images have addresses that do not expire. What a browser does not show as the model sees it (TIFF, HEIC, CMYK,
animations, a PNG turned by EXIF, ...) is converted to PNG. The copies have the same size in pixels, so boxes fit; they
are made again where they were deleted.
"""

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from flows.annotation.providers.base import AnnotationBatch, ProviderError, RawAnnotation, to_raw_annotation
from flows.annotation.providers.label_studio_client import LabelStudioClient, Project
from tasks.data.formats.label_studio import parse_tasks
from tasks.data.images import ImageSource, encode_png, is_shown_by_browsers, translate_image_errors
from tasks.data.paths import Workspace, resolve_uri
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.s3 import is_object_uri

CONTROL, IMAGE = "label", "image"
"""Names of the two tags that every region refers to."""
_HOTKEYS = "1234567890"
_PALETTE = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#8C564B",
    "#7F3FBF",
    "#17BECF",
    "#BCBD22",
    "#E377C2",
    "#2CA02C",
    "#FF9896",
    "#1F3A93",
    "#AEC7E8",
    "#A65628",
    "#98DF8A",
    "#B2182B",
    "#5E3C99",
]
"""The first seven are those of Okabe and Ito, which are distinguishable with color blindness."""
MODEL_VERSION = "gleaner"
"""``model_version`` of every prediction. The label stream shows the predictions of one version per project only: with
the teacher's digest as version, tasks of the last batch would lose theirs as soon as the next batch is imported. The
digest is in the task's data instead."""
_SHORT_DIGEST = 12
_EXPORT = "export of Label Studio"
_LOCAL_FILES_URL = "/data/local-files/?d="
_NOT_SHOWN_ENDINGS = frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"})
"""Objects of a store are fetched only where their ending says that browsers may not show them."""


def labeling_config(classes: Sequence[str]) -> str:
    """Build the configuration; a class keeps its color and key when others are appended.

    The first ten classes get the keys 1 to 9 and 0; Label Studio assigns free letters to the others.
    """
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$about", size="5")
    control = ET.SubElement(view, "RectangleLabels", name=CONTROL, toName=IMAGE, canRotate="false", strokeWidth="2")
    for number, name in enumerate(classes):
        label = ET.SubElement(control, "Label", value=name, background=_PALETTE[number % len(_PALETTE)])
        if number < len(_HOTKEYS):
            label.set("hotkey", _HOTKEYS[number])
    ET.SubElement(view, "Image", name=IMAGE, value="$image", zoom="true", zoomControl="true", rotateControl="false")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def config_error(config: str, classes: Sequence[str]) -> str | None:
    """Return why boxes drawn with a configuration could not be read; None: they can.

    Teams may change colors and keys, and add classes and tags.
    """
    try:
        root = ET.fromstring(config)
    except ET.ParseError as error:
        return f"the labeling configuration is no XML ({error})"
    control = root.find(f".//RectangleLabels[@name='{CONTROL}'][@toName='{IMAGE}']")
    if control is None or root.find(f".//Image[@name='{IMAGE}'][@value='$image']") is None:
        return f"the labeling configuration has no RectangleLabels {CONTROL!r} on an Image {IMAGE!r}"
    configured = {label.get("value") for label in control.iter("Label")}
    if missing := [name for name in classes if name not in configured]:
        return f"the labeling configuration lacks {', '.join(map(repr, missing))}, expected all classes of params.yaml"
    return None


def to_task(task: AnnotationTask, delivery: AnnotationBatch, image: str, image_sha256: str | None) -> dict[str, Any]:
    """Build one task for the import.

    Args:
        task: of the manifest.
        delivery: the batch it is offered in.
        image: where Label Studio finds the image: a path it serves, or an s3 uri.
        image_sha256: digest of the image's bytes; None for images in an object store, which are not read.
    """
    return {
        "data": {
            "image": image,
            "image_id": task.image_id,
            "image_sha256": image_sha256,
            "delivery": delivery.key,
            "batch": delivery.batch,
            "width_px": task.width_px,
            "height_px": task.height_px,
            **changing_data(task, delivery),
        },
        "predictions": [to_prediction(task)] if task.predictions else [],
    }


def changing_data(task: AnnotationTask, delivery: AnnotationBatch) -> dict[str, Any]:
    """Return the fields of a task's data that a newer teacher changes.

    ``priority`` is the rank as a text that sorts like a number: the Data Manager orders a task's data as text.
    """
    doubts = [box.doubt for box in task.predictions if box.doubt is not None]
    return {
        "about": f"Batch {delivery.batch}, rank {task.rank}: {task.reason}",
        "rank": task.rank,
        "priority": f"{task.rank:06d}",
        "reason": task.reason,
        "largest_doubt": max(doubts, default=None),
        "teacher": short_digest(task),
    }


def short_digest(task: AnnotationTask) -> str:
    """Return the beginning of the digest of the teacher that has drawn the boxes."""
    return task.model_digest[:_SHORT_DIGEST]


def to_prediction(task: AnnotationTask) -> dict[str, Any]:
    """Build the pre-drawn boxes of a task, the least sure one first: Label Studio lists them in this order."""
    scores = [prediction.score for prediction in task.predictions]
    by_doubt = sorted(enumerate(task.predictions), key=lambda item: (-(item[1].doubt or 0.0), item[0]))
    return {
        "model_version": MODEL_VERSION,
        "score": sum(scores) / len(scores),
        "result": [_region(number, box, task) for number, box in by_doubt],
    }


def _region(number: int, box: Prediction, task: AnnotationTask) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy_px
    return {
        "id": f"teacher-{number}",
        "type": "rectanglelabels",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_width": task.width_px,
        "original_height": task.height_px,
        "image_rotation": 0,
        "score": box.score,
        **_note(box),
        "value": {
            "x": 100 * x1 / task.width_px,
            "y": 100 * y1 / task.height_px,
            "width": 100 * (x2 - x1) / task.width_px,
            "height": 100 * (y2 - y1) / task.height_px,
            "rotation": 0,
            "rectanglelabels": [box.category],
        },
    }


def _note(box: Prediction) -> dict[str, Any]:
    """Name the next likeliest class and the doubt in the region's note, which its details show."""
    text = []
    if box.runner_up is not None:
        text.append(f"or {box.runner_up.category} ({box.runner_up.score:.2f})")
    if box.doubt is not None:
        text.append(f"doubt {box.doubt:.2f}")
    return {"meta": {"text": text}} if text else {}


def parse_export(tasks: Sequence[Any], emails: Mapping[int, str], project_url: str) -> list[RawAnnotation]:
    """Return the annotations of exported tasks: of each annotator and image the newest that is not skipped.

    An annotator who only skipped the image has one that is skipped.

    Args:
        tasks: as ``exportType=JSON`` returns them. Anything may be missing or wrong in them.
        emails: e-mail addresses of the users, by number.
        project_url: address of the project, for links to the tasks.
    """
    latest: dict[tuple[str, str], RawAnnotation] = {}
    for number, image in enumerate(parse_tasks(tasks, _EXPORT).images):
        if image.annotation_id is None and image.status is None and not image.problems:
            continue  # listed without an annotation
        raw = to_raw_annotation(
            image,
            annotator=_annotator_name(image.annotator, emails),
            answer_id=image.annotation_id,
            url=None if image.task_id is None else f"{project_url}/data?task={image.task_id}",
        )
        # Two annotations without an annotator may be two people's.
        key = (repr(raw["image_id"]), repr(number) if raw["annotator"] is None else raw["annotator"])
        if key not in latest or _priority(raw) >= _priority(latest[key]):
            latest[key] = raw
    return list(latest.values())


def _priority(raw: RawAnnotation) -> tuple[bool, str]:
    """Sort key; Label Studio writes times in one format and in UTC, so they sort as text."""
    return raw["status"] != "skipped", str(raw["finished_at"])


def _annotator_name(annotator: str | None, emails: Mapping[int, str]) -> str | None:
    """Return the e-mail address, or the user's number where the user was deleted."""
    if annotator is None or not annotator.isdecimal():
        return annotator
    return emails.get(int(annotator)) or f"user {annotator}"


class TaskImages:
    """The images of one workspace, as a Label Studio on the same file system serves them."""

    def __init__(self, workspace: Workspace, local_files_root: str) -> None:
        """Resolve ``local_files_root``, the folder that Label Studio serves; absolute, or relative to the workspace."""
        self._root = workspace.root.resolve()
        self._document_root = (self._root / local_files_root).resolve()
        self._images_folder = workspace.images.resolve()
        self._converted_folder = self._root / workspace.scratch("label_studio").relative_to(workspace.root)
        self._source = ImageSource(self._root)
        self._served_files: dict[str, Path | None] = {}

    def check(self) -> None:
        """Refuse a workspace whose images Label Studio cannot serve.

        Raises:
            UserError: they are not below the served folder.
        """
        if not self._root.is_relative_to(self._document_root):
            problem = f"provider.local_files_root is {self._document_root}, expected a folder above {self._root}"
            raise UserError("params.yaml", problem, "Set it to the folder that Label Studio serves, such as '..'.")

    def url(self, task: AnnotationTask) -> str:
        """Return ``image`` of the task: the s3 uri, or a path that Label Studio serves.

        Raises:
            UserError: the image cannot be read.
        """
        served = self.served_file(task)
        if served is None:
            return task.uri
        return _LOCAL_FILES_URL + quote(served.relative_to(self._document_root).as_posix())

    def has_moved(self, address: object, task: AnnotationTask) -> bool:
        """Tell whether Label Studio looks for a local image where it is not any more.

        Raises:
            UserError: the image cannot be read.
        """
        is_local = isinstance(address, str) and address.startswith(_LOCAL_FILES_URL)
        return is_local and address != self.url(task)

    def served_file(self, task: AnnotationTask) -> Path | None:
        """Return the local file that annotators see, converted where browsers need that; None: an object as it is.

        Raises:
            UserError: the image cannot be read.
        """
        if task.image_id not in self._served_files:
            self._served_files[task.image_id] = self._prepare_file(task)
        return self._served_files[task.image_id]

    def restore_converted(self, tasks: Iterable[AnnotationTask]) -> None:
        """Make the converted copies again that open tasks refer to and that were deleted.

        Raises:
            UserError: an image cannot be read.
        """
        for task in tasks:
            self.served_file(task)

    def sha256(self, task: AnnotationTask) -> str | None:
        """Return the digest of the image's own bytes; None for images in an object store, which are not read.

        Raises:
            UserError: the file cannot be read.
        """
        if is_object_uri(task.uri):
            return None
        return self._digest(resolve_uri(self._root, task.uri))

    def grant_access(self, client: LabelStudioClient, project: Project, tasks: Iterable[AnnotationTask]) -> None:
        """Allow the project to show the images, and verify that one of each folder is served.

        Raises:
            UserError: as ``check``, or an image cannot be read.
            ProviderError: Label Studio does not serve an image, or serves another file of that name.
        """
        served = [(task, self.served_file(task)) for task in tasks]
        buckets = {urlsplit(task.uri).netloc for task, path in served if path is None}
        for bucket in sorted(buckets - set(client.list_buckets(project)) if buckets else ()):
            client.add_s3_storage(project, bucket)
        first_in: dict[Path, tuple[AnnotationTask, Path]] = {}
        for task, path in served:
            if path is not None:
                first_in.setdefault(self._folder(path), (task, path))
        if not first_in:
            return
        self.check()
        allowed = client.list_local_folders(project)
        for folder, (task, path) in first_in.items():
            if str(folder) not in allowed:
                self._create_storage(client, project, folder)
            self._verify(task, path, client)

    def _prepare_file(self, task: AnnotationTask) -> Path | None:
        is_object = is_object_uri(task.uri)
        if is_object and PurePosixPath(urlsplit(task.uri).path).suffix.lower() not in _NOT_SHOWN_ENDINGS:
            return None
        converted = self._converted_folder / f"{task.image_id}.png"
        if converted.is_file():  # written at once, and the name is the digest
            return converted
        with translate_image_errors(task.uri):
            if self._source.open(task.uri, task.image_id, is_shown_by_browsers):
                return None if is_object else resolve_uri(self._root, task.uri)
            files.write_bytes(converted, self._source.open(task.uri, task.image_id, encode_png))
        return converted

    def _folder(self, path: Path) -> Path:
        return self._converted_folder if path.is_relative_to(self._converted_folder) else self._images_folder

    def _digest(self, path: Path) -> str:
        try:
            return files.sha256_file(path)
        except OSError as error:
            raise UserError(path, f"the image cannot be read ({error.strerror})", "Run: dvc checkout") from None

    def _create_storage(self, client: LabelStudioClient, project: Project, folder: Path) -> None:
        try:
            client.add_local_storage(project, str(folder))
        except ProviderError as error:
            if error.transient:
                raise
            raise ProviderError(error.where, error.problem, self._help_text()) from None

    def _verify(self, task: AnnotationTask, path: Path, client: LabelStudioClient) -> None:
        expected = self._digest(path)
        content = client.fetch_file(self.url(task))
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            found = "not served" if content is None else "another file there"
            problem = f"the image {task.uri} is {found}, expected the one of this workspace"
            raise ProviderError(f"Label Studio at {client.url}", problem, self._help_text())

    def _help_text(self) -> str:
        return (
            "Start Label Studio on this machine with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={self._document_root}, or set provider.local_files_root in "
            "params.yaml."
        )
