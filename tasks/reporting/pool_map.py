"""Draw a map of the pool: images that look alike to the teacher lie close together (docs/method.md#pool-map).

Shape letters: P points of the map, C channels of an image embedding.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from tasks.data.schemas import ANNOTATED, UNLABELED
from tasks.reporting.thumbnails import small_jpeg
from tasks.selection.embeddings import IMAGE, centered, read_embeddings, read_labeled_embeddings
from tasks.storage import files
from tasks.storage.s3 import is_object_uri

Floats = NDArray[np.float64]
MAX_POINTS, MAX_LABELED, MAX_PICTURES = 2000, 700, 120
"""Bounds on the size of the page, whatever the pool's: points, labeled ones among them, and pictures."""
NEAR_DUPLICATE_DISTANCE = 0.02
"""Cosine distance up to which two images count as the same picture, as in docs/method.md#objectives."""
_SEED = 0
_GROUPS = ("pool", "labeled", "explored", "picked")
"""In the order of drawing: the last ones lie on top."""
GROUP_TEXT = {
    "pool": "left in the pool",
    "labeled": "labeled",
    "explored": "drawn at random",
    "picked": "picked by rank",
}
"""What a group is called on the page."""
_RADIUS = {"pool": 2.4, "labeled": 3.0, "explored": 4.4, "picked": 4.4}
_WIDTH, _HEIGHT, _MARGIN, _PICTURE = 560, 400, 8, 200


@dataclass(frozen=True)
class PoolMap:
    """Points of the map, in the order of drawing."""

    image_ids: Sequence[str]
    groups: Sequence[str]
    """``pool``, ``labeled``, ``explored`` (picked by the uniform draw) or ``picked`` of each point."""
    xy_P2: Floats
    """Coordinates in [0, 1]."""
    variance_frac: float
    """Share of the variance of the embeddings that the two coordinates hold."""
    uris: Sequence[str]
    near_duplicates: Mapping[str, int]
    """Points by group that look like a labeled image or one that is picked, themselves left out."""

    def count(self, group: str) -> int:
        """Number of points of a group."""
        return sum(one == group for one in self.groups)


def make_pool_map(
    infer: Path, unlabeled: Path, labeled: Path, picked: Collection[str], explored: Collection[str]
) -> PoolMap | None:
    """Choose the points and place them by the first two principal components; None: there is nothing to place.

    All picked images are on it; of labeled ones and of the rest a seeded sample.

    Args:
        infer: folder of detection shards with embeddings.
        unlabeled: schemas.UNLABELED.
        labeled: schemas.ANNOTATED.
        picked: images of the next batch.
        explored: those of them from the uniform draw.
    """
    uri_of = {**_uris(unlabeled, UNLABELED), **_uris(labeled, ANNOTATED)}
    labeled_ids, labeled_vectors = read_labeled_embeddings(infer, IMAGE)
    random = np.random.default_rng(_SEED)
    rows = _sample(random, len(labeled_ids), MAX_LABELED)
    chosen = sorted(picked)[: MAX_POINTS - MAX_LABELED]
    rest = sorted(files.read_table(unlabeled, UNLABELED, columns=["image_id"])["image_id"].to_pylist())
    rest = [image for image in rest if image not in picked]
    rest = [rest[row] for row in _sample(random, len(rest), MAX_POINTS - len(rows) - len(chosen))]
    pool_ids = [*rest, *chosen]
    if len(pool_ids) + len(rows) < 3:
        return None
    vectors = read_embeddings(infer, IMAGE, pd.Index(pool_ids))
    group_of = dict.fromkeys(chosen, "picked") | dict.fromkeys(set(chosen) & set(explored), "explored")
    ids = [*pool_ids, *(labeled_ids[row] for row in rows)]
    groups = [*(group_of.get(image, "pool") for image in pool_ids), *("labeled" for _ in rows)]
    both = [found for found in (vectors, labeled_vectors[rows]) if len(found)]  # an empty set has no columns
    order = sorted(range(len(ids)), key=lambda point: (_GROUPS.index(groups[point]), ids[point]))
    xy, variance_frac = principal_plane(np.concatenate(both).astype(np.float64))
    return PoolMap(
        image_ids=[ids[point] for point in order],
        groups=[groups[point] for point in order],
        xy_P2=xy[order],
        variance_frac=variance_frac,
        uris=[uri_of[ids[point]] for point in order],
        near_duplicates=count_near_duplicates(np.concatenate(both), groups),
    )


