"""Checks on git: a round is a commit and a tag, so a repository in the middle of something stops a night."""

import re

from flows import vcs
from flows.doctor.context import Context
from flows.doctor.finding import Finding, failed, passed, warned
from flows.records.ledger import all_ledgers
from tasks import files
from tasks.paths import Workspace

_UNFINISHED = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
_TAG = re.compile(r"round-(\d{4,})")
_NAMED = 3


def check_branch(context: Context) -> Finding:
    """A branch is checked out, and git is in the middle of nothing."""
    root = context.workspace.root
    vcs.require_branch(root)
    for name, what in _UNFINISHED.items():
        if (root / ".git" / name).exists():
            return failed(f"a {what} is not finished", f"Finish it, or run: git {what} --abort")
    return passed(f"on branch {vcs.git(root, 'branch', '--show-current')}")


def check_uncommitted(context: Context) -> Finding:
    """Sources that are not committed: the next night takes them as they are into its commit."""
    lines = vcs.git(context.workspace.root, "status", "--porcelain", "--", *vcs.EVERYTHING).splitlines()
    changed = [line.split(maxsplit=1)[1] for line in lines]
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        return warned(
            f"not committed: {', '.join(changed[:_NAMED])}{more}",
            "The next night takes this in. Not wanted: git checkout -- FILE. Wanted: nothing to do.",
        )
    return passed("everything is committed")


def check_rounds(context: Context) -> Finding:
    """Every ledger has its tag, holds what the tag holds, and continues the one before."""
    workspace = context.workspace
    numbers = [int(ledger["round"]) for ledger in all_ledgers(workspace)]
    tags = vcs.git(workspace.root, "tag", "--list", "round-*").split()
    tagged = {int(match[1]) for tag in tags if (match := _TAG.fullmatch(tag))}
    lost = sorted(tagged - set(numbers))
    if lost:
        tag = vcs.round_tag(lost[0])
        return failed(f"{tag} has no ledger", f"Bring it back: git checkout {tag} -- rounds/{tag}.json")
    untagged = [number for number in numbers if number not in tagged]
    if untagged and untagged != numbers[-1:]:
        tag = vcs.round_tag(untagged[0])
        return failed(f"the ledger of {tag} has no tag", f"Fetch it (git fetch --tags), or set it again: git tag {tag}")
    altered = _altered(workspace, [number for number in numbers if number in tagged])
    if altered:
        return failed(f"{altered} is not as it was published", f"Bring it back: git checkout {altered} -- rounds")
    if untagged:
        return warned(f"{vcs.round_tag(untagged[0])} is being published", "Run gleaner night: it goes on from there.")
    return passed(f"{len(numbers)} rounds, each with its tag, its ledger unaltered")


def _altered(workspace: Workspace, numbers: list[int]) -> str | None:
    """Tag of the first round whose ledger was changed since, or does not continue the one before."""
    if not numbers:
        return None
    paths = [workspace.ledger(number).relative_to(workspace.root).as_posix() for number in numbers]
    now = vcs.git(workspace.root, "hash-object", "--no-filters", *paths).split()
    then = vcs.git(
        workspace.root, "rev-parse", *(f"{vcs.round_tag(n)}:{path}" for n, path in zip(numbers, paths, strict=True))
    ).split()
    for number, is_now, was in zip(numbers, now, then, strict=True):
        before = files.read_json(workspace.ledger(number))["previous_ledger_sha256"]
        expected = files.sha256_file(workspace.ledger(number - 1)) if number and number - 1 in numbers else None
        if is_now != was or (expected is not None and before != expected):
            return vcs.round_tag(number)
    return None
