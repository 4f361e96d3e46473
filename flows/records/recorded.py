"""A round as it was recorded: its ledger, git's files at its tag, DVC's objects. The workspace plays no part."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from flows import vcs
from flows.records.dvc_objects import DvcObjects, MissingBytesError, is_folder, objects_of
from flows.records.git_objects import blob, is_ancestor
from flows.records.ledger import all_ledgers
from tasks import files
from tasks.contracts import ANNOTATED, PREDICTIONS
from tasks.paths import Workspace


@dataclass(frozen=True)
class RecordedRound:
    """One finished round."""

    workspace: Workspace
    objects: DvcObjects
    ledger: Mapping[str, Any]
    revision: str
    """Its tag; where there is none, the commit of its derivation."""
    _folders: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def number(self) -> int:
        """Of the round."""
        return int(self.ledger["round"])

    @property
    def model_version(self) -> int:
        """Of the round's teacher in MLflow."""
        return int(self.ledger["mlflow"]["model_version"])

    @property
    def name(self) -> str:
        """As the round's tag is called."""
        return vcs.round_tag(self.number)

    def blob(self, path: str) -> bytes:
        """A file that git keeps, as the round left it.

        Raises:
            MissingBytesError: git has no such file at the round's revision.
        """
        content = blob(self.workspace.root, self.revision, path)
        if content is None:
            problem = f"git has no readable {path} there, expected what the round was made of"
            raise MissingBytesError(self.name, problem, "Run: git fetch --tags")
        return content

    def settings(self) -> dict[str, Any]:
        """params.yaml of the round as it is written there: today's Gleaner may ask for other parameters."""
        content: dict[str, Any] = yaml.safe_load(self.blob("params.yaml"))
        return content

    def classes(self) -> list[str]:
        """Class names by class index, as the round had them."""
        return list(self.settings()["classes"])

    def digest(self, path: str) -> str | None:
        """MD5 of an input or output of a stage, or of a file in one that is a folder; None where it has none."""
        recorded = self.digests()
        if path in recorded:
            return recorded[path]
        for parent in Path(path).parents:
            md5 = recorded.get(parent.as_posix())
            if md5 is not None and is_folder(md5):
                return self._members(md5).get(Path(path).relative_to(parent).as_posix())
        return None

    def stored(self, path: str) -> Path:
        """An input or output of a stage that DVC keeps, in its cache.

        Raises:
            MissingBytesError: the round has no such file, or its bytes are nowhere.
        """
        what = f"{path} of {self.name}"
        md5 = self.digest(path)
        if md5 is None:
            raise MissingBytesError(what, "its digest is not in the ledger, expected it among the stages' files")
        return self.objects.require(md5, what)

    def members(self, folder: str) -> dict[str, str]:
        """MD5 by relative path of what a folder held that a stage read or wrote.

        Raises:
            MissingBytesError: the folder's list is nowhere.
        """
        md5 = self.digests().get(folder)
        if md5 is None:
            raise MissingBytesError(f"{folder} of {self.name}", "it is not in the ledger, expected a stage's folder")
        return self._members(md5)

    def digests(self) -> dict[str, str]:
        """MD5 of each input and output of the stages, by path."""
        stages = self.ledger["stages"].values()
        return {path: md5 for entry in stages for kind in ("deps", "outs") for path, md5 in entry[kind].items()}

    def validation_images(self) -> pa.Table:
        """The images teacher and student were measured on, contracts.ANNOTATED.

        Raises:
            MissingBytesError: their bytes are nowhere.
        """
        return files.read_table(self.stored("derived/assemble/val.parquet"), ANNOTATED)

    def predictions(self) -> pa.Table:
        """What teacher and student found on them, contracts.PREDICTIONS; see ``of_model``.

        Raises:
            MissingBytesError: their bytes are nowhere.
        """
        return files.read_table(self.stored("derived/evaluate/predictions.parquet"), PREDICTIONS)

    def _members(self, md5: str) -> dict[str, str]:
        if md5 not in self._folders:
            self._folders[md5] = self.objects.folder(md5, f"a folder of {self.name}")
        return self._folders[md5]


def of_model(predictions: pa.Table, model: str) -> pa.Table:
    """The rows of ``teacher`` or of ``student``."""
    return predictions.filter(pc.equal(predictions["model"], model))


def recorded_rounds(workspace: Workspace) -> dict[int, RecordedRound]:
    """Every round that has a ledger, by number."""
    objects = objects_of(workspace.root)
    folders: dict[str, dict[str, str]] = {}
    rounds = {}
    for ledger in all_ledgers(workspace):
        rounds[ledger["round"]] = RecordedRound(workspace, objects, ledger, _revision(workspace, ledger), folders)
    return rounds


def _revision(workspace: Workspace, ledger: Mapping[str, Any]) -> str:
    """Where git has a round. A clone may lack the tags; HEAD, the last resort, is right for the newest round only."""
    tag, derived = vcs.round_tag(ledger["round"]), str(ledger["git_revision"])
    if vcs.has_tag(workspace.root, tag):
        return tag
    return derived if is_ancestor(workspace.root, derived, "HEAD") else "HEAD"


def ledger_sha256(workspace: Workspace, round_number: int) -> str:
    """Digest of a ledger's file: what its successor, MLflow and the tag refer to."""
    return files.sha256_file(workspace.ledger(round_number))
