"""Who is champion: decided by the gate each night, or by a person; written down first, then told to MLflow.

Every function may be killed anywhere and called again: a decision has a key and is written once, and the alias
is set to whatever the log says last.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows import vcs
from flows.records.audit.quick import quick_findings
from flows.records.gate import Verdict, judge
from flows.records.promotion_log import (
    Action,
    Decision,
    LoggedModel,
    append_decision,
    coronations,
    logged_model,
    read_decisions,
    reigning,
)
from flows.records.recorded import RecordedRound, recorded_rounds
from flows.records.registry import CHAMPION, aliased_version
from tasks import files
from tasks.errors import UserError
from tasks.params import Params
from tasks.paths import Workspace

NIGHT = "gleaner night"
_LOG = ("promotions.jsonl",)


class PromotionRefusedError(UserError):
    """The gate says no."""

    exit_code = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a wish."""

    changed: bool
    """Whether a line was added to the log."""
    message: str


def consider(workspace: Workspace, params: Params, round_number: int) -> Decision:
    """Let the gate decide on the round's model and write that down; once, however often it is called."""
    rounds = recorded_rounds(workspace)
    candidate = rounds[round_number]
    key = files.sha256_json(["night", candidate.ledger["derivation_sha256"], candidate.ledger["mlflow"]])
    made = next((decision for decision in read_decisions(workspace) if decision.key == key), None)
    if made is not None:
        return made
    champion = _champion(workspace, rounds)
    verdict = _gate(workspace, rounds, candidate, champion, params)
    return append_decision(
        workspace,
        key,
        "promote" if verdict.passed else "refuse",
        who=NIGHT,
        before=champion,
        model=logged_model(candidate.ledger),
        why=verdict.why,
        gate=_told(verdict),
    )


def promote(
    workspace: Workspace, client: MlflowClient, params: Params, version: int, reason: str, *, force: bool
) -> Outcome:
    """Make a version champion because a person says so, and the gate does not object.

    Raises:
        PromotionRefusedError: the gate objects; with ``force`` its objection is written down instead.
        UserError: there is no such version.
    """
    rounds = recorded_rounds(workspace)
    wanted = _round_of(rounds, version)
    champion = _champion(workspace, rounds)
    if champion is not None and champion.version == version:
        return _settled(workspace, client, False, f"Version {version} is champion already.")
    verdict = _gate(workspace, rounds, wanted, champion, params)
    action: Action = "promote" if verdict.passed or force else "refuse"
    append_decision(
        workspace,
        _key(workspace, action, version, reason),
        action,
        who=_somebody(workspace),
        before=champion,
        model=logged_model(wanted.ledger),
        why=reason if action == "promote" else f"{verdict.why} (asked for because: {reason})",
        gate=_told(verdict),
    )
    if action == "promote":
        return _settled(workspace, client, True, f"Version {version} is champion: {reason}.")
    vcs.commit(workspace, f"Promotion refused: version {version}", _LOG)
    fix = "It stands in promotions.jsonl. To promote it all the same: --force"
    raise PromotionRefusedError(f"version {version}", f"the gate refuses it ({verdict.why}), expected a pass", fix)


def rollback(workspace: Workspace, client: MlflowClient, to: int | None, reason: str) -> Outcome:
    """Give the title back to a former champion: the one before the last promotion, or the version named.

    Asked for again, nothing more happens; further back goes only who names the version.

    Raises:
        UserError: nobody was champion before, or the version never was.
    """
    rounds = recorded_rounds(workspace)
    crowned = coronations(workspace)
    champion = _champion(workspace, rounds)
    if to is None and crowned and crowned[-1].action == "rollback":
        message = f"Rolled back already: version {crowned[-1].model.version} is champion. Further back: --to VERSION."
        return _settled(workspace, client, False, message)
    former = _former(workspace, crowned, champion, to)
    if champion is not None and champion.version == former.version:
        return _settled(workspace, client, False, f"Version {former.version} is champion already.")
    append_decision(
        workspace,
        _key(workspace, "rollback", former.version, reason),
        "rollback",
        who=_somebody(workspace),
        before=champion,
        model=former,
        why=reason,
        gate=None,
    )
    return _settled(workspace, client, True, f"Version {former.version} is champion again: {reason}.")


