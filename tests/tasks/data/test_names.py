import time
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.names import ImageIndex, MatchKind, printable

LATIN = "T\udcfcr 3.jpg"
"""A file whose name is not UTF-8, as Python lists it."""


def found(paths: list[str], name: str, *alternatives: str) -> str | None:
    return ImageIndex(paths).find(name, alternatives).found


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("p00.jpg", "images\\p00.jpg"),
        ("images/p00.jpg", "images\\p00.jpg"),
        ("p00.jpg", "..\\..\\label-studio\\media\\upload\\4\\p00.jpg"),
        ("p00.jpg", "../../label-studio/media/upload/4/p00.jpg"),
        ("p00.jpg", "C:\\data\\p00.jpg"),
        ("p00.jpg", "/home/ann/p00.jpg"),
        ("p00.jpg", "./p00.jpg"),
        ("a/p00.jpg", "b/../a/p00.jpg"),
        ("DSC_0001.JPG", "DSC_0001.jpg"),
        ("DSC_0001.JPG", "dsc_0001.xml"),
        ("day/p00.jpg", "day/p00.xml"),
        ("day/p00.jpg", "p00.XML"),
        ("train/images/p00.png", "train/labels/p00.txt"),
        ("p00.jpeg", "p00.jpg"),
        ("p00.v2.jpg", "p00.v2"),
        ("Straße.jpg", "STRASSE.JPG"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("Tür 3.jpg", "T%C3%BCr%203.jpg"),
        ("T%C3%BCr%203.jpg", "Tür 3.jpg"),
        ("100%25.jpg", "100%25.jpg"),
        (LATIN, "Tür 3.jpg"),
        (LATIN, LATIN),
        ("TÃ¼r 3.jpg", "Tür 3.jpg"),
        ("p00.jpg", "3fa91c0e-p00.jpg"),
        ("3fa91c0e-p00.jpg", "p00.jpg"),
        ("p00.jpg", "/data/upload/4/3fa91c0e-p00.jpg"),
        ("a/p00.jpg", "/data/local-files/?d=a/p00.jpg"),
        ("a/p00.jpg", "http://host:8080/data/local-files/?d=a%2Fp00.jpg"),
        ("a/p00.jpg", "s3://bucket/a/p00.jpg"),
        ("a/p00.jpg", "https://host/a/p00.jpg?X-Signature=b/p01.jpg"),
        ("p00.png", "p00_png.rf.0f2a9c.txt"),
        ("p00_png.rf.8f609f3f0ade885cc3e128fb2ec958a6.jpg", "p00.png"),
        ("0f8c4b1e-2b7a-4f7e-9c7d-1a2b3c4d5e6f_p00.jpg", "p00.jpg"),
        ("p00.jpg", "p00.jpg.xml"),
    ],
)
def test_a_name_is_found_in_any_spelling(path: str, name: str) -> None:
    others = ["z/other.jpg", "q00.png", "p000.jpg"]
    assert found([path, *others], name) == path


def test_the_image_with_most_folders_in_common_is_meant() -> None:
    paths = ["day/a/p.jpg", "night/a/p.jpg", "night/b/p.jpg"]
    assert found(paths, "root/night/a/p.jpg") == "night/a/p.jpg"
    assert found(paths, "root/b/P.JPG") == "night/b/p.jpg"


def test_an_ambiguous_name_is_refused_with_its_candidates() -> None:
    match = ImageIndex(["day/p.jpg", "night/p.jpg"]).find("p.jpg")
    assert (match.found, match.candidates) == (None, ("day/p.jpg", "night/p.jpg"))
    assert match.problem == "the image name 'p.jpg' fits several images (day/p.jpg, night/p.jpg), expected one"
    assert "is missing, expected an image file" in str(ImageIndex(["a.jpg"]).find("b.jpg").problem)


def test_ending_and_spelling_decide_between_images_of_one_last_part() -> None:
    assert found(["a/x.jpg", "a/x.png"], "x.jpeg") == "a/x.jpg"
    assert found(["a/x.jpg", "a/x.png"], "x.bmp") is None
    assert found(["a/x.jpg", "a/x.JPG"], "x.JPG") == "a/x.JPG"
    assert found(["a/x.jpg", "a/x.JPG"], "X.jpg") is None


def test_another_name_decides_among_the_candidates_only() -> None:
    paths = ["day/p.jpg", "night/p.jpg", "q.jpg"]
    assert found(paths, "p.xml", "night/p.jpg") == "night/p.jpg"
    assert found(paths, "p.xml", "q.jpg") is None
    assert found(paths, "nothing.xml", "q.jpg") == "q.jpg"


def test_a_missing_image_does_not_take_another_ones_place() -> None:
    index = ImageIndex(["night/p.jpg", "x.jpg"])
    first, second, third = index.match_all([("night/p.jpg", ()), ("day/p.jpg", ()), ("x.png", ())])
    assert (first.found, second.found, third.found) == ("night/p.jpg", None, "x.jpg")
    assert "which 'night/p.jpg' means as well" in str(second.problem)


def test_an_image_listed_twice_is_found_twice() -> None:
    assert [m.found for m in ImageIndex(["p.jpg"]).match_all([("p.jpg", ()), ("p.jpg", ())])] == ["p.jpg", "p.jpg"]


def test_names_that_are_no_utf8_can_be_shown() -> None:
    assert printable(LATIN) == "T\\xfcr 3.jpg"
    assert printable("Tür.jpg") == "Tür.jpg"
    assert printable("a\ud800b").isascii()
    ImageIndex([LATIN, "T\udcfcr 4.jpg"]).find("r 3.jpg")
    str(ImageIndex(["x"]).find(LATIN).problem).encode()


@given(st.lists(st.text(max_size=12), max_size=8), st.text(max_size=16))
def test_any_name_is_found_or_refused_with_a_reason(paths: list[str], name: str) -> None:
    match = ImageIndex(paths).find(name)
    assert (match.found is None) == (match.problem is not None)
    assert match.found is None or match.found in paths
    assert name not in paths or (match.found, match.kind) == (name, MatchKind.EXACT)
    str(match.problem).encode()


names = st.text("abcxyzäöüé", min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=6, unique_by=lambda name: unicodedata.normalize("NFC", name).casefold()))
def test_spellings_of_a_name_mean_the_same_image(stems: list[str]) -> None:
    paths = [f"set/{stem}.JPG" for stem in stems]
    index = ImageIndex(paths)
    for stem, path in zip(stems, paths, strict=True):
        for spelled in (
            f"{stem}.jpg",
            f"other\\{stem.upper()}.jpg" if stem.upper().casefold() == stem.casefold() else f"{stem}.jpg",
            unicodedata.normalize("NFD", stem) + ".JPG",
            quote(stem) + ".JPG",
            f"labels/{stem}.txt",
        ):
            assert index.find(spelled).found == path


def test_many_names_take_seconds() -> None:
    count = 50_000
    started = time.process_time()
    index = ImageIndex(f"{n:06d}/image.jpg" for n in range(count))
    assert all(m.found for m in index.match_all((f"x\\{n:06d}\\IMAGE.jpg", ()) for n in range(count)))
    assert not any(m.found for m in index.match_all(("image.jpg", ()) for _ in range(1000)))
    assert time.process_time() - started < 20
