"""Read stored files by their MD5 from DVC's cache or remote, and delete those that nothing refers to.

DVC stores a file as ``files/md5/ab/cdef...`` and a folder as ``files/md5/ab/cdef....dir``, a JSON list of names and
MD5s. DVC has no public command or function that takes an MD5 in place of a path, so this module uses its Python
classes; everything else runs the command line (``flows.workspace.dvc``).

Referred to is what any tag, any branch, local or fetched, or the files in the workspace name: with the tags of the
rounds, that includes every champion, candidate and promoted model. Other objects come from stages that were
interrupted, or whose outputs were replaced before they were published. ``dvc gc`` would also delete the stored copies
of outputs with ``cache: false``, whose MD5s are in the ledgers, and data that only a fetched branch refers to.
Therefore the references are collected here.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError
from dvc.repo import Repo
from dvc_data.hashfile.db import get_index
from dvc_data.hashfile.hash_info import HashInfo

from flows.workspace import git
from flows.workspace.dvc import has_default_remote
from flows.workspace.git import list_paths, read_blob
from flows.workspace.trust import TRUST_HINT, harmful_settings, is_trusted
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_FOLDER_SUFFIX = ".dir"
_WORKTREE = ""
_AWS_CONFIG_ENV = "AWS_CONFIG_FILE"


class MissingDataError(UserError):
    """Data of a round is neither in the cache nor in the remote."""

    exit_code = 1


@dataclass(frozen=True)
class DvcCache:
    """The cache of one workspace."""

    root: Path
    directory: Path
    """Absolute; several workspaces may share it."""

    def object_path(self, md5: str) -> Path:
        """Return the path of an object in the cache, whether or not it exists."""
        return self.directory / md5[:2] / md5[2:]

    def require(self, md5: str, description: str) -> Path:
        """Return an object's path in the cache; one that is missing there is fetched from the remote.

        Args:
            md5: of a file or, with ``.dir``, of a folder.
            description: names the object in an error.

        Raises:
            MissingDataError: neither of them has it.
        """
        self.fetch({md5})
        path = self.object_path(md5)
        if not path.is_file():
            problem = f"its bytes (MD5 {md5}) are neither in the DVC cache nor in a remote, expected them in one"
            raise MissingDataError(description, problem, "Run: dvc pull --all-tags")
        return path

    def read_folder(self, md5: str, description: str) -> dict[str, str]:
        """Return the MD5 of each file in a stored folder, by relative path.

        Args:
            md5: of the folder.
            description: names the folder in an error.

        Raises:
            MissingDataError: the folder's list is missing or damaged.
        """
        path = self.require(md5, description)
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except (ValueError, KeyError, TypeError):
            raise MissingDataError(description, f"{path} is damaged, expected the list of a folder") from None

    def fetch(self, md5s: Collection[str]) -> None:
        """Download from the default remote what the cache lacks; what the remote lacks too stays missing.

        Raises:
            MissingDataError: the remote cannot be read.
        """
        missing = sorted(md5 for md5 in set(md5s) if not self.object_path(md5).is_file())
        if not missing:
            return
        with open_repo(self.root) as repo:
            try:
                repo.cloud.pull([HashInfo("md5", md5) for md5 in missing])
            except NoRemoteError:
                return
            except Exception as error:  # the remote's own library raises too, as botocore without credentials
                message = " ".join(str(error).split())
                raise MissingDataError(
                    "DVC remote", f"the answer is an error ({message}), expected data", _ignored_hint(self.root)
                ) from error


@contextmanager
def open_repo(root: Path) -> Iterator[Repo]:
    """Open DVC's repository; settings of remotes that can run programs count only where the campaign is trusted."""
    with Repo(str(root)) as repo, _kept_environment(_AWS_CONFIG_ENV):
        if not is_trusted(root):
            remotes = repo.config.get("remote", {})
            for name, key in harmful_settings(remotes):
                del remotes[name][key]
        yield repo


