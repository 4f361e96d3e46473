"""Parts of a study: one small JSON file per seed, arm and round, all that its results are made of.

They can be committed. A study whose campaigns are gone goes on from them: arms with a part for every round are not run
again. An arm without its last part is run from its first round, because a campaign cannot be put together again without
its models; its finished rounds are written anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.study.workspaces import FULL_LABELS, Study
from tasks.runtime.errors import UserError
from tasks.storage import files

Part = dict[str, Any]
"""``row`` (most columns of RESULTS), ``pool_spearman`` by rule, ``trainings`` and keys to compare parts by."""


def part_path(study: Study, seed: int, arm: str, round_number: int) -> Path:
    """Return the path of the part of one round."""
    return study.parts / f"seed-{seed}" / arm / f"round-{round_number:04d}.json"


def pool_images_path(part: Path) -> Path:
    """Return the path of the pool's images in a round, beside its part; only studies of rankings have it."""
    return part.with_suffix(".parquet")


def full_labels_path(study: Study, seed: int) -> Path:
    """Return the path of the metrics of the training on all labels."""
    return study.parts / f"seed-{seed}" / f"{FULL_LABELS}.json"


def stop_path(study: Study, seed: int, arm: str) -> Path:
    """Return the path of the reason why an arm stopped before its last round."""
    return study.parts / f"seed-{seed}" / arm / "stopped.json"


def part_key(study: Study, seed: int, arm: str) -> str:
    """Return the digest of what a part depends on: data, seed, sizes, the arm's settings, trainings per point."""
    plan = study.plan
    settings = (plan.full or []) if arm == FULL_LABELS else plan.arms[arm]
    return files.sha256_json(
        [
            plan.source.model_dump(mode="json"),
            seed,
            plan.seed_labels,
            plan.calibration_images,
            [*plan.settings, *settings],
            plan.trainings_per_point,
        ]
    )


def read_part(study: Study, seed: int, arm: str, round_number: int) -> Part | None:
    """Read one part; None where the round is not finished.

    Raises:
        UserError: the part is of other settings than the study file now has.
    """
    return _read(part_path(study, seed, arm, round_number), part_key(study, seed, arm))


def read_full_labels(study: Study, seed: int) -> Part | None:
    """Read the training on all labels; None where it is not finished.

    Raises:
        UserError: it is of other settings than the study file now has.
    """
    return _read(full_labels_path(study, seed), part_key(study, seed, FULL_LABELS))


def all_parts(study: Study) -> Iterator[Part]:
    """Read the parts of the plan's seeds, arms and rounds that are there, in that order."""
    plan = study.plan
    for seed in plan.seeds:
        for arm in plan.arms:
            for number in range(plan.rounds + 1):
                part = read_part(study, seed, arm, number)
                if part is not None:
                    yield part


def is_complete(study: Study, seed: int, arm: str) -> bool:
    """Return whether every round of an arm has its part."""
    return all(read_part(study, seed, arm, number) is not None for number in range(study.plan.rounds + 1))


def _read(path: Path, key: str) -> Part | None:
    if not path.is_file():
        return None
    part: Part = files.read_json(path)
    if part["key"] != key:
        problem = "the part is of other settings than the study file now says, expected the same"
        raise UserError(path, problem, "Give the study another name, or remove the parts of this arm.")
    return part
