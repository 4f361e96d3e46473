"""Find out which annotations lie in a folder or zip archive, which splits they make up, and read them.

Of many files of one kind in one folder a few are looked into; reading names whatever is wrong in the rest.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from tasks.data.archives import FileSource
from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import AnnotationFormat, ParsedDocument
from tasks.data.formats.coco import parse_coco
from tasks.data.formats.cvat import parse_cvat
from tasks.data.formats.decoding import decode_text
from tasks.data.formats.dota import parse_dota_files
from tasks.data.formats.ground_truth import parse_ground_truth
from tasks.data.formats.label_studio import parse_label_studio
from tasks.data.formats.recognize import classify, is_image
from tasks.data.formats.visdrone import parse_visdrone_files
from tasks.data.formats.voc import parse_voc_files
from tasks.data.formats.yolo import YoloClasses, parse_yolo_classes, parse_yolo_files
from tasks.data.names import ImageIndex
from tasks.runtime.formatting import count

Split = Literal["train", "val", "test", "all"]

_TITLES: dict[str, str] = {
    "coco": "COCO JSON",
    "voc": "Pascal VOC XML",
    "yolo": "YOLO",
    "label_studio": "Label Studio JSON",
    "cvat": "CVAT for images XML",
    "dota": "DOTA text",
    "visdrone": "VisDrone text",
    "ground_truth": "augmented manifest",
}
_SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
ONE_FILE: dict[AnnotationFormat, Callable[[bytes, str], ParsedDocument]] = {
    "coco": parse_coco,
    "label_studio": parse_label_studio,
    "cvat": parse_cvat,
    "ground_truth": parse_ground_truth,
}
"""Readers of formats with one file for many images: of its content and name."""
FILE_PER_IMAGE: dict[AnnotationFormat, Callable[[Iterable[tuple[str, bytes]], str], ParsedDocument]] = {
    "dota": parse_dota_files,
    "visdrone": parse_visdrone_files,
}
"""Readers of formats with one file per image that need no class names: of (path, content) and the folder's name."""
_VISDRONE_FOLDER = re.compile(r"visdrone.*-(train|val|test)(?:-[a-z]+)?")
_BESIDE_INSTANCES = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
_ORDER: tuple[Split, ...] = ("train", "val", "test", "all")


@dataclass(frozen=True)
class FoundSplit:
    """Annotations of one part of a data set."""

    split: Split
    annotations: tuple[str, ...]
    """Paths inside the source: one JSON or XML file, or one file per image."""
    image_folders: tuple[str, ...]
    """Folders, relative to the source, in which images of the split lie; '' is the source itself."""
    num_images: int
    """Image files in these folders."""
    image_list: str | None = None
    """A file that names the images of the split, where the annotations are not sorted into folders."""


@dataclass(frozen=True)
class FoundDataset:
    """A data set in one format, with its splits."""

    format: AnnotationFormat
    tool: str | None
    """The tool whose export it looks like."""
    splits: tuple[FoundSplit, ...]
    classes_file: str | None = None
    """``data.yaml``, ``classes.txt``, ``obj.names`` or CVAT's ``labelmap.txt``."""

    def describe(self) -> str:
        """Say what was found, in one line."""
        made_by = f", as {self.tool} exports it" if self.tool else ""
        return f"{_TITLES[self.format]}{made_by}; " + "; ".join(_split_words(split) for split in self.splits)


@dataclass(frozen=True)
class Detection:
    """Everything found in a folder or archive."""

    where: str
    datasets: tuple[FoundDataset, ...]
    num_images: int
    unsupported: dict[str, str] = field(default_factory=dict)
    """Annotation files of formats that are not read, with the format's name."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of the files that are neither images nor annotations, by ending."""

    def describe(self) -> str:
        """Say what was found, a line each."""
        lines = [f"{self.where}: {count(self.num_images, 'image')}"]
        lines += [f"  {found.describe()}" for found in self.datasets] or ["  no annotations"]
        for path, name in list(self.unsupported.items())[:5]:
            lines.append(f"  {path}: {name}, which is not read")
        if self.passed_over:
            counts = ", ".join(f"{number} {ending or 'without ending'}" for ending, number in self.passed_over.items())
            lines.append(f"  passed over: {counts}")
        return "\n".join(lines)

    def only(self, wanted: AnnotationFormat | None = None) -> FoundDataset:
        """Return the one data set, or the one of the wanted format.

        Raises:
            UnsupportedFormatError: there is none, or several.
        """
        found = [known for known in self.datasets if wanted in (None, known.format)]
        if len(found) == 1:
            return found[0]
        formats = ", ".join(known.format for known in found) or "none"
        if not found and self.unsupported:
            path, name = next(iter(self.unsupported.items()))
            formats = f"{name} ({path})"
        fix = "Name one with --format." if found else "Export the data as COCO, Pascal VOC, YOLO, CVAT or Label Studio."
        raise UnsupportedFormatError(self.where, f"the annotation format is {formats}, expected exactly one", fix)


