import pytest

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedDocument, ParsedImage
from tasks.data.formats.cvat import parse_cvat, write_cvat
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes

META = """<version>1.1</version><meta><task><id>1</id><labels>
<label><name>crack</name><type>rectangle</type></label>
<label><name>bolt</name><type>any</type></label>
<label><name>blurred</name><type>tag</type></label>
<label><name>tip</name><type>points</type><parent>arm</parent></label>
</labels><assignee><username>ann</username><email>a@example.org</email></assignee></task></meta>"""
BOX = '<box label="bolt" source="manual" occluded="0" xtl="10" ytl="12" xbr="30" ybr="27" z_order="0"%s/>'


def xml(*shapes: str, attributes: str = 'id="0" name="day/p1.jpg" width="96" height="72"') -> str:
    return f"<annotations>{META}<image {attributes}>{''.join(shapes)}</image></annotations>"


def read(text: str) -> ParsedDocument:
    parsed = parse_cvat(text.encode(), "annotations.xml")
    assert parsed.counts.balance
    return parsed


def one(*shapes: str) -> ParsedImage:
    return read(xml(*shapes)).images[0]


def test_boxes_labels_and_sizes_are_read() -> None:
    parsed = read(xml(BOX % "", '<tag label="blurred" source="manual"/>'))
    assert parsed.class_names == ("crack", "bolt")
    assert parsed.annotator == "ann"
    assert "blurred" in parsed.notes[0].text
    found = parsed.images[0]
    assert shapes(found) == [("bolt", (10, 12, 30, 27), "box")]
    assert (found.name, found.width_px, found.tags) == ("day/p1.jpg", 96, ("blurred",))


def test_a_listed_image_states_nothing() -> None:
    assert [image.status for image in (one(), one(BOX % ""))] == [None, None]


@pytest.mark.parametrize("rotation", [' rotation="0.0"', ' rotation="360"', ' rotation="-180"', ' rotation=""'])
def test_an_upright_rotation_is_none(rotation: str) -> None:
    assert shapes(one(BOX % rotation)) == [("bolt", (10, 12, 30, 27), "box")]


def test_other_shapes_are_marked() -> None:
    rotated = one(BOX % ' rotation="37.5"').boxes[0]
    assert (rotated.kind, rotated.rotation_deg) == ("rotated", 37.5)
    assert rotated.xyxy == pytest.approx((7.5008, 7.4622, 32.4992, 31.5378), abs=1e-3)
    found = one(
        '<polygon label="bolt" points="1.5,2;9,2;5,8"/>',
        '<polygon label="bolt" points="1,2;9,2;9,8;1,8"/>',
        '<mask label="bolt" rle="3, 5, 4" left="7" top="8" width="4" height="3"/>',
        '<ellipse label="bolt" cx="20" cy="30" rx="5" ry="4"/>',
    )
    assert shapes(found) == [
        ("bolt", (1.5, 2, 9, 8), "polygon"),
        ("bolt", (1, 2, 9, 8), "box"),
        ("bolt", (7, 8, 11, 11), "rle"),
        ("bolt", (15, 26, 25, 34), "ellipse"),
    ]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (BOX.replace('"10"', '"left"') % "", "attribute xtl of a <box> is 'left'"),
        (BOX.replace('ybr="27"', "") % "", "attribute ybr of a <box> is None"),
        (BOX.replace("bolt", " ") % "", "class name is ''"),
        (BOX % ' rotation="steep"', "rotation of a <box> is 'steep'"),
        ('<box label="bolt" xtl="0.1" ytl="0.1" xbr="0.2" ybr="0.3"/>', "fractions of the image"),
        ('<points label="bolt" points="1,2"/>', "the shape is <points>, expected a box"),
        ('<skeleton label="bolt"><points label="tip" points="1,2"/></skeleton>', "the shape is <skeleton>"),
        ('<polygon label="bolt" points="1,2;3"/>', "expected x,y"),
        ('<polygon label="bolt"/>', "expected 3 or more"),
    ],
)
def test_what_is_wrong_with_a_shape_is_named(shape: str, words: str) -> None:
    found = one(BOX % "", shape)
    assert words in problems(found)[0]
    assert [box.entry for box in found.boxes] == ["shape[0]", "shape[1]"]


def test_broken_images_and_labels_are_problems() -> None:
    parsed = read(xml(attributes='width="a"').replace("<name>crack</name>", "<name/>"))
    assert len(parsed.images[0].problems) == 2
    assert parsed.problems[0].entry == "annotations.xml: meta"


def test_jobs_and_projects_are_read() -> None:
    for tag in ("job", "project"):
        assert (
            read(xml(BOX % "").replace("<task>", f"<{tag}>").replace("</task>", f"</{tag}>")).class_names[0] == "crack"
        )
    found = read(xml(attributes='id="0" name="p1.jpg" subset="train" task_id="3" width="96" height="72"')).images[0]
    assert (found.alternative_names, found.task_id) == (("train/p1.jpg",), "3")


@pytest.mark.parametrize(
    "content",
    [
        xml(BOX % "").replace("bolt", "groß").encode("utf-16"),
        b'<?xml version="1.0" encoding="utf-8"?>' + xml(BOX % "").replace("bolt", "groß").encode("cp1252"),
    ],
)
def test_encodings_are_read(content: bytes) -> None:
    assert parse_cvat(content, "a.xml").class_names == ("crack", "groß")


def test_a_file_cut_short_is_truncated() -> None:
    for cut in (1, 8, 40, 150):
        with pytest.raises(TruncatedFileError):
            parse_cvat(xml(BOX % "").encode()[:-cut], "a.xml")
    with pytest.raises(TruncatedFileError):
        parse_cvat(b"", "a.xml")


@pytest.mark.parametrize(
    "content",
    [
        "<annotation/>",
        "<annotations><track id='0' label='bolt'/></annotations>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>",
        "<annotations><image></annotations>",
    ],
)
def test_what_is_no_cvat_file_is_unsupported(content: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="expected"):
        parse_cvat(content.encode(), "a.xml")


def test_writing_keeps_everything() -> None:
    written = document(image("a/p1.jpg", BOLT, NUT, tags=("blurred",)), image("ü 2.jpg"))
    parsed = parse_cvat(write_cvat(written), "a.xml")
    assert parsed.class_names == written.class_names
    for old, new in zip(written.images, parsed.images, strict=True):
        assert shapes(old) == shapes(new)
        assert (old.name, old.width_px, old.height_px, old.tags) == (new.name, new.width_px, new.height_px, new.tags)
