"""What is known of an image is found again by uri and version, whatever its name, however the file grew and ended."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data import image_metadata_cache
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_metadata_cache import ImageMetadataCache, object_versions
from tasks.data.images import ImageMetadata
from tasks.storage.s3 import ObjectMetadata

NAMES = ["a.png", 'a", "1', "b\\", "b\\\\", "ü\u2028\n.png", "[", "", "a.png" * 400]


def entry(number: int) -> ImageMetadata:
    return ImageMetadata(number, 2, ".png", 3, "f" * 64)


def refuse(uri: str) -> Path:
    raise AssertionError(f"{uri!r} was opened")


def line(uri: str, version: str, found: ImageMetadata) -> str:
    values = [found.width_px, found.height_px, found.suffix, found.size_bytes, found.sha256, 1, 1]
    return json.dumps([uri, version, *values]) + "\n"


@pytest.mark.parametrize("merged_at", [2, 1000])
def test_entries_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged_at: int) -> None:
    monkeypatch.setattr(image_metadata_cache, "_MAX_RECENT", merged_at)
    path = tmp_path / "seen" / "images.jsonl"
    cache = ImageMetadataCache(path, refuse)
    for number, name in enumerate(NAMES):
        assert not cache.is_known(name, "1", max_pixels=100)
        cache.add(line(name, "1", entry(0)) + line(name, "1", entry(number)))  # the newer one counts
    cache.add(json.dumps(["broken", "1", 100, "the reason"]) + "\n")
    with path.open("a") as stream:
        stream.write(line("torn", "1", entry(1))[:-20])  # of a killed process
    for known in (cache, ImageMetadataCache(path, refuse)):
        assert [known.inspect(name, "1", max_pixels=100) for name in NAMES] == [entry(n) for n in range(len(NAMES))]
        with pytest.raises(ImageProblem, match="the reason"):
            known.inspect("broken", "1", max_pixels=100)
        assert known.is_known("broken", "1", max_pixels=100)
        for name, version, max_pixels in (("a.png", "2", 100), ("a", "1", 100), ("[", "1", 5), ("torn", "1", 100)):
            assert not known.is_known(name, version, max_pixels=max_pixels)


def test_versions_stand_beside_their_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []

    def list_objects(prefix: str):  # type: ignore[no-untyped-def]
        listed.append(prefix)
        for name in ("p/a", "p/b", "p/other"):
            yield ObjectMetadata(f"s3://bucket/{name}", 1, f"tag of {name}", None)  # type: ignore[arg-type]

    monkeypatch.setattr(image_metadata_cache, "list_objects", list_objects)
    uris = ["s3://bucket/p/b", "data/images/c.png", "s3://bucket/p/a", "s3://bucket/p/gone", "s3://bucket/p/b"]
    found = object_versions(pa.chunked_array([uris[:2], uris[2:]]))
    assert found.to_pylist() == ["tag of p/b", None, "tag of p/a", None, "tag of p/b"]
    assert listed == ["s3://bucket/p"]
