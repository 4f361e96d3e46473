"""Check git: a round is a commit and a tag, so an unfinished merge or rebase stops a run."""

import re

from flows.preflight.context import CheckContext
from flows.preflight.result import Finding, failed, passed, warned
from flows.workspace import git
from flows.workspace.rounds import all_ledgers
from tasks.data.paths import Workspace
from tasks.storage import files

_OPERATION_BY_MARKER = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
_ROUND_TAG_PATTERN = re.compile(r"round-(\d{4,})")
_MAX_LISTED = 3


def check_branch(context: CheckContext) -> Finding:
    """Check that a branch is checked out and no merge or rebase is in progress."""
    root = context.workspace.root
    git.require_branch(root)
    for name, operation in _OPERATION_BY_MARKER.items():
        if (root / ".git" / name).exists():
            return failed(f"a {operation} is not finished", f"Finish it, or run: git {operation} --abort")
    return passed(f"on branch {git.run_git(root, 'branch', '--show-current')}")


def check_uncommitted(context: CheckContext) -> Finding:
    """Warn about uncommitted sources: the next run commits them as they are."""
    lines = git.run_git(context.workspace.root, "status", "--porcelain", "--", *git.ALL_PATHS).splitlines()
    changed = [line.split(maxsplit=1)[1] for line in lines]
    if changed:
        more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
        return warned(
            f"not committed: {', '.join(changed[:_MAX_LISTED])}{more}",
            "The next night takes this in. Not wanted: git checkout -- FILE. Wanted: nothing to do.",
        )
    return passed("everything is committed")


def check_rounds(context: CheckContext) -> Finding:
    """Check that every ledger has its tag, equals the ledger in the tag, and names the digest of the one before."""
    workspace = context.workspace
    numbers = [int(ledger["round"]) for ledger in all_ledgers(workspace)]
    tags = git.run_git(workspace.root, "tag", "--list", "round-*").split()
    tagged = {int(match[1]) for tag in tags if (match := _ROUND_TAG_PATTERN.fullmatch(tag))}
    lost = sorted(tagged - set(numbers))
    if lost:
        tag = git.round_tag(lost[0])
        return failed(f"{tag} has no ledger", f"Bring it back: git checkout {tag} -- rounds/{tag}.json")
    untagged = [number for number in numbers if number not in tagged]
    if untagged and untagged != numbers[-1:]:
        tag = git.round_tag(untagged[0])
        return failed(f"the ledger of {tag} has no tag", f"Fetch it (git fetch --tags), or set it again: git tag {tag}")
    modified_tag = _first_modified_tag(workspace, [number for number in numbers if number in tagged])
    if modified_tag:
        return failed(
            f"{modified_tag} is not as it was published", f"Bring it back: git checkout {modified_tag} -- rounds"
        )
    if untagged:
        return warned(f"{git.round_tag(untagged[0])} is being published", "Run gleaner run: it goes on from there.")
    return passed(f"{len(numbers)} rounds, each with its tag, its ledger unaltered")


def _first_modified_tag(workspace: Workspace, numbers: list[int]) -> str | None:
    """Return the tag of the first round whose ledger was changed, or does not name the digest of the one before."""
    if not numbers:
        return None
    paths = [workspace.ledger(number).relative_to(workspace.root).as_posix() for number in numbers]
    current_hashes = git.run_git(workspace.root, "hash-object", "--no-filters", *paths).split()
    published_hashes = git.run_git(
        workspace.root, "rev-parse", *(f"{git.round_tag(n)}:{path}" for n, path in zip(numbers, paths, strict=True))
    ).split()
    for number, current_hash, published_hash in zip(numbers, current_hashes, published_hashes, strict=True):
        previous_sha256 = files.read_json(workspace.ledger(number))["previous_ledger_sha256"]
        expected = files.sha256_file(workspace.ledger(number - 1)) if number and number - 1 in numbers else None
        if current_hash != published_hash or (expected is not None and previous_sha256 != expected):
            return git.round_tag(number)
    return None
