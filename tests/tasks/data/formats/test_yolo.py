import pytest

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import ParsedImage
from tasks.data.formats.yolo import YoloClasses, parse_yolo, parse_yolo_classes, parse_yolo_files, write_yolo
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes

CLASSES = YoloClasses(("bolt", "nut"), {})


def read(content: bytes, classes: YoloClasses = CLASSES) -> ParsedImage:
    return parse_yolo(content, "train/labels/p1.txt", classes, (100, 50))


@pytest.mark.parametrize(
    "content",
    [
        b"1 0.5 0.5 0.2 0.2\n",
        b"1.0 0.5 0.5 0.2 0.2",
        b"1.000000000000000000e+00 5.0e-01 5.0e-01 2.0e-01 2.0e-01\n",
        b"\xef\xbb\xbf1 0.5 0.5 0.2 0.2\r\n",
        "1 0.5 0.5 0.2 0.2\r\n".encode("utf-16"),
        b"\n\n  1\t0.5  0.5 0.2 0.2  \n\n",
        b"1 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6\n",
    ],
)
def test_a_box_is_read_in_any_spelling(content: bytes) -> None:
    one = read(content)
    assert shapes(one) == [("nut", (40, 20, 60, 30), "box")]
    assert (one.name, one.alternative_names) == ("train/labels/p1.txt", ("train/images/p1.txt",))


def test_without_a_size_boxes_stay_fractions() -> None:
    one = parse_yolo(b"0 0.5 0.5 0.2 0.2\n", "p1.txt", CLASSES)
    assert (one.units, shapes(one)) == ("fraction", [("bolt", (0.4, 0.4, 0.6, 0.6), "box")])
    sized = one.with_size(100, 50)
    assert (sized.units, sized.width_px, shapes(sized)) == ("px", 100, [("bolt", (40, 20, 60, 30), "box")])
    assert sized.with_size(7, 7) is sized


def test_polygons_and_scores_are_recognized() -> None:
    one = read(b"1 0.1 0.1 0.3 0.1 0.3 0.4\n0 0.5 0.5 0.2 0.2 0.875\n")
    assert shapes(one) == [("nut", (10, 5, 30, 20), "polygon"), ("bolt", (40, 20, 60, 30), "box")]
    assert [box.score for box in one.boxes] == [None, 0.875]
    assert [box.entry for box in one.boxes] == ["line 1", "line 2"]


def test_a_blank_file_states_nothing() -> None:
    assert (read(b"").status, list(read(b" \n").boxes), read(b"").is_usable) == (None, [], True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"2 0.5 0.5 0.2 0.2", "the class is '2', expected a number from 0 to 1"),
        (b"-1 0.5 0.5 0.2 0.2", "the class is '-1'"),
        (b"0.5 0.5 0.5 0.2 0.2", "the class is '0.5'"),
        (b"bolt 0.5 0.5 0.2 0.2", "the class is 'bolt'"),
        (b"0 0.5 0.5 0.2", "the numbers behind the class are 3"),
        (b"0 1 1 1 1 1 1 1", "the numbers behind the class are 7"),
        (b"0 0.5 0.5 nan 0.2", "expected numbers"),
        (b"0 0.5 0,5 0.2 0.2", "expected numbers"),
        (b"0 48 36 20 15", "expected fractions of the image from 0 to 1"),
        (b"0", "the numbers behind the class are 0"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(line: bytes, words: str) -> None:
    one = read(b"1 0.5 0.5 0.2 0.2\n" + line)
    assert words in problems(one)[0]
    assert (one.boxes[0].problem, one.boxes[1].entry) == (None, "line 2")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", b"bolt\nnut\n\n"),
        ("classes.txt", b"\xef\xbb\xbfbolt\r\nnut\r\n"),
        ("obj.names", "bolt\nnut".encode("utf-16")),
        ("data.yaml", b"names: [bolt, nut]\nnc: 2\n"),
        ("data.yaml", b"names:\n- bolt\n- 'nut'\n"),
        ("data.yaml", b"\xef\xbb\xbfnames:\n  '0': bolt\n  '1': nut\n"),
        ("data.YML", b"names: {1: nut, 0: bolt}\n"),
    ],
)
def test_class_names_are_read(name: str, content: bytes) -> None:
    assert parse_yolo_classes(content, name).names == ("bolt", "nut")