def _uris(path: Path, schema: Any) -> dict[str, str]:
    table = files.read_table(path, schema, columns=["image_id", "uri"])
    return dict(zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True))


def _sample(random: np.random.Generator, count: int, size: int) -> list[int]:
    """Ascending row numbers, all where there are not more."""
    if count <= size:
        return list(range(count))
    return sorted(random.choice(count, size=max(size, 0), replace=False).tolist())


def principal_plane(vectors_PC: Floats) -> tuple[Floats, float]:
    """Return coordinates on the first two principal components, scaled to [0, 1], and their share of the variance.

    The sign of a component is that of its largest entry, so that the same vectors always give the same map.
    """
    from_mean = vectors_PC - vectors_PC.mean(axis=0)
    covariance = from_mean.T @ from_mean
    variances, axes = np.linalg.eigh(covariance)
    plane = axes[:, ::-1][:, :2]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    xy = np.zeros((len(vectors_PC), 2))
    xy[:, : plane.shape[1]] = from_mean @ plane
    low, high = xy.min(axis=0), xy.max(axis=0)
    total = float(variances.sum())
    return (xy - low) / np.where(high > low, high - low, 1.0), float(variances[-2:].sum()) / total if total else 1.0


def count_near_duplicates(vectors_PC: NDArray[np.float32], groups: Sequence[str]) -> dict[str, int]:
    """Count unlabeled points, by group, that look like a labeled or picked point other than themselves."""
    unit, _ = centered(vectors_PC.copy(), np.zeros((0, vectors_PC.shape[1]), dtype=np.float32))
    covered = np.array([group != "pool" for group in groups])
    similarity = unit @ unit[covered].T
    points = np.flatnonzero(covered)
    similarity[points, range(len(points))] = -1.0
    is_near = similarity.max(axis=1, initial=-1.0) >= 1 - NEAR_DUPLICATE_DISTANCE
    return {
        group: int(sum(near and one == group for near, one in zip(is_near, groups, strict=True)))
        for group in _GROUPS
        if group != "labeled"
    }


def draw_pool_map(pool_map: PoolMap, root: Path, alt: str, *, with_pictures: bool) -> Markup:
    """Draw the map as SVG; a point under the pointer shows its picture on the right, by style alone.

    Args:
        pool_map: what is drawn.
        root: folder that image uris are relative to.
        alt: text for those who do not see it.
        with_pictures: whether images may be shown at all.
    """
    pictures = _pictures(pool_map, root) if with_pictures else {}
    points = [_point(pool_map, point, pictures.get(point, "")) for point in range(len(pool_map.image_ids))]
    head = Markup('<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        _WIDTH + _PICTURE + 3 * _MARGIN, _HEIGHT, alt
    )
    return head + Markup("").join(points) + Markup("</svg>")


def _pictures(pool_map: PoolMap, root: Path) -> dict[int, str]:
    """Data URIs by point: of picked images first, then evenly of the others; of an object store only picked ones."""
    count = len(pool_map.image_ids)
    is_pick = [group in ("picked", "explored") for group in pool_map.groups]
    picks = [point for point in range(count) if is_pick[point]]
    others = [point for point in range(count) if not is_pick[point] and not is_object_uri(pool_map.uris[point])]
    random = np.random.default_rng(_SEED)
    others = [others[row] for row in _sample(random, len(others), MAX_PICTURES - len(picks))]
    shown = [*picks[:MAX_PICTURES], *others]
    return {point: small_jpeg(pool_map.uris[point], pool_map.image_ids[point], root, _PICTURE) for point in shown}


def _point(pool_map: PoolMap, point: int, picture: str) -> Markup:
    group, image_id = pool_map.groups[point], pool_map.image_ids[point]
    x = _MARGIN + float(pool_map.xy_P2[point, 0]) * (_WIDTH - 2 * _MARGIN)
    y = _MARGIN + (1 - float(pool_map.xy_P2[point, 1])) * (_HEIGHT - 2 * _MARGIN)
    circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, _RADIUS[group])
    peek = Markup("")
    if picture:
        peek = Markup('<image class="peek" href="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
            picture, _WIDTH + 2 * _MARGIN, _MARGIN, _PICTURE, _PICTURE
        )
    title = Markup("<title>{}, {}</title>").format(GROUP_TEXT[group], image_id)
    return Markup('<g class="dot" style="--c: var(--{})">{}{}{}</g>').format(group, title, circle, peek)