def detect(source: FileSource) -> Detection:
    """Find out what lies in a folder or archive."""
    kinds = classify(source)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        by_kind[kind.split(":")[0]].append(name)
    images = [name for name in source.names() if is_image(name)]
    tool = _tool(source.names(), by_kind)
    found = [
        FoundDataset(kind, tool, tuple(_documents(by_kind[kind], images)), None) for kind in ONE_FILE if by_kind[kind]
    ]
    labelmap = next((name for name in source.names() if _last(name) == "labelmap.txt"), None)
    if by_kind["voc"]:
        found.append(FoundDataset("voc", tool, tuple(_sheets(by_kind["voc"], images, source)), labelmap))
    if by_kind["yolo"]:
        classes_file = _best_classes_file(by_kind["yolo_classes"])
        splits = tuple(_label_files(by_kind["yolo"], by_kind["image_list"], images, source))
        found.append(FoundDataset("yolo", tool, splits, classes_file))
    found += [
        FoundDataset(kind, None, tuple(_label_files(by_kind[kind], by_kind["image_list"], images, source)))
        for kind in FILE_PER_IMAGE
        if by_kind[kind]
    ]
    others = Counter(PurePosixPath(name).suffix.lower() for name in by_kind["other"])
    return Detection(
        where=source.where,
        datasets=tuple(found),
        num_images=len(images),
        unsupported={name: kinds[name].split(":", 1)[1] for name in by_kind["unsupported"]},
        passed_over=dict(others.most_common()),
    )


def read_split(
    source: FileSource,
    found: FoundDataset,
    split: FoundSplit,
    *,
    classes: YoloClasses | None = None,
    size_of: Callable[[str], tuple[int, int] | None] | None = None,
) -> ParsedDocument:
    """Read the annotations of one split.

    Args:
        source: where they lie.
        found: what ``detect`` said of the data set.
        split: one of its splits.
        classes: what YOLO's class numbers mean; None: as the source's own file says.
        size_of: gives the image size of a YOLO label file's path, where it is known.

    Raises:
        UserError: a document is unreadable as a whole, or YOLO's class numbers mean nothing.
    """
    first = split.annotations[0]
    if found.format in ONE_FILE:
        return ONE_FILE[found.format](source.read(first), first)
    files = ((name, source.read(name)) for name in split.annotations)
    where = _common_folder(split.annotations) or source.where
    if found.format == "voc":
        labelmap = source.read(found.classes_file) if found.classes_file else None
        return parse_voc_files(files, where, labelmap=labelmap)
    if found.format in FILE_PER_IMAGE:
        return FILE_PER_IMAGE[found.format](files, where)
    if classes is None:
        if found.classes_file is None:
            problem = "the class names are missing, expected data.yaml, classes.txt or obj.names beside the labels"
            raise UnsupportedFormatError(source.where, problem, "Add classes.txt with one class name a line.")
        classes = parse_yolo_classes(source.read(found.classes_file), found.classes_file)
    return parse_yolo_files(files, where, classes, size_of)


def _documents(files: Sequence[str], images: Sequence[str]) -> Iterator[FoundSplit]:
    """Splits of a format with one file for many images: each file is one."""
    if any(_last(name).startswith("instances_") for name in files):  # COCO's own set has captions and keypoints beside
        files = [name for name in files if not _last(name).startswith(_BESIDE_INSTANCES)]
    for name in sorted(files, key=lambda name: (_ORDER.index(split_of(name)), name)):
        split = split_of(name)
        folders = _folders_of(images, split, near=str(PurePosixPath(name).parent), alone=len(files) == 1)
        yield _split(split, [name], folders, images)


def _sheets(files: Sequence[str], images: Sequence[str], source: FileSource) -> Iterator[FoundSplit]:
    """Splits of Pascal VOC: by folders, or by the lists in ``ImageSets``."""
    lists: dict[Split, str] = {}
    for name in source.names():
        split = _SPLIT_WORDS.get(PurePosixPath(name).stem.lower())
        if split and "imagesets" in name.lower().split("/"):
            lists.setdefault(split, name)  # in order of the names: train.txt before trainval.txt
    by_split = _by_split(files)
    if set(by_split) == {"all"} and lists:
        ordered = sorted(lists.items(), key=lambda item: _ORDER.index(item[0]))
        yield from _by_lists(files, ordered, images, source, words_of=_first_words)
    else:
        yield from _by_folder(by_split, images)


def _label_files(
    files: Sequence[str], image_lists: Sequence[str], images: Sequence[str], source: FileSource
) -> Iterator[FoundSplit]:
    """Splits of text files with one image each: by folders, or by lists of images."""
    by_split = _by_split(files)
    if set(by_split) == {"all"} and image_lists:
        lists = sorted(((split_of(name), name) for name in image_lists), key=lambda x: _ORDER.index(x[0]))
        yield from _by_lists(files, lists, images, source, words_of=_lines)
    else:
        yield from _by_folder(by_split, images)


