"""Which round a model is: ``name@champion``, ``name/3``, ``@candidate``, ``/3`` or ``round-0003``.

A round as it was recorded: its ledger, git's files at its tag, DVC's objects. The workspace plays no part.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from flows.tracking.mlflow_registry import CANDIDATE, CHAMPION
from flows.workspace import git
from flows.workspace.dvc_cache import DvcCache, MissingDataError, is_folder_md5, open_dvc_cache
from flows.workspace.git import is_ancestor, read_blob
from flows.workspace.ledger import all_ledgers
from flows.workspace.promotion_log import current_champion
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.runtime.errors import UserError
from tasks.storage import files

_MODEL_REF = re.compile(r"(?:models:/)?(?P<name>[^@/]*)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))?")
_ROUND_TAG = re.compile(r"round-(\d{4,})")


def resolve_model_ref(workspace: Workspace, model_ref: str | None) -> int:
    """The round whose teacher a model is. Ledgers and the promotion log answer; no server is asked.

    Args:
        workspace: the campaign.
        model: as above; without alias and version, or None: the champion.

    Raises:
        UserError: there is no such model.
    """
    ledgers = {ledger["round"]: ledger for ledger in all_ledgers(workspace)}
    if not ledgers:
        raise UserError(workspace.root / "rounds", "ledgers are 0, expected a finished round", "Run: gleaner run")
    by_tag = _ROUND_TAG.fullmatch(model_ref or "")
    if by_tag:
        return _existing(int(by_tag[1]), ledgers, model_ref)
    match = _MODEL_REF.fullmatch(model_ref or "")
    name = ledgers[max(ledgers)]["mlflow"]["model_name"]
    if match is None or match["name"] not in ("", name):
        expected = f"expected {name}@{CHAMPION}, {name}/VERSION or round-0000"
        raise UserError("MODEL", f"the model is {model_ref!r}, {expected}")
    if match["version"]:
        version = int(match["version"])
        found = [number for number, ledger in ledgers.items() if ledger["mlflow"]["model_version"] == version]
        return _existing(found[-1] if found else -1, ledgers, model_ref)
    return _by_alias(workspace, ledgers, match["alias"] or CHAMPION)


def _by_alias(workspace: Workspace, ledgers: Mapping[int, Mapping[str, Any]], alias: str) -> int:
    if alias == CANDIDATE:
        return max(ledgers)
    if alias != CHAMPION:
        raise UserError("MODEL", f"the alias is {alias!r}, expected {CHAMPION} or {CANDIDATE}")
    champion = current_champion(workspace, ledgers)
    if champion is None:
        fix = f"Name {CANDIDATE}, a version or a round."
        raise UserError("MODEL", "the champion is none, expected a model that was promoted", fix)
    return _existing(champion.round, ledgers, alias)


def _existing(number: int, ledgers: Mapping[int, Mapping[str, Any]], model_ref: str | None) -> int:
    if number not in ledgers:
        versions = [ledger["mlflow"]["model_version"] for ledger in ledgers.values()]
        known = f"versions {versions}, rounds {sorted(ledgers)}"
        raise UserError("MODEL", f"the model is {model_ref!r}, expected one of this campaign: {known}")
    return number


@dataclass(frozen=True)
class RoundSnapshot:
    """One finished round."""

    workspace: Workspace
    dvc_cache: DvcCache
    ledger: Mapping[str, Any]
    revision: str
    """Its tag; where there is none, the commit of its derivation."""
    _folder_cache: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def number(self) -> int:
        """Of the round."""
        return int(self.ledger["round"])

    @property
    def model_version(self) -> int:
        """Of the round's teacher in MLflow."""
        return int(self.ledger["mlflow"]["model_version"])

    @property
    def tag(self) -> str:
        """As the round's tag is called."""
        return git.round_tag(self.number)

    def read_blob(self, path: str) -> bytes:
        """A file that git keeps, as the round left it.

        Raises:
            MissingDataError: git has no such file at the round's revision.
        """
        content = read_blob(self.workspace.root, self.revision, path)
        if content is None:
            problem = f"git has no readable {path} there, expected what the round was made of"
            raise MissingDataError(self.tag, problem, "Run: git fetch --tags")
        return content

    def raw_params(self) -> dict[str, Any]:
        """params.yaml of the round as it is written there: today's Gleaner may ask for other parameters."""
        content: dict[str, Any] = yaml.safe_load(self.read_blob("params.yaml"))
        return content

    def classes(self) -> list[str]:
        """Class names by class index, as the round had them."""
        return list(self.raw_params()["classes"])

    def md5(self, path: str) -> str | None:
        """MD5 of an input or output of a stage, or of a file in one that is a folder; None where it has none."""
        md5_by_path = self.md5s()
        if path in md5_by_path:
            return md5_by_path[path]
        for parent in Path(path).parents:
            md5 = md5_by_path.get(parent.as_posix())
            if md5 is not None and is_folder_md5(md5):
                return self._cached_folder(md5).get(Path(path).relative_to(parent).as_posix())
        return None

    def cached_path(self, path: str) -> Path:
        """An input or output of a stage that DVC keeps, in its cache.

        Raises:
            MissingDataError: the round has no such file, or its bytes are nowhere.
        """
        description = f"{path} of {self.tag}"
        md5 = self.md5(path)
        if md5 is None:
            raise MissingDataError(description, "its digest is not in the ledger, expected it among the stages' files")
        return self.dvc_cache.require(md5, description)

    def folder_md5s(self, folder: str) -> dict[str, str]:
        """MD5 by relative path of what a folder held that a stage read or wrote.

        Raises:
            MissingDataError: the folder's list is nowhere.
        """
        md5 = self.md5s().get(folder)
        if md5 is None:
            raise MissingDataError(f"{folder} of {self.tag}", "it is not in the ledger, expected a stage's folder")
        return self._cached_folder(md5)

    def md5s(self) -> dict[str, str]:
        """MD5 of each input and output of the stages, by path."""
        stages = self.ledger["stages"].values()
        return {path: md5 for entry in stages for kind in ("deps", "outs") for path, md5 in entry[kind].items()}

    def validation_images(self) -> pa.Table:
        """The images teacher and student were measured on, schemas.ANNOTATED.

        Raises:
            MissingDataError: their bytes are nowhere.
        """
        return files.read_table(self.cached_path("derived/assemble/val.parquet"), ANNOTATED)

    def predictions(self) -> pa.Table:
        """What teacher and student found on them, schemas.PREDICTIONS; see ``filter_by_model``.

        Raises:
            MissingDataError: their bytes are nowhere.
        """
        return files.read_table(self.cached_path("derived/evaluate/predictions.parquet"), PREDICTIONS)

    def _cached_folder(self, md5: str) -> dict[str, str]:
        if md5 not in self._folder_cache:
            self._folder_cache[md5] = self.dvc_cache.read_folder(md5, f"a folder of {self.tag}")
        return self._folder_cache[md5]


def filter_by_model(predictions: pa.Table, model: str) -> pa.Table:
    """The rows of ``teacher`` or of ``student``."""
    return predictions.filter(pc.equal(predictions["model"], model))


def load_snapshots(workspace: Workspace) -> dict[int, RoundSnapshot]:
    """Every round that has a ledger, by number."""
    dvc_cache = open_dvc_cache(workspace.root)
    folder_cache: dict[str, dict[str, str]] = {}
    rounds = {}
    for ledger in all_ledgers(workspace):
        rounds[ledger["round"]] = RoundSnapshot(
            workspace, dvc_cache, ledger, _git_revision(workspace, ledger), folder_cache
        )
    return rounds


def _git_revision(workspace: Workspace, ledger: Mapping[str, Any]) -> str:
    """Where git has a round. A clone may lack the tags; HEAD, the last resort, is right for the newest round only."""
    tag, derivation_commit = git.round_tag(ledger["round"]), str(ledger["git_revision"])
    if git.has_tag(workspace.root, tag):
        return tag
    return derivation_commit if is_ancestor(workspace.root, derivation_commit, "HEAD") else "HEAD"
