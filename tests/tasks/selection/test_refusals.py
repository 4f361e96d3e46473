"""What people refused is asked for less, and so is what is like it; what is not stays novel."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.label_store import read_labels
from tasks.data.schemas import DETECTIONS
from tasks.selection.objectives.novelty import Novelty
from tasks.selection.pool_view import PoolView
from tasks.selection.refusals import ACCEPTED, REFUSED, UNKNOWN, refused_images, spread_refusals
from tasks.storage import files

BOX = {"category": "cell", "xyxy_px": [0, 0, 9, 9]}


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_answers(folder: Path, answers: dict[str, dict[str, Any]]) -> Path:
    images = [
        {
            "image_id": image, "status": "labeled" if answer.get("boxes") else "empty", "boxes": [], "annotator": "a",
            "finished_at": "2026-01-01T00:00:00+00:00", "seconds_spent": None, "offered_batch": 0,
        } | answer
        for image, answer in answers.items()
    ]  # fmt: skip
    batch = {"batch": 0, "provider": "test", "collected_at": "2026-01-02T00:00:00+00:00", "images": images}
    files.write_json(folder / "batch-0000.json", batch)
    return folder


def test_a_refusal_is_an_empty_answer_to_pre_drawn_boxes(tmp_path: Path) -> None:
    answers = {
        "refused": {"preannotations": [BOX]},
        "nothing claimed": {"preannotations": []},
        "unknown what was claimed": {"preannotations": None},
        "kept": {"preannotations": [BOX], "boxes": [BOX]},
        "redrawn": {"preannotations": [BOX], "boxes": [BOX | {"xyxy_px": [50, 50, 60, 60]}]},
        "given up": {"preannotations": [BOX], "status": "skipped"},
    }
    assert refused_images(read_labels(write_answers(tmp_path, answers))) == {"refused"}


def test_refusal_spreads_as_written_out() -> None:
    """Four images around a circle, each 60 degrees on; neighbors have a cosine of 0.5, the others none above 0."""
    angles = np.deg2rad([0, 60, 120, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = spread_refusals(vectors, np.array([REFUSED, UNKNOWN, UNKNOWN, ACCEPTED]))
    # f1 = 0.9 (1 + f2) / 2 and f2 = 0.9 (f1 + 0) / 2
    first = 0.45 / (1 - 0.45**2)
    assert found == pytest.approx([1, first, 0.45 * first, 0], abs=1e-5)


@given(st.integers(0, 2**16), st.integers(2, 30))
def test_refusal_is_a_share_and_stays_in_the_group_it_is_about(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(count, 4))).astype(np.float32)
    vectors[0] = 0  # nothing is known of it
    found = spread_refusals(vectors, rng.integers(-1, 2, count))
    assert ((found >= 0) & (found <= 1)).all()
    far = np.zeros((count, 8), dtype=np.float32)
    far[:, :4] = vectors
    far[count // 2 :] = np.roll(far[count // 2 :], 4, axis=1)  # at right angles to the others
    state = np.full(count, UNKNOWN)
    state[1 if count > 2 else 0] = REFUSED
    if count > 3:
        assert (spread_refusals(far, state)[count // 2 :][state[count // 2 :] == UNKNOWN] == 0).all()


def make_pool(folder: Path, vectors: dict[str, Any], labeled: dict[str, Any], answers: dict[str, Any]) -> PoolView:
    for name, images in (("shard", vectors), ("labeled", labeled)):
        rows = [
            {"image_id": image, "region_class_ids": [0], "region_features": vector.tolist()}
            for image, vector in images.items()
        ]
        files.write_table(folder / "infer" / f"{name}-000000.parquet", pa.Table.from_pylist(rows, schema=DETECTIONS))
    candidates = pd.DataFrame(index=pd.Index(list(vectors), name="image_id"))
    return PoolView(candidates, folder / "infer", labels=write_answers(folder / "labels", answers))


def test_refused_objects_and_their_likes_are_less_novel_and_other_foreign_ones_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    known, refused, other = unit(rng.normal(size=(3, 64)))

    def like(center: Any, count: int, prefix: str) -> dict[str, Any]:
        vectors = unit(center + 0.05 * rng.normal(size=(count, 64)))
        return {f"{prefix}{number:02d}": vector for number, vector in enumerate(vectors)}

    vectors = like(known, 60, "a") | like(refused, 20, "b") | like(other, 5, "c")
    labeled, seen = like(known, 30, "labeled"), like(refused, 2, "seen")
    kept = {image: {"preannotations": [BOX], "boxes": [BOX]} for image in labeled}
    answers = kept | {image: {"preannotations": [BOX]} for image in seen}
    before = Novelty().values(make_pool(tmp_path / "before", vectors, labeled, kept), seed=0)
    assert before[60:].min() > before[:60].max()  # both foreign groups are novel
    pool = make_pool(tmp_path / "after", vectors, labeled | seen, answers)
    after = Novelty().values(pool, seed=0)
    assert after[80:].min() > after[:80].max()
    assert after[60:80].max() < 0.6 * before[60:80].min()  # the likes of two that were seen
    reverse = PoolView(pool.candidates[::-1], pool.infer, labels=pool.labels)
    assert Novelty().values(reverse, seed=0)[::-1] == pytest.approx(after, rel=1e-4)
