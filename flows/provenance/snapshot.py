"""Read a finished round as it was recorded: its ledger, its files in git and DVC; find the round of a model.

Files of the workspace are not read: they may belong to a later round, or may have been changed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.annotation.batches import MANIFEST
from flows.tracking.mlflow_run import CANDIDATE, CHAMPION
from flows.workspace import git
from flows.workspace.dvc_cache import DvcCache, MissingDataError, is_folder_md5, open_dvc_cache
from flows.workspace.export_log import read_exports
from flows.workspace.git import read_blob
from flows.workspace.promotion_log import current_champion
from flows.workspace.rounds import all_ledgers
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, PREDICTIONS, AnnotationTask, LabelBatch
from tasks.runtime.errors import UserError
from tasks.storage import files

_MODEL_REF = re.compile(r"(?:models:/)?(?P<name>[^@/]*)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))?")
_ROUND_TAG = re.compile(r"round-(\d{4,})")


def resolve_model_ref(workspace: Workspace, model_ref: str | None) -> int:
    """Find the round whose teacher a model is, by ledgers and promotion log, without a server.

    Args:
        workspace: the campaign.
        model_ref: ``name@champion``, ``name/3``, ``@candidate``, ``/3``, ``round-0003``, or an export of it
            such as ``name-onnx-int8/1``; without alias and version, or None: the champion.

    Raises:
        UserError: there is no finished round, or no such model.
    """
    ledgers = {ledger["round"]: ledger for ledger in all_ledgers(workspace)}
    if not ledgers:
        raise _no_round_error(workspace)
    by_tag = _ROUND_TAG.fullmatch(model_ref or "")
    if by_tag:
        return _existing(int(by_tag[1]), ledgers, model_ref)
    match = _MODEL_REF.fullmatch(model_ref or "")
    name = ledgers[max(ledgers)]["mlflow"]["model_name"]
    exported = _round_of_export(workspace, match)
    if exported is not None:
        return _existing(exported, ledgers, model_ref)
    if match is None or match["name"] not in ("", name):
        expected = f"expected {name}@{CHAMPION}, {name}/VERSION or round-0000"
        raise UserError("MODEL", f"the model is {model_ref!r}, {expected}")
    if match["version"]:
        version = int(match["version"])
        found = [number for number, ledger in ledgers.items() if ledger["mlflow"]["model_version"] == version]
        return _existing(found[-1] if found else -1, ledgers, model_ref)
    return _by_alias(workspace, ledgers, match["alias"] or CHAMPION)


def _round_of_export(workspace: Workspace, match: re.Match[str] | None) -> int | None:
    """Find the round of the model that an export such as ``name-onnx-int8/1`` was made of."""
    if match is None or not match["version"]:
        return None
    wanted = match["name"], int(match["version"])
    exports = read_exports(workspace)
    return next((record.model.round for record in exports if (record.name, record.version) == wanted), None)


def _by_alias(workspace: Workspace, ledgers: Mapping[int, Mapping[str, Any]], alias: str) -> int:
    if alias == CANDIDATE:
        return max(ledgers)
    if alias != CHAMPION:
        raise UserError("MODEL", f"the alias is {alias!r}, expected {CHAMPION} or {CANDIDATE}")
    champion = current_champion(workspace)
    if champion is None:
        raise UserError("MODEL", "no model has been promoted to champion", f"Give @{CANDIDATE}, a version or a round.")
    return _existing(champion.round, ledgers, alias)


def _existing(number: int, ledgers: Mapping[int, Mapping[str, Any]], model_ref: str | None) -> int:
    if number not in ledgers:
        versions = [ledger["mlflow"]["model_version"] for ledger in ledgers.values()]
        known = f"versions {versions}, rounds {sorted(ledgers)}"
        raise UserError("MODEL", f"the model is {model_ref!r}, expected one of this campaign: {known}")
    return number


@dataclass(frozen=True)
class RoundSnapshot:
    """A finished round as it was recorded."""

    workspace: Workspace
    dvc_cache: DvcCache
    ledger: Mapping[str, Any]
    revision: str
    """Git revision of the round: its tag, or without one the commit of its derivation."""
    _folder_cache: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def number(self) -> int:
        """Number of the round."""
        return int(self.ledger["round"])

    @property
    def model_version(self) -> int:
        """Model version of the round's teacher in MLflow."""
        return int(self.ledger["mlflow"]["model_version"])

    @property
    def tag(self) -> str:
        """Name of the round's tag."""
        return git.round_tag(self.number)

    def read_blob(self, path: str) -> bytes:
        """Read a file that git keeps, at the round's revision.

        Raises:
            MissingDataError: git has no such file there.
        """
        content = read_blob(self.workspace.root, self.revision, path)
        if content is None:
            raise MissingDataError(self.tag, f"git has no readable {path} there", "Run: git fetch --tags")
        return content

    def raw_params(self) -> dict[str, Any]:
        """Read the round's params.yaml without validation: this version of Gleaner may have other parameters."""
        content: dict[str, Any] = files.parse_yaml(self.read_blob("params.yaml"))
        return content

    def classes(self) -> list[str]:
        """Read the round's class names, by class index."""
        return list(self.raw_params()["classes"])

    def label_batch(self, number: int) -> LabelBatch:
        """Read a label batch as it was in the round."""
        return LabelBatch.model_validate_json(self.read_blob(f"data/labels/batch-{number:04d}.json"))

    def manifest(self, delivery: int) -> dict[str, AnnotationTask]:
        """Read the tasks of a delivery by image id; empty for the seed, and where git has no manifest of it."""
        content = read_blob(self.workspace.root, self.revision, f"deliveries/batch-{delivery:04d}/{MANIFEST}")
        tasks = (AnnotationTask.model_validate_json(line) for line in (content or b"").splitlines() if line)
        return {task.image_id: task for task in tasks}

    def md5(self, path: str) -> str | None:
        """Return the MD5 of an input or output of a stage, or of a file inside one; None for any other path."""
        md5_by_path = self.md5s()
        if path in md5_by_path:
            return md5_by_path[path]
        for parent in Path(path).parents:
            md5 = md5_by_path.get(parent.as_posix())
            if md5 is not None and is_folder_md5(md5):
                return self._cached_folder(md5).get(Path(path).relative_to(parent).as_posix())
        return None

    def cached_path(self, path: str) -> Path:
        """Return the path in DVC's cache of a stage's input or output, or of a file inside one; fetched if needed.

        Raises:
            MissingDataError: the round has no such file, or it is in neither cache nor remote.
        """
        description = f"{path} of {self.tag}"
        md5 = self.md5(path)
        if md5 is None:
            raise MissingDataError(description, "no stage of the ledger has that file")
        return self.dvc_cache.require(md5, description)

    def folder_md5s(self, folder: str) -> dict[str, str]:
        """Return MD5 by relative path of the files in a folder that a stage read or wrote.

        Raises:
            MissingDataError: the round has no such folder, or its list of files is in neither cache nor remote.
        """
        md5 = self.md5s().get(folder)
        if md5 is None:
            raise MissingDataError(f"{folder} of {self.tag}", "no stage of the ledger has that folder")
        return self._cached_folder(md5)

    def md5s(self) -> dict[str, str]:
        """Return the MD5 of each input and output of the stages, by path."""
        stages = self.ledger["stages"].values()
        return {path: md5 for entry in stages for kind in ("deps", "outs") for path, md5 in entry[kind].items()}

    def validation_images(self) -> pa.Table:
        """Read the validation images, ``schemas.ANNOTATED``.

        Raises:
            MissingDataError: the table is in neither cache nor remote.
        """
        return files.read_table(self.cached_path("derived/assemble/val.parquet"), ANNOTATED)

    def predictions(self) -> pa.Table:
        """Read the boxes of teacher and student on the validation images, ``schemas.PREDICTIONS``.

        Raises:
            MissingDataError: the table is in neither cache nor remote.
        """
        return files.read_table(self.cached_path("derived/evaluate/predictions.parquet"), PREDICTIONS)

    def _cached_folder(self, md5: str) -> dict[str, str]:
        if md5 not in self._folder_cache:
            self._folder_cache[md5] = self.dvc_cache.read_folder(md5, f"a folder of {self.tag}")
        return self._folder_cache[md5]


