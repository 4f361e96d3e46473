"""Sets up Label Studio in an environment of its own, from its hashed lock.

Reads  infra/label_studio/requirements.lock
Writes .venv-label-studio in the checkout (1 GB), or the folder named by GLEANER_LABEL_STUDIO_VENV

Run it from the root of the repository: ``python -m infra.label_studio.install``. A second call takes no time; a call
that was cut off starts afresh. Standard library only.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS_LOCK = Path(__file__).with_name("requirements.lock")
REPOSITORY_ROOT = Path(__file__).parents[2]


class InstallError(RuntimeError):
    """Label Studio cannot be set up, and why."""


def venv_dir() -> Path:
    """Return the environment's folder, whether it is there or not."""
    return Path(os.environ.get("GLEANER_LABEL_STUDIO_VENV") or REPOSITORY_ROOT / ".venv-label-studio").absolute()


def installed_program() -> Path | None:
    """Return the ``label-studio`` program, or None where the lock is not installed as it stands now."""
    stamp = venv_dir() / ".complete"
    return venv_dir() / "bin" / "label-studio" if stamp.is_file() and stamp.read_text() == _fingerprint() else None


def install() -> Path:
    """Install what the lock says and return the ``label-studio`` program."""
    if sys.version_info[:2] != (3, 11):
        raise InstallError(f"this Python is {sys.version.split()[0]}, expected 3.11: the lock is resolved for it")
    with _install_lock():
        if program := installed_program():
            return program
        shutil.rmtree(venv_dir(), ignore_errors=True)
        venv.create(venv_dir(), with_pip=True)
        pip = [str(venv_dir() / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS_LOCK)], check=True)
        (venv_dir() / ".complete").write_text(_fingerprint())
        return venv_dir() / "bin" / "label-studio"


def _fingerprint() -> str:
    """Changes with the lock, and with the folder: an environment that was moved does not run."""
    return hashlib.sha256(REQUIREMENTS_LOCK.read_bytes() + str(venv_dir()).encode()).hexdigest()


@contextmanager
def _install_lock() -> Iterator[None]:
    venv_dir().parent.mkdir(parents=True, exist_ok=True)
    with venv_dir().with_name(venv_dir().name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(f"Label Studio is installed: {install()}")
    except InstallError as error:
        sys.exit(f"infra/label_studio: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"infra/label_studio: pip ended with {error.returncode}; its own words are above.")
