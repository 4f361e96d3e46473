"""Check labels and images."""

import hashlib
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from flows.preflight.context import CheckContext
from flows.preflight.result import CheckSkipped, Finding, failed, passed, warned
from tasks.data.images import ImageProblem, inspect_image
from tasks.data.label_store import Annotation, check_annotation, read_labels
from tasks.data.paths import image_id_from_sha256, resolve_uri
from tasks.data.schemas import ANNOTATED, POOL
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.s3 import is_object_uri, read_object

_LOCAL_SAMPLE_SIZE = 64
_OBJECT_SAMPLE_SIZE = 16
_MAX_DECODED_FOR_SIZE = 300
_NO_LIMIT_PX = 10**9


def check_labels(context: CheckContext) -> Finding:
    """Check that the label store is complete, its images are known, and every box lies inside its image."""
    if context.classes is None:
        raise CheckSkipped("classes in params.yaml are unreadable")
    store = read_labels(context.workspace.labels)
    rows_by_id = {row["image_id"]: row for row in context.index}
    unknown = [image_id for image_id in store.current if image_id not in rows_by_id]
    if unknown:
        return failed(
            f"{len(unknown)} labeled images are not in the pool's index, the first is {unknown[0]}",
            "Restore data/index.parquet (dvc checkout), or the label batch (git checkout -- data/labels).",
        )
    sizes_px = _sizes_px(context, store.current, rows_by_id)
    problems = [
        problem
        for annotation in store.current.values()
        if (problem := _annotation_problem(annotation, sizes_px, context))
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        return failed(f"{problems[0].where}: {problems[0].problem}{more}", problems[0].fix)
    measured = f" ({len(sizes_px)} held against their image)" if len(sizes_px) < len(store.current) else ""
    return passed(f"{len(store.current)} labeled images, newest batch {store.newest_batch}{measured}")


def check_fixed_sets(context: CheckContext) -> Finding:
    """Check that no validation or calibration image is trained on."""
    labeled = set(read_labels(context.workspace.labels).current)
    counts = {}
    for name, path in (("validation", context.workspace.val), ("calibration", context.workspace.calibration)):
        ids = set(files.read_table(path, ANNOTATED)["image_id"].to_pylist())
        leaked = sorted(ids & labeled)
        if leaked:
            return failed(
                f"{len(leaked)} {name} images are labeled for training too, the first is {leaked[0]}",
                "Restore the file (git checkout, dvc checkout): these sets are fixed for the whole campaign.",
            )
        counts[name] = len(ids)
    if not counts["validation"]:
        return failed("validation images are 0, expected at least 1", "Restore data/val.parquet from git.")
    return passed(f"{counts['validation']} validation and {counts['calibration']} calibration images, none trained on")


def check_images(context: CheckContext) -> Finding:
    """Check that a sample of the pool has the bytes that the index records; another sample each day."""
    in_object_store = [row for row in context.index if is_object_uri(row["uri"])]
    local = [row for row in context.index if not is_object_uri(row["uri"])]
    rng = random.Random(datetime.now(UTC).date().toordinal())
    sample = rng.sample(local, min(_LOCAL_SAMPLE_SIZE, len(local))) + rng.sample(
        in_object_store, min(_OBJECT_SAMPLE_SIZE, len(in_object_store))
    )
    with ThreadPoolExecutor() as threads:
        problems = [problem for problem in threads.map(lambda row: _image_problem(context, row), sample) if problem]
    if problems:
        return failed(
            f"{len(problems)} of {len(sample)} sampled images are not as the index says: {problems[0]}",
            "Bring them back with dvc checkout or dvc pull, in a store from its versions or backup; gleaner pool sync "
            "tells all changes. A night would set them aside and go on with fewer.",
        )
    return passed(f"{len(sample)} of {len(context.index)} images read, bytes as in the index")


def check_pool(context: CheckContext) -> Finding:
    """Check how many rounds the unlabeled images are enough for."""
    if context.round_number is None:
        raise CheckSkipped("the label batches are broken")
    calibration_ids = set(files.read_table(context.workspace.calibration, ANNOTATED)["image_id"].to_pylist())
    num_unlabeled = len(
        {row["image_id"] for row in context.index}
        - set(read_labels(context.workspace.labels).current)
        - calibration_ids
    )
    if not num_unlabeled:
        return warned("no unlabeled image is left", "Add images to the pool, or end the campaign here.")
    return passed(f"{num_unlabeled} images without a label")


def _sizes_px(
    context: CheckContext, annotations: dict[str, Annotation], rows_by_id: dict[str, dict[str, Any]]
) -> dict[str, tuple[int, int]]:
    """Return width and height as ``prepare`` measured them; before the first round, of the images themselves."""
    prepared = context.workspace.derived("prepare") / "pool.parquet"
    measured: Sequence[dict[str, Any]] = files.read_table(prepared, POOL).to_pylist() if prepared.is_file() else []
    sizes = {row["image_id"]: (row["width_px"], row["height_px"]) for row in measured if row["image_id"] in annotations}
    for image_id in [image_id for image_id in annotations if image_id not in sizes][:_MAX_DECODED_FOR_SIZE]:
        try:
            path = resolve_uri(context.workspace.root, rows_by_id[image_id]["uri"])
            metadata = inspect_image(path, max_pixels=_NO_LIMIT_PX)
        except (ImageProblem, ValueError):
            continue  # the check on images says so
        sizes[image_id] = (metadata.width_px, metadata.height_px)
    return sizes


def _annotation_problem(
    annotation: Annotation, sizes_px: dict[str, tuple[int, int]], context: CheckContext
) -> UserError | None:
    if annotation.label.image_id not in sizes_px:
        return None
    try:
        check_annotation(annotation, sizes_px, context.classes or ())
    except UserError as error:
        return error
    return None


def _image_problem(context: CheckContext, row: dict[str, Any]) -> str | None:
    uri = row["uri"]
    try:
        if is_object_uri(uri):
            digest = hashlib.sha256(read_object(uri)).hexdigest()
        else:
            digest = files.sha256_file(resolve_uri(context.workspace.root, uri))
    except (UserError, ValueError) as error:
        return str(error).rstrip(".")
    except OSError as error:
        return f"{uri} cannot be read ({error.strerror})"
    if digest != row["sha256"] or image_id_from_sha256(digest) != row["image_id"]:
        return f"{uri} has the SHA-256 {digest[:12]}…, expected {row['sha256'][:12]}…"
    return None