@contextmanager
def _kept_environment(name: str) -> Iterator[None]:
    """Undo changes of a variable: DVC sets one for a remote, and other clients would take it for theirs."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def ignored_remote_settings(root: Path) -> list[str]:
    """Return the settings of remotes that ``open_repo`` leaves out, as ``store.configpath``."""
    if is_trusted(root):
        return []
    with Repo(str(root)) as repo:
        return [f"{name}.{key}" for name, key in harmful_settings(repo.config.get("remote", {}))]


def _ignored_hint(root: Path) -> str:
    ignored = ignored_remote_settings(root)
    return f"Not used, since they can run programs: {', '.join(ignored)}. {TRUST_HINT}" if ignored else ""


def open_dvc_cache(root: Path) -> DvcCache:
    """Return the DVC cache that the workspace ``root`` uses."""
    with open_repo(root) as repo:
        return DvcCache(root, Path(repo.cache.local.path))


def is_folder_md5(md5: str) -> bool:
    """Return whether a recorded MD5 is that of a folder."""
    return md5.endswith(_FOLDER_SUFFIX)


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, as DVC computes it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_md5(members: Mapping[str, str]) -> str:
    """Return the MD5 that DVC gives a folder.

    Args:
        members: MD5 of each of its files, by relative path.
    """
    entries = [{"md5": members[name], "relpath": name} for name in sorted(members)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + _FOLDER_SUFFIX


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
        UserError: the cache is shared with other campaigns, whose objects seem unused from here; or
            ``remote`` without a remote.
    """
    cache = open_dvc_cache(workspace.root)
    _require_own_cache(workspace, cache)
    referenced = _referenced_md5s(workspace, cache)
    paths = _historical_paths(workspace, cache)
    found = _group_by_path("cache", _unreferenced(_cached_sizes(cache), referenced), paths)
    if remote:
        found += _group_by_path("remote", _unreferenced(_remote_sizes(workspace), referenced), paths)
    return sorted(found, key=lambda group: (group.location, -group.size_bytes, group.path))


def remove_garbage(workspace: Workspace, garbage: Iterable[Garbage]) -> None:
    """Delete what ``find_garbage`` listed. After an interruption it can be called again."""
    cache = open_dvc_cache(workspace.root)
    groups = list(garbage)
    for group in groups:
        for md5 in group.md5s if group.location == "cache" else ():
            path = cache.object_path(md5)
            path.unlink(missing_ok=True)
    remote_md5s = [md5 for group in groups if group.location == "remote" for md5 in group.md5s]
    if remote_md5s:
        with open_repo(workspace.root) as repo:
            odb = repo.cloud.get_remote_odb(None, "gc")
            odb.fs.remove([odb.oid_to_path(md5) for md5 in remote_md5s])
            get_index(odb).clear()  # else DVC would believe they are still there, and never send them again


def _require_own_cache(workspace: Workspace, cache: DvcCache) -> None:
    if not cache.directory.resolve().is_relative_to(workspace.root.resolve()):  # the folder may be a link
        fix = "Run in each campaign's place: dvc gc --all-tags --projects FOLDER ..., naming all that share it."
        problem = "the DVC cache is outside the campaign, expected one that no other campaign shares"
        raise UserError(cache.directory, problem, fix)


def _referenced_md5s(workspace: Workspace, cache: DvcCache) -> set[str]:
    """MD5 of all that tags, branches and the workspace refer to, members of folders too."""
    refs = git.run_git(workspace.root, "for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags", "refs/remotes")
    md5s: set[str] = set()
    for revision in (_WORKTREE, "HEAD", *refs.split()):
        md5s |= set(_pointer_md5s(workspace, revision).values())
    for md5 in list(md5s):
        if is_folder_md5(md5) and cache.object_path(md5).is_file():
            md5s |= set(cache.read_folder(md5, "a folder").values())
        elif is_folder_md5(md5):
            cache.fetch({md5})  # its members may be here though its list is not
            md5s |= set(cache.read_folder(md5, "a folder").values()) if cache.object_path(md5).is_file() else set()
    return md5s


