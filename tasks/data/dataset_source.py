"""Find out what ``gleaner init`` is pointed at: annotations with their splits, and where their images are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from tasks.data.archives import FileSource, open_source
from tasks.data.formats.base import AnnotationFormat, ParsedDocument
from tasks.data.formats.detect import FILE_PER_IMAGE, ONE_FILE, Detection, FoundDataset, FoundSplit, detect, read_split
from tasks.data.formats.ground_truth import ENDINGS as MANIFEST_ENDINGS
from tasks.data.formats.recognize import classify, is_image, recognize
from tasks.data.formats.voc import parse_voc_files
from tasks.data.formats.yolo import YoloClasses, parse_yolo_classes, parse_yolo_files
from tasks.data.image_listing import ImageListing, image_files, list_images
from tasks.data.import_policy import ImportPolicy
from tasks.data.names import ImageIndex
from tasks.runtime.errors import UserError

_PEEK_BYTES = 1 << 16
_DOCUMENT_ENDINGS = (".json", ".xml", *MANIFEST_ENDINGS)
_CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


@dataclass(frozen=True)
class DatasetSource:
    """What ``gleaner init`` is pointed at: an export as a whole, or images and annotations apart."""

    annotation_format: AnnotationFormat | None = None
    """None: recognized by content."""
    annotations: Path | None = None
    """An annotation file, or a folder of them. None with ``dataset``."""
    images: Path | ImageListing | None = None
    """Every picture below it belongs to the pool, annotated or not. None with ``dataset``, which has its own."""
    val: Path | None = None
    """The fixed validation set: annotations in any format, or a text file with one image of ``annotations`` a line
    (its name, or its name without ending). None: the split of the data set, else drawn at random."""
    val_images: Path | ImageListing | None = None
    """Images of ``val``; None: ``images``."""
    dataset: Path | None = None
    """An export: a folder or zip archive with annotations, images and perhaps splits."""
    classes: tuple[str, ...] = ()
    """Class names to put first, in this order, whether or not they have boxes yet. For YOLO labels without a list of
    class names, what the numbers mean."""
    policy: ImportPolicy = field(default_factory=ImportPolicy)

    @property
    def where(self) -> Path:
        """What messages name."""
        found = self.dataset or self.annotations
        if found is None:
            raise UserError("gleaner init", "the annotations are missing, expected --dataset or --annotations")
        return found


@dataclass
class Part:
    """Annotations of one split, and the images they may mean."""

    split: Literal["train", "val"]
    listing: ImageListing
    names: Sequence[str]
    """Image files of the listing that the annotations may mean."""
    documents: list[ParsedDocument]


@dataclass
class OpenedSource:
    """Everything that was found, read but not yet judged."""

    where: Path
    format: AnnotationFormat
    parts: list[Part]
    listings: list[ImageListing]
    """Each once; the first is that of the pool."""
    pool_names: Sequence[str]
    """Image files of the first listing that may enter the pool."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Image files of the first listing that belong to a split which is not used, and its name."""
    num_annotation_files: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Annotation files in each listing, by ending; keys are positions in ``listings``."""
    found: Sequence[str] = ()
    """What was found and which split becomes what, a line each."""
    val_list: Path | None = None
    pool_folder: str | None = ""
    """Folder of the first listing that holds the pool and nothing else; None: there is none."""

    @property
    def has_val(self) -> bool:
        """Whether the source brings its own validation set."""
        return self.val_list is not None or any(part.split == "val" for part in self.parts)


def open_dataset(source: DatasetSource, *, max_pixels: int) -> OpenedSource:
    """Find and read all annotations of a source.

    Raises:
        UserError: something is missing, or unreadable as a whole.
    """
    opened = _open_export(source, max_pixels) if source.dataset else _open_files(source, max_pixels)
    return opened if source.val is None else _with_val(opened, source, source.val, max_pixels)


def _open_files(source: DatasetSource, max_pixels: int) -> OpenedSource:
    if source.images is None:
        raise UserError("gleaner init", "the images are missing, expected --dataset or --images")
    listing = list_images(source.images, max_pixels=max_pixels, follow_links=source.policy.follow_links)
    path = source.where
    documents, files = read_annotations(path, source.annotation_format, source)
    names = list(listing.names())
    return OpenedSource(
        where=path,
        format=documents[0].format,
        parts=[Part("train", listing, names, documents)],
        listings=[listing],
        pool_names=names,
        num_annotation_files={0: _inside(source.images, path, files)},
    )


def _inside(images: Path | ImageListing, annotations: Path, files: Sequence[str]) -> dict[str, int]:
    """Endings of the annotation files that lie below the images folder, with their number."""
    if not isinstance(images, Path) or not annotations.resolve().is_relative_to(images.resolve()):
        return {}
    return _by_ending(name for name in files if not any(part.startswith(".") for part in PurePosixPath(name).parts))


def _by_ending(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(PurePosixPath(name).suffix.lower() for name in names))


def read_annotations(
    path: Path, wanted: AnnotationFormat | None, source: DatasetSource
) -> tuple[list[ParsedDocument], list[str]]:
    """Read an annotation file, or a folder or zip archive of them as one set.

    Returns:
        The documents, and the names of the files they were read from.

    Raises:
        UserError: missing, of no known format, or unreadable as a whole.
    """
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        files = open_source(path, follow_links=source.policy.follow_links)
        if wanted in ("voc", "yolo", *FILE_PER_IMAGE):
            return _read_per_image(files, path, wanted, source)
        found = detect(files).only(wanted)
        documents = [read_split(files, found, split, classes=_classes_for(found, source)) for split in found.splits]
        return documents, [name for split in found.splits for name in split.annotations]
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"the annotations are unreadable ({error.strerror}), expected a file or folder"
        raise UserError(path, problem, "Check --annotations.") from None
    kind = wanted or recognize(path.name, content[:_PEEK_BYTES], content[-_PEEK_BYTES:], content)
    if kind in ONE_FILE:
        return [ONE_FILE[kind](content, path.name)], [path.name]
    if kind == "voc":
        return [parse_voc_files([(path.name, content)], path.name)], [path.name]
    if kind in FILE_PER_IMAGE:
        return [FILE_PER_IMAGE[kind]([(path.name, content)], path.name)], [path.name]
    problem = f"the annotation format is {kind.removeprefix('unsupported:')}, expected one of {_known_formats()}"
    raise UserError(path, problem, "YOLO labels are a folder. Name another format with --format.")


def _known_formats() -> str:
    return ", ".join(get_args(AnnotationFormat))


def _read_per_image(
    files: FileSource, path: Path, wanted: AnnotationFormat, source: DatasetSource
) -> tuple[list[ParsedDocument], list[str]]:
    """All files of a format that has one for each image, whatever else lies there."""
    if wanted == "voc":
        names = [name for name in files.names() if name.lower().endswith(".xml")]
        _require_any(names, path, "XML files")
        labelmap = next((name for name in files.names() if name.rpartition("/")[2].lower() == "labelmap.txt"), None)
        content = None if labelmap is None else files.read(labelmap)
        return [parse_voc_files(((name, files.read(name)) for name in names), path.name, labelmap=content)], names
    kinds = classify(files)
    names = [name for name, kind in kinds.items() if kind in (wanted, "blank", "other") and name.endswith(".txt")]
    _require_any(names, path, "text files with labels")
    if wanted in FILE_PER_IMAGE:
        return [FILE_PER_IMAGE[wanted](((name, files.read(name)) for name in names), path.name)], names
    lists = [name for name, kind in kinds.items() if kind == "yolo_classes"]
    classes = _yolo_classes(files, lists, path, source)
    return [parse_yolo_files(((name, files.read(name)) for name in names), path.name, classes)], [*names, *lists]


def _require_any(names: Sequence[str], path: Path, what: str) -> None:
    if not names:
        raise UserError(path, f"{what} are 0, expected at least 1", "Check --annotations and --format.")


def _yolo_classes(files: FileSource, lists: Sequence[str], path: Path, source: DatasetSource) -> YoloClasses:
    """Class names from a list among the labels or beside their folder, else as the user states them."""
    if lists:
        name = min(lists, key=lambda name: (not name.endswith((".yaml", ".yml")), name.count("/"), name))
        return parse_yolo_classes(files.read(name), name)
    for folder in (path.parent, path.parent.parent):
        for name in _CLASS_FILES:
            if (folder / name).is_file():
                return parse_yolo_classes((folder / name).read_bytes(), name)
    if source.classes:
        return YoloClasses(source.classes, {})
    problem = "the class names are missing, expected data.yaml, classes.txt or obj.names beside the labels"
    raise UserError(path, problem, "Give them with --classes, in the order of their numbers.")


def _classes_for(found: FoundDataset, source: DatasetSource) -> YoloClasses | None:
    is_needed = found.format == "yolo" and found.classes_file is None and bool(source.classes)
    return YoloClasses(source.classes, {}) if is_needed else None


def _open_export(source: DatasetSource, max_pixels: int) -> OpenedSource:
    """A whole export: its splits become the pool and the validation set."""
    path = source.where
    if path.is_file() and path.suffix.lower() in _DOCUMENT_ENDINGS:
        problem = "the data set is a single annotation file, expected a folder or a zip archive"
        raise UserError(path, problem, "Give it with --annotations, and its images with --images.")
    files = open_source(path, follow_links=source.policy.follow_links)
    detection = detect(files)
    found = detection.only(source.annotation_format)
    if source.images is not None:
        listing = list_images(source.images, max_pixels=max_pixels, follow_links=source.policy.follow_links)
    else:
        listing = image_files(files, max_pixels=max_pixels, follow_links=source.policy.follow_links)
    names = list(listing.names())
    if not names:
        raise UserError(path, "the images are 0, expected at least 1", "Give their folder with --images.")
    roles = _roles(found, source)
    has_own_images = source.images is None
    parts = []
    left_out: dict[str, str] = {}
    for split, role in zip(found.splits, roles, strict=True):
        split_names = _names_in(split, names) if has_own_images else names
        if role == "leave-out":
            left_out |= dict.fromkeys(_names_left_out(files, found, split, source, split_names), split.split)
            continue
        document = read_split(files, found, split, classes=_classes_for(found, source))
        parts.append(Part(role, listing, split_names, [document]))
    left_out = {name: split for name, split in left_out.items() if name not in _used_folders(parts, found, roles)}
    held_out = _held_out(parts, has_own_images) | left_out.keys()
    pool_names = [name for name in names if name not in held_out]
    return OpenedSource(
        where=path,
        format=found.format,
        parts=_merged(parts),
        listings=[listing],
        pool_names=pool_names,
        left_out=left_out,
        num_annotation_files={0: _annotation_files(found) if has_own_images else {}},
        found=_describe(detection, found, roles),
        pool_folder=_pool_folder(pool_names, held_out) if has_own_images and path.is_dir() else None,
    )


def _roles(found: FoundDataset, source: DatasetSource) -> list[Literal["train", "val", "leave-out"]]:
    """What each split becomes. The only split of a data set is trained on, whatever it is called."""
    if len({split.split for split in found.splits}) == 1:
        return ["train"] * len(found.splits)
    roles: list[Literal["train", "val", "leave-out"]] = []
    for split in found.splits:
        if split.split == "val":
            roles.append("val")
        elif split.split == "test":
            roles.append(source.policy.test_split)
        else:
            roles.append("train")
    if "train" not in roles:
        splits = ", ".join(split.split for split in found.splits)
        problem = f"the splits are {splits}, expected one to train on"
        raise UserError(source.where, problem, "Give the annotations with --annotations and --val.")
    if source.val is not None and "val" in roles:
        raise UserError(source.where, "the data set has a validation split, expected none beside --val", "Leave one.")
    return roles


def _names_in(split: FoundSplit, names: Sequence[str]) -> list[str]:
    folders = set(split.image_folders)
    return [name for name in names if _folder(name) in folders]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _names_left_out(
    files: FileSource, found: FoundDataset, split: FoundSplit, source: DatasetSource, names: Sequence[str]
) -> list[str]:
    """Images of a split that is not used: all in its folders, or those that its annotations list in a shared one."""
    others = {folder for other in found.splits if other is not split for folder in other.image_folders}
    if source.images is None and not others & set(split.image_folders):
        return list(names)
    document = read_split(files, found, split, classes=_classes_for(found, source))
    matches = ImageIndex(names).match_all((image.name, image.alternative_names) for image in document.images)
    return [match.found for match in matches if match.found is not None]


def _used_folders(parts: Sequence[Part], found: FoundDataset, roles: Sequence[str]) -> set[str]:
    """Names that a used split lists too, in folders of its own."""
    if not any(role == "leave-out" for role in roles):
        return set()
    left = {
        folder
        for split, role in zip(found.splits, roles, strict=True)
        if role == "leave-out"
        for folder in split.image_folders
    }
    return {name for part in parts for name in part.names if _folder(name) not in left}


def _held_out(parts: Sequence[Part], has_own_images: bool) -> set[str]:
    """Images in folders that only validation has; in a shared folder the annotations decide."""
    if not has_own_images:
        return set()
    train = {name for part in parts if part.split == "train" for name in part.names}
    return {name for part in parts if part.split == "val" for name in part.names if name not in train}


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Parts of one split with the same images become one, so that an image listed in two documents is noticed."""
    merged: list[Part] = []
    for part in parts:
        known = next((other for other in merged if other.split == part.split and other.names == part.names), None)
        if known is None:
            merged.append(part)
        else:
            known.documents += part.documents
    return merged


