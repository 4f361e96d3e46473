"""Compare the pool with the directory or bucket of its images: what was added, changed, moved or removed."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.data.image_decoding import ImageProblem
from tasks.data.images import ImageMetadata
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import Quarantined

Row = dict[str, Any]
"""One row of schemas.INDEX."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of the source as it is now."""

    name: str
    """The user's own name of it: what follows the source's prefix."""
    uri: str
    """What the index would call it."""
    metadata: ImageMetadata | ImageProblem


@dataclass
class PoolDiff:
    """Result of a comparison; each entry is a name with a remark."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Other bytes under the same name: a new image."""
    moved: list[str] = field(default_factory=list)
    """The same bytes under another name: the same image."""
    removed: list[str] = field(default_factory=list)
    """Gone, and nobody has labeled them: they leave the pool."""
    missing: list[Quarantined] = field(default_factory=list)
    """The alarm: images that people labeled, or are asked to label, whose bytes are gone or replaced. They stay."""
    rejected: list[Quarantined] = field(default_factory=list)
    """No images, broken ones, and those that were set aside when the campaign was made."""
    duplicates: int = 0
    """Exact copies of another image of the pool."""
    heldout_duplicates: int = 0
    """Exact copies of validation images, which must not enter the pool."""


def diff_pool(
    rows: Iterable[Row],
    source_images: Iterable[SourceImage],
    *,
    protected_ids: Collection[str],
    heldout_names: Mapping[str, str],
    set_aside: Mapping[str, str],
) -> tuple[PoolDiff, list[Row]]:
    """Compare the index with the source, and build the new index.

    Args:
        rows: of the index, as far as they come from this source.
        source_images: all images that the source holds.
        protected_ids: ids of images that must stay in the pool: labeled, offered, or used for calibration.
        heldout_names: name (or uri) of each validation image by its id.
        set_aside: why images were set aside when the campaign was made, by their ids.

    Returns:
        The changes, and the rows that take the place of ``rows``, by image id.
    """
    diff = PoolDiff()
    by_name: dict[str, SourceImage] = {}
    ids: dict[str, str] = {}
    for image in sorted(source_images, key=lambda one: one.name):
        if isinstance(image.metadata, ImageProblem):
            diff.rejected.append(Quarantined(item=image.name, reason=str(image.metadata)))
        else:
            by_name[image.name], ids[image.name] = image, image_id_from_sha256(image.metadata.sha256)
    by_id, new_names, replaced = _match_rows(list(rows), by_name, ids, protected_ids, diff)
    for name in new_names:
        image_id = ids[name]
        if image_id in heldout_names:
            diff.heldout_duplicates += 1
        elif image_id in by_id:
            diff.duplicates += 1
        elif image_id in set_aside:
            fix = "To have it labeled, take its entry out of data/import_report.json"
            reason = f"it was set aside when the campaign was made: {set_aside[image_id]}. {fix}"
            diff.rejected.append(Quarantined(item=name, reason=reason))
        else:
            by_id[image_id] = _row(by_name[name], image_id)
            (diff.changed if name in replaced else diff.added).append(name)
    # Replaced by a copy of another image: nothing came for what went.
    diff.removed += [name for name, has_labels in replaced.items() if not has_labels and name not in diff.changed]
    _check_validation_images(heldout_names, ids, diff)
    diff.removed.sort()
    diff.missing.sort(key=lambda entry: (entry.item, entry.reason))
    return diff, [by_id[image_id] for image_id in sorted(by_id)]


def _match_rows(
    rows: list[Row],
    by_name: Mapping[str, SourceImage],
    ids: Mapping[str, str],
    protected_ids: Collection[str],
    diff: PoolDiff,
) -> tuple[dict[str, Row], list[str], dict[str, bool]]:
    """Return rows that stay, by image id; names without a row; and names with other bytes, whether labeled or not."""
    name_of_id: dict[str, str] = {}
    by_id: dict[str, Row] = {}
    current: set[str] = set()
    replaced: dict[str, bool] = {}
    for row in rows:
        name, image_id = row["file_name"], row["image_id"]
        if ids.get(name) == image_id:
            by_id[image_id] = row
            current.add(name)
            continue
        if not name_of_id:  # most often no image has another name, and nothing is looked up
            name_of_id = {image_id: name for name, image_id in ids.items()}
        if image_id in name_of_id:
            new_name = name_of_id[image_id]
            by_id[image_id] = row | {"uri": by_name[new_name].uri, "file_name": new_name}
            diff.moved.append(f"{name} -> {new_name}")
            current.add(new_name)
        else:
            change = "was replaced by another image" if name in ids else "is gone"
            if image_id in protected_ids:
                by_id[image_id] = row
                diff.missing.append(
                    Quarantined(item=name, reason=f"image {image_id} {change}, expected its bytes there")
                )
            elif name not in ids:
                diff.removed.append(name)
            if name in ids:
                replaced[name] = image_id in protected_ids
    return by_id, [name for name in by_name if name not in current], replaced


def _row(image: SourceImage, image_id: str) -> Row:
    assert isinstance(image.metadata, ImageMetadata)
    metadata = image.metadata
    return {
        "image_id": image_id, "uri": image.uri, "size_bytes": metadata.size_bytes,
        "sha256": metadata.sha256, "file_name": image.name,
    }  # fmt: skip


def _check_validation_images(heldout_names: Mapping[str, str], ids: Mapping[str, str], diff: PoolDiff) -> None:
    present_ids = {image_id for image_id in ids.values() if image_id in heldout_names}
    for image_id, name in heldout_names.items():
        if name and image_id not in present_ids:
            reason = f"validation image {image_id} is gone or was replaced, expected its bytes there"
            diff.missing.append(Quarantined(item=name, reason=reason))
