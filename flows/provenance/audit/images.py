"""Audit of the images: their bytes against their ids, and the validation set against the training set."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from flows.provenance.audit import AuditScope, Check, count_rounds, make_check
from flows.provenance.snapshot import RoundSnapshot
from flows.workspace.dvc_cache import MissingDataError
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import ANNOTATED, INDEX, UNLABELED
from tasks.runtime.formatting import pluralize
from tasks.storage import files
from tasks.storage.s3 import ObjectStoreError, is_object_uri, read_object

HASH_SIZE = 16
"""Side of a perceptual hash: 16 x 16 bits.

On the demo data, different images differ in at least 74 bits and copies in at most 44, which leaves room for a
threshold. With 8 x 8 bits these were 12 and 8 bits.
"""
_CHUNK_SIZE = 512
_THREADS = 8


def image_checks(scope: AuditScope, max_hamming_distance: int) -> Iterator[Check]:
    """Check the images of the newest audited round.

    Args:
        scope: what is audited.
        max_hamming_distance: images whose perceptual hashes differ in at most so many of 256 bits are near duplicates.
    """
    try:
        images = _image_sources(scope)
    except MissingDataError as error:
        yield make_check("images", "bytes are those of the ids", "0 images", [str(error)])
        return
    hashes, altered = _hash_images(scope, images)
    yield make_check("images", "bytes are those of the ids", pluralize(len(images), "image"), altered)
    yield _exact_overlap_check(scope)
    yield near_duplicate_check(scope, hashes, max_hamming_distance)


def _image_sources(scope: AuditScope) -> dict[str, tuple[str, str | None]]:
    """URI and, where the index has it, SHA-256 of every image of the newest round, by id."""
    newest = scope.newest
    found: dict[str, tuple[str, str | None]] = {}
    for row in files.read_table(newest.cached_path("data/index.parquet"), INDEX).to_pylist():
        found[row["image_id"]] = (row["uri"], row["sha256"])
    for row in newest.validation_images().to_pylist():
        found.setdefault(row["image_id"], (row["uri"], None))
    return found


def _hash_images(
    scope: AuditScope, images: Mapping[str, tuple[str, str | None]]
) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Perceptual hashes by id, and a finding for each image whose bytes are not those of its id."""

    def hash_image(item: tuple[str, tuple[str, str | None]]) -> tuple[str, NDArray[np.bool_] | None, str | None]:
        image_id, (uri, sha256) = item
        try:
            content = _read_image(scope, uri)
        except (MissingDataError, ObjectStoreError) as error:
            return image_id, None, str(error)
        digest = hashlib.sha256(content).hexdigest()
        problem = None
        if image_id_from_sha256(digest) != image_id or sha256 not in (None, digest):
            problem = f"{uri}: SHA-256 is {digest}, expected {sha256 or f'one that begins with {image_id}'}"
        return image_id, perceptual_hash(content), problem

    with ThreadPoolExecutor(_THREADS) as pool:
        hashed = list(pool.map(hash_image, images.items()))
    hashes = {image_id: bits for image_id, bits, _ in hashed if bits is not None}
    return hashes, [problem for _, _, problem in hashed if problem]


def _read_image(scope: AuditScope, uri: str) -> bytes:
    """Read an image from where it is stored. An object is always downloaded: a local copy would prove nothing."""
    return read_object(uri) if is_object_uri(uri) else scope.newest.cached_path(uri).read_bytes()


def perceptual_hash(content: bytes) -> NDArray[np.bool_] | None:
    """Compute the perceptual hash of an image (pHash, 256 bits); None where the image is unreadable.

    The bits stay nearly equal when an image is scaled, compressed or brightened.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            bits: NDArray[np.bool_] = imagehash.phash(image.convert("L"), hash_size=HASH_SIZE).hash.ravel()
            return bits
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _exact_overlap_check(scope: AuditScope) -> Check:
    found = []
    for snapshot in scope.rounds.values():
        val, trained = _val_ids(snapshot), _trained_ids(snapshot)
        found += [
            f"{snapshot.tag}: image {image_id} is in the validation and in the training set"
            for image_id in val & trained
        ]
    return make_check("validation", "no image of it was trained on", count_rounds(scope), sorted(found))


def near_duplicate_check(
    scope: AuditScope, hashes: Mapping[str, NDArray[np.bool_]], max_hamming_distance: int
) -> Check:
    """Find validation images that look like a training image, though their bytes differ."""
    newest = scope.newest
    val = sorted(image_id for image_id in _val_ids(newest) if image_id in hashes)
    trained = sorted(image_id for image_id in _trained_ids(newest) if image_id in hashes)
    name, examined = "no near duplicate of it was trained on", f"{pluralize(len(val), 'image')} against {len(trained)}"
    pairs = near_duplicate_pairs(
        {key: hashes[key] for key in val}, {key: hashes[key] for key in trained}, max_hamming_distance
    )
    found = [
        f"validation image {val_id}: distance to training image {train_id} is {distance} of 256 bits, "
        f"expected more than {max_hamming_distance}"
        for val_id, train_id, distance in pairs
    ]
    return make_check("validation", name, examined, found)


def near_duplicate_pairs(
    hashes: Mapping[str, NDArray[np.bool_]], other_hashes: Mapping[str, NDArray[np.bool_]], max_hamming_distance: int
) -> list[tuple[str, str, int]]:
    """Find pairs of images with similar hashes, block by block to save memory.

    Args:
        hashes: 256 bits by image id.
        other_hashes: the hashes to compare them with.
        max_hamming_distance: the largest distance of a pair, in bits.

    Returns:
        An id of each set and their distance in bits, nearest pairs first.
    """
    if not hashes or not other_hashes:
        return []
    left, right = (
        np.packbits(np.stack(list(hashes.values())), axis=1),
        np.packbits(np.stack(list(other_hashes.values())), axis=1),
    )
    names, other_names = list(hashes), list(other_hashes)
    pairs = []
    for row, packed in enumerate(left):
        for start in range(0, len(right), _CHUNK_SIZE):
            distances = np.unpackbits(right[start : start + _CHUNK_SIZE] ^ packed, axis=1).sum(axis=1)
            pairs += [
                (names[row], other_names[start + index], int(distances[index]))
                for index in np.flatnonzero(distances <= max_hamming_distance)
            ]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def _val_ids(snapshot: RoundSnapshot) -> set[str]:
    return _image_ids(snapshot, "val.parquet", ANNOTATED)


def _trained_ids(snapshot: RoundSnapshot) -> set[str]:
    """Ids of the labeled and the unlabeled images: training uses both."""
    return _image_ids(snapshot, "labeled.parquet", ANNOTATED) | _image_ids(snapshot, "unlabeled.parquet", UNLABELED)


def _image_ids(snapshot: RoundSnapshot, name: str, schema: pa.Schema) -> set[str]:
    try:
        path = snapshot.cached_path(f"derived/assemble/{name}")
    except MissingDataError:
        return set()  # reported by the check of stored objects
    return set(files.read_table(path, schema)["image_id"].to_pylist())
