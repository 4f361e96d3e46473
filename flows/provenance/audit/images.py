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

from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.snapshot import RoundSnapshot
from flows.workspace.dvc_cache import MissingDataError
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import ANNOTATED, INDEX, UNLABELED
from tasks.storage import files
from tasks.storage.s3 import ObjectStoreError, is_object_uri, read_object

HASH_SIZE = 16
"""Perceptual hashes have 16 x 16 bits. With 8 x 8, strangers came as near as 12 bits and copies as far as 8; with
16 x 16, 74 and 44 of 256 (demo data): room for a threshold between them."""
_CHUNK_SIZE = 512
_THREADS = 8


def image_checks(scope: AuditScope, max_hamming_distance: int) -> Iterator[Check]:
    """Bytes against ids, and the validation set against all that was trained on."""
    try:
        images = _image_sources(scope)
    except MissingDataError as error:
        yield make_check("pictures", "bytes are those of the ids", "0 pictures", [str(error)])
        return
    hashes, altered = _hash_images(scope, images)
    yield make_check("pictures", "bytes are those of the ids", f"{len(images)} pictures", altered)
    yield _exact_overlap_check(scope)
    yield near_duplicate_check(scope, hashes, max_hamming_distance)


def _image_sources(scope: AuditScope) -> dict[str, tuple[str, str | None]]:
    """Uri and, where the index has it, SHA-256 of every picture of the newest round, by id."""
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
    """Perceptual hash by id, and findings on pictures whose bytes are not those of the id."""

    def hash_image(item: tuple[str, tuple[str, str | None]]) -> tuple[str, NDArray[np.bool_] | None, str | None]:
        image_id, (uri, sha256) = item
        try:
            content = _read_image(scope, uri)
        except (MissingDataError, ObjectStoreError) as error:
            return image_id, None, str(error)
        digest = hashlib.sha256(content).hexdigest()
        problem = None
        if image_id_from_sha256(digest) != image_id or sha256 not in (None, digest):
            problem = f"{uri} is altered: its SHA-256 begins with {digest[:16]}, its id is {image_id}"
        return image_id, perceptual_hash(content), problem

    with ThreadPoolExecutor(_THREADS) as pool:
        hashed = list(pool.map(hash_image, images.items()))
    hashes = {image_id: bits for image_id, bits, _ in hashed if bits is not None}
    return hashes, [trouble for _, _, trouble in hashed if trouble]


def _read_image(scope: AuditScope, uri: str) -> bytes:
    """From where the picture is kept; an object is fetched anew, for a local copy proves nothing."""
    return read_object(uri) if is_object_uri(uri) else scope.newest.cached_path(uri).read_bytes()


def perceptual_hash(content: bytes) -> NDArray[np.bool_] | None:
    """256 bits that stay nearly the same when a picture is scaled, compressed or brightened; None: unreadable."""
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
        found += [f"image {image_id} is in validation and in training of {snapshot.tag}" for image_id in val & trained]
    return make_check("validation", "no picture of it was trained on", f"{len(scope.rounds)} rounds", sorted(found))


def near_duplicate_check(
    scope: AuditScope, hashes: Mapping[str, NDArray[np.bool_]], max_hamming_distance: int
) -> Check:
    """Validation pictures that look like one of training, though their bytes differ."""
    newest = scope.newest
    val = sorted(image_id for image_id in _val_ids(newest) if image_id in hashes)
    trained = sorted(image_id for image_id in _trained_ids(newest) if image_id in hashes)
    name, examined = "no near duplicate of it was trained on", f"{len(val)} against {len(trained)} pictures"
    pairs = near_duplicate_pairs(
        {key: hashes[key] for key in val}, {key: hashes[key] for key in trained}, max_hamming_distance
    )
    found = [
        f"image {one} of validation looks like {two} of training ({apart} of 256 bits)" for one, two, apart in pairs
    ]
    return make_check("validation", name, examined, found)


def near_duplicate_pairs(
    hashes: Mapping[str, NDArray[np.bool_]], other_hashes: Mapping[str, NDArray[np.bool_]], max_hamming_distance: int
) -> list[tuple[str, str, int]]:
    """Ids of pictures at most ``bits`` apart, nearest first, in little memory."""
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
                (names[row], other_names[start + place], int(distances[place]))
                for place in np.flatnonzero(distances <= max_hamming_distance)
            ]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def _val_ids(snapshot: RoundSnapshot) -> set[str]:
    return _image_ids(snapshot, "val.parquet", ANNOTATED)


def _trained_ids(snapshot: RoundSnapshot) -> set[str]:
    """Unlabeled images take part in training too."""
    return _image_ids(snapshot, "labeled.parquet", ANNOTATED) | _image_ids(snapshot, "unlabeled.parquet", UNLABELED)


def _image_ids(snapshot: RoundSnapshot, name: str, schema: pa.Schema) -> set[str]:
    try:
        path = snapshot.cached_path(f"derived/assemble/{name}")
    except MissingDataError:
        return set()  # named by the check of stored objects
    return set(files.read_table(path, schema)["image_id"].to_pylist())
