"""Find the unlabeled images whose content is most like that of one image (docs/method.md#similar-images)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.params import load_params
from tasks.selection.embeddings import IMAGE, Embeddings, centered, read_labeled_embeddings
from tasks.selection.explanation import read_workspace, resolve_image_id
from tasks.storage import files


def find_similar(workspace: Workspace, query: str | NDArray[np.float32], number: int) -> list[dict[str, Any]]:
    """Return the images that may be selected next and are most like an image, the most similar first.

    Args:
        workspace: a campaign whose stage ``infer`` has run.
        query: id of a candidate or a labeled image, or its beginning; or the image embedding (C,) of any image.
        number: of images to return, at most.

    Returns:
        ``image_id``, ``file_name`` and ``similarity``: cosine of the embeddings less their mean, [-1, 1].

    Raises:
        UserError: the id is unknown or of several images, or a table is missing.
    """
    pool = read_workspace(workspace, load_params(workspace.params)).pool
    candidate_ids = [str(image) for image in pool.image_ids]
    labeled_ids, labeled = read_labeled_embeddings(pool.infer, IMAGE)
    known = [*candidate_ids, *labeled_ids]
    candidates = pool.embeddings()
    others: Embeddings = labeled.reshape(-1, candidates.shape[1])
    if isinstance(query, str):
        row = known.index(resolve_image_id(known, query, "--like", ", or an image file"))
    else:
        row, others = len(known), np.concatenate([others, query[None]])
    similarity_P = _similarities(candidates, others, row)
    order = [p for p in np.argsort(-similarity_P, kind="stable") if p != row][:number]
    names = _file_names(workspace.index, [candidate_ids[p] for p in order])
    return [
        {"image_id": candidate_ids[p], "file_name": names.get(candidate_ids[p]), "similarity": float(similarity_P[p])}
        for p in order
    ]


def _similarities(candidates_PC: Embeddings, others_LC: Embeddings, row: int) -> Embeddings:
    """Cosine of each candidate with one row of both sets, the candidates first."""
    candidates, others = centered(candidates_PC, others_LC)
    query_C = candidates[row] if row < len(candidates) else others[row - len(candidates)]
    return np.asarray(candidates @ query_C)


def _file_names(index: Path, image_ids: Sequence[str]) -> dict[str, str]:
    wanted = set(image_ids)
    table = files.read_table(index, INDEX, columns=["image_id", "file_name"])
    pairs = zip(table["image_id"].to_pylist(), table["file_name"].to_pylist(), strict=True)
    return {image: name for image, name in pairs if image in wanted}
