"""What nothing needs any more, in DVC's cache and remote.

Needed is what any tag, any branch or the files in the workspace refer to: with the rounds' tags that is every
champion, candidate and promoted model, and an open delivery keeps its own copies outside the cache. What is left is
of derivations that were cut off, or replaced before they were published.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo
from dvc_data.hashfile.db import get_index

from flows import vcs
from flows.data_versions import has_default_remote
from flows.records.dvc_objects import DvcObjects, is_folder, objects_of
from flows.records.git_objects import blob, paths_at
from tasks.errors import UserError
from tasks.paths import Workspace

_WORKSPACE = ""


@dataclass(frozen=True)
class Garbage:
    """Objects of one kind that nothing needs."""

    place: str
    """``cache`` or ``remote``."""
    what: str
    """The path they once were at; ``unknown`` where no commit tells."""
    md5s: tuple[str, ...]
    bytes: int


def find_garbage(workspace: Workspace, *, remote: bool) -> list[Garbage]:
    """What could go, by place and by what it once was; the largest first.

    Raises:
        UserError: the cache is shared with other campaigns, whose objects look like garbage from here; or
            ``remote`` without a remote.
    """
    objects = objects_of(workspace.root)
    _require_own_cache(workspace, objects)
    needed = _needed(workspace, objects)
    names = _former_names(workspace, objects)
    found = _grouped("cache", _unneeded(_cached(objects), needed), names)
    if remote:
        found += _grouped("remote", _unneeded(_in_remote(workspace), needed), names)
    return sorted(found, key=lambda group: (group.place, -group.bytes, group.what))


def remove(workspace: Workspace, garbage: Iterable[Garbage]) -> None:
    """Delete what ``find_garbage`` found; each object is whole or gone, so it may be cut off and called again."""
    objects = objects_of(workspace.root)
    groups = list(garbage)
    for group in groups:
        for md5 in group.md5s if group.place == "cache" else ():
            path = objects.path(md5)
            path.unlink(missing_ok=True)
    distant = [md5 for group in groups if group.place == "remote" for md5 in group.md5s]
    if distant:
        with Repo(str(workspace.root)) as repo:
            odb = repo.cloud.get_remote_odb(None, "gc")
            odb.fs.remove([odb.oid_to_path(md5) for md5 in distant])
            get_index(odb).clear()  # else DVC would believe they are still there, and never send them again


def _require_own_cache(workspace: Workspace, objects: DvcObjects) -> None:
    if not objects.cache.is_relative_to(workspace.root.resolve()):
        fix = "Run in each campaign's place: dvc gc --all-tags --projects FOLDER ..., naming all that share it."
        problem = "the DVC cache is outside the campaign, expected one that no other campaign shares"
        raise UserError(objects.cache, problem, fix)


def _needed(workspace: Workspace, objects: DvcObjects) -> set[str]:
    """MD5 of all that tags, branches and the workspace refer to, members of folders too."""
    refs = vcs.git(workspace.root, "for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags", "refs/remotes")
    md5s: set[str] = set()
    for revision in (_WORKSPACE, "HEAD", *refs.split()):
        md5s |= set(_referred(workspace, revision).values())
    for md5 in list(md5s):
        if is_folder(md5) and objects.path(md5).is_file():
            md5s |= set(objects.folder(md5, "a folder").values())
        elif is_folder(md5):
            objects.fetch({md5})  # its members may be here though its list is not
            md5s |= set(objects.folder(md5, "a folder").values()) if objects.path(md5).is_file() else set()
    return md5s


def _referred(workspace: Workspace, revision: str) -> dict[str, str]:
    """MD5 by path in dvc.lock and the .dvc files of a revision; dependencies too, which may be another's outputs."""
    root = workspace.root
    if revision == _WORKSPACE:
        pointers = sorted((root / "data").glob("*.dvc"))
        texts = [(path.parent.relative_to(root), path.read_bytes()) for path in pointers]
        lock = (root / "dvc.lock").read_bytes() if (root / "dvc.lock").is_file() else b""
    else:
        names = [path for path in paths_at(root, revision, "data") if path.endswith(".dvc")]
        texts = [(Path(name).parent, blob(root, revision, name) or b"") for name in names]
        lock = blob(root, revision, "dvc.lock") or b""
    found: dict[str, str] = {}
    for parent, text in texts:
        for out in (yaml.safe_load(text) or {}).get("outs", ()):
            found[(parent / out["path"]).as_posix()] = out["md5"]
    stages: Mapping[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
    for entry in stages.values():
        for item in (*entry.get("deps", ()), *entry.get("outs", ())):
            found[item["path"]] = item["md5"]
    return found


def _former_names(workspace: Workspace, objects: DvcObjects) -> dict[str, str]:
    """Path by MD5 from every commit git still knows, those no branch leads to among them."""
    names: dict[str, str] = {}
    revisions = vcs.git(workspace.root, "rev-list", "--all", "--reflog").split()
    for revision in revisions:
        for path, md5 in _referred(workspace, revision).items():
            names.setdefault(md5, path)
            if is_folder(md5) and objects.path(md5).is_file():
                for member in objects.folder(md5, path).values():
                    names.setdefault(member, path)
    return names


def _cached(objects: DvcObjects) -> dict[str, int]:
    """Size in bytes by MD5."""
    files = (path for folder in objects.cache.glob("??") for path in folder.iterdir() if path.is_file())
    return {f"{path.parent.name}{path.name}": path.stat().st_size for path in files if _is_object(path.name)}


def _is_object(name: str) -> bool:
    """Not a temporary file of a DVC at work."""
    return all(letter in "0123456789abcdef" for letter in name.removesuffix(".dir"))


def _in_remote(workspace: Workspace) -> dict[str, int]:
    if not has_default_remote(workspace.root):
        raise UserError(workspace.root / ".dvc/config", "a default remote is not set, expected one for --remote")
    with Repo(str(workspace.root)) as repo:
        odb = repo.cloud.get_remote_odb(None, "gc")
        return {md5: int(odb.fs.size(odb.oid_to_path(md5)) or 0) for md5 in odb.all()}


def _unneeded(stored: Mapping[str, int], needed: set[str]) -> dict[str, int]:
    return {md5: size for md5, size in stored.items() if md5 not in needed}


def _grouped(place: str, sizes: Mapping[str, int], names: Mapping[str, str]) -> list[Garbage]:
    groups: dict[str, list[str]] = {}
    for md5 in sorted(sizes):
        groups.setdefault(names.get(md5, "unknown"), []).append(md5)
    return [Garbage(place, what, tuple(md5s), sum(sizes[md5] for md5 in md5s)) for what, md5s in groups.items()]


def as_document(garbage: Iterable[Garbage]) -> str:
    """JSON of what could go."""
    rows = [{"place": one.place, "what": one.what, "objects": len(one.md5s), "bytes": one.bytes} for one in garbage]
    return json.dumps(rows, indent=2)
