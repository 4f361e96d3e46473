"""Audit of the records: git's objects, the chain of ledgers, the tags and the promotion log."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flows.provenance.audit import AuditScope, Check, count_rounds, make_check
from flows.provenance.ledger_writer import stage_entry
from flows.provenance.snapshot import RoundSnapshot
from flows.workspace import git
from flows.workspace.git import is_ancestor, read_blob, read_tag_object
from flows.workspace.promotion_log import first_corrupt_line
from flows.workspace.rounds import ledger_sha256
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize
from tasks.storage import files

LEDGER_TRAILER = "Ledger-SHA256: "
"""Line of a tag's message, followed by the digest of the ledger: whoever signs the tag signs the ledger."""
_SOURCE_PATHS = ("data", "rounds", "quarantine", "deliveries", "promotions.jsonl", "params.yaml", "dvc.yaml")
_DERIVED_PATHS = ("dvc.lock", "code_versions.json", "derived")


def record_checks(scope: AuditScope) -> Iterator[Check]:
    """Check everything that git keeps of the records."""
    counted = count_rounds(scope)
    yield make_check("git", "objects are undamaged", "every object", _fsck_findings(scope.workspace))
    if scope.is_complete:
        yield make_check("git", "workspace is what is committed", "every tracked file", _uncommitted_findings(scope))
    yield make_check("ledgers", "each holds the digest of the one before", counted, chain_findings(scope.rounds))
    yield make_check(
        "ledgers",
        "tags hold them",
        counted,
        [finding for snapshot in scope.rounds.values() for finding in _tag_findings(snapshot)],
    )
    yield _signature_check(scope)
    yield _promotion_log_check(scope)


def chain_findings(rounds: Mapping[int, RoundSnapshot]) -> list[str]:
    """Compare each ledger's digest of the previous ledger with that file; find missing ledgers.

    Args:
        rounds: finished rounds by number, from 0 to the newest to check.
    """
    numbers = sorted(rounds)
    found = [
        f"rounds/{git.round_tag(number)}.json: the file is missing"
        for number in range(numbers[-1])
        if number not in rounds
    ]
    for number in numbers:
        snapshot = rounds[number]
        recorded = snapshot.ledger["previous_ledger_sha256"]
        if number == 0 and recorded is not None:
            found.append(
                f"rounds/{snapshot.tag}.json: previous_ledger_sha256 is {recorded}, expected null in the first"
            )
        if number - 1 in rounds:
            actual = ledger_sha256(snapshot.workspace, number - 1)
            if actual != recorded:
                previous = f"rounds/{git.round_tag(number - 1)}.json"
                found.append(f"{previous}: SHA-256 is {actual}, expected {recorded} (ledger of {snapshot.tag})")
        campaign = git.campaign_id(snapshot.workspace.root)
        if snapshot.ledger["campaign"] != campaign:
            found.append(f"rounds/{snapshot.tag}.json: campaign is {snapshot.ledger['campaign']}, expected {campaign}")
    return found


def _fsck_findings(workspace: Workspace) -> list[str]:
    try:
        git.run_git(workspace.root, "fsck", "--full", "--no-dangling", "--no-progress")
    except UserError as error:
        return [f".git: {error.problem}"]
    return []


def _uncommitted_findings(scope: AuditScope) -> list[str]:
    """Find tracked files whose bytes differ from the commit; git's index is not trusted, every file is hashed."""
    root = scope.workspace.root
    protected = _SOURCE_PATHS if scope.is_deriving else (*_SOURCE_PATHS, *_DERIVED_PATHS)
    listed = git.run_git(root, "ls-tree", "-r", "-z", "HEAD", "--", *protected).split("\0")
    expected = {path: meta.split()[2] for meta, _, path in (line.partition("\t") for line in listed if line)}
    existing = [path for path in expected if (root / path).is_file()]
    hashed = (
        git.run_git(root, "hash-object", "--no-filters", "--stdin-paths", stdin="\n".join(existing)) if existing else ""
    )
    actual = dict(zip(existing, hashed.split(), strict=True))
    return [
        f"{path}: git object of the file is {actual.get(path, 'missing')}, expected {expected[path]} as committed"
        for path in expected
        if actual.get(path) != expected[path]
    ]


