"""Each objective finds what was planted, and each formula agrees with a written-out computation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.datasets import make_moons

from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.data.schemas import ANNOTATED, DETECTIONS
from tasks.params.stages import READY_STRATEGY_NAMES, ObjectiveName
from tasks.runtime.errors import UserError
from tasks.selection.diversity import spread
from tasks.selection.earlier_picks import EarlierPick
from tasks.selection.objectives.boundary import Boundary, boundary_values, spectral_groups
from tasks.selection.objectives.registry import DIVERSITY, OBJECTIVES, READY_STRATEGIES
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.objective import ObjectiveStrategy
from tasks.storage import files

PoolMaker = Callable[..., PoolView]


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def detection_row(image_id: str, boxes: list[tuple[float, ...]], **columns: Any) -> dict[str, Any]:
    """Boxes of class 0 and score 0.5, unless ``columns`` say otherwise."""
    count = len(boxes)
    return {
        "image_id": image_id,
        "boxes_xyxy": [corner for box in boxes for corner in box],
        "scores": [0.5] * count,
        "class_ids": [0] * count,
        "class_probs": [0.5, 0.25, 0.25] * count,
        "embedding": [1.0, 0.0],
        "stability": [1.0] * count,
        "region_class_ids": [],
        "region_features": [],
        "box_disagreement": 0.0,
        "class_disagreement": 0.0,
        "model_digest": "0" * 64,
    } | columns


def region_row(image_id: str, vector: Any) -> dict[str, Any]:
    return detection_row(image_id, [(0, 0, 9, 9)], region_class_ids=[0], region_features=list(map(float, vector)))


@pytest.fixture
def make_pool(tmp_path: Path) -> PoolMaker:
    def make(
        rows: list[dict[str, Any]],
        labeled: list[dict[str, Any]] | None = None,
        truth: list[dict[str, Any]] | None = None,
        **columns: Any,
    ) -> PoolView:
        files.write_table(tmp_path / "infer" / "shard-000000.parquet", pa.Table.from_pylist(rows, schema=DETECTIONS))
        if labeled:
            table = pa.Table.from_pylist(labeled, schema=DETECTIONS)
            files.write_table(tmp_path / "infer" / "labeled-000000.parquet", table)
        path = tmp_path / "labeled.parquet"
        files.write_table(path, pa.Table.from_pylist(truth or [], schema=ANNOTATED))
        index = pd.Index([row["image_id"] for row in rows], name="image_id")
        candidates = pd.DataFrame({"uncertainty": 0.5, **columns}, index=index)
        return PoolView(candidates, tmp_path / "infer", labeled=path, batch_size=10)

    return make


def ids(count: int) -> list[str]:
    return [f"{number:04d}" for number in range(count)]


def test_foreign_objects_are_in_the_first_batch(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(0)
    groups = unit(rng.normal(size=(4, 64)))
    known = unit(groups[rng.integers(4, size=190)] + 0.1 * rng.normal(size=(190, 64)))
    foreign = unit(unit(rng.normal(size=(2, 64)))[rng.integers(2, size=10)] + 0.1 * rng.normal(size=(10, 64)))
    labeled = unit(groups[rng.integers(4, size=40)] + 0.1 * rng.normal(size=(40, 64)))
    pool = make_pool(
        [region_row(image, vector) for image, vector in zip(ids(200), [*known, *foreign], strict=True)],
        [region_row(f"l{image}", vector) for image, vector in zip(ids(40), labeled, strict=True)],
    )
    ranking = ObjectiveStrategy("novelty", {"novelty": 1}).rank(pool, seed=0)
    assert set(ranking[:10]) == set(ids(200)[190:])


def test_images_between_two_groups_come_first(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(8)
    centers = unit(rng.normal(size=(2, 64)))
    share = np.where(np.arange(200) < 20, 0.5, rng.integers(2, size=200))  # the first 20 stand between the groups
    vectors = share[:, None] * centers[0] + (1 - share[:, None]) * centers[1] + 0.03 * rng.normal(size=(200, 64))
    pool = make_pool([region_row(image, vector) for image, vector in zip(ids(200), vectors, strict=True)])
    value = Boundary(num_groups=2).values(pool, seed=0)
    assert set(np.argsort(-value)[:15].tolist()) <= set(range(20))


def test_the_border_of_two_moons_is_where_they_are_nearest() -> None:
    """Two half circles, one inside the other: no two ellipses are like them."""
    rng = np.random.default_rng(3)
    plane, moon = make_moons(300, noise=0.05, random_state=3)
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    points = np.hstack([plane, 0.02 * rng.normal(size=(300, 6))]) @ rotation
    group = spectral_groups(points, 2, seed=0)
    assert max((group == moon).mean(), (group != moon).mean()) > 0.99
    to_other = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    to_other[moon[:, None] == moon[None]] = np.inf
    is_near = to_other.min(axis=1) < np.quantile(to_other.min(axis=1), 0.1)
    value = boundary_values(points, 2, seed=0)
    assert (value[is_near][:, None] > value[~is_near][None]).mean() > 0.8  # area under the curve
    assert value.min() >= 0
    assert value.max() <= 1


def test_of_planted_duplicates_at_most_one_is_in_the_batch(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(2)
    distinct = unit(rng.normal(size=(30, 64)))
    vectors = np.concatenate([np.repeat(distinct[:1], 20, axis=0) + 1e-3 * rng.normal(size=(20, 64)), distinct[1:]])
    value = np.linspace(1, 0, 49)  # the copies are the most uncertain of all
    pool = make_pool(
        [region_row(image, vector) for image, vector in zip(ids(49), vectors, strict=True)], uncertainty=value
    )
    strategy = ObjectiveStrategy("composite", {"uncertainty": 1, "diversity": 1})
    ranking = strategy.rank(pool, seed=0)
    assert sorted(ranking) == ids(49)
    assert len(set(ranking[:30]) & set(ids(20))) == 1
    assert set(ranking[-19:]) <= set(ids(20))
    assert "much like another image" in strategy.reason(
        pd.Series({"image_id": ranking[-1]}), position=49, num_candidates=49
    )


def test_images_without_detections_are_not_taken_for_the_same_picture(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(9)
    rows = [region_row(image, vector) for image, vector in zip(ids(20), unit(rng.normal(size=(20, 64))), strict=False)]
    rows[5:15] = [detection_row(image, []) for image in ids(20)[5:15]]
    pool = make_pool(rows, uncertainty=[1.0 if 5 <= n < 15 else 0.0 for n in range(20)])
    ranking = ObjectiveStrategy("composite", {"uncertainty": 5, "diversity": 1}).rank(pool, seed=0)
    assert set(ranking[:10]) == set(ids(20)[5:15])


def test_what_is_labeled_already_is_covered(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(5)
    vectors = unit(rng.normal(size=(12, 64)))
    rows = [region_row(image, vector) for image, vector in zip(ids(12), vectors, strict=True)]
    pool = make_pool(rows, [region_row(f"l{image}", vector) for image, vector in zip(ids(6), vectors, strict=False)])
    assert set(ObjectiveStrategy("coreset", {"diversity": 1}).rank(pool, seed=0)[:6]) == set(ids(12)[6:])


def test_spread_takes_what_the_written_out_rule_takes() -> None:
    rng = np.random.default_rng(3)
    vectors, covered, value = unit(rng.normal(size=(25, 3))), unit(rng.normal(size=(2, 3))), rng.random(25)
    found = spread(vectors, covered, value, 0.6, max_taken=10)
    expected: list[int] = []
    nearest = [min(1 - float(vectors[i] @ c) for c in covered) for i in range(25)]
    scale = max(nearest)
    for _ in range(10):
        seen = [*covered, *vectors[expected]]
        distance = [min(1 - float(vectors[i] @ c) for c in seen) for i in range(25)]
        gain = [
            0.4 * value[i] + 0.6 * distance[i] / scale if i not in expected and distance[i] > 0.02 else -1
            for i in range(25)
        ]
        expected.append(int(np.argmax(gain)))
    assert found.order == expected
    assert not set(found.duplicates) & set(expected)
    seen = [*covered, *vectors[expected]]  # covered images are -1 and -2 in nearest_S
    for i in set(range(25)) - set(expected):
        nearest = int(np.argmax([vectors[i] @ c for c in seen]))
        assert found.nearest_S[i] == (expected[nearest - 2] if nearest > 1 else -1 - nearest)


def test_a_bound_on_the_order_only_cuts_it() -> None:
    rng = np.random.default_rng(4)
    vectors, value = unit(rng.normal(size=(20, 8))), rng.random(20)
    whole = spread(vectors, vectors[:0], value, 0.5).order
    assert spread(vectors, vectors[:0], value, 0.5, max_taken=7).order == whole[:7]


def test_sums_over_boxes_agree_with_the_formulas(make_pool: PoolMaker) -> None:
    box = (0.0, 0.0, 9.0, 9.0)
    probs = [[0.6, 0.3, 0.1], [0.2, 0.25, 0.55]]
    row = detection_row(
        "b", [box, box], scores=[0.6, 0.25], class_ids=[0, 1], stability=[0.9, 0.5], class_probs=probs[0] + probs[1]
    )
    pool = make_pool([row, detection_row("a", [])])
    values = {name: OBJECTIVES[name].values(pool, seed=0) for name in ("least_confident", "margin", "localization")}
    assert values["least_confident"] == pytest.approx([0.4 + 0.75, 0], abs=1e-3)
    assert values["margin"] == pytest.approx([(1 - 0.3) ** 2 + (1 - 0.05) ** 2, 0], abs=2e-3)
    assert values["localization"] == pytest.approx([0.6 * 0.1 + 0.25 * 0.5, 0], abs=1e-3)


def test_rarity_weighs_rare_classes_and_odd_looks(make_pool: PoolMaker) -> None:
    square = [0.0, 0.0, 20.0, 20.0]
    truth = [
        {"image_id": f"t{i}", "boxes_xyxy": square, "class_ids": [0], "width_px": 99, "height_px": 99}
        for i in range(20)
    ] + [{"image_id": "u", "boxes_xyxy": square, "class_ids": [1], "width_px": 99, "height_px": 99}]
    rows = [
        detection_row("common", [(0, 0, 20, 20)]),
        detection_row("rare", [(0, 0, 20, 20)], class_ids=[1]),
        detection_row("odd", [(0, 0, 80, 4)]),
        detection_row("occluded", [(0, 0, 20, 20), (0, 0, 20, 20)], scores=[0.25, 0.25]),
    ]
    value = dict(
        zip(
            ["common", "rare", "odd", "occluded"],
            OBJECTIVES["rarity"].values(make_pool(rows, truth=truth), seed=0),
            strict=True,
        )
    )
    assert value["common"] == pytest.approx(0.5)
    assert value["rare"] == pytest.approx(0.5 * (25 / 6) ** 0.5)
    shape = (
        np.abs(np.log([320 / 400, 20])) / 0.1
    )  # the labeled boxes are all the same: the floor of the deviation holds
    assert value["odd"] == pytest.approx(0.5 * (1 + np.minimum(shape, 3).sum() / 3))
    assert value["occluded"] == pytest.approx(2 * 0.25 * (1 + 1))


def test_planted_shifted_boxes_rank_first(make_pool: PoolMaker) -> None:
    """A third of the boxes is shifted by 20 to 50 % of their size; a second pass takes most of the shift back."""
    rng = np.random.default_rng(6)
    shifted = rng.random(200) < 0.3
    corner_px, side_px = rng.uniform(0, 200, (200, 2)), rng.uniform(20, 80, (200, 2))
    angle = rng.uniform(0, 2 * np.pi, 200)
    size = np.where(shifted, rng.uniform(0.2, 0.5, 200), np.abs(rng.normal(0, 0.04, 200)))
    shift_px = size[:, None] * side_px * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    kept_px = shift_px * rng.uniform(0.1, 0.5, (200, 1)) + rng.normal(0, 0.03, (200, 2)) * side_px
    found = np.hstack([corner_px + shift_px, corner_px + shift_px + side_px])
    refined = np.hstack([corner_px + kept_px, corner_px + kept_px + side_px])
    rows = [
        detection_row(
            image,
            [tuple(box)],
            scores=[float(rng.uniform(0.6, 1))],
            stability=[float(pairwise_iou(box[None], again[None])[0, 0])],
        )
        for image, box, again in zip(ids(200), found, refined, strict=True)
    ]
    value = OBJECTIVES["localization"].values(make_pool(rows), seed=0)
    assert (value[shifted][:, None] > value[~shifted][None]).mean() > 0.9  # area under the curve


def test_images_like_those_the_teacher_failed_on_come_first(make_pool: PoolMaker) -> None:
    rng = np.random.default_rng(1)
    centers = unit(rng.normal(size=(3, 32)))
    group = rng.integers(3, size=60)
    rows = [region_row(image, centers[g] + 0.05 * rng.normal(size=32)) for image, g in zip(ids(60), group, strict=True)]
    labeled = [region_row(f"l{number:02d}", centers[number % 3] + 0.05 * rng.normal(size=32)) for number in range(45)]
    pool = make_pool(rows, labeled)
    # failures on group 0; batch 1 is of a better teacher, whose losses are a tenth
    picks = [
        EarlierPick(
            f"l{number:02d}", number % 2, "random", *2 * (0.1 ** (number % 2) * (8 if number % 3 == 0 else 1),), 1
        )
        for number in range(45)
    ]
    known = PoolView(pool.candidates, pool.infer, earlier_picks=lambda: picks)
    value = OBJECTIVES["failures"].values(known, seed=0)
    assert value[group == 0].min() > 3 * value[group != 0].max()
    assert not OBJECTIVES["failures"].values(pool, seed=0).any()  # nothing is known yet


def test_what_the_committee_disagrees_on_comes_first(make_pool: PoolMaker) -> None:
    disagreements = {"0000": (0.1, 0.3), "0001": (0.9, 0.0), "0002": (0.0, 0.0), "0003": (0.0, 2.0)}
    rows = [
        detection_row(image, [], box_disagreement=b, class_disagreement=c) for image, (b, c) in disagreements.items()
    ]
    pool = make_pool(rows)
    assert OBJECTIVES["committee"].values(pool, seed=0) == pytest.approx([0.4, 0.9, 0.0, 2.0])
    assert ObjectiveStrategy("committee", {"committee": 1}).rank(pool, seed=0) == ["0003", "0001", "0000", "0002"]


def test_without_a_committee_the_objective_says_what_is_missing(make_pool: PoolMaker) -> None:
    pool = make_pool([detection_row("0000", [], box_disagreement=None, class_disagreement=None)])
    with pytest.raises(UserError, match="box_disagreement of image 0000 is missing"):
        OBJECTIVES["committee"].values(pool, seed=0)


@pytest.mark.parametrize("name", sorted(READY_STRATEGIES))
def test_orders_are_complete_and_do_not_depend_on_the_order_of_rows(make_pool: PoolMaker, name: str) -> None:
    rng = np.random.default_rng(7)
    rows = [region_row(image, rng.normal(size=8)) for image in ids(40)]
    rows[3] = detection_row("0003", [])
    columns = {"uncertainty": rng.random(40), "objectness_entropy_raw": rng.random(40)}
    pool = make_pool(rows, [region_row(f"l{i}", rng.normal(size=8)) for i in range(5)], **columns)
    reverse = PoolView(pool.candidates[::-1], pool.infer, labeled=pool.labeled, batch_size=5)
    ranking = ObjectiveStrategy(name, READY_STRATEGIES[name]).rank(pool, seed=3)
    assert sorted(ranking) == ids(40)
    assert ObjectiveStrategy(name, READY_STRATEGIES[name]).rank(pool, seed=3) == ranking
    same_batch = PoolView(pool.candidates[::-1], pool.infer, labeled=pool.labeled, batch_size=10)
    assert ObjectiveStrategy(name, READY_STRATEGIES[name]).rank(same_batch, seed=3) == ranking
    assert reverse.batch_size == 5


def test_names_of_the_parameters_are_the_names_of_the_registry() -> None:
    assert tuple(READY_STRATEGIES) == READY_STRATEGY_NAMES
    assert {*OBJECTIVES, DIVERSITY} == set(get_args(ObjectiveName))
