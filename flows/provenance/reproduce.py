"""Reproduce a finished round from its labels in a separate clone, and compare the digests of all outputs.

With the same processor, packages and code, every output must be identical. Elsewhere floating-point results differ;
then the mAP is compared within a tolerance.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.provenance.ledger_writer import cpu_model, packages_sha256
from flows.workspace import git
from flows.workspace.dvc import (
    code_digests,
    has_default_remote,
    locked_stages,
    recorded_md5s,
    run_dvc,
    stream_dvc,
)
from flows.workspace.dvc_cache import MissingDataError, is_folder_md5, open_dvc_cache
from flows.workspace.rounds import read_ledger
from flows.workspace.trust import trust
from tasks.data.paths import STAGES, Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_REPORT_FILE = "report.html"
"""Shows timings, so its bytes differ in every run."""


@dataclass(frozen=True)
class StageComparison:
    """One output of a stage, as recorded and as reproduced."""

    stage: str
    path: str
    recorded_md5: str
    reproduced_md5: str | None
    is_same: bool
    """Whether the MD5s are equal; of the report, whether everything but its page is."""


@dataclass(frozen=True)
class Reproduction:
    """The result of reproducing a round."""

    round_number: int
    folder: Path
    """The clone in which the round was computed."""
    environment_differences: tuple[str, ...]
    """Differences from the environment of the round; without any, every output must be identical."""
    outputs: tuple[StageComparison, ...]
    recorded_map: float
    """In percent, as ``reproduced_map``."""
    reproduced_map: float
    tolerance_points: float
    """Percent points of mAP."""

    @property
    def is_bit_identical(self) -> bool:
        """Whether all outputs are identical."""
        return all(output.is_same for output in self.outputs)

    @property
    def is_reproduced(self) -> bool:
        """Whether all outputs are identical, or in another environment the mAP is equal within the tolerance."""
        is_close = abs(self.recorded_map - self.reproduced_map) <= self.tolerance_points
        return self.is_bit_identical or (bool(self.environment_differences) and is_close)


def reproduce_round(
    workspace: Workspace, tag: str, into: Path | None, *, tolerance_points: float, on_line: Callable[[str], None]
) -> Reproduction:
    """Run all stages of a round again in a clone, and compare their outputs with the ledger.

    Args:
        workspace: a campaign, or a fresh clone of one; its files are not changed.
        tag: tag of the round, such as ``round-0003``.
        into: new folder for the clone; None: one below ``.gleaner``, removed when all outputs are identical.
        tolerance_points: allowed difference of mAP in percent points, in another environment.
        on_line: called with each line that the stages print.

    Raises:
        UserError: there is no such round, the folder is not empty, data is missing, or a stage fails.
    """
    trust(workspace.root)
    number = _round_number(workspace, tag)
    folder = (into or workspace.root / ".gleaner" / "reproduce" / tag).absolute()
    _clone(workspace, tag, folder, fresh=into is None)
    copy = Workspace(folder)
    ledger = read_ledger(copy, number)
    _pull_source_data(workspace, copy)
    lines: list[str] = []

    def handle_line(line: str) -> None:
        lines.append(line)
        on_line(line)

    code = stream_dvc(folder, ("repro", "--force", "--no-run-cache"), handle_line)
    if code:
        last_line = next((line for line in reversed(lines) if line.strip()), "no output")
        raise UserError(folder, f"dvc repro ended with code {code} ({last_line}), expected 0")
    result = _compare_outputs(workspace, copy, ledger, tolerance_points)
    if into is None and result.is_bit_identical:
        shutil.rmtree(folder)
    return result


def environment_differences(ledger: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare the current environment with that of a round, in everything that may change its outputs.

    Args:
        ledger: the ledger of the round.
    """
    recorded = ledger["environment"]
    current = {
        "python": platform.python_version(),
        "packages_sha256": packages_sha256(),
        "processor": cpu_model(),
    }
    differences = [
        f"{name} is {value}, was {recorded[name]}" for name, value in current.items() if recorded[name] != value
    ]
    if recorded["device"] not in (None, "cpu"):
        differences.append(f"the device of the training was {recorded['device']}, whose results vary from run to run")
    changed_stages = [stage for stage, digest in code_digests().items() if ledger["code"].get(stage) != digest]
    return (*differences, *(f"the code of stage {stage} has changed" for stage in changed_stages))


