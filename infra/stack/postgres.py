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

from infra.stack.ports import LOOPBACK
from infra.stack.private import write_private
from infra.stack.service import NotReady, Service, StackError

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


def postgres(folder: Path, database: Database, names: Collection[str]) -> Service:
    """A PostgreSQL server with its data in ``folder`` that holds the databases ``names`` as soon as it is ready.

    Raises:
        StackError: PostgreSQL is not installed.
    """
    programs = find_programs()
    user = _SYSTEM_USER if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    cluster = folder / "cluster"
    options = {"listen_addresses": LOOPBACK, "port": database.port, "unix_socket_directories": ""}
    return Service(
        name="postgres",
        folder=folder,
        ports=(database.port,),
        url=f"postgresql://{LOOPBACK}:{database.port}",
        command=(
            *(str(programs / "postgres"), "-D", str(cluster)),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ),
        ready=partial(create_databases, database, tuple(names)),
        prepare=partial(_prepare, programs, folder, cluster, database, user),
        user=user,
        stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave
        stop_patience_s=60,  # it writes its last checkpoint
    )


def find_programs() -> Path:
    """Folder with PostgreSQL's newest programs; Debian keeps the server's off the PATH.

    Raises:
        StackError: there are none.
    """
    versions = sorted((path for path in _DEBIAN.glob("*/bin/initdb")), key=lambda path: float(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    fix = "Install it: apt-get install postgresql (its own service need not run)."
    raise StackError("postgres", f"programs below {_DEBIAN} are none, expected PostgreSQL", fix)


def _prepare(programs: Path, folder: Path, cluster: Path, database: Database, user: str | None) -> None:
    if (cluster / "PG_VERSION").is_file():
        return
    if user:
        _hand_over(folder, user)
    unfinished = folder / "cluster.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    password = folder / "password"
    write_private(password, database.password)
    if user:
        shutil.chown(password, user)
    command = [str(programs / "initdb"), "--pgdata", str(unfinished), "--username", ROLE, "--pwfile", str(password)]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums"]
    try:
        made = subprocess.run(command, cwd=folder, user=user, capture_output=True, text=True, check=False)
    finally:
        password.unlink()
    if made.returncode:
        raise StackError("postgres", f"initdb ended with code {made.returncode}, expected 0", made.stderr.strip())
    unfinished.rename(cluster)


def _hand_over(folder: Path, user: str) -> None:
    """Give the folder to the user the server runs as.

    Raises:
        StackError: that user does not exist, or can not reach the folder.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise StackError("postgres", f"the user {user} is missing, expected Debian's package to have made it") from None
    os.chown(folder, account.pw_uid, account.pw_gid)
    folder.chmod(0o700)
    reached = subprocess.run(["test", "-w", str(folder)], cwd="/", user=user, check=False)
    if reached.returncode:
        fix = "Run as an ordinary user, or name a folder everybody may enter: make stack STACK=/var/lib/gleaner-stack."
        raise StackError(folder, f"the folder can not be entered by {user}, expected it to (root can not serve)", fix)


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
            there = {row[0] for row in cursor.fetchall()}
            for name in names:
                if name not in there:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    except psycopg2.Error as error:
        raise NotReady(str(error).strip()) from None
