"""Read stored files by their MD5: from DVC's cache, and from its remote where the cache lacks them.

DVC stores a file as ``files/md5/ab/cdef...`` and a folder as ``files/md5/ab/cdef....dir``, a JSON list of names and
MD5s. DVC has no public command or function that takes an MD5 in place of a path, so this module and
``flows.workspace.gc`` use its Python classes; everything else runs the command line (``flows.workspace.dvc``).
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo

from tasks.runtime.errors import UserError

_FOLDER_SUFFIX = ".dir"


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
        with Repo(str(self.root)) as repo:
            try:
                repo.cloud.pull([HashInfo("md5", md5) for md5 in missing])
            except NoRemoteError:
                return
            except (DvcException, OSError) as error:
                message = " ".join(str(error).split())
                raise MissingDataError("DVC remote", f"the answer is an error ({message}), expected data") from error


def open_dvc_cache(root: Path) -> DvcCache:
    """Return the DVC cache that the workspace ``root`` uses."""
    with Repo(str(root)) as repo:
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
