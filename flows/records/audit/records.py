"""The records themselves: git's objects, the chain of ledgers, tags, the promotion log."""

import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flows import vcs
from flows.data_versions import recorded_digests
from flows.records.audit.findings import Audited, Check, check
from flows.records.git_objects import blob, is_ancestor, tag_object
from flows.records.ledger_sources import params_sha256
from flows.records.promotion_log import broken_line
from flows.records.recorded import RecordedRound, ledger_sha256
from tasks import files
from tasks.errors import UserError
from tasks.paths import Workspace

LEDGER_TRAILER = "Ledger-SHA256: "
_SOURCES = ("data", "rounds", "quarantine", "deliveries", "promotions.jsonl", "params.yaml", "dvc.yaml")
_DERIVED = ("dvc.lock", "code.json", "derived")


def record_checks(audited: Audited) -> Iterator[Check]:
    """Everything that git keeps."""
    rounds = list(audited.rounds.values())
    counted = f"{len(rounds)} rounds"
    yield check("git", "objects are whole", "every object", _fsck(audited.workspace))
    if audited.whole:
        yield check("git", "workspace is what is committed", "every tracked file", _uncommitted(audited))
    yield check("ledgers", "each holds the digest of the one before", counted, chain_findings(audited.rounds))
    yield check("ledgers", "tags hold them", counted, [found for one in rounds for found in _tag_findings(one)])
    yield _signatures(audited)
    yield _promotions(audited)


def chain_findings(rounds: Mapping[int, RecordedRound]) -> list[str]:
    """Ledgers that do not follow from the one before, or are missing."""
    found = []
    numbers = sorted(rounds)
    found += [
        f"rounds/{vcs.round_tag(number)}.json is missing" for number in range(numbers[-1]) if number not in rounds
    ]
    for number in numbers:
        recorded = rounds[number]
        claimed = recorded.ledger["previous_ledger_sha256"]
        if number == 0:
            if claimed is not None:
                found.append("rounds/round-0000.json names a ledger before it, expected none before the first")
        elif number - 1 in rounds and claimed != ledger_sha256(recorded.workspace, number - 1):
            before = vcs.round_tag(number - 1)
            found.append(f"rounds/{before}.json is altered: its digest is not the one {recorded.name} holds")
        campaign = vcs.campaign_id(recorded.workspace.root)
        if recorded.ledger["campaign"] != campaign:
            found.append(f"rounds/{recorded.name}.json is of campaign {recorded.ledger['campaign'][:12]}")
    return found


def _fsck(workspace: Workspace) -> list[str]:
    done = subprocess.run(
        ["git", "fsck", "--full", "--no-dangling", "--no-progress"],
        cwd=workspace.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in (done.stdout + done.stderr).splitlines() if line and not line.startswith("notice:")]
    return [f".git: {line}" for line in said] if done.returncode else []


def _uncommitted(audited: Audited) -> list[str]:
    """Tracked files whose bytes are not those of the commit; hashed anew, whatever their times say."""
    root = audited.workspace.root
    protected = _SOURCES if audited.deriving else (*_SOURCES, *_DERIVED)
    listed = vcs.git(root, "ls-tree", "-r", "-z", "HEAD", "--", *protected).split("\0")
    expected = {path: meta.split()[2] for meta, _, path in (line.partition("\t") for line in listed if line)}
    there = [path for path in expected if (root / path).is_file()]
    hashed = subprocess.run(
        ["git", "hash-object", "--no-filters", "--stdin-paths"],
        cwd=root, input="\n".join(there), capture_output=True, text=True, check=False,
    )  # fmt: skip
    actual = dict(zip(there, hashed.stdout.split(), strict=True))
    found = [f"{path} is missing, expected it as committed" for path in expected if path not in actual]
    altered = [path for path in there if actual[path] != expected[path]]
    return found + [f"{path} is altered: its bytes are not the committed ones" for path in altered]


def _tag_findings(recorded: RecordedRound) -> Iterator[str]:
    root, name = recorded.workspace.root, recorded.name
    tag = tag_object(root, name)
    if tag is None:
        yield f"tag {name} is missing, expected an annotated tag"
        return
    if tag.name != name:
        yield f"tag {name} is the object of tag {tag.name}"
    kept = blob(root, tag.commit, f"rounds/{name}.json")
    if kept is None or kept != recorded.workspace.ledger(recorded.number).read_bytes():
        yield f"rounds/{name}.json is altered: tag {name} holds another one"
    promised = [line.removeprefix(LEDGER_TRAILER) for line in tag.message.splitlines() if LEDGER_TRAILER in line]
    if promised and promised[0] != ledger_sha256(recorded.workspace, recorded.number):
        yield f"rounds/{name}.json is altered: tag {name} was made for {promised[0][:12]}"
    if recorded.ledger["format"] > 1 and not promised:
        yield f"tag {name} does not name its ledger's digest, expected {LEDGER_TRAILER.strip()}"
    revision = recorded.ledger["git_revision"]
    if not is_ancestor(root, revision, tag.commit):
        yield f"tag {name} points to {tag.commit[:12]}, which does not follow from {revision[:12]} of its ledger"


def _signatures(audited: Audited) -> Check:
    signed = []
    for recorded in audited.rounds.values():
        tag = tag_object(audited.workspace.root, recorded.name)
        if tag is not None and tag.signed:
            signed.append(recorded.name)
    if not signed:
        return Check("ledgers", "signatures of tags hold", "no tag is signed", skipped="no tag is signed")
    found = []
    for name in signed:
        try:
            vcs.git(audited.workspace.root, "verify-tag", name)
        except UserError as error:
            found.append(f"tag {name}: {error.problem}")
    return check("ledgers", "signatures of tags hold", f"{len(signed)} signed tags", found)


def _promotions(audited: Audited) -> Check:
    """The log follows from itself, and every tag holds a beginning of it."""
    workspace = audited.workspace
    path = workspace.promotions
    now = path.read_bytes() if path.is_file() else b""
    found = []
    try:
        line = broken_line(workspace)
    except UserError as error:
        line, found = None, [f"{path.name} is altered: {error.problem}"]
    if line is not None:
        found.append(f"{path.name} is altered: line {line} does not follow from the one before")
    for recorded in audited.rounds.values():
        then = blob(workspace.root, recorded.revision, path.name) or b""
        if not now.startswith(then):
            found.append(f"{path.name} is altered: {recorded.name} holds lines that are no longer in it")
    return check("promotions", "the log is whole", f"{now.count(chr(10).encode())} decisions", found)


def stage_record_findings(recorded: RecordedRound) -> Iterator[str]:
    """Where the ledger and the files that git keeps at its tag say different things."""
    name, ledger = recorded.name, recorded.ledger
    locked: dict[str, Any] = yaml.safe_load(recorded.blob("dvc.lock"))["stages"]
    if files.sha256_json(locked) != ledger["derivation_sha256"]:
        yield f"{name}: dvc.lock is not the one its ledger was written for"
    for stage, entry in ledger["stages"].items():
        for kind in ("deps", "outs"):
            if recorded_digests(locked.get(stage, {}), kind) != entry[kind]:
                yield f"{name}: {kind} of stage {stage} in dvc.lock are not those of the ledger"
        if params_sha256(locked.get(stage, {})) != entry["params_sha256"]:
            yield f"{name}: parameters of stage {stage} in dvc.lock are not those of the ledger"
