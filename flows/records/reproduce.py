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

from flows import vcs
from flows.code_digests import code_digests
from flows.data_versions import child_environment, dvc, dvc_command, has_default_remote, locked_stages, recorded_digests
from flows.records.dvc_objects import MissingBytesError, is_folder, objects_of
from flows.records.ledger import read_ledger
from flows.records.provenance import packages_sha256, processor
from flows.safety.process import stream
from tasks import files
from tasks.errors import UserError
from tasks.paths import STAGES, Workspace

_REPORT_PAGE = "report.html"
"""It alone shows timings, so no two are alike."""


@dataclass(frozen=True)
class StageComparison:
    """One output of a stage, as recorded and as made again."""

    stage: str
    path: str
    recorded: str
    made: str | None
    same: bool


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    round_number: int
    folder: Path
    differences: tuple[str, ...]
    """What is not as it was when the round was made; none: every byte must be the same."""
    outputs: tuple[StageComparison, ...]
    recorded_map: float
    made_map: float
    tolerance_points: float

    @property
    def same_bytes(self) -> bool:
        """Whether every output is the same."""
        return all(output.same for output in self.outputs)

    @property
    def reproduced(self) -> bool:
        """Same bytes; or, where something differs that may matter, the same mAP within the tolerance."""
        close = abs(self.recorded_map - self.made_map) <= self.tolerance_points
        return self.same_bytes or (bool(self.differences) and close)


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
    number = _number(workspace, tag)
    folder = (into or workspace.root / ".gleaner" / "reproduce" / tag).absolute()
    _clone(workspace, tag, folder, fresh=into is None)
    copy = Workspace(folder)
    ledger = read_ledger(copy, number)
    _pull_sources(workspace, copy)
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        on_line(line)

    command = dvc_command("repro", "--force", "--no-run-cache")
    code = stream(command, cwd=folder, env=child_environment(), on_line=heard)
    if code:
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise UserError(folder, f"dvc repro ended with code {code} ({said}), expected 0")
    result = _compare(workspace, copy, ledger, tolerance_points)
    if into is None and result.same_bytes:
        shutil.rmtree(folder)
    return result


def what_differs(ledger: Mapping[str, Any]) -> tuple[str, ...]:
    """What here is not as it was when a round was made, of all that its bytes may depend on."""
    then = ledger.get("made_with")
    if then is None:
        return ("a ledger of format 1 does not say what the round was made with",)
    now = {"python": platform.python_version(), "packages_sha256": packages_sha256(), "processor": processor()}
    found = [f"{name} was {then[name]}, is {value}" for name, value in now.items() if then[name] != value]
    if then["device"] not in (None, "cpu"):
        found.append(f"it was trained on {then['device']}, whose sums are not the same twice")
    drifted = [stage for stage, digest in code_digests().items() if ledger["code"].get(stage) != digest]
    return (*found, *(f"Gleaner's code of {stage} is another" for stage in drifted))


def _number(workspace: Workspace, tag: str) -> int:
    number = tag.removeprefix("round-")
    if not number.isdigit() or vcs.round_tag(int(number)) != tag or not vcs.has_tag(workspace.root, tag):
        known = vcs.git(workspace.root, "tag", "--list", "round-*").split()
        raise UserError("ROUND", f"the round is {tag!r}, expected one of {known}", "Run: git fetch --tags")
    return int(number)


def _clone(workspace: Workspace, tag: str, folder: Path, *, fresh: bool) -> None:
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(folder, "the folder holds something, expected an empty or a new one", "Choose another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    vcs.git(workspace.root, "clone", "--quiet", "--no-checkout", str(workspace.root), str(folder))
    vcs.git(folder, "checkout", "--quiet", "--detach", tag)


def _pull_sources(workspace: Workspace, copy: Workspace) -> None:
    """Bring the round's source data, and nothing that was derived: what is compared must be made here.

    The remote is the campaign's own. Its cache serves as one where there is none, or where it has the data already.
    """
    for name in ("config", "config.local"):  # today's: the remote may have been named or moved since the round
        own = workspace.root / ".dvc" / name
        if own.is_file():
            shutil.copyfile(own, copy.root / ".dvc" / name)
    dvc(copy.root, "config", "--local", "cache.dir", str(copy.root / ".dvc" / "cache"))
    pointers = [path.relative_to(copy.root).as_posix() for path in sorted((copy.root / "data").glob("*.dvc"))]
    cache = objects_of(workspace.root).cache.parents[1]
    if (cache / "files").is_dir():
        dvc(copy.root, "remote", "add", "--local", "--force", "gleaner-cache", str(cache))
        try:
            dvc(copy.root, "pull", "--remote", "gleaner-cache", *pointers)
            return
        except UserError:
            if not has_default_remote(copy.root):
                raise
    dvc(copy.root, "pull", *pointers)


def _compare(workspace: Workspace, copy: Workspace, ledger: Mapping[str, Any], tolerance_points: float) -> Reproduction:
    locked = locked_stages(copy)
    outputs = []
    for stage in STAGES:
        made = recorded_digests(locked.get(stage, {}), "outs")
        for path, md5 in ledger["stages"][stage]["outs"].items():
            same = made.get(path) == md5 or (stage == "report" and _same_but_page(workspace, copy, md5, made.get(path)))
            outputs.append(StageComparison(stage, path, md5, made.get(path), same))
    metrics = files.read_json(copy.derived("evaluate") / "metrics.json")
    return Reproduction(
        round_number=ledger["round"],
        folder=copy.root,
        differences=what_differs(ledger),
        outputs=tuple(outputs),
        recorded_map=float(ledger["figures"]["teacher"]["mAP"]),
        made_map=float(metrics["teacher"]["mAP"]),
        tolerance_points=tolerance_points,
    )


def _same_but_page(workspace: Workspace, copy: Workspace, recorded: str, made: str | None) -> bool:
    """Whether the report's folder differs in its page alone."""
    if made is None or not (is_folder(recorded) and is_folder(made)):
        return False
    try:
        before = objects_of(workspace.root).folder(recorded, "derived/report")
    except MissingBytesError:
        return False
    after = objects_of(copy.root).folder(made, "derived/report")
    return {**before, _REPORT_PAGE: ""} == {**after, _REPORT_PAGE: ""}