def _round_number(workspace: Workspace, tag: str) -> int:
    number = tag.removeprefix("round-")
    if not number.isdigit() or git.round_tag(int(number)) != tag or not git.has_tag(workspace.root, tag):
        known = git.run_git(workspace.root, "tag", "--list", "round-*").split()
        raise UserError("ROUND", f"the round is {tag!r}, expected one of {known}", "Run: git fetch --tags")
    return int(number)


def _clone(workspace: Workspace, tag: str, folder: Path, *, fresh: bool) -> None:
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(folder, "the folder is not empty", "Give an empty or a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    git.run_git(workspace.root, "clone", "--quiet", "--no-checkout", str(workspace.root), str(folder))
    git.run_git(folder, "checkout", "--quiet", "--detach", tag)


def _pull_source_data(workspace: Workspace, copy: Workspace) -> None:
    """Pull the round's source data, but no derived data: whatever is compared must be computed in the clone.

    The campaign's DVC cache is tried first, as a remote, then its default remote.
    """
    for name in ("config", "config.local"):  # today's: the remote may have been added or moved since the round
        config = workspace.root / ".dvc" / name
        if config.is_file():
            shutil.copyfile(config, copy.root / ".dvc" / name)
    run_dvc(copy.root, "config", "--local", "cache.dir", str(copy.root / ".dvc" / "cache"))
    pointers = [path.relative_to(copy.root).as_posix() for path in sorted((copy.root / "data").glob("*.dvc"))]
    cache = open_dvc_cache(workspace.root).directory.parents[1]
    if (cache / "files").is_dir():
        run_dvc(copy.root, "remote", "add", "--local", "--force", "gleaner-cache", str(cache))
        try:
            run_dvc(copy.root, "pull", "--remote", "gleaner-cache", *pointers)
            return
        except UserError:
            if not has_default_remote(copy.root):
                raise
    run_dvc(copy.root, "pull", *pointers)


def _compare_outputs(
    workspace: Workspace, copy: Workspace, ledger: Mapping[str, Any], tolerance_points: float
) -> Reproduction:
    locked = locked_stages(copy)
    outputs = []
    for stage in STAGES:
        reproduced = recorded_md5s(locked.get(stage, {}), "outs")
        for path, md5 in ledger["stages"][stage]["outs"].items():
            same = reproduced.get(path) == md5 or (
                stage == "report" and _equal_except_report(workspace, copy, md5, reproduced.get(path))
            )
            outputs.append(StageComparison(stage, path, md5, reproduced.get(path), same))
    metrics = files.read_json(copy.derived("evaluate") / "metrics.json")
    return Reproduction(
        round_number=ledger["round"],
        folder=copy.root,
        environment_differences=environment_differences(ledger),
        outputs=tuple(outputs),
        recorded_map=float(ledger["metrics"]["teacher"]["mAP"]),
        reproduced_map=float(metrics["teacher"]["mAP"]),
        tolerance_points=tolerance_points,
    )


def _equal_except_report(workspace: Workspace, copy: Workspace, recorded: str, reproduced: str | None) -> bool:
    """Whether the folders of the report differ in nothing but its page."""
    if reproduced is None or not (is_folder_md5(recorded) and is_folder_md5(reproduced)):
        return False
    try:
        before = open_dvc_cache(workspace.root).read_folder(recorded, "derived/report")
    except MissingDataError:
        return False
    after = open_dvc_cache(copy.root).read_folder(reproduced, "derived/report")
    return {**before, _REPORT_FILE: ""} == {**after, _REPORT_FILE: ""}
