"""Check the files of a campaign: parameters, labels, images and git.

A round is a commit and a tag, so an unfinished merge or rebase stops a run.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import yaml

from flows.preflight.runner import CheckContext, CheckSkipped, Finding, failed, passed, warned
from flows.workspace import git
from flows.workspace.dvc import packaged_file
from flows.workspace.owner import ADOPT_HINT, ownership_problem, read_owner
from flows.workspace.rounds import all_ledgers, last_published_round, lost_tag_hint
from flows.workspace.trust import is_trusted
from tasks.data.annotations import read_annotated
from tasks.data.image_decoding import ImageProblem
from tasks.data.images import inspect_image
from tasks.data.label_store import Annotation, check_annotation, read_labels
from tasks.data.paths import Workspace, image_id_from_sha256, resolve_uri
from tasks.data.schemas import ANNOTATED, POOL
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import is_class_path
from tasks.storage import files
from tasks.storage.s3 import is_object_uri, read_object

_LOCAL_SAMPLE_SIZE = 64
_OBJECT_SAMPLE_SIZE = 16
_MAX_DECODED_FOR_SIZE = 300
_NO_LIMIT_PX = 10**9
_OPERATION_BY_MARKER = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
_ROUND_TAG_PATTERN = re.compile(r"round-(\d{4,})")
_MAX_LISTED = 3


def check_parameters(context: CheckContext) -> Finding:
    """Check that every value is present and in range; a missing one is shown with the shipped value."""
    try:
        params = context.params
    except UserError as error:
        missing = _missing_keys(context.raw_params) if context.raw_params else []
        fix = "\n  ".join(["Add to params.yaml, as in the shipped file:", *missing]) if missing else error.fix
        return failed(error.problem, fix or "Correct it in params.yaml; tasks/params has meaning and range.")
    # Found now, not hours later by the stage; the class is code of the campaign.
    if is_class_path(params.select.strategy) and is_trusted(context.workspace.root):
        from tasks.selection.strategies.registry import create_strategy

        create_strategy(params.select, context.workspace.root)
    return passed(f"{len(params.classes)} classes, {params.budget.amount:g} {params.budget.unit} a batch")


def check_classes(context: CheckContext) -> Finding:
    """Check that labels and fixed sets use the classes of params.yaml, in the order of the last teacher."""
    if context.classes is None:
        raise CheckSkipped("classes in params.yaml are unreadable")
    workspace = context.workspace
    for path in (workspace.val, workspace.calibration):
        read_annotated(path, context.classes)  # raises an error that names the unknown class
    labeled = {
        box.category
        for annotation in read_labels(workspace.labels).current.values()
        for box in (*annotation.label.boxes, *annotation.label.crowd_regions)
    }  # fmt: skip
    unknown = sorted(labeled - set(context.classes))
    if unknown:
        return failed(
            f"labels name {', '.join(unknown)}, expected classes of params.yaml only",
            "Add the class to params.yaml, or take the boxes out of the label batch.",
        )
    previous_classes = _classes_of_last_round(context)
    if previous_classes is not None and previous_classes != context.classes:
        return warned(
            f"the last teacher had the classes {previous_classes}, params.yaml has {context.classes}",
            "Set train.init_from to pretrained for one round: its output layer belongs to the old list.",
        )
    unseen = [name for name in context.classes if name not in labeled]
    if unseen:
        return warned(f"no label has a box of {', '.join(unseen)} yet", "The detector cannot learn it until one has.")
    return passed(f"{', '.join(context.classes)}: each has labels, all sets agree")


def _missing_keys(content: dict[str, Any]) -> list[str]:
    """List the keys of the shipped params.yaml that the campaign's lacks, one line of YAML each."""
    shipped: dict[str, Any] = files.parse_yaml(packaged_file("params.yaml").read_text(encoding="utf-8"))
    lines = []
    for section, values in shipped.items():
        if section not in content:
            lines.append(f"{section}: {_inline_yaml(values)}")
        elif isinstance(values, dict) and isinstance(content.get(section), dict):
            absent = [key for key in values if key not in content[section]]
            lines += [f"under {section}: {key}: {_inline_yaml(values[key])}" for key in absent]
    return lines


def _inline_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _classes_of_last_round(context: CheckContext) -> list[str] | None:
    """Return ``classes`` of the newest finished round; None before the first."""
    number = last_published_round(context.workspace)
    if number < 0:
        return None
    text = git.run_git(context.workspace.root, "show", f"{git.round_tag(number)}:params.yaml")
    classes: list[str] = files.parse_yaml(text)["classes"]
    return classes


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
            f"{len(problems)} of {len(sample)} sampled images are not as in the index: {problems[0]}",
            "Restore them with dvc checkout or dvc pull, in a store from its versions or backup; gleaner pool sync "
            "lists all changes. A run would leave them out.",
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
            continue  # reported by the check on images
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


