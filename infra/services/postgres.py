"""PostgreSQL from Debian's package: a cluster of our own, apart from the system's, with password logins only."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from infra.services.ports import LOOPBACK
from infra.services.private import write_private
from infra.services.service import LocalServiceError, NotReady, Service

_DEBIAN = Path("/usr/lib/postgresql")
_SYSTEM_USER = "postgres"
ROLE = "gleaner"


@dataclass(frozen=True)
class Database:
    """Where a cluster answers, and the password of its one role."""

    port: int
    password: str = field(repr=False)

    def url(self, name: str, driver: str = "") -> str:
        """URL of one database; ``driver`` as SQLAlchemy spells it, such as ``asyncpg``."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{ROLE}:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{name}"


def postgres(folder: Path, database: Database, database_names: Collection[str]) -> Service:
    """Return a PostgreSQL server with its data in ``folder``; once it is ready, it has all ``database_names``.

    Raises:
        LocalServiceError: PostgreSQL is not installed.
    """
    bin_dir = find_bin_dir()
    user = _SYSTEM_USER if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    cluster = folder / "cluster"
    options = {"listen_addresses": LOOPBACK, "port": database.port, "unix_socket_directories": ""}
    return Service(
        name="postgres",
        folder=folder,
        ports=(database.port,),
        url=f"postgresql://{LOOPBACK}:{database.port}",
        command=(
            *(str(bin_dir / "postgres"), "-D", str(cluster)),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ),
        check_ready=partial(create_databases, database, tuple(database_names)),
        prepare=partial(_prepare, bin_dir, folder, cluster, database, user),
        user=user,
        stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave
        stop_timeout_s=60,  # it writes its last checkpoint
    )


def find_bin_dir() -> Path:
    """Folder with PostgreSQL's newest programs; Debian keeps the server's off the PATH.

    Raises:
        LocalServiceError: there are none.
    """
    versions = sorted((path for path in _DEBIAN.glob("*/bin/initdb")), key=lambda path: float(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    fix = "Install it: apt-get install postgresql (its own service need not run)."
    raise LocalServiceError("postgres", f"programs below {_DEBIAN} are none, expected PostgreSQL", fix)


def _prepare(bin_dir: Path, folder: Path, cluster: Path, database: Database, user: str | None) -> None:
    if (cluster / "PG_VERSION").is_file():
        return
    if user:
        _chown(folder, user)
    new_cluster = folder / "cluster.new"
    shutil.rmtree(new_cluster, ignore_errors=True)
    password_file = folder / "password"
    write_private(password_file, database.password)
    if user:
        shutil.chown(password_file, user)
    command = [
        str(bin_dir / "initdb"),
        "--pgdata",
        str(new_cluster),
        "--username",
        ROLE,
        "--pwfile",
        str(password_file),
    ]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums"]
    try:
        completed = subprocess.run(command, cwd=folder, user=user, capture_output=True, text=True, check=False)
    finally:
        password_file.unlink()
    if completed.returncode:
        raise LocalServiceError(
            "postgres", f"initdb ended with code {completed.returncode}, expected 0", completed.stderr.strip()
        )
    new_cluster.rename(cluster)


def _chown(folder: Path, user: str) -> None:
    """Give the folder to the user the server runs as.

    Raises:
        LocalServiceError: that user does not exist, or can not reach the folder.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise LocalServiceError(
            "postgres", f"the user {user} is missing, expected Debian's package to have made it"
        ) from None
    os.chown(folder, account.pw_uid, account.pw_gid)
    folder.chmod(0o700)
    completed = subprocess.run(["test", "-w", str(folder)], cwd="/", user=user, check=False)
    if completed.returncode:
        fix = "Run as an ordinary user, or choose a folder that everyone may enter: make services-up STACK=/var/lib/x."
        raise LocalServiceError(
            folder, f"the user {user} cannot enter the folder, expected access (PostgreSQL refuses to run as root)", fix
        )


def create_databases(database: Database, names: Collection[str]) -> None:
    """Create the databases that are not there yet.

    Raises:
        NotReady: the server does not answer, or refuses.
    """
    try:
        with closing(psycopg2.connect(database.url("postgres"), connect_timeout=2)) as connection:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)  # CREATE DATABASE takes no transaction
            cursor = connection.cursor()
            cursor.execute("SELECT datname FROM pg_database")
            existing = {row[0] for row in cursor.fetchall()}
            for name in names:
                if name not in existing:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    except psycopg2.Error as error:
        raise NotReady(str(error).strip()) from None
