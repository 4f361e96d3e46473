"""Pictures: that each is the one its id names, and that none of the validation set was ever trained on."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from flows.records.audit.findings import Audited, Check, check
from flows.records.dvc_objects import MissingBytesError
from flows.records.recorded import RecordedRound
from tasks import files
from tasks.contracts import ANNOTATED, INDEX, UNLABELED
from tasks.object_store import ObjectStoreError, is_object_uri, read_object
from tasks.paths import image_id_of

HASH_SIDE = 16
"""Perceptual hashes have 16 x 16 bits. With 8 x 8, strangers came as near as 12 bits and copies as far as 8; with
16 x 16, 74 and 44 of 256 (demo data): room for a threshold between them."""
_AT_ONCE = 512
_THREADS = 8


def picture_checks(audited: Audited, near_duplicate_bits: int) -> Iterator[Check]:
    """Bytes against ids, and the validation set against all that was trained on."""
    try:
        pictures = _pictures(audited)
    except MissingBytesError as error:
        yield check("pictures", "bytes are those of the ids", "0 pictures", [str(error)])
        return
    hashes, altered = _hash_all(audited, pictures)
    yield check("pictures", "bytes are those of the ids", f"{len(pictures)} pictures", altered)
    yield _exact(audited)
    yield near_duplicates(audited, hashes, near_duplicate_bits)


def _pictures(audited: Audited) -> dict[str, tuple[str, str | None]]:
    """Uri and, where the index has it, SHA-256 of every picture of the newest round, by id."""
    newest = audited.newest
    found: dict[str, tuple[str, str | None]] = {}
    for row in files.read_table(newest.stored("data/index.parquet"), INDEX).to_pylist():
        found[row["image_id"]] = (row["uri"], row["sha256"])
    for row in newest.validation_images().to_pylist():
        found.setdefault(row["image_id"], (row["uri"], None))
    return found


def _hash_all(
    audited: Audited, pictures: Mapping[str, tuple[str, str | None]]
) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Perceptual hash by id, and findings on pictures whose bytes are not those of the id."""

    def look(item: tuple[str, tuple[str, str | None]]) -> tuple[str, NDArray[np.bool_] | None, str | None]:
        image_id, (uri, sha256) = item
        try:
            content = _bytes_of(audited, uri)
        except (MissingBytesError, ObjectStoreError) as error:
            return image_id, None, str(error)
        digest = hashlib.sha256(content).hexdigest()
        trouble = None
        if image_id_of(digest) != image_id or sha256 not in (None, digest):
            trouble = f"{uri} is altered: its SHA-256 begins with {digest[:16]}, its id is {image_id}"
        return image_id, perceptual_hash(content), trouble

    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(look, pictures.items()))
    hashes = {image_id: bits for image_id, bits, _ in looked if bits is not None}
    return hashes, [trouble for _, _, trouble in looked if trouble]


def _bytes_of(audited: Audited, uri: str) -> bytes:
    """From where the picture is kept; an object is fetched anew, for a local copy proves nothing."""
    return read_object(uri) if is_object_uri(uri) else audited.newest.stored(uri).read_bytes()


def perceptual_hash(content: bytes) -> NDArray[np.bool_] | None:
    """256 bits that stay nearly the same when a picture is scaled, compressed or brightened; None: unreadable."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            bits: NDArray[np.bool_] = imagehash.phash(picture.convert("L"), hash_size=HASH_SIDE).hash.ravel()
            return bits
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _exact(audited: Audited) -> Check:
    found = []
    for recorded in audited.rounds.values():
        val, trained = _val_ids(recorded), _trained_ids(recorded)
        found += [f"image {image_id} is in validation and in training of {recorded.name}" for image_id in val & trained]
    return check("validation", "no picture of it was trained on", f"{len(audited.rounds)} rounds", sorted(found))


def near_duplicates(audited: Audited, hashes: Mapping[str, NDArray[np.bool_]], bits: int) -> Check:
    """Validation pictures that look like one of training, though their bytes differ."""
    newest = audited.newest
    val = sorted(image_id for image_id in _val_ids(newest) if image_id in hashes)
    trained = sorted(image_id for image_id in _trained_ids(newest) if image_id in hashes)
    name, words = "no near duplicate of it was trained on", f"{len(val)} against {len(trained)} pictures"
    pairs = close_pairs({key: hashes[key] for key in val}, {key: hashes[key] for key in trained}, bits)
    found = [
        f"image {one} of validation looks like {two} of training ({apart} of 256 bits)" for one, two, apart in pairs
    ]
    return check("validation", name, words, found)


def close_pairs(
    ones: Mapping[str, NDArray[np.bool_]], others: Mapping[str, NDArray[np.bool_]], bits: int
) -> list[tuple[str, str, int]]:
    """Ids of pictures at most ``bits`` apart, nearest first, in little memory."""
    if not ones or not others:
        return []
    left, right = (
        np.packbits(np.stack(list(ones.values())), axis=1),
        np.packbits(np.stack(list(others.values())), axis=1),
    )
    names, other_names = list(ones), list(others)
    pairs = []
    for row, packed in enumerate(left):
        for start in range(0, len(right), _AT_ONCE):
            apart = np.unpackbits(right[start : start + _AT_ONCE] ^ packed, axis=1).sum(axis=1)
            pairs += [
                (names[row], other_names[start + place], int(apart[place])) for place in np.flatnonzero(apart <= bits)
            ]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def _val_ids(recorded: RecordedRound) -> set[str]:
    return _ids(recorded, "val.parquet", ANNOTATED)


def _trained_ids(recorded: RecordedRound) -> set[str]:
    """Unlabeled images take part in training too."""
    return _ids(recorded, "labeled.parquet", ANNOTATED) | _ids(recorded, "unlabeled.parquet", UNLABELED)


def _ids(recorded: RecordedRound, name: str, schema: pa.Schema) -> set[str]:
    try:
        path = recorded.stored(f"derived/assemble/{name}")
    except MissingBytesError:
        return set()  # named by the check of stored objects
    return set(files.read_table(path, schema)["image_id"].to_pylist())
