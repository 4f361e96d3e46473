"""A finished round made again from its labels, in a clone of its own, and compared digest by digest.

On the same processor, with the same packages and code, every byte must come out the same. Elsewhere arithmetic
rounds differently; then the mAP is compared within a tolerance, and that is said.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.provenance.environment import cpu_model, packages_sha256
from flows.runtime.subprocess import run_streaming
from flows.workspace import git
from flows.workspace.code_version import code_digests
from flows.workspace.dvc import dvc_command, dvc_env, has_default_remote, locked_stages, recorded_md5s, run_dvc
from flows.workspace.dvc_cache import MissingDataError, is_folder_md5, open_dvc_cache
from flows.workspace.ledger import read_ledger
from tasks.data.paths import STAGES, Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_REPORT_FILE = "report.html"
"""It alone shows timings, so no two are alike."""


@dataclass(frozen=True)
class StageComparison:
    """One output of a stage, as recorded and as made again."""

    stage: str
    path: str
    recorded: str
    reproduced: str | None
    is_same: bool


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    round_number: int
    folder: Path
    differences: tuple[str, ...]
    """What is not as it was when the round was made; none: every byte must be the same."""
    outputs: tuple[StageComparison, ...]
    recorded_map: float
    reproduced_map: float
    tolerance_points: float

    @property
    def is_bit_identical(self) -> bool:
        """Whether every output is the same."""
        return all(output.is_same for output in self.outputs)

    @property
    def is_reproduced(self) -> bool:
        """Same bytes; or, where something differs that may matter, the same mAP within the tolerance."""
        close = abs(self.recorded_map - self.reproduced_map) <= self.tolerance_points
        return self.is_bit_identical or (bool(self.differences) and close)


def reproduce_round(
    workspace: Workspace, tag: str, into: Path | None, *, tolerance_points: float, on_line: Callable[[str], None]
) -> Reproduction:
    """Make a round again.

    Args:
        workspace: a campaign, or a fresh clone of one; it is not touched.
        tag: of the round, as ``round-0003``.
        into: new folder for it; None: below ``.gleaner``, removed again when every byte is the same.
        tolerance_points: of mAP, in percent points, where the machine or its packages are others.
        on_line: hears what the stages say.

    Raises:
        UserError: no such round, the folder is taken, data is nowhere, or a stage fails.
    """
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

    command = dvc_command("repro", "--force", "--no-run-cache")
    code = run_streaming(command, cwd=folder, env=dvc_env(), on_line=handle_line)
    if code:
        last_line = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise UserError(folder, f"dvc repro ended with code {code} ({last_line}), expected 0")
    result = _compare_outputs(workspace, copy, ledger, tolerance_points)
    if into is None and result.is_bit_identical:
        shutil.rmtree(folder)
    return result


def environment_differences(ledger: Mapping[str, Any]) -> tuple[str, ...]:
    """What here is not as it was when a round was made, of all that its bytes may depend on."""
    recorded_environment = ledger.get("environment")
    if recorded_environment is None:
        return ("a ledger of format 1 does not say what the round was made with",)
    current_environment = {
        "python": platform.python_version(),
        "packages_sha256": packages_sha256(),
        "processor": cpu_model(),
    }
    differences = [
        f"{name} was {recorded_environment[name]}, is {value}"
        for name, value in current_environment.items()
        if recorded_environment[name] != value
    ]
    if recorded_environment["device"] not in (None, "cpu"):
        differences.append(f"it was trained on {recorded_environment['device']}, whose sums are not the same twice")
    changed_stages = [stage for stage, digest in code_digests().items() if ledger["code"].get(stage) != digest]
    return (*differences, *(f"Gleaner's code of {stage} is another" for stage in changed_stages))


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
        raise UserError(folder, "the folder holds something, expected an empty or a new one", "Choose another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    git.run_git(workspace.root, "clone", "--quiet", "--no-checkout", str(workspace.root), str(folder))
    git.run_git(folder, "checkout", "--quiet", "--detach", tag)


def _pull_source_data(workspace: Workspace, copy: Workspace) -> None:
    """Bring the round's source data, and nothing that was derived: what is compared must be made here.

    The remote is the campaign's own. Its cache serves as one where there is none, or where it has the data already.
    """
    for name in ("config", "config.local"):  # today's: the remote may have been named or moved since the round
        own = workspace.root / ".dvc" / name
        if own.is_file():
            shutil.copyfile(own, copy.root / ".dvc" / name)
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
        differences=environment_differences(ledger),
        outputs=tuple(outputs),
        recorded_map=float(ledger["metrics"]["teacher"]["mAP"]),
        reproduced_map=float(metrics["teacher"]["mAP"]),
        tolerance_points=tolerance_points,
    )


def _equal_except_report(workspace: Workspace, copy: Workspace, recorded: str, reproduced: str | None) -> bool:
    """Whether the report's folder differs in its page alone."""
    if reproduced is None or not (is_folder_md5(recorded) and is_folder_md5(reproduced)):
        return False
    try:
        before = open_dvc_cache(workspace.root).read_folder(recorded, "derived/report")
    except MissingDataError:
        return False
    after = open_dvc_cache(copy.root).read_folder(reproduced, "derived/report")
    return {**before, _REPORT_FILE: ""} == {**after, _REPORT_FILE: ""}
