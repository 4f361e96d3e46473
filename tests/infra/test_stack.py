"""``python -m infra.stack`` as people call it: up, again, after a crash, down, and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import yaml

from infra.stack.object_store import PORTS, S3Key, s3_client
from infra.stack.ports import free_ports
from infra.stack.postgres import find_programs
from infra.stack.private import write_private
from infra.stack.processes import remember, running
from infra.stack.service import StackError
from infra.stack.settings import SERVICES, Settings, load, load_or_make
from tests.services import require_postgres, server_folder

REPOSITORY = Path(__file__).parents[2]


def stack(verb: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.stack", verb, "--dir", str(folder), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def states(answer: subprocess.CompletedProcess[str]) -> dict[str, str]:
    words = [line.split() for line in answer.stdout.splitlines()]
    return {line[0]: line[1] for line in words if line and line[0] in SERVICES}


def noted(folder: Path, service: str) -> int:
    pid = running(folder / "run" / service)
    assert pid is not None, f"{service} does not run"
    return pid


@pytest.fixture(scope="module")
def started() -> Iterator[Settings]:
    """A whole stack, once for this file."""
    require_postgres()
    with server_folder() as parent:
        folder = parent / "stack"
        ports = {name: free_ports(PORTS if name == "s3" else 1) for name in SERVICES}
        chosen = [part for name, port in ports.items() for part in ("--port", f"{name}={port}")]
        try:
            answer = stack("up", folder, *chosen)
            assert answer.returncode == 0, answer.stderr
            assert states(answer) == dict.fromkeys(SERVICES, "running")
            settings = load(folder)
            assert settings is not None
            assert dict(settings.ports) == ports
            yield settings
        finally:
            _kill_all(folder)


def _kill_all(folder: Path) -> None:
    """Fast, unlike a goodbye; what is left by a failed test must not stay."""
    for service in SERVICES:
        pid = running(folder / "run" / service)
        for process in [process for process in psutil.process_iter() if pid and _session(process.pid) == pid]:
            process.kill()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
@pytest.mark.service
class TestRunning:
    def test_what_is_sourced_leads_to_every_service(self, started: Settings) -> None:
        script = """
        import boto3, mlflow, urllib.request, os
        print([bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]])
        print([found.name for found in mlflow.search_experiments()])
        print(urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health").read())
        """
        lines = "\n".join(line.strip() for line in script.splitlines())
        told = subprocess.run(
            ["bash", "-euc", '. "$1"; exec "$2" -c "$3"', "bash", str(started.env_file), sys.executable, lines],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.splitlines() == ["['gleaner', 'mlflow']", "['Default']", "b'true'"]

    def test_mlflow_and_prefect_keep_their_records_in_postgres(self, started: Settings) -> None:
        for database, table in (("mlflow", "experiments"), ("prefect", "deployment_schedule")):
            connection = psycopg2.connect(started.database.url(database))
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT count(*) FROM pg_tables WHERE tablename = %s", (table,))
                assert cursor.fetchone() == (1,)
            finally:
                connection.close()

    def test_mlflow_keeps_its_artifacts_in_the_object_store(self, started: Settings, tmp_path: Path) -> None:
        report = tmp_path / "report.html"
        report.write_text("<p>round 0</p>")
        script = (
            "import mlflow, sys\n"
            f"mlflow.set_tracking_uri({started.environment()['MLFLOW_TRACKING_URI']!r})\n"
            "with mlflow.start_run(): mlflow.log_artifact(sys.argv[1])"
        )
        without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        subprocess.run([sys.executable, "-c", script, report], env=without, capture_output=True, check=True)
        client = s3_client(started.s3_url, started.s3_key)
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert [key for key in keys if key.endswith("/artifacts/report.html")]

    def test_everything_listens_on_loopback_only(self, started: Settings) -> None:
        own = {noted(started.folder, service) for service in SERVICES}
        found = [link for link in psutil.net_connections("tcp") if link.status == psutil.CONN_LISTEN and link.pid]
        ours = [link for link in found if _session(link.pid) in own]
        assert {link.laddr.ip for link in ours} == {"127.0.0.1"}
        assert set(started.ports.values()) <= {link.laddr.port for link in ours}

    def test_secrets_are_for_their_owner_and_in_no_command_and_no_log(self, started: Settings) -> None:
        for name in ("env", "stack.json"):
            assert (started.folder / name).stat().st_mode & 0o077 == 0
        secret = [started.s3_key.secret, started.postgres_password]
        own = {noted(started.folder, service) for service in SERVICES}
        commands = [" ".join(p.cmdline()) for p in psutil.process_iter() if _session(p.pid) in own]
        logs = [path.read_text() for path in (started.folder / "logs").iterdir()]
        assert len(logs) == len(SERVICES)
        assert not [text for text in commands + logs if any(word in text for word in secret)]

    @pytest.mark.parametrize("name", ["s3", "mlflow", "prefect"])
    def test_the_health_checks_of_compose_tell_right_from_wrong(self, started: Settings, name: str) -> None:
        service = yaml.safe_load((REPOSITORY / "infra" / "compose.yaml").read_text())["services"][name]
        _, _, *check = service["healthcheck"]["test"]
        inside = service["ports"][0].rpartition(":")[2]
        for port, code in ((started.ports[name], 0), (free_ports(), 1)):
            command = [part.replace(f":{inside}", f":{port}") for part in check]
            environment = {**os.environ, **started.environment()}
            done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True)
            assert done.returncode == code, done.stderr

    def test_a_second_up_leaves_alone_what_runs(self, started: Settings) -> None:
        before = [noted(started.folder, service) for service in SERVICES]
        answer = stack("up", started.folder)
        assert answer.returncode == 0
        assert [noted(started.folder, service) for service in SERVICES] == before

    def test_a_killed_service_is_seen_and_started_afresh_with_its_data(self, started: Settings) -> None:
        """MLflow's workers outlive their parent and hold its port: they are cleared away."""
        os.kill(noted(started.folder, "mlflow"), signal.SIGKILL)
        answer = stack("status", started.folder)
        assert (answer.returncode, states(answer)["mlflow"]) == (1, "stopped")
        answer = stack("up", started.folder)
        assert answer.returncode == 0, answer.stderr
        assert states(stack("status", started.folder)) == dict.fromkeys(SERVICES, "running")

    def test_a_frozen_service_is_ill(self, started: Settings) -> None:
        process = psutil.Process(noted(started.folder, "prefect"))
        everyone = [process, *process.children(recursive=True)]
        for one in everyone:
            one.suspend()
        try:
            answer = stack("status", started.folder)
            assert (answer.returncode, states(answer)["prefect"]) == (1, "ill")
        finally:
            for one in everyone:
                one.resume()

    def test_down_stops_all_and_keeps_the_data(self, started: Settings) -> None:
        s3_client(started.s3_url, started.s3_key).put_object(Bucket="gleaner", Key="kept", Body=b"kept")
        pids = [noted(started.folder, service) for service in SERVICES]
        answer = stack("down", started.folder)
        assert answer.returncode == 0, answer.stderr
        assert states(answer) == dict.fromkeys(SERVICES, "stopped")
        assert not [process for process in psutil.process_iter() if _session(process.pid) in pids and _alive(process)]
        assert states(stack("status", started.folder)) == dict.fromkeys(SERVICES, "stopped")
        assert (started.folder / "postgres" / "cluster" / "PG_VERSION").is_file()
        assert stack("down", started.folder).returncode == 0


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def test_credentials_are_made_once(tmp_path: Path) -> None:
    first = load_or_make(tmp_path, {})
    again = load_or_make(tmp_path, {"prefect": 4300})
    assert again.s3_key == first.s3_key
    assert again.environment()["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert load(tmp_path) == again
    assert load_or_make(tmp_path / "other", {}).s3_key != first.s3_key


@pytest.mark.parametrize(
    ("port", "words"),
    [
        ("redis=6379", "the service is 'redis'"),
        ("prefect=80", "prefect is 80"),
        ("prefect=http", "the value is 'prefect=http'"),
        ("mlflow=4200", "mlflow and prefect both want port 4200"),
        ("mlflow=9713", "mlflow and s3 both want port 9713"),
    ],
)
def test_ports_that_cannot_be_are_refused(tmp_path: Path, port: str, words: str) -> None:
    answer = stack("up", tmp_path / "stack", "--port", port)
    assert answer.returncode == 1
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "stack").exists()


@pytest.mark.service
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    require_postgres()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        answer = stack("up", tmp_path / "stack", "--port", f"postgres={port}")
    assert answer.returncode == 1
    assert f"port {port} is taken by python" in answer.stderr
    assert "make stack PORTS=" in answer.stderr


def test_a_stack_that_never_was_cannot_be_asked(tmp_path: Path) -> None:
    answer = stack("status", tmp_path)
    assert answer.returncode == 1
    assert "no stack was ever started here" in answer.stderr


def test_a_missing_postgres_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.stack.postgres._DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="apt-get install postgresql"):
        find_programs()


def test_a_stranger_with_the_same_process_id_is_not_ours(tmp_path: Path) -> None:
    record = tmp_path / "prefect"
    remember(record, os.getpid())
    assert running(record) == os.getpid()
    host, boot, pid, ticks = record.read_text().split("|")
    record.write_text("|".join([host, boot, pid, str(int(ticks) - 1)]))
    assert running(record) is None
    record.write_text("half of a rec")
    assert running(record) is None


def test_a_private_file_is_nobody_elses_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_secrets_are_not_in_what_is_printed(tmp_path: Path) -> None:
    settings = load_or_make(tmp_path, {})
    assert settings.s3_key.secret not in repr(settings)
    assert settings.postgres_password not in repr(settings)
    assert repr(S3Key("a", "b")) == "S3Key(access='a')"