def check_branch(context: CheckContext) -> Finding:
    """Check that a branch is checked out and no merge or rebase is in progress."""
    root = context.workspace.root
    git.require_branch(root)
    for name, operation in _OPERATION_BY_MARKER.items():
        if (root / ".git" / name).exists():
            return failed(f"a {operation} is not finished", f"Finish it, or run: git {operation} --abort")
    return passed(f"on branch {git.run_git(root, 'branch', '--show-current')}")


def check_owner(context: CheckContext) -> Finding:
    """Check that this folder is the campaign's own, and no copy, clone or restored backup; see ``gleaner adopt``."""
    problem = ownership_problem(context.workspace)
    if problem is not None:
        return failed(problem, ADOPT_HINT)
    owner = read_owner(context.workspace)
    return passed(
        "a new campaign" if owner is None else f"this folder goes on with the campaign ({owner.owner_id[:8]})"
    )


def check_uncommitted(context: CheckContext) -> Finding:
    """Warn about uncommitted sources: the next run commits them as they are."""
    changed, foreign = git.changes(context.workspace.root)
    if foreign:
        more = f" and {len(foreign) - _MAX_LISTED} more" if len(foreign) > _MAX_LISTED else ""
        return warned(
            f"not Gleaner's, and not committed by runs: {', '.join(foreign[:_MAX_LISTED])}{more}",
            "Move it out of the campaign's folders, or commit it.",
        )
    if changed:
        more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
        return warned(
            f"not committed: {', '.join(changed[:_MAX_LISTED])}{more}",
            "The next run commits this. Not wanted: git checkout -- FILE. Wanted: nothing to do.",
        )
    return passed("everything is committed")


def check_rounds(context: CheckContext) -> Finding:
    """Check that every ledger has its tag, equals the ledger in the tag, and names the digest of the one before."""
    workspace = context.workspace
    numbers = [int(ledger["round"]) for ledger in all_ledgers(workspace)]
    tags = git.run_git(workspace.root, "tag", "--list", "round-*").split()
    tagged = {int(match[1]) for tag in tags if (match := _ROUND_TAG_PATTERN.fullmatch(tag))}
    elsewhere = git.run_git(workspace.root, "tag", "--no-merged", "HEAD", "--list", "round-*").split()
    if elsewhere:  # made on another branch, or reset away
        return failed(f"{elsewhere[0]} is not in the history of this branch", lost_tag_hint(elsewhere[0]))
    lost = sorted(tagged - set(numbers))
    if lost:
        tag = git.round_tag(lost[0])
        return failed(f"{tag} has no ledger", f"Bring it back: git checkout {tag} -- rounds/{tag}.json")
    untagged = [number for number in numbers if number not in tagged]
    if untagged and untagged != numbers[-1:]:
        tag = git.round_tag(untagged[0])
        return failed(f"the ledger of {tag} has no tag", f"Fetch it (git fetch --tags), or set it again: git tag {tag}")
    modified_tag = _first_modified_tag(workspace, [number for number in numbers if number in tagged])
    if modified_tag:
        return failed(
            f"{modified_tag} is not as it was published", f"Bring it back: git checkout {modified_tag} -- rounds"
        )
    if untagged:
        return warned(f"{git.round_tag(untagged[0])} is being published", "gleaner run completes the publication.")
    return passed(f"{len(numbers)} rounds, each with its tag, its ledger unaltered")


def _first_modified_tag(workspace: Workspace, numbers: list[int]) -> str | None:
    """Return the tag of the first round whose ledger was changed, or does not name the digest of the one before."""
    if not numbers:
        return None
    paths = [workspace.ledger(number).relative_to(workspace.root).as_posix() for number in numbers]
    current_hashes = git.run_git(workspace.root, "hash-object", "--no-filters", *paths).split()
    published_hashes = git.run_git(
        workspace.root, "rev-parse", *(f"{git.round_tag(n)}:{path}" for n, path in zip(numbers, paths, strict=True))
    ).split()
    for number, current_hash, published_hash in zip(numbers, current_hashes, published_hashes, strict=True):
        previous_sha256 = files.read_json(workspace.ledger(number))["previous_ledger_sha256"]
        expected = files.sha256_file(workspace.ledger(number - 1)) if number and number - 1 in numbers else None
        if current_hash != published_hash or (expected is not None and previous_sha256 != expected):
            return git.round_tag(number)
    return None
