"""Perceptual hashes: copies are found, strangers are not."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from flows.provenance.audit.images import near_duplicate_pairs, perceptual_hash
from tasks.params import load_params
from tests.flows.small_campaign import REPOSITORY

MAX_HAMMING_DISTANCE = load_params(REPOSITORY / "params.yaml").audit.max_hamming_distance


def synthetic_image(seed: int) -> Image.Image:
    """Something with large and small structure, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    grain = random.integers(-8, 9, (240, 320, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).filter(ImageFilter.SMOOTH)


def encode_image(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def hash_image(content: bytes) -> NDArray[np.bool_]:
    bits = perceptual_hash(content)
    assert bits is not None
    return bits


COPIES = {
    "compressed": lambda picture: encode_image(picture, "JPEG", quality=50),
    "half the size": lambda picture: encode_image(picture.resize((160, 120))),
    "brighter": lambda picture: encode_image(ImageEnhance.Brightness(picture).enhance(1.2)),
    "grey": lambda picture: encode_image(picture.convert("L")),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_with_other_bytes_is_found(how: str) -> None:
    pictures = [synthetic_image(seed) for seed in range(6)]
    trained = {f"t{number}": hash_image(encode_image(picture)) for number, picture in enumerate(pictures)}
    copy = hash_image(COPIES[how](pictures[2]))
    assert [(one, other) for one, other, _ in near_duplicate_pairs({"v": copy}, trained, MAX_HAMMING_DISTANCE)] == [
        ("v", "t2")
    ]


def test_strangers_are_far_apart() -> None:
    hashes = [hash_image(encode_image(synthetic_image(seed))) for seed in range(30)]
    ones = {f"v{number}": bits for number, bits in enumerate(hashes[:10])}
    others = {f"t{number}": bits for number, bits in enumerate(hashes[10:])}
    assert near_duplicate_pairs(ones, others, MAX_HAMMING_DISTANCE) == []
    nearest = near_duplicate_pairs(ones, others, 256)[0][2]
    assert nearest > 1.3 * MAX_HAMMING_DISTANCE  # not a narrow escape


def test_an_unreadable_image_has_no_hash_and_empty_sets_have_no_pairs() -> None:
    assert perceptual_hash(b"not a picture") is None
    assert near_duplicate_pairs({}, {}, MAX_HAMMING_DISTANCE) == []


def test_nearest_first() -> None:
    zero = np.zeros(256, dtype=bool)
    one, many = zero.copy(), zero.copy()
    one[0], many[:40] = True, True
    assert near_duplicate_pairs({"v": zero}, {"many": many, "one": one}, 48) == [("v", "one", 1), ("v", "many", 40)]
    assert near_duplicate_pairs({"v": zero}, {"many": many}, 39) == []