def test_a_blank_line_is_a_number_without_a_class() -> None:
    classes = parse_yolo_classes(b"washer\n\nbolt\nnut\n", "classes.txt")
    assert classes.names == ("washer", None, "bolt", "nut")
    assert "class 1: the class name is ''" in classes.problems[0]
    assert shapes(read(b"2 0.5 0.5 0.2 0.2", classes))[0][0] == "bolt"
    assert "whose name is blank" in problems(read(b"1 0.5 0.5 0.2 0.2", classes))[0]


def test_names_that_yaml_takes_for_other_values_are_text() -> None:
    content = "names: [no, 1e3, 'a: b, c', '# hash', 螺栓 🔩, null, ~, 3, 'trailing:']\n".encode()
    expected = ("no", "1e3", "a: b, c", "# hash", "螺栓 🔩", "null", "~", "3", "trailing:")
    assert parse_yolo_classes(content, "data.yaml").names == expected


def test_splits_and_keypoints_of_data_yaml_are_read() -> None:
    content = b"path: ../set\ntrain: images/train\nvalid: [a, b]\nnames: {0: bolt}\nkpt_shape: [2, 3]\n"
    classes = parse_yolo_classes(content, "data.yaml")
    assert classes.splits == {"train": ("../set/images/train",), "val": ("../set/a", "../set/b")}
    assert classes.num_keypoint_values == 6
    assert shapes(read(b"0 .5 .5 .2 .2 1 1 2 1 1 2", classes)) == [("bolt", (40, 20, 60, 30), "box")]


@pytest.mark.parametrize(
    ("tagged", "name"),
    [
        (b"!!bool cat", "cat"),
        (b"!!timestamp x", "x"),
        (b'!!int ""', None),
        (b'!!float ""', None),
        (b"0x" + b"f" * 5000, None),
        (b"1:" * 20_000 + b"1", None),
    ],
)
def test_a_tag_of_yaml_is_not_obeyed(tagged: bytes, name: str | None) -> None:
    """As numbers, the last two would be more digits than Python converts, and minutes of work."""
    assert parse_yolo_classes(b"names: [" + tagged + b", bolt]\n", "data.yaml").names == (name, "bolt")


@pytest.mark.parametrize(
    "content",
    [
        b"names: 3\n",
        b"nc: 2\n",
        b"- a\n",
        b"names: {a: bolt}\n",
        b"names: {0: a, 0.5: b}\n",
        b"names: [\n",
        b"names: [" * 5000,
        b"n" * (2 << 20),
    ],
)
def test_what_holds_no_names_is_unsupported(content: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match="expected"):
        parse_yolo_classes(content, "data.yaml")


def test_a_folder_is_one_document() -> None:
    classes = YoloClasses(("bolt", "crack", "Bolt"), {})
    files = [("a.txt", b"0 .5 .5 .2 .2\n7 1 1 1 1\n"), ("b.txt", b""), ("c.txt", b"\xff\xfe\xfd")]
    parsed = parse_yolo_files(files, "labels", classes, lambda name: (100, 50) if name == "a.txt" else None)
    assert parsed.counts.balance
    assert [one.is_usable for one in parsed.images] == [False, True, False]
    assert parsed.class_names == ("bolt", "crack", "Bolt")
    assert parsed.near_equal_names == (("bolt", "Bolt"),)
    assert parsed.images[0].boxes[0].xyxy == pytest.approx((40, 20, 60, 30))


def test_writing_keeps_everything() -> None:
    written = document(image("images/p1.jpg", BOLT, NUT), image("p2.jpg"), classes=("no", "bolt", "nut", "1e3"))
    (name, classes), *labels = write_yolo(written)
    parsed = parse_yolo_files(labels, "labels", parse_yolo_classes(classes, name), lambda _: (96, 72))
    assert parsed.class_names == written.class_names
    assert [one.name for one in parsed.images] == ["images/p1.txt", "p2.txt"]
    assert [shapes(one) for one in parsed.images] == [shapes(one) for one in written.images]