def _annotation_files(found: FoundDataset) -> dict[str, int]:
    names = {name for split in found.splits for name in split.annotations}
    names |= {split.image_list for split in found.splits if split.image_list}
    if found.classes_file:
        names.add(found.classes_file)
    return _by_ending(sorted(name for name in names if not is_image(name)))


def _pool_folder(pool_names: Sequence[str], held_out: set[str]) -> str | None:
    """The deepest folder that holds the whole pool; None where it holds other images as well."""
    parts = [PurePosixPath(name).parent.parts for name in pool_names]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    prefix = "".join(f"{part}/" for part in shared)
    return None if any(name.startswith(prefix) for name in held_out) else prefix


def _describe(detection: Detection, found: FoundDataset, roles: Sequence[str]) -> list[str]:
    becomes = {
        "train": "becomes the pool and its labels",
        "val": "becomes the validation set",
        "leave-out": "is left out (--test-split uses it)",
    }
    lines = [detection.describe()]
    for split, role in zip(found.splits, roles, strict=True):
        lines.append(f"  {split.split} {becomes[role]}")
    return lines


def _with_val(opened: OpenedSource, source: DatasetSource, val: Path, max_pixels: int) -> OpenedSource:
    """Add the validation set that the user names."""
    if val.is_file() and val.suffix.lower() not in (*_DOCUMENT_ENDINGS, ".zip"):
        opened.val_list = val
        return opened
    if not val.exists():
        problem = (
            "the validation list is unreadable (No such file or directory), expected a text file with one image a line"
        )
        raise UserError(val, problem, "Check --val.")
    # A folder or file of the format of the annotations, unless it is plainly of another one.
    wanted = opened.format if val.is_dir() and opened.format in ("voc", "yolo", *FILE_PER_IMAGE) else None
    documents, _ = read_annotations(val, wanted, source)
    if source.val_images is None or source.val_images == source.images:
        listing, names = opened.listings[0], list(opened.listings[0].names())
    else:
        listing = list_images(source.val_images, max_pixels=max_pixels, follow_links=source.policy.follow_links)
        names = list(listing.names())
        opened.listings.append(listing)
    opened.parts.append(Part("val", listing, names, documents))
    return opened
