"""Define what every reader yields: boxes, images, classes, problems and counts of one document."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

AnnotationFormat = Literal["coco", "voc", "yolo", "label_studio", "cvat", "dota", "visdrone", "ground_truth"]
Status = Literal["labeled", "empty", "skipped"]
ShapeKind = Literal["box", "rotated", "polygon", "rle", "ellipse"]
Units = Literal["px", "fraction"]
Corners = tuple[float, float, float, float]

STATUSES: tuple[Status, ...] = get_args(Status)
SHAPE_KINDS: tuple[ShapeKind, ...] = get_args(ShapeKind)
NO_CORNERS: Corners = (float("nan"),) * 4
"""Of a box whose numbers could not be read; it has a problem."""
MAX_CLASS_NAME = 100


@dataclass(frozen=True, slots=True)
class ParsedBox:
    """One object of an image as its document states it, unchecked against the image."""

    category: str | None
    """Class name; None only where there is a problem."""
    xyxy: Corners
    """Left, top, right, bottom edge, 0-based and continuous; in ``ParsedImage.units``. Of another shape than a
    box: its bounding box."""
    kind: ShapeKind = "box"
    """What was drawn. Anything but ``box`` is more than the bounding box tells."""
    has_stated_box: bool = True
    """Whether ``xyxy`` stands in the document itself, or was derived from the shape."""
    rotation_deg: float = 0.0
    """Of a rotated rectangle, clockwise."""
    is_crowd: bool = False
    """A region of many objects (COCO ``iscrowd``): neither an object nor background."""
    is_ignored: bool = False
    """The document leaves it out of evaluation (COCO ``ignore``, VOC and DOTA ``difficult``, VisDrone ``score`` 0)."""
    score: float | None = None
    """Confidence, where a model drew it."""
    doubt: float | None = None
    """That class or place are wrong, where a model drew it. Written to COCO, read from no format."""
    runner_up: tuple[str, float] | None = None
    """The next likeliest class and its score, where a model drew it. Written to COCO, read from no format."""
    entry: str = ""
    """Where in the image's entry or document it stands: ``annotations[17]``, ``line 3``."""
    problem: str | None = None
    """Why it cannot be used: ``<what> is <value>, expected <allowed>``."""
    attributes: Mapping[str, Any] | None = None
    """Where it comes from, by name. Written to COCO, read from no format."""


@dataclass(frozen=True, slots=True)
class ParsedImage:
    """What a document says about one image; one annotator's answer where several have answered."""

    name: str
    """As written; of a format with one file per image, the path of that file."""
    entry: str
    """Where it stands, for messages: ``annotations.json: images[3]``."""
    boxes: Sequence[ParsedBox] = ()
    alternative_names: tuple[str, ...] = ()
    """Other names the document has for the image, used where ``name`` finds nothing."""
    image_id: str | None = None
    """Gleaner's own id of the image, where the document carries it."""
    width_px: int | None = None
    height_px: int | None = None
    units: Units = "px"
    """``fraction``: the format has fractions of the image's sides, and its size was not known."""
    status: Status | None = None
    """What the document states in words; None: nothing. A listed image is not a reviewed one."""
    annotator: str | None = None
    finished_at: str | None = None
    """ISO 8601."""
    seconds_spent: float | None = None
    sha256: str | None = None
    """Of the image's bytes."""
    tags: tuple[str, ...] = ()
    """Labels of the image as a whole."""
    predicted: tuple[ParsedBox, ...] = ()
    """Boxes a model proposed, which nobody has confirmed."""
    task_id: str | None = None
    annotation_id: str | None = None
    problems: tuple[str, ...] = ()
    """Of the image's entry as a whole; those of single boxes are at the boxes."""

    @property
    def is_usable(self) -> bool:
        """Whether neither the entry nor any of its boxes has a problem."""
        return self.first_problem is None

    @property
    def first_problem(self) -> str | None:
        """The first problem of the entry or of one of its boxes, in words."""
        if self.problems:
            return self.problems[0]
        broken = getattr(self.boxes, "broken", None)  # rows of a table need not become objects for this
        boxes = self.boxes if broken is None else broken()
        return next((f"{box.entry}: {box.problem}" for box in boxes if box.problem), None)

    def with_size(self, width_px: int, height_px: int) -> "ParsedImage":
        """Convert fractions to pixels; boxes that are in pixels stay."""
        if self.units == "px":
            return self
        size = (width_px, height_px, width_px, height_px)
        boxes = tuple(_scaled(box, size) for box in self.boxes)
        predicted = tuple(_scaled(box, size) for box in self.predicted)
        return replace(self, boxes=boxes, predicted=predicted, units="px", width_px=width_px, height_px=height_px)