def _by_lists(
    files: Sequence[str],
    lists: Sequence[tuple[Split, str]],
    images: Sequence[str],
    source: FileSource,
    words_of: Callable[[str], Iterable[str]],
) -> Iterator[FoundSplit]:
    """Splits by lists of images; annotation files that no list names are a split of their own."""
    index, left = ImageIndex(files), dict.fromkeys(files)
    folders = _folders_of(images, "all", near="", alone=True)
    for split, name in lists:
        found = dict.fromkeys(index.find(word).found for word in words_of(decode_text(source.read(name))[0]))
        named = [file for file in found if file is not None and file in left]
        for file in named:
            del left[file]
        if named:
            yield _split(split, named, folders, images, name)
    if left:
        yield _split("all", list(left), folders, images)


def _first_words(text: str) -> Iterator[str]:
    return (line.split()[0] for line in text.splitlines() if line.split())


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())


def _by_split(files: Iterable[str]) -> dict[Split, list[str]]:
    by_split: dict[Split, list[str]] = defaultdict(list)
    for name in files:
        by_split[split_of(str(PurePosixPath(name).parent) + "/", folders_only=True)].append(name)
    return by_split


def _by_folder(by_split: Mapping[Split, Sequence[str]], images: Sequence[str]) -> Iterator[FoundSplit]:
    for split in sorted(by_split, key=_ORDER.index):
        near = _common_folder(by_split[split])
        yield _split(split, by_split[split], _folders_of(images, split, near=near, alone=len(by_split) == 1), images)


def _split(
    split: Split, files: Sequence[str], folders: Sequence[str], images: Sequence[str], image_list: str | None = None
) -> FoundSplit:
    chosen = set(folders)
    number = sum(_folder(name) in chosen for name in images)
    return FoundSplit(split, tuple(files), tuple(folders), number, image_list)


def split_of(name: str, *, folders_only: bool = False) -> Split:
    """Say which split a path names: by a folder, else by a word of the file name (``instances_val2017.json``)."""
    pure = PurePosixPath(name)
    for part in reversed(pure.parts if folders_only else pure.parts[:-1]):
        if found := _SPLIT_WORDS.get(re.sub(r"[0-9]+$", "", part.lower())):
            return found
        if named := _VISDRONE_FOLDER.fullmatch(part.lower()):  # VisDrone2019-DET-train, VisDrone2019-DET-test-dev
            return _SPLIT_WORDS[named.group(1)]
    if not folders_only:
        for word in re.findall(r"[a-z]+", pure.stem.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return "all"


def _folders_of(images: Sequence[str], split: Split, *, near: str, alone: bool) -> tuple[str, ...]:
    """Folders with images of a split: those named like it, else those beside the annotations, else all."""
    folders = sorted({_folder(name) for name in images})
    if split != "all":
        named = [folder for folder in folders if split_of(folder, folders_only=True) == split]
        if named:
            return tuple(named)
    if not alone:
        below = [folder for folder in folders if near not in ("", ".") and f"{folder}/".startswith(f"{near}/")]
        if below:
            return tuple(below)
    return tuple(folders)


def _folder(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def _last(name: str) -> str:
    return PurePosixPath(name).name.lower()


def _common_folder(files: Sequence[str]) -> str:
    parts = [PurePosixPath(name).parent.parts for name in files]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def _best_classes_file(files: Sequence[str]) -> str | None:
    """``data.yaml`` before other lists, the uppermost first."""
    return min(
        files,
        key=lambda name: (not name.lower().endswith((".yaml", ".yml")), len(PurePosixPath(name).parts), name),
        default=None,
    )


def _tool(names: Sequence[str], by_kind: Mapping[str, Sequence[str]]) -> str | None:
    lasts = {_last(name) for name in names}
    if "readme.roboflow.txt" in lasts or "_annotations.coco.json" in lasts or any(".rf." in last for last in lasts):
        return "Roboflow"
    if by_kind["label_studio"] or "notes.json" in lasts:
        return "Label Studio"
    if by_kind["ground_truth"]:
        return "Amazon SageMaker Ground Truth"
    is_cvat = "labelmap.txt" in lasts or "instances_default.json" in lasts or "obj.data" in lasts
    return "CVAT" if by_kind["cvat"] or is_cvat else None


def _split_words(split: FoundSplit) -> str:
    if len(split.annotations) == 1:
        annotations = split.annotations[0]
    else:
        folder = _common_folder(split.annotations)
        annotations = count(len(split.annotations), "annotation file") + (f" in {folder}/" if folder else "")
    listed = f" by {split.image_list}" if split.image_list else ""
    folders = ", ".join(f"{folder}/" if folder else "the top folder" for folder in split.image_folders[:3])
    more = f" and {len(split.image_folders) - 3} more folders" if len(split.image_folders) > 3 else ""
    images = f"{count(split.num_images, 'image')} in {folders}{more}" if split.image_folders else "no images"
    return f"{split.split}: {annotations}{listed}, {images}"
