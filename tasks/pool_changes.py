"""The pool held against the directory or bucket its images come from: what was added, changed, moved, vanished."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts import Quarantined
from tasks.images import ImageFacts, ImageProblem
from tasks.paths import image_id_of

Row = dict[str, Any]
"""One row of contracts.INDEX."""


@dataclass(frozen=True)
class Found:
    """One image of the source as it is now."""

    name: str
    """The user's own name of it: what follows the source's prefix."""
    uri: str
    """What the index would call it."""
    facts: ImageFacts | ImageProblem


@dataclass
class PoolChanges:
    """What a sync found, each entry a name with what there is to say about it."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Other bytes under the same name: a new image."""
    moved: list[str] = field(default_factory=list)
    """The same bytes under another name: the same image."""
    vanished: list[str] = field(default_factory=list)
    """Gone, and nobody has labeled them: they leave the pool."""
    lost: list[Quarantined] = field(default_factory=list)
    """The alarm: images that people labeled, or are asked to label, whose bytes are gone or replaced. They stay."""
    set_aside: list[Quarantined] = field(default_factory=list)
    """No images, or broken ones."""
    duplicates: int = 0
    """Exact copies of another image of the pool."""
    held_out: int = 0
    """Exact copies of validation images, which must not enter the pool."""


def pool_changes(
    rows: Iterable[Row], found: Iterable[Found], *, kept: Collection[str], held_out: Mapping[str, str]
) -> tuple[PoolChanges, list[Row]]:
    """Compare, and make the new index.

    Args:
        rows: of the index, as far as they come from this source.
        found: everything the source holds.
        kept: ids of images that must stay in the pool: labeled, offered, or used for calibration.
        held_out: name (or uri) of each validation image by its id.

    Returns:
        The changes, and the rows that take the place of ``rows``, by image id.
    """
    changes = PoolChanges()
    now: dict[str, Found] = {}
    ids: dict[str, str] = {}
    for one in sorted(found, key=lambda one: one.name):
        if isinstance(one.facts, ImageProblem):
            changes.set_aside.append(Quarantined(where=one.name, reason=str(one.facts)))
        else:
            now[one.name], ids[one.name] = one, image_id_of(one.facts.sha256)
    by_id, new_names, replaced = _kept_rows(list(rows), now, ids, kept, changes)
    for name in new_names:
        image_id = ids[name]
        if image_id in held_out:
            changes.held_out += 1
        elif image_id in by_id:
            changes.duplicates += 1
        else:
            by_id[image_id] = _row(now[name], image_id)
            (changes.changed if name in replaced else changes.added).append(name)
    # Replaced by a copy of another image: nothing came for what went.
    changes.vanished += [
        name for name, has_labels in replaced.items() if not has_labels and name not in changes.changed
    ]
    _lost_validation(held_out, ids, changes)
    changes.vanished.sort()
    changes.lost.sort(key=lambda entry: (entry.where, entry.reason))
    return changes, [by_id[image_id] for image_id in sorted(by_id)]


def _kept_rows(
    rows: list[Row], now: Mapping[str, Found], ids: Mapping[str, str], kept: Collection[str], changes: PoolChanges
) -> tuple[dict[str, Row], list[str], dict[str, bool]]:
    """Rows that stay, by image id; names that no row stands for; and names with other bytes, whether labeled or not."""
    name_of_id = {image_id: name for name, image_id in ids.items()}
    by_id: dict[str, Row] = {}
    current: set[str] = set()
    replaced: dict[str, bool] = {}
    for row in rows:
        name, image_id = row["source"], row["image_id"]
        if ids.get(name) == image_id:
            by_id[image_id] = row
            current.add(name)
        elif image_id in name_of_id:
            new_name = name_of_id[image_id]
            by_id[image_id] = row | {"uri": now[new_name].uri, "source": new_name}
            changes.moved.append(f"{name} -> {new_name}")
            current.add(new_name)
        else:
            what = "was replaced by another image" if name in ids else "is gone"
            if image_id in kept:
                by_id[image_id] = row
                changes.lost.append(
                    Quarantined(where=name, reason=f"image {image_id} {what}, expected its bytes there")
                )
            elif name not in ids:
                changes.vanished.append(name)
            if name in ids:
                replaced[name] = image_id in kept
    return by_id, [name for name in now if name not in current], replaced


def _row(found: Found, image_id: str) -> Row:
    assert isinstance(found.facts, ImageFacts)
    facts = found.facts
    return {
        "image_id": image_id, "uri": found.uri, "bytes": facts.bytes, "sha256": facts.sha256, "source": found.name
    }  # fmt: skip


def _lost_validation(held_out: Mapping[str, str], ids: Mapping[str, str], changes: PoolChanges) -> None:
    there = set(ids.values())
    for image_id, name in held_out.items():
        if name and image_id not in there:
            reason = f"validation image {image_id} is gone or was replaced, expected its bytes there"
            changes.lost.append(Quarantined(where=name, reason=reason))