def _scaled(box: ParsedBox, size: tuple[int, int, int, int]) -> ParsedBox:
    x1, y1, x2, y2 = (value * side for value, side in zip(box.xyxy, size, strict=True))
    return replace(box, xyxy=(x1, y1, x2, y2))


@dataclass(frozen=True, slots=True)
class ParsedClass:
    """A class of the document, with or without boxes."""

    id: int | str
    """As the document numbers it."""
    name: str
    """Without surrounding blanks."""
    is_group: bool = False
    """It only stands above other classes (COCO ``supercategory``), as Roboflow's root class does."""


@dataclass(frozen=True, slots=True)
class EntryProblem:
    """An entry that belongs to no image, or a remark about one."""

    entry: str
    text: str


@dataclass(frozen=True)
class DocumentCounts:
    """Numbers of a document that add up."""

    images_listed: int
    images_good: int
    images_with_problem: int
    """The entry itself, or one of its boxes, has a problem."""
    images_repeated: int
    """Listed again, word for word."""
    boxes_listed: int
    boxes_good: int
    boxes_with_problem: int
    boxes_stray: int
    """They belong to no image of the document."""
    boxes_crowd: int
    """Part of ``boxes_good``."""
    boxes_by_kind: dict[ShapeKind, int]
    """Of ``boxes_good``."""

    @property
    def balance(self) -> bool:
        """Whether everything listed is accounted for."""
        images = self.images_good + self.images_with_problem + self.images_repeated
        boxes = self.boxes_good + self.boxes_with_problem + self.boxes_stray
        kinds = sum(self.boxes_by_kind.values())
        return (images, boxes, kinds) == (self.images_listed, self.boxes_listed, self.boxes_good)


@dataclass(frozen=True)
class ParsedDocument:
    """One annotation file, or one folder of them, read."""

    format: AnnotationFormat
    where: str
    """Name of the file or folder, for messages."""
    classes: tuple[ParsedClass, ...]
    """In the document's order, also those without boxes."""
    images: tuple[ParsedImage, ...]
    problems: tuple[EntryProblem, ...] = ()
    """Entries that are no images: broken classes, side files."""
    strays: tuple[EntryProblem, ...] = ()
    """Annotations of images that the document does not list."""
    notes: tuple[EntryProblem, ...] = ()
    """What was read all the same: repeated entries, another encoding."""
    images_repeated: int = 0
    near_equal_names: tuple[tuple[str, ...], ...] = ()
    """Class names that differ by letter case, blanks or hyphens only, as written."""
    annotator: str | None = field(default=None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in order, each once, without groups."""
        return tuple(dict.fromkeys(known.name for known in self.classes if not known.is_group))

    @cached_property
    def counts(self) -> DocumentCounts:
        """Count images and boxes by what became of them."""
        with_problem = listed = good = crowd = images_with_problem = 0
        by_kind: dict[ShapeKind, int] = dict.fromkeys(SHAPE_KINDS, 0)
        for image in self.images:
            broken_before = with_problem
            tally = getattr(image.boxes, "tally", None)
            if tally is not None:
                num, num_broken, num_crowd, kinds = tally()
                listed, with_problem, crowd = listed + num, with_problem + num_broken, crowd + num_crowd
                for kind, number in kinds.items():
                    by_kind[kind] += number
            else:
                for box in image.boxes:
                    listed += 1
                    with_problem += box.problem is not None
                    if box.problem is None:
                        crowd += box.is_crowd
                        by_kind[box.kind] += 1
            images_with_problem += bool(image.problems) or with_problem > broken_before
        good = listed - with_problem
        return DocumentCounts(
            images_listed=len(self.images) + self.images_repeated,
            images_good=len(self.images) - images_with_problem,
            images_with_problem=images_with_problem,
            images_repeated=self.images_repeated,
            boxes_listed=listed + len(self.strays),
            boxes_good=good,
            boxes_with_problem=with_problem,
            boxes_stray=len(self.strays),
            boxes_crowd=crowd,
            boxes_by_kind=by_kind,
        )


def numbered_classes(names: Iterable[str]) -> tuple[ParsedClass, ...]:
    """Number the classes of a document that states no ids, in the order given."""
    return tuple(ParsedClass(number, name) for number, name in enumerate(names))


def near_equal_names(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Find groups of class names that differ only by letter case, blanks, hyphens or underscores."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        groups[re.sub(r"[\s_\-]+", "", folded) or folded][name] = None
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def class_name_problem(name: str) -> str | None:
    """Say why a class name (without surrounding blanks) cannot be used; None: it can."""
    if 0 < len(name) <= MAX_CLASS_NAME and not re.search(r"[\x00-\x1f\ud800-\udfff]", name):
        return None
    return f"the class name is {name[:40]!r}, expected 1 to {MAX_CLASS_NAME} printable characters"