def _pointer_md5s(workspace: Workspace, revision: str) -> dict[str, str]:
    """MD5 by path in dvc.lock and the .dvc files of a revision; dependencies too, which may be another's outputs."""
    root = workspace.root
    if revision == _WORKTREE:
        pointers = sorted((root / "data").glob("*.dvc"))
        texts = [(path.parent.relative_to(root), path.read_bytes()) for path in pointers]
        lock = (root / "dvc.lock").read_bytes() if (root / "dvc.lock").is_file() else b""
    else:
        names = [path for path in list_paths(root, revision, "data") if path.endswith(".dvc")]
        texts = [(Path(name).parent, read_blob(root, revision, name) or b"") for name in names]
        lock = read_blob(root, revision, "dvc.lock") or b""
    found: dict[str, str] = {}
    for parent, text in texts:
        for out in (files.parse_yaml(text) or {}).get("outs", ()):
            found[(parent / out["path"]).as_posix()] = out["md5"]
    stages: Mapping[str, Any] = (files.parse_yaml(lock) or {}).get("stages", {})
    for entry in stages.values():
        for item in (*entry.get("deps", ()), *entry.get("outs", ())):
            found[item["path"]] = item["md5"]
    return found


def _historical_paths(workspace: Workspace, cache: DvcCache) -> dict[str, str]:
    """Path by MD5 from every commit git still knows, those no branch leads to among them."""
    paths: dict[str, str] = {}
    revisions = git.run_git(workspace.root, "rev-list", "--all", "--reflog").split()
    for revision in revisions:
        for path, md5 in _pointer_md5s(workspace, revision).items():
            paths.setdefault(md5, path)
            if is_folder_md5(md5) and cache.object_path(md5).is_file():
                for member in cache.read_folder(md5, path).values():
                    paths.setdefault(member, path)
    return paths


def _cached_sizes(cache: DvcCache) -> dict[str, int]:
    """Size in bytes by MD5."""
    files = (path for folder in cache.directory.glob("??") for path in folder.iterdir() if path.is_file())
    return {f"{path.parent.name}{path.name}": path.stat().st_size for path in files if _is_object_name(path.name)}


def _is_object_name(name: str) -> bool:
    """Not a temporary file of a DVC at work."""
    return all(letter in "0123456789abcdef" for letter in name.removesuffix(".dir"))


def _remote_sizes(workspace: Workspace) -> dict[str, int]:
    if not has_default_remote(workspace.root):
        raise UserError(workspace.root / ".dvc/config", "a default remote is not set, expected one for --remote")
    with open_repo(workspace.root) as repo:
        odb = repo.cloud.get_remote_odb(None, "gc")
        return {md5: int(odb.fs.size(odb.oid_to_path(md5)) or 0) for md5 in odb.all()}


def _unreferenced(stored: Mapping[str, int], referenced: set[str]) -> dict[str, int]:
    return {md5: size for md5, size in stored.items() if md5 not in referenced}


def _group_by_path(location: str, sizes: Mapping[str, int], paths: Mapping[str, str]) -> list[Garbage]:
    groups: dict[str, list[str]] = {}
    for md5 in sorted(sizes):
        groups.setdefault(paths.get(md5, "unknown"), []).append(md5)
    return [Garbage(location, what, tuple(md5s), sum(sizes[md5] for md5 in md5s)) for what, md5s in groups.items()]


def to_json(garbage: Iterable[Garbage]) -> str:
    """Return the JSON text of ``gleaner gc --json``."""
    rows = [
        {"location": one.location, "path": one.path, "objects": len(one.md5s), "bytes": one.size_bytes}
        for one in garbage
    ]
    return json.dumps(rows, indent=2)
