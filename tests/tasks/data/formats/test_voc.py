import pytest

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedImage
from tasks.data.formats.voc import labelmap_names, parse_voc, parse_voc_files, write_voc
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes

BOX = "<bndbox><xmin>11</xmin><ymin>13</ymin><xmax>30</xmax><ymax>27</ymax></bndbox>"
SIZE = "<size><width>96</width><height>72</height><depth>3</depth></size>"


def sheet(inside: str = BOX, *, size: str = SIZE, extra: str = "", name: str = "bolt", attributes: str = "") -> str:
    drawn = f"<object><name>{name}</name>{inside}</object>" if inside else ""
    return f"<annotation{attributes}><filename>p1.jpg</filename>{size}{extra}{drawn}</annotation>"


def read(text: str) -> ParsedImage:
    return parse_voc(text.encode(), "day/p1.xml")


def test_corners_become_zero_based() -> None:
    one = read(sheet())
    assert shapes(one) == [("bolt", (10, 12, 30, 27), "box")]
    assert (one.name, one.width_px, one.height_px) == ("day/p1.xml", 96, 72)
    assert one.alternative_names == ("p1.jpg",)
    assert one.status is None


def test_folder_and_path_are_other_names() -> None:
    extra = "<folder>night</folder><path>C:\\data\\p1.jpg</path>"
    assert read(sheet(extra=extra)).alternative_names == ("p1.jpg", "night/p1.jpg", "C:\\data\\p1.jpg")


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height> </height></size>"])
def test_blank_sizes_are_no_size(size: str) -> None:
    one = read(sheet(size=size))
    assert (one.width_px, one.is_usable) == (None, True)


def test_a_size_that_is_none_is_a_problem() -> None:
    assert "size is 'a' x '72'" in problems(read(sheet(size=SIZE.replace("96", "a"))))[0]


def test_a_sheet_without_objects_states_nothing_unless_it_is_verified() -> None:
    assert read(sheet("")).status is None
    assert read(sheet("", attributes=' verified="yes"')).status == "empty"
    assert read(sheet(attributes=' verified="yes"')).status == "labeled"
    assert read(sheet(attributes=' verified="no"')).status is None


def test_what_an_annotator_states_is_read() -> None:
    words = "<status>skipped</status><annotator>ann</annotator><seconds_spent>4</seconds_spent>"
    one = read(sheet("", extra=words + "<finished_at>2026-01-02T03:04:05Z</finished_at>"))
    assert (one.status, one.annotator, one.seconds_spent) == ("skipped", "ann", 4.0)
    assert one.finished_at == "2026-01-02T03:04:05Z"
    assert "status is 'done'" in problems(read(sheet(extra="<status>done</status>")))[0]


@pytest.mark.parametrize("degrees", ["0.0", "360", "-180", " "])
def test_an_upright_rotation_is_none(degrees: str) -> None:
    attribute = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    assert shapes(read(sheet(BOX + attribute))) == shapes(read(sheet()))


def test_a_rotation_is_recognized() -> None:
    attribute = "<attributes><attribute><name>rotation</name><value>37.5</value></attribute></attributes>"
    box = read(sheet(BOX + attribute)).boxes[0]
    assert (box.kind, box.rotation_deg) == ("rotated", 37.5)
    assert box.xyxy == pytest.approx((7.5008, 7.4622, 32.4992, 31.5378), abs=1e-3)
    assert "expected degrees" in problems(read(sheet(BOX + attribute.replace("37.5", "steep"))))[0]


def test_rolabelimg_boxes_are_recognized() -> None:
    turned = (
        "<type>robndbox</type><robndbox><cx>20</cx><cy>20</cy><w>10</w><h>6</h><angle>0.785398163</angle></robndbox>"
    )
    assert shapes(read(sheet(turned))) == [("bolt", (14.343, 14.343, 25.657, 25.657), "rotated")]
    assert "robndbox" in problems(read(sheet(turned.replace("<h>6</h>", ""))))[0]


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (
            "<polygon><pt><x>1</x><y>2</y></pt><pt><x>9</x><y>2</y></pt><pt><x>5</x><y>8</y></pt></polygon>",
            (1, 2, 9, 8),
        ),
        ("<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>5</x3><y3>8</y3></polygon>", (1, 2, 9, 8)),
        (BOX + "<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>5</x3><y3>8</y3></polygon>", (10, 12, 30, 27)),
    ],
)
def test_polygons_are_recognized(outline: str, expected: tuple[float, ...]) -> None:
    assert shapes(read(sheet(outline))) == [("bolt", expected, "polygon")]


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("", "<xmin> is None, expected a number"),
        (BOX.replace("13", "top"), "<ymin> is 'top', expected a number"),
        (BOX.replace("<xmax>30", "<xmax>11"), "expected xmin < xmax"),
        ("<bndbox><xmin>.1</xmin><ymin>.2</ymin><xmax>.3</xmax><ymax>.4</ymax></bndbox>", "fractions of the image"),
        ("<polygon><x1>1</x1><y1>2</y1></polygon>", "expected 3 or more"),
    ],
)
def test_what_is_wrong_with_an_object_is_named(inside: str, words: str) -> None:
    one = read(sheet(inside or "<truncated>0</truncated>"))
    assert words in problems(one)[0]
    assert "class name is ''" in problems(read(sheet(name=" ")))[0]