def follow_log(workspace: Workspace, client: MlflowClient) -> str | None:
    """Set MLflow's alias to what the log says; return a warning where MLflow does not know that model."""
    crowned = coronations(workspace)
    if not crowned:
        return None
    name = _model_name(workspace)
    champion = crowned[-1].model
    try:
        version = client.get_model_version(name, str(champion.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"MLflow has no version {champion.version} of {name}, which promotions.jsonl says is champion."
    recorded = version.tags.get("gleaner.teacher_sha256")
    if champion.sha256 is not None and recorded is not None and recorded != champion.sha256:
        return f"MLflow's version {champion.version} of {name} is another model than promotions.jsonl says."
    current = aliased_version(client, name, CHAMPION)
    if current is None or int(current.version) != champion.version:
        client.set_registered_model_alias(name, CHAMPION, str(champion.version))
    return None


def _gate(
    workspace: Workspace,
    rounds: Mapping[int, RecordedRound],
    candidate: RecordedRound,
    champion: LoggedModel | None,
    params: Params,
) -> Verdict:
    findings = quick_findings(workspace, candidate, rounds)
    if findings:
        return Verdict(False, f"the record is not in order: {findings[0]}", {"findings": findings})
    opponent = _opponent(workspace, champion, candidate.number)
    if opponent is not None and opponent.round not in rounds:
        return Verdict(False, f"the champion's ledger (round {opponent.round}) is gone", {})
    return judge(candidate, None if opponent is None else rounds[opponent.round], params)


def _opponent(workspace: Workspace, champion: LoggedModel | None, round_number: int) -> LoggedModel | None:
    """Whom to beat: the champion, unless it is an earlier derivation of this very round, whose ledger is gone."""
    if champion is None or champion.round != round_number:
        return champion
    others = [made.model for made in coronations(workspace) if made.model.round != round_number]
    return others[-1] if others else None


def _champion(workspace: Workspace, rounds: Mapping[int, RecordedRound]) -> LoggedModel | None:
    return reigning(workspace, {number: recorded.ledger for number, recorded in rounds.items()})


def _settled(workspace: Workspace, client: MlflowClient, changed: bool, message: str) -> Outcome:
    """Finish what this call, or one that was killed, has begun: commit and alias."""
    vcs.commit(workspace, f"Promotion: {message.split(':')[0].rstrip('.')}", _LOG)
    warning = follow_log(workspace, client)
    return Outcome(changed, f"{message} {warning}" if warning else message)


def _former(workspace: Workspace, crowned: list[Decision], champion: LoggedModel | None, to: int | None) -> LoggedModel:
    past = [decision.model for decision in crowned] + [decision.before for decision in crowned if decision.before]
    if to is not None:
        former = next((model for model in reversed(past) if model.version == to), None)
        known = sorted({model.version for model in past})
        if former is None:
            raise UserError("--to", f"the version is {to}, expected one that was champion: {known}")
        return former
    if not crowned or crowned[-1].before is None:
        which = f"version {champion.version} is the first champion" if champion else "there is no champion"
        raise UserError(workspace.promotions, f"{which}, expected one before it to go back to")
    return crowned[-1].before


def _round_of(rounds: Mapping[int, RecordedRound], version: int) -> RecordedRound:
    found = [recorded for recorded in rounds.values() if recorded.model_version == version]
    if not found:
        known = sorted(recorded.model_version for recorded in rounds.values())
        raise UserError("VERSION", f"the version is {version}, expected one of this campaign: {known}")
    return found[-1]


def _key(workspace: Workspace, action: str, version: int, reason: str) -> str:
    """The same wish right after itself is the same decision; after another one it is a new one."""
    decisions = read_decisions(workspace)
    wish = [action, version, reason]
    if decisions and decisions[-1].key == files.sha256_json([*wish, len(decisions) - 1]):
        return decisions[-1].key
    return files.sha256_json([*wish, len(decisions)])


def _somebody(workspace: Workspace) -> str:
    vcs.ensure_identity(workspace.root)
    return vcs.git(workspace.root, "var", "GIT_COMMITTER_IDENT").rsplit(" ", 2)[0]  # without its time


def _model_name(workspace: Workspace) -> str:
    rounds = recorded_rounds(workspace)
    return str(rounds[max(rounds)].ledger["mlflow"]["model_name"])


def _told(verdict: Verdict) -> dict[str, object]:
    return {"passed": verdict.passed, "why": verdict.why, **verdict.figures}
