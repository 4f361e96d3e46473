"""A bucket's objects are judged by their size before they are fetched."""

from datetime import UTC, datetime

import pytest

from tasks.data import image_listing
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_listing import ImageBucket
from tasks.data.image_metadata_cache import ImageMetadataCache
from tasks.data.images import ImageMetadata
from tasks.storage.s3 import ObjectMetadata


class Cache(ImageMetadataCache):
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def inspect(self, uri: str, version: str, *, max_pixels: int) -> ImageMetadata:
        self.asked.append(uri)
        raise ImageProblem("the file is no image")


def test_an_object_far_too_large_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    sizes = {"s3://b/p/small.jpg": 1000, "s3://b/p/huge.jpg": 5 << 40}
    found = [ObjectMetadata(uri, size, "etag", now) for uri, size in sizes.items()]
    monkeypatch.setattr(image_listing, "list_objects", lambda _: found)
    cache = Cache()
    bucket = ImageBucket("s3://b/p", cache, num_workers=1, max_pixels=100)
    with pytest.raises(ImageProblem, match="the object has 5242880 MiB, expected at most 1024 MiB"):
        bucket.inspect("huge.jpg")
    assert cache.asked == ["s3://b/p/small.jpg"]