def _tag_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    root, name = snapshot.workspace.root, snapshot.tag
    tag = read_tag_object(root, name)
    if tag is None:
        yield f"tag {name}: there is no annotated tag of that name"
        return
    if tag.name != name:
        yield f"tag {name}: name in the tag object is {tag.name}, expected {name}"
    ledger_bytes = snapshot.workspace.ledger(snapshot.number).read_bytes()
    if read_blob(root, tag.commit, f"rounds/{name}.json") != ledger_bytes:
        yield f"rounds/{name}.json: the file in the workspace differs from the one at tag {name}"
    digest = ledger_sha256(snapshot.workspace, snapshot.number)
    trailers = [line.removeprefix(LEDGER_TRAILER) for line in tag.message.splitlines() if LEDGER_TRAILER in line]
    if not trailers or trailers[0] != digest:
        recorded = trailers[0] if trailers else "missing"
        yield f"tag {name}: {LEDGER_TRAILER.strip(': ')} is {recorded}, expected {digest} of rounds/{name}.json"
    revision = snapshot.ledger["git_revision"]
    if not is_ancestor(root, revision, tag.commit):
        yield f"tag {name}: commit is {tag.commit}, expected a descendant of {revision} (git_revision of its ledger)"


def _signature_check(scope: AuditScope) -> Check:
    signed = []
    for snapshot in scope.rounds.values():
        tag = read_tag_object(scope.workspace.root, snapshot.tag)
        if tag is not None and tag.signed:
            signed.append(snapshot.tag)
    if not signed:
        return Check("ledgers", "signatures of tags", "no tag", skip_reason="no tag is signed")
    found = []
    for name in signed:
        try:
            git.run_git(scope.workspace.root, "verify-tag", name, user_config=True)
        except UserError as error:
            found.append(f"tag {name}: {error.problem}")
    return make_check("ledgers", "signatures of tags", pluralize(len(signed), "signed tag"), found)


def _promotion_log_check(scope: AuditScope) -> Check:
    """Check the digests inside the log, and that the log at every tag is a prefix of today's."""
    workspace = scope.workspace
    path = workspace.promotions
    content = path.read_bytes() if path.is_file() else b""
    found = []
    try:
        line = first_corrupt_line(workspace)
    except UserError as error:
        line, found = None, [f"{path.name}: {error.problem}"]
    if line is not None:
        found.append(f"{path.name}: number or previous_sha256 of line {line} does not match the line before")
    for snapshot in scope.rounds.values():
        if not content.startswith(read_blob(workspace.root, snapshot.revision, path.name) or b""):
            found.append(f"{path.name}: lines that it has at {snapshot.tag} are altered or missing")
    counted = pluralize(content.count(b"\n"), "decision")
    return make_check("promotions", "the log is unaltered", counted, found)


def stage_record_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Compare a round's ledger with dvc.lock at its tag.

    Raises:
        MissingDataError: git has no dvc.lock there.
    """
    name, ledger = snapshot.tag, snapshot.ledger
    locked: dict[str, Any] = yaml.safe_load(snapshot.read_blob("dvc.lock"))["stages"]
    fingerprint = files.sha256_json(locked)
    if fingerprint != ledger["derivation_sha256"]:
        yield f"dvc.lock at {name}: fingerprint is {fingerprint}, expected {ledger['derivation_sha256']}"
    for stage, entry in ledger["stages"].items():
        actual = stage_entry(locked.get(stage, {}))
        for key in entry:
            if actual[key] != entry[key]:
                yield f"dvc.lock at {name}: {key} of stage {stage} differ from those of the ledger"
