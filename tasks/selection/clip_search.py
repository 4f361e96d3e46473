"""Find unlabeled images by words: ``python -m tasks.selection.clip_search (--like TEXT | --cover-classes) N OUT.json``.

A process of its own, because ``flows`` hold no tensors. Descriptions of images are kept in the workspace, so that the
next search takes seconds.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX, UNLABELED
from tasks.model.clip import Clip, Descriptions, load_clip
from tasks.model.detector import ImageReader
from tasks.params import Params, load_params
from tasks.runtime.stage_main import stage_main
from tasks.selection.cover_classes import cover_classes, standardized_similarity
from tasks.storage import files

Row = dict[str, Any]
_BATCH_SIZE = 32


def search_by_text(workspace: Workspace, clip: Clip, params: Params, text: str, number: int) -> list[Row]:
    """Return the unlabeled images that are most like a text, the most similar first.

    Returns:
        ``image_id``, ``file_name`` and ``similarity``: the cosine, [-1, 1].
    """
    rows = unlabeled_images(workspace)
    images_PC = describe_pool(workspace, clip, params.clip.weights_sha256, rows)
    similarity_P = images_PC @ clip.describe_texts([text])[0] if rows else np.zeros(0)
    order = np.argsort(-similarity_P, kind="stable")[:number]
    return [_shown(rows[p]) | {"similarity": float(similarity_P[p])} for p in order]


def search_by_classes(workspace: Workspace, clip: Clip, params: Params, number: int) -> list[Row]:
    """Return unlabeled images that cover the classes, in the order of ``cover_classes``.

    Returns:
        ``image_id``, ``file_name``, ``class_name`` and ``similarity``: in standard deviations over the images.
    """
    rows = unlabeled_images(workspace)
    images_PC = describe_pool(workspace, clip, params.clip.weights_sha256, rows)
    classes_KC = clip.describe_classes(params.classes, params.clip.prompts)
    taken = cover_classes(images_PC, classes_KC, number)
    similarity_PK = standardized_similarity(images_PC, classes_KC) if rows else np.zeros((0, 0))
    return [
        _shown(rows[p]) | {"class_name": params.classes[k], "similarity": float(similarity_PK[p, k])} for p, k in taken
    ]


def _shown(row: Row) -> Row:
    return {name: row[name] for name in ("image_id", "file_name")}


def unlabeled_images(workspace: Workspace) -> list[Row]:
    """Return the images that may be labeled next by id: ``image_id``, ``uri`` and ``file_name``.

    Before the first round these are all images of the index without a label.
    """
    columns = ["image_id", "uri", "file_name"]
    indexed = {row["image_id"]: row for row in files.read_table(workspace.index, INDEX, columns=columns).to_pylist()}
    path = workspace.derived("assemble") / "unlabeled.parquet"
    if path.is_file():
        pool = files.read_table(path, UNLABELED, columns=["image_id", "uri"]).to_pylist()
        rows = [row | {"file_name": indexed.get(row["image_id"], {}).get("file_name")} for row in pool]
    else:
        labeled = read_labels(workspace.labels).current
        rows = [row for image_id, row in indexed.items() if image_id not in labeled]
    return sorted(rows, key=lambda row: str(row["image_id"]))


def describe_pool(workspace: Workspace, clip: Clip, weights_sha256: str, rows: Sequence[Row]) -> Descriptions:
    """Return the descriptions of images, (P, C); those that an earlier search has made are read from the workspace."""
    path = workspace.scratch("clip") / f"{weights_sha256[:16]}.npz"
    known: dict[str, Descriptions] = {}
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            known = dict(zip(kept["image_ids"].tolist(), kept["descriptions"], strict=True))
    missing = [row for row in rows if row["image_id"] not in known]
    if missing:
        known |= dict(_describe(clip, ImageReader(workspace.root, missing, prefetch_remote=True), missing))
        with files.atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, image_ids=np.array(list(known)), descriptions=np.stack(list(known.values())))
    return np.stack([known[row["image_id"]] for row in rows]) if rows else np.zeros((0, 1), np.float32)


def _describe(clip: Clip, read: Callable[[str], Any], rows: Sequence[Row]) -> Iterator[tuple[str, Descriptions]]:
    for start in range(0, len(rows), _BATCH_SIZE):
        part = rows[start : start + _BATCH_SIZE]
        found = clip.describe_images([read(row["uri"]) for row in part])
        yield from zip((row["image_id"] for row in part), found, strict=True)


def main() -> None:
    """Search as the command line says."""
    *query, number, out = sys.argv[1:]

    def body(workspace: Workspace) -> None:
        params = load_params(workspace.params)
        clip = load_clip(params.clip, workspace.root)
        if query[0] == "--like":
            found = search_by_text(workspace, clip, params, query[1], int(number))
        else:
            found = search_by_classes(workspace, clip, params, int(number))
        files.write_json(Path(out), found)

    stage_main("select --like", body)


if __name__ == "__main__":
    main()