def filter_by_model(predictions: pa.Table, model: str) -> pa.Table:
    """Return the predictions of ``teacher`` or ``student``."""
    return predictions.filter(pc.equal(predictions["model"], model))


def load_snapshots(workspace: Workspace) -> dict[int, RoundSnapshot]:
    """Load all finished rounds, by number.

    Raises:
        UserError: there is no finished round, or a ledger cannot be read.
    """
    dvc_cache = open_dvc_cache(workspace.root)
    folder_cache: dict[str, dict[str, str]] = {}
    rounds = {
        ledger["round"]: RoundSnapshot(workspace, dvc_cache, ledger, _git_revision(workspace, ledger), folder_cache)
        for ledger in all_ledgers(workspace)
    }
    if not rounds:
        raise _no_round_error(workspace)
    return rounds


def _no_round_error(workspace: Workspace) -> UserError:
    return UserError(workspace.root / "rounds", "there is no ledger of a finished round", "Run: gleaner run")


def _git_revision(workspace: Workspace, ledger: Mapping[str, Any]) -> str:
    """Revision of a round. A clone may lack the tags; the last resort, HEAD, is right for the newest round only."""
    tag, derivation_commit = git.round_tag(ledger["round"]), str(ledger["git_revision"])
    if git.has_tag(workspace.root, tag):
        return tag
    return derivation_commit if git.is_ancestor(workspace.root, derivation_commit, "HEAD") else "HEAD"
