"""Stored bytes by their MD5: DVC's cache, and its remote where the cache lacks them.

DVC keeps a file as ``files/md5/ab/cdef...``, a folder as ``files/md5/ab/cdef....dir``: JSON of names and MD5s.
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
_CHUNK_BYTES = 1 << 20


class MissingDataError(UserError):
    """Bytes that a round was made of are neither in the cache nor in the remote."""

    exit_code = 1


@dataclass(frozen=True)
class DvcCache:
    """The cache of one workspace."""

    root: Path
    directory: Path
    """Absolute; several workspaces may share it."""

    def object_path(self, md5: str) -> Path:
        """Where the cache keeps an object, whether or not it is there."""
        return self.directory / md5[:2] / md5[2:]

    def require(self, md5: str, description: str) -> Path:
        """An object's file in the cache, fetched from the remote where need be.

        Raises:
            MissingDataError: it is in neither.
        """
        self.fetch({md5})
        path = self.object_path(md5)
        if not path.is_file():
            problem = f"its bytes (MD5 {md5}) are neither in the DVC cache nor in a remote, expected them in one"
            raise MissingDataError(description, problem, "Run: dvc pull --all-tags")
        return path

    def read_folder(self, md5: str, description: str) -> dict[str, str]:
        """MD5 by relative path of the files in a stored folder.

        Raises:
            MissingDataError: the folder's list is nowhere, or is no list.
        """
        path = self.require(md5, description)
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except (ValueError, KeyError, TypeError):
            raise MissingDataError(description, f"{path} is damaged, expected the list of a folder") from None

    def fetch(self, md5s: Collection[str]) -> None:
        """Bring what the cache lacks from the default remote; what is nowhere stays missing."""
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
    """The DVC cache that the workspace ``root`` uses."""
    with Repo(str(root)) as repo:
        return DvcCache(root, Path(repo.cache.local.path))


def is_folder_md5(md5: str) -> bool:
    """Whether a recorded MD5 is that of a folder's list."""
    return md5.endswith(_FOLDER_SUFFIX)


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, as DVC names them."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_md5(members: Mapping[str, str]) -> str:
    """The MD5 that DVC gives a folder of these files (relative path to MD5)."""
    entries = [{"md5": members[name], "relpath": name} for name in sorted(members)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + _FOLDER_SUFFIX
