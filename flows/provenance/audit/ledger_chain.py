"""The records themselves: git's objects, the chain of ledgers, tags, the promotion log."""

import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.ledger_writer import params_sha256
from flows.provenance.snapshot import RoundSnapshot
from flows.workspace import git
from flows.workspace.dvc import recorded_md5s
from flows.workspace.git import is_ancestor, read_blob, read_tag_object
from flows.workspace.ledger import ledger_sha256
from flows.workspace.promotion_log import first_corrupt_line
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

LEDGER_TRAILER = "Ledger-SHA256: "
_SOURCE_PATHS = ("data", "rounds", "quarantine", "deliveries", "promotions.jsonl", "params.yaml", "dvc.yaml")
_DERIVED_PATHS = ("dvc.lock", "code_versions.json", "derived")


def record_checks(scope: AuditScope) -> Iterator[Check]:
    """Everything that git keeps."""
    rounds = list(scope.rounds.values())
    counted = f"{len(rounds)} rounds"
    yield make_check("git", "objects are whole", "every object", _fsck_findings(scope.workspace))
    if scope.is_complete:
        yield make_check("git", "workspace is what is committed", "every tracked file", _uncommitted_findings(scope))
    yield make_check("ledgers", "each holds the digest of the one before", counted, chain_findings(scope.rounds))
    yield make_check("ledgers", "tags hold them", counted, [found for one in rounds for found in _tag_findings(one)])
    yield _signature_check(scope)
    yield _promotion_log_check(scope)


def chain_findings(rounds: Mapping[int, RoundSnapshot]) -> list[str]:
    """Ledgers that do not follow from the one before, or are missing."""
    found = []
    numbers = sorted(rounds)
    found += [
        f"rounds/{git.round_tag(number)}.json is missing" for number in range(numbers[-1]) if number not in rounds
    ]
    for number in numbers:
        snapshot = rounds[number]
        claimed = snapshot.ledger["previous_ledger_sha256"]
        if number == 0:
            if claimed is not None:
                found.append("rounds/round-0000.json names a ledger before it, expected none before the first")
        elif number - 1 in rounds and claimed != ledger_sha256(snapshot.workspace, number - 1):
            before = git.round_tag(number - 1)
            found.append(f"rounds/{before}.json is altered: its digest is not the one {snapshot.tag} holds")
        campaign = git.campaign_id(snapshot.workspace.root)
        if snapshot.ledger["campaign"] != campaign:
            found.append(f"rounds/{snapshot.tag}.json is of campaign {snapshot.ledger['campaign'][:12]}")
    return found


def _fsck_findings(workspace: Workspace) -> list[str]:
    result = subprocess.run(
        ["git", "fsck", "--full", "--no-dangling", "--no-progress"],
        cwd=workspace.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output_lines = [
        line for line in (result.stdout + result.stderr).splitlines() if line and not line.startswith("notice:")
    ]
    return [f".git: {line}" for line in output_lines] if result.returncode else []


def _uncommitted_findings(scope: AuditScope) -> list[str]:
    """Tracked files whose bytes are not those of the commit; hashed anew, whatever their times say."""
    root = scope.workspace.root
    protected = _SOURCE_PATHS if scope.is_deriving else (*_SOURCE_PATHS, *_DERIVED_PATHS)
    listed = git.run_git(root, "ls-tree", "-r", "-z", "HEAD", "--", *protected).split("\0")
    expected = {path: meta.split()[2] for meta, _, path in (line.partition("\t") for line in listed if line)}
    existing = [path for path in expected if (root / path).is_file()]
    hashed = subprocess.run(
        ["git", "hash-object", "--no-filters", "--stdin-paths"],
        cwd=root, input="\n".join(existing), capture_output=True, text=True, check=False,
    )  # fmt: skip
    actual = dict(zip(existing, hashed.stdout.split(), strict=True))
    found = [f"{path} is missing, expected it as committed" for path in expected if path not in actual]
    altered = [path for path in existing if actual[path] != expected[path]]
    return found + [f"{path} is altered: its bytes are not the committed ones" for path in altered]


def _tag_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    root, name = snapshot.workspace.root, snapshot.tag
    tag = read_tag_object(root, name)
    if tag is None:
        yield f"tag {name} is missing, expected an annotated tag"
        return
    if tag.name != name:
        yield f"tag {name} is the object of tag {tag.name}"
    committed = read_blob(root, tag.commit, f"rounds/{name}.json")
    if committed is None or committed != snapshot.workspace.ledger(snapshot.number).read_bytes():
        yield f"rounds/{name}.json is altered: tag {name} holds another one"
    trailer_digests = [line.removeprefix(LEDGER_TRAILER) for line in tag.message.splitlines() if LEDGER_TRAILER in line]
    if trailer_digests and trailer_digests[0] != ledger_sha256(snapshot.workspace, snapshot.number):
        yield f"rounds/{name}.json is altered: tag {name} was made for {trailer_digests[0][:12]}"
    if snapshot.ledger["format"] > 1 and not trailer_digests:
        yield f"tag {name} does not name its ledger's digest, expected {LEDGER_TRAILER.strip()}"
    revision = snapshot.ledger["git_revision"]
    if not is_ancestor(root, revision, tag.commit):
        yield f"tag {name} points to {tag.commit[:12]}, which does not follow from {revision[:12]} of its ledger"


def _signature_check(scope: AuditScope) -> Check:
    signed = []
    for snapshot in scope.rounds.values():
        tag = read_tag_object(scope.workspace.root, snapshot.tag)
        if tag is not None and tag.signed:
            signed.append(snapshot.tag)
    if not signed:
        return Check("ledgers", "signatures of tags hold", "no tag is signed", skipped="no tag is signed")
    found = []
    for name in signed:
        try:
            git.run_git(scope.workspace.root, "verify-tag", name, user_config=True)
        except UserError as error:
            found.append(f"tag {name}: {error.problem}")
    return make_check("ledgers", "signatures of tags hold", f"{len(signed)} signed tags", found)


def _promotion_log_check(scope: AuditScope) -> Check:
    """The log follows from itself, and every tag holds a beginning of it."""
    workspace = scope.workspace
    path = workspace.promotions
    now = path.read_bytes() if path.is_file() else b""
    found = []
    try:
        line = first_corrupt_line(workspace)
    except UserError as error:
        line, found = None, [f"{path.name} is altered: {error.problem}"]
    if line is not None:
        found.append(f"{path.name} is altered: line {line} does not follow from the one before")
    for snapshot in scope.rounds.values():
        then = read_blob(workspace.root, snapshot.revision, path.name) or b""
        if not now.startswith(then):
            found.append(f"{path.name} is altered: {snapshot.tag} holds lines that are no longer in it")
    return make_check("promotions", "the log is whole", f"{now.count(chr(10).encode())} decisions", found)


def stage_record_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Where the ledger and the files that git keeps at its tag say different things."""
    name, ledger = snapshot.tag, snapshot.ledger
    locked: dict[str, Any] = yaml.safe_load(snapshot.read_blob("dvc.lock"))["stages"]
    if files.sha256_json(locked) != ledger["derivation_sha256"]:
        yield f"{name}: dvc.lock is not the one its ledger was written for"
    for stage, entry in ledger["stages"].items():
        for kind in ("deps", "outs"):
            if recorded_md5s(locked.get(stage, {}), kind) != entry[kind]:
                yield f"{name}: {kind} of stage {stage} in dvc.lock are not those of the ledger"
        if params_sha256(locked.get(stage, {})) != entry["params_sha256"]:
            yield f"{name}: parameters of stage {stage} in dvc.lock are not those of the ledger"
