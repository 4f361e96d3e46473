"""``python -m flows.preflight.probe_remote``: write, read and delete a small object in DVC's default remote.

Through DVC's own configuration and drivers, so that whatever kind of remote it is, what is tried is what a push
does. Prints one JSON object; ends with code 1 and one line where it cannot.
"""

import json
import sys
import time
import uuid
from typing import Any

from dvc.repo import Repo

_CONTENT = b"gleaner doctor was here\n"


def main() -> None:
    """Probe the remote of the repository in the current folder."""
    started_s = time.monotonic()
    try:
        remote = Repo(".").cloud.get_remote()
        _write_read_delete(remote.fs, remote.path)
    except Exception as error:  # of any driver: it becomes one line
        message = next((line for line in str(error).splitlines() if line.strip()), "")
        sys.stderr.write(f"{type(error).__name__}: {message}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps({"remote": remote.name, "seconds": round(time.monotonic() - started_s, 2)}) + "\n")


def _write_read_delete(remote: Any, folder: str) -> None:
    path = remote.join(folder, "gleaner-doctor", uuid.uuid4().hex)
    remote.makedirs(remote.parent(path), exist_ok=True)
    remote.pipe_file(path, _CONTENT)
    try:
        if remote.cat_file(path) != _CONTENT:
            raise OSError(f"{path} holds something else than was written")
    finally:
        remote.rm_file(path)


if __name__ == "__main__":
    main()