def test_difficult_objects_are_flagged() -> None:
    assert [b.is_ignored for b in read(sheet(BOX + "<difficult>1</difficult>")).boxes] == [True]


@pytest.mark.parametrize(
    "content",
    [
        sheet(name="groß").encode("utf-8-sig"),
        sheet(name="groß").encode("utf-16"),
        b'<?xml version="1.0" encoding="iso-8859-1"?>' + sheet(name="groß").encode("latin-1"),
        b'<?xml version="1.0" encoding="utf-8"?>' + sheet(name="groß").encode("cp1252"),
        b'<?xml version="1.0" encoding="gb18030"?>' + sheet(name="groß").encode("gb18030"),
        b'<?xml version="1.0" encoding="nobody-knows"?>' + sheet(name="groß").encode(),
    ],
)
def test_encodings_are_read(content: bytes) -> None:
    assert parse_voc(content, "p1.xml").boxes[0].category == "groß"


@pytest.mark.parametrize("cut", [1, 5, 20, 60, 150])
def test_a_file_cut_short_is_truncated(cut: int) -> None:
    with pytest.raises(TruncatedFileError, match=r"p1\.xml: the end of the XML is missing"):
        parse_voc(sheet().encode()[:-cut], "p1.xml")


@pytest.mark.parametrize(
    "content",
    [
        b"<annotations/>",
        b"<annotation><object></annotation>",
        b"<!DOCTYPE annotation [<!ENTITY a 'b'>]><annotation>&a;</annotation>",
        b"no xml>",
        b"<annotation>" + b" " * (17 << 20) + b"</annotation>",
    ],
)
def test_what_is_no_voc_file_is_unsupported(content: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match="expected"):
        parse_voc(content, "p1.xml")


def test_a_folder_is_one_document_whatever_its_files_hold() -> None:
    files = {
        "a.xml": sheet(),
        "b.XML": sheet(name="Bolt"),
        "c.xml": sheet()[:-5],
        "d.xml": "<other/>",
        "e.xml": sheet(""),
    }
    parsed = parse_voc_files([(name, text.encode()) for name, text in files.items()], "xml")
    assert parsed.counts.balance
    assert [one.name for one in parsed.images] == list(files)
    assert [one.is_usable for one in parsed.images] == [True, True, False, False, True]
    assert parsed.class_names == ("bolt", "Bolt")
    assert parsed.near_equal_names == (("bolt", "Bolt"),)


def test_classes_of_a_labelmap_are_kept_without_boxes() -> None:
    labelmap = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:250,50,83::\na: b:51,221,255::\n"
    assert labelmap_names(labelmap) == ["crack", "a: b"]
    assert parse_voc_files([("a.xml", sheet().encode())], "xml", labelmap=labelmap).class_names == (
        "crack",
        "a: b",
        "bolt",
    )


def test_writing_keeps_everything() -> None:
    written = document(
        image("a/p1.jpg", BOLT, NUT, status="labeled", annotator="ann", seconds_spent=2.5, finished_at="2026-01-02"),
        image("p2.jpg", status="empty"),
        image("p3.jpg"),
    )
    parsed = parse_voc_files(write_voc(written), "xml")
    assert [one.name for one in parsed.images] == ["a/p1.xml", "p2.xml", "p3.xml"]
    for one, other in zip(written.images, parsed.images, strict=True):
        assert shapes(one) == shapes(other)
        for key in ("width_px", "height_px", "status", "annotator", "seconds_spent", "finished_at"):
            assert getattr(one, key) == getattr(other, key)
    with pytest.raises(UnsupportedFormatError, match="image size is unknown"):
        list(write_voc(document(image("p.jpg", width_px=None))))
