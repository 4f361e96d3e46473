"""Find and delete unused objects in DVC's cache and remote, by ``dvc gc``.

Used is what any tag, any branch or the files in the workspace refer to: with the tags of the rounds, that includes
every champion, candidate and promoted model. The batches that annotators have keep their own files outside the cache.
Unused objects come from stages that were interrupted, or whose outputs were replaced before they were published.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.workspace import git
from flows.workspace.dvc import has_default_remote, run_dvc
from flows.workspace.dvc_cache import DvcCache, is_folder_md5, open_dvc_cache
from flows.workspace.git import list_paths, read_blob
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_GC_ARGUMENTS = ("gc", "--workspace", "--all-branches", "--all-tags", "--force")
_DRY_RUN_LINE = re.compile(r"Removing (?P<path>.*/files/md5/(?P<prefix>[0-9a-f]{2})/(?P<rest>[0-9a-f]{30}(?:\.dir)?))")
_KEPT_REFS = "refs/heads/gleaner-gc"


@dataclass(frozen=True)
class Garbage:
    """Unused objects that were once at the same path."""

    location: str
    """``cache`` or ``remote``."""
    path: str
    """Path of the output they belonged to; ``unknown`` where no commit names it."""
    md5s: tuple[str, ...]
    size_bytes: int


def find_garbage(workspace: Workspace, *, remote: bool) -> list[Garbage]:
    """List unused objects by location and former path, the largest groups first.

    Raises:
        UserError: the cache is shared with other campaigns, whose objects seem unused from here; or ``remote``
            without a remote.
    """
    cache = open_dvc_cache(workspace.root)
    _require_own_cache(workspace, cache)
    if remote and not has_default_remote(workspace.root):
        raise UserError(workspace.root / ".dvc/config", "a default remote is not set, expected one for --remote")
    in_cache, in_remote = _unused_md5s(workspace, cache, remote=remote)
    if not in_cache and not in_remote:
        return []
    paths = _historical_paths(workspace, cache)
    found = _group_by_path("cache", {md5: cache.object_path(md5).stat().st_size for md5 in in_cache}, paths)
    found += _group_by_path("remote", cache.remote_sizes(in_remote) if in_remote else {}, paths)
    return sorted(found, key=lambda group: (group.location, -group.size_bytes, group.path))


def remove_garbage(workspace: Workspace, *, remote: bool) -> None:
    """Delete the objects that ``find_garbage`` lists. After an interruption it can be called again.

    Raises:
        UserError: as ``find_garbage``.
    """
    _require_own_cache(workspace, open_dvc_cache(workspace.root))
    with _remote_branches_kept(workspace):
        run_dvc(workspace.root, *_GC_ARGUMENTS, *(("--cloud",) if remote else ()))


def _require_own_cache(workspace: Workspace, cache: DvcCache) -> None:
    if not cache.directory.is_relative_to(workspace.root.resolve()):
        fix = "Run instead, in one of the campaigns: dvc gc --all-tags --projects FOLDER ..., naming all that share it."
        problem = "the DVC cache is outside the campaign, expected one that no other campaign shares"
        raise UserError(cache.directory, problem, fix)


def _unused_md5s(workspace: Workspace, cache: DvcCache, *, remote: bool) -> tuple[list[str], list[str]]:
    """Return the MD5s of unused objects in the cache and in the remote, as ``dvc gc --dry`` lists them."""
    with _remote_branches_kept(workspace):
        output = run_dvc(workspace.root, *_GC_ARGUMENTS, "--dry", *(("--cloud",) if remote else ()))
    in_cache, in_remote = [], []
    for line in output.splitlines():
        match = _DRY_RUN_LINE.fullmatch(line.strip())
        if match:
            md5 = match["prefix"] + match["rest"]
            (in_cache if Path(match["path"]) == cache.object_path(md5) else in_remote).append(md5)
    return in_cache, in_remote


@contextmanager
def _remote_branches_kept(workspace: Workspace) -> Iterator[None]:
    """Make branches of the remote-tracking ones: ``dvc gc`` looks at local branches only.

    Otherwise data that a colleague has pushed would be deleted because it was not merged here.
    """
    root = workspace.root
    remote_refs = git.run_git(root, "for-each-ref", "--format=%(objectname)", "refs/remotes").split()
    branches = [f"{_KEPT_REFS}/{revision}" for revision in sorted(set(remote_refs))]
    try:
        for branch in branches:
            git.run_git(root, "update-ref", branch, branch.rpartition("/")[2])
        yield
    finally:
        for branch in git.run_git(root, "for-each-ref", "--format=%(refname)", _KEPT_REFS).split():
            git.run_git(root, "update-ref", "-d", branch)


def _historical_paths(workspace: Workspace, cache: DvcCache) -> dict[str, str]:
    """Return path by MD5 from every commit that git has, those that no branch contains included."""
    paths: dict[str, str] = {}
    revisions = git.run_git(workspace.root, "rev-list", "--all", "--reflog").split()
    for revision in revisions:
        for path, md5 in _recorded_md5s(workspace, revision).items():
            paths.setdefault(md5, path)
            if is_folder_md5(md5) and cache.object_path(md5).is_file():
                for member in cache.read_folder(md5, path).values():
                    paths.setdefault(member, path)
    return paths


def _recorded_md5s(workspace: Workspace, revision: str) -> dict[str, str]:
    """Return MD5 by path from dvc.lock and the .dvc files of a revision."""
    root = workspace.root
    found: dict[str, str] = {}
    for name in list_paths(root, revision, "data"):
        if name.endswith(".dvc"):
            for out in (yaml.safe_load(read_blob(root, revision, name) or b"") or {}).get("outs", ()):
                found[(Path(name).parent / out["path"]).as_posix()] = out["md5"]
    lock = yaml.safe_load(read_blob(root, revision, "dvc.lock") or b"") or {}
    stages: Mapping[str, Any] = lock.get("stages", {})
    for entry in stages.values():
        for item in (*entry.get("deps", ()), *entry.get("outs", ())):
            found[item["path"]] = item["md5"]
    return found


def _group_by_path(location: str, sizes: Mapping[str, int], paths: Mapping[str, str]) -> list[Garbage]:
    groups: dict[str, list[str]] = {}
    for md5 in sorted(sizes):
        groups.setdefault(paths.get(md5, "unknown"), []).append(md5)
    return [Garbage(location, path, tuple(md5s), sum(sizes[md5] for md5 in md5s)) for path, md5s in groups.items()]


def to_json(garbage: Iterable[Garbage]) -> str:
    """Return the JSON text of ``gleaner gc --json``."""
    rows = [
        {"location": one.location, "path": one.path, "objects": len(one.md5s), "bytes": one.size_bytes}
        for one in garbage
    ]
    return json.dumps(rows, indent=2)
