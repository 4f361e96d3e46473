"""Parts of a study: one small JSON file per seed, arm and round, all that its results are made of.

A part is measured while ``derived/`` is still that of its round. Parts can be committed. A study whose campaigns are
gone goes on from them: arms with a part for every round are not run again. An arm without its last part is run from its
first round, because a campaign cannot be put together again without its models; its finished rounds are written anew.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.runtime.subprocess import run_streaming
from flows.study.workspaces import FULL_LABELS, Study
from flows.workspace.dvc import dvc_env
from flows.workspace.rounds import read_ledger, skipped_stages, stage_seconds
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.study.training_result import measure_training

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
    """Return the digest of what a part depends on: data, seed, sizes, settings and wrong labels of the arm."""
    plan = study.plan
    settings = (plan.full or []) if arm == FULL_LABELS else plan.arms[arm]
    return files.sha256_json(
        [
            plan.source.model_dump(mode="json"),
            seed,
            plan.model_dump(mode="json", include={"seed_labels"}, exclude_none=True)["seed_labels"],
            plan.calibration_images,
            [*plan.settings, *settings],
            plan.trainings_per_point,
            *([plan.wrong_classes[arm]] if arm in plan.wrong_classes else []),
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


_SEED_LINE = re.compile(r"^seed:.*$", re.MULTILINE)
_SEED_STEP = 1_000_003
"""Between the seeds of two trainings on the same labels; no study has seeds so far apart."""


def write_part(study: Study, seed: int, arm: str, workspace: Workspace, round_number: int) -> None:
    """Write the part of a round, once; ``derived/`` of the workspace has to be that of the round."""
    path = part_path(study, seed, arm, round_number)
    if path.is_file():
        return
    ledger = read_ledger(workspace, round_number)
    classes = load_params(workspace.params).classes
    trainings = [measure_training(workspace, classes)]
    for repeat in range(1, study.plan.trainings_per_point):
        trainings.append(_repeated_training(study, workspace, ledger, classes, repeat))
    run_command(workspace.root, [sys.executable, "-W", "ignore", "-m", "tasks.study.pool_spearman"])
    folder = workspace.scratch("study")
    pool = files.read_json(folder / "pool.json")
    if study.plan.question == "ranking":  # before the part, whose file says that all of it is there
        files.write_bytes(pool_images_path(path), (folder / "pool.parquet").read_bytes())
    part = {
        "key": part_key(study, seed, arm),
        "training_key": _training_key(ledger),
        "row": _row(seed, arm, workspace, ledger) | {"pool_images": pool.pop("pool_images")},
        "pool_spearman": pool,
        "trainings": trainings,
    }
    files.write_bytes(path, (json.dumps(part, allow_nan=False) + "\n").encode())  # no line for each of 1,200 numbers


def _row(seed: int, arm: str, workspace: Workspace, ledger: Mapping[str, Any]) -> dict[str, Any]:
    number, metrics = ledger["round"], ledger["metrics"]
    skipped, seconds = skipped_stages(workspace, number), stage_seconds(workspace, number)
    return {
        "seed": seed,
        "arm": arm,
        "round": number,
        "minutes": metrics["minutes_spent"] or 0.0,  # None before the first batch: seed labels have no times
        "num_labeled": metrics["labels"],
        "boxes": metrics["boxes"],
        **{
            f"{model}_{name.lower()}": metrics[model][name]
            for model in ("teacher", "student")
            for name in ("mAP", "AP50")
        },
        **{name: metrics[name] for name in ("acquisition_weights", "spearman_dwa", "spearman_equal")},
        "seconds": round(sum(seconds.values()), 3),
        "train_seconds": None if "train" in skipped else seconds["train"],
        "cached_stages": len(skipped),
        "code_sha256": files.sha256_json(ledger["code"]),
        "params_sha256": files.sha256_json(_SEED_LINE.sub("", workspace.params.read_text("utf-8"))),
    }


def _training_key(ledger: Mapping[str, Any]) -> str:
    """Return the key of a training: its inputs and parameters, as in DVC's run cache."""
    stage = ledger["stages"]["train"]
    return files.sha256_json([stage["deps"], stage["params_sha256"]])


def _repeated_training(
    study: Study, workspace: Workspace, ledger: Mapping[str, Any], classes: list[str], repeat: int
) -> dict[str, Any]:
    """Train and evaluate once more on the same labels with another seed; arms that train alike share the result."""
    result = study.out / "trainings" / f"{_training_key(ledger)}-{repeat}.json"
    if not result.is_file():
        copy = Workspace(study.out / "trainings" / f"{_training_key(ledger)}-{repeat}")
        _link_training_inputs(workspace, copy, repeat)
        stages = files.parse_yaml(workspace.dvc_yaml.read_text("utf-8"))["stages"]
        for stage in ("train", "evaluate"):
            run_command(copy.root, [sys.executable, *stages[stage]["cmd"].split()[1:]])  # python -m tasks train
        files.write_json(result, measure_training(copy, classes))
        shutil.rmtree(copy.root)
    repeated: dict[str, Any] = files.read_json(result)
    return repeated


def _link_training_inputs(workspace: Workspace, copy: Workspace, repeat: int) -> None:
    """Make a folder that differs from the workspace in ``seed`` alone; what an earlier attempt left is removed.

    Hard links, because images have to lie inside the folder and a symbolic link would lead out of it.
    """
    shutil.rmtree(copy.root, ignore_errors=True)
    for source, target in (
        (workspace.root / "data", copy.root / "data"),
        (workspace.derived("assemble"), copy.derived("assemble")),
    ):
        shutil.copytree(source, target, copy_function=os.link)
    params = load_params(workspace.params)
    text = workspace.params.read_text("utf-8")
    seed = (params.seed + repeat * _SEED_STEP) % 2**31
    files.write_bytes(copy.params, _SEED_LINE.sub(f"seed: {seed}", text, count=1).encode())


def run_command(folder: Path, command: Sequence[str]) -> None:
    """Run a command in a folder.

    Raises:
        UserError: it failed; names its last line.
    """
    lines: list[str] = []
    code = run_streaming(command, cwd=folder, env=dvc_env(), on_line=lines.append)
    if code:
        last_line = lines[-1] if lines else "it said nothing"
        raise UserError(folder, f"{' '.join(command[1:])} ended with code {code} ({last_line}), expected 0")
