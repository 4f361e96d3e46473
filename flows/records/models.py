"""Which round a model is: ``name@champion``, ``name/3``, ``@candidate``, ``/3`` or ``round-0003``."""

import re
from collections.abc import Mapping
from typing import Any

from flows.records.ledger import all_ledgers
from flows.records.promotion_log import current_champion
from flows.records.registry import CANDIDATE, CHAMPION
from tasks.errors import UserError
from tasks.paths import Workspace

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
