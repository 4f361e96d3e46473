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

from tasks.errors import UserError

_FOLDER = ".dir"
_CHUNK_BYTES = 1 << 20


class MissingBytesError(UserError):
    """Bytes that a round was made of are neither in the cache nor in the remote."""

    exit_code = 1


@dataclass(frozen=True)
class DvcObjects:
    """The cache of one workspace."""

    root: Path
    cache: Path
    """Absolute; several workspaces may share it."""

    def path(self, md5: str) -> Path:
        """Where the cache keeps an object, whether or not it is there."""
        return self.cache / md5[:2] / md5[2:]

    def require(self, md5: str, what: str) -> Path:
        """An object's file in the cache, fetched from the remote where need be.

        Raises:
            MissingBytesError: it is in neither.
        """
        self.fetch({md5})
        path = self.path(md5)
        if not path.is_file():
            problem = f"its bytes (MD5 {md5}) are neither in the DVC cache nor in a remote, expected them in one"
            raise MissingBytesError(what, problem, "Run: dvc pull --all-tags")
        return path

    def folder(self, md5: str, what: str) -> dict[str, str]:
        """MD5 by relative path of the files in a stored folder.

        Raises:
            MissingBytesError: the folder's list is nowhere, or is no list.
        """
        path = self.require(md5, what)
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except (ValueError, KeyError, TypeError):
            raise MissingBytesError(what, f"{path} is damaged, expected the list of a folder") from None

    def fetch(self, md5s: Collection[str]) -> None:
        """Bring what the cache lacks from the default remote; what is nowhere stays missing."""
        lacking = sorted(md5 for md5 in set(md5s) if not self.path(md5).is_file())
        if not lacking:
            return
        with Repo(str(self.root)) as repo:
            try:
                repo.cloud.pull([HashInfo("md5", md5) for md5 in lacking])
            except NoRemoteError:
                return
            except (DvcException, OSError) as error:
                said = " ".join(str(error).split())
                raise MissingBytesError("DVC remote", f"the answer is an error ({said}), expected data") from error


def objects_of(root: Path) -> DvcObjects:
    """The DVC cache that the workspace ``root`` uses."""
    with Repo(str(root)) as repo:
        return DvcObjects(root, Path(repo.cache.local.path))


def is_folder(md5: str) -> bool:
    """Whether a recorded MD5 is that of a folder's list."""
    return md5.endswith(_FOLDER)


def md5_of(path: Path) -> str:
    """MD5 of a file's bytes, as DVC names them."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_md5(members: Mapping[str, str]) -> str:
    """The MD5 that DVC gives a folder of these files (relative path to MD5)."""
    entries = [{"md5": members[name], "relpath": name} for name in sorted(members)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + _FOLDER
