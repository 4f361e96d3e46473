"""``python -m infra.services`` as people call it: up, again, after a crash, down, and what it refuses."""

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

from infra.services.object_store import NUM_PORTS, S3Key, s3_client
from infra.services.ports import free_ports
from infra.services.postgres import find_bin_dir
from infra.services.private import write_private
from infra.services.processes import running_pid, write_pid_file
from infra.services.service import LocalServiceError
from infra.services.settings import SERVICES, Settings, load, load_or_create
from tests.services import require_postgres, traversable_folder

REPOSITORY = Path(__file__).parents[2]


def run_stack_cli(verb: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.services", verb, "--dir", str(folder), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def parse_states(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    words = [line.split() for line in result.stdout.splitlines()]
    return {line[0]: line[1] for line in words if line and line[0] in SERVICES}


def require_pid(folder: Path, service: str) -> int:
    pid = running_pid(folder / "run" / service)
    assert pid is not None, f"{service} does not run"
    return pid


@pytest.fixture(scope="module")
def running_stack() -> Iterator[Settings]:
    """A whole stack, once for this file."""
    require_postgres()
    with traversable_folder() as parent:
        folder = parent / "stack"
        ports = {name: free_ports(NUM_PORTS if name == "s3" else 1) for name in SERVICES}
        chosen = [part for name, port in ports.items() for part in ("--port", f"{name}={port}")]
        try:
            result = run_stack_cli("up", folder, *chosen)
            assert result.returncode == 0, result.stderr
            assert parse_states(result) == dict.fromkeys(SERVICES, "running")
            settings = load(folder)
            assert settings is not None
            assert dict(settings.ports) == ports
            yield settings
        finally:
            _kill_all(folder)


def _kill_all(folder: Path) -> None:
    """Fast, unlike a goodbye; what is left by a failed test must not stay."""
    for service in SERVICES:
        pid = running_pid(folder / "run" / service)
        for process in [process for process in psutil.process_iter() if pid and _session(process.pid) == pid]:
            process.kill()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.integration
@pytest.mark.services
class TestRunning:
    def test_what_is_sourced_leads_to_every_service(self, running_stack: Settings) -> None:
        script = """
        import boto3, mlflow, urllib.request, os
        print([bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]])
        print([found.name for found in mlflow.search_experiments()])
        print(urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health").read())
        """
        lines = "\n".join(line.strip() for line in script.splitlines())
        completed = subprocess.run(
            ["bash", "-euc", '. "$1"; exec "$2" -c "$3"', "bash", str(running_stack.env_file), sys.executable, lines],
            capture_output=True,
            text=True,
            check=True,
        )
        assert completed.stdout.splitlines() == ["['gleaner', 'mlflow']", "['Default']", "b'true'"]

    def test_mlflow_and_prefect_keep_their_records_in_postgres(self, running_stack: Settings) -> None:
        for database, table in (("mlflow", "experiments"), ("prefect", "deployment_schedule")):
            connection = psycopg2.connect(running_stack.database.url(database))
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT count(*) FROM pg_tables WHERE tablename = %s", (table,))
                assert cursor.fetchone() == (1,)
            finally:
                connection.close()

    def test_mlflow_keeps_its_artifacts_in_the_object_store(self, running_stack: Settings, tmp_path: Path) -> None:
        report = tmp_path / "report.html"
        report.write_text("<p>round 0</p>")
        script = (
            "import mlflow, sys\n"
            f"mlflow.set_tracking_uri({running_stack.environment()['MLFLOW_TRACKING_URI']!r})\n"
            "with mlflow.start_run(): mlflow.log_artifact(sys.argv[1])"
        )
        without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        subprocess.run([sys.executable, "-c", script, report], env=without, capture_output=True, check=True)
        client = s3_client(running_stack.s3_url, running_stack.s3_key)
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert [key for key in keys if key.endswith("/artifacts/report.html")]

    def test_everything_listens_on_loopback_only(self, running_stack: Settings) -> None:
        own = {require_pid(running_stack.folder, service) for service in SERVICES}
        found = [link for link in psutil.net_connections("tcp") if link.status == psutil.CONN_LISTEN and link.pid]
        ours = [link for link in found if _session(link.pid) in own]
        assert {link.laddr.ip for link in ours} == {"127.0.0.1"}
        assert set(running_stack.ports.values()) <= {link.laddr.port for link in ours}

    def test_secrets_are_for_their_owner_and_in_no_command_and_no_log(self, running_stack: Settings) -> None:
        for name in ("env", "stack.json"):
            assert (running_stack.folder / name).stat().st_mode & 0o077 == 0
        secret = [running_stack.s3_key.secret, running_stack.postgres_password]
        own = {require_pid(running_stack.folder, service) for service in SERVICES}
        commands = [" ".join(p.cmdline()) for p in psutil.process_iter() if _session(p.pid) in own]
        logs = [path.read_text() for path in (running_stack.folder / "logs").iterdir()]
        assert len(logs) == len(SERVICES)
        assert not [text for text in commands + logs if any(word in text for word in secret)]

    @pytest.mark.parametrize("name", ["s3", "mlflow", "prefect"])
    def test_the_health_checks_of_compose_tell_right_from_wrong(self, running_stack: Settings, name: str) -> None:
        service = yaml.safe_load((REPOSITORY / "infra" / "compose.yaml").read_text())["services"][name]
        _, _, *check = service["healthcheck"]["test"]
        inside = service["ports"][0].rpartition(":")[2]
        for port, code in ((running_stack.ports[name], 0), (free_ports(), 1)):
            command = [part.replace(f":{inside}", f":{port}") for part in check]
            environment = {**os.environ, **running_stack.environment()}
            done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True)
            assert done.returncode == code, done.stderr

    def test_a_second_up_leaves_alone_what_runs(self, running_stack: Settings) -> None:
        before = [require_pid(running_stack.folder, service) for service in SERVICES]
        result = run_stack_cli("up", running_stack.folder)
        assert result.returncode == 0
        assert [require_pid(running_stack.folder, service) for service in SERVICES] == before

    def test_a_killed_service_is_seen_and_started_afresh_with_its_data(self, running_stack: Settings) -> None:
        """MLflow's workers outlive their parent and hold its port: they are cleared away."""
        os.kill(require_pid(running_stack.folder, "mlflow"), signal.SIGKILL)
        result = run_stack_cli("status", running_stack.folder)
        assert (result.returncode, parse_states(result)["mlflow"]) == (1, "stopped")
        result = run_stack_cli("up", running_stack.folder)
        assert result.returncode == 0, result.stderr
        assert parse_states(run_stack_cli("status", running_stack.folder)) == dict.fromkeys(SERVICES, "running")

    def test_a_frozen_service_is_ill(self, running_stack: Settings) -> None:
        process = psutil.Process(require_pid(running_stack.folder, "prefect"))
        everyone = [process, *process.children(recursive=True)]
        for one in everyone:
            one.suspend()
        try:
            result = run_stack_cli("status", running_stack.folder)
            assert (result.returncode, parse_states(result)["prefect"]) == (1, "unhealthy")
        finally:
            for one in everyone:
                one.resume()

    def test_down_stops_all_and_keeps_the_data(self, running_stack: Settings) -> None:
        s3_client(running_stack.s3_url, running_stack.s3_key).put_object(Bucket="gleaner", Key="kept", Body=b"kept")
        pids = [require_pid(running_stack.folder, service) for service in SERVICES]
        result = run_stack_cli("down", running_stack.folder)
        assert result.returncode == 0, result.stderr
        assert parse_states(result) == dict.fromkeys(SERVICES, "stopped")
        assert not [process for process in psutil.process_iter() if _session(process.pid) in pids and _alive(process)]
        assert parse_states(run_stack_cli("status", running_stack.folder)) == dict.fromkeys(SERVICES, "stopped")
        assert (running_stack.folder / "postgres" / "cluster" / "PG_VERSION").is_file()
        assert run_stack_cli("down", running_stack.folder).returncode == 0


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def test_credentials_are_made_once(tmp_path: Path) -> None:
    first = load_or_create(tmp_path, {})
    again = load_or_create(tmp_path, {"prefect": 4300})
    assert again.s3_key == first.s3_key
    assert again.environment()["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert load(tmp_path) == again
    assert load_or_create(tmp_path / "other", {}).s3_key != first.s3_key


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
    result = run_stack_cli("up", tmp_path / "stack", "--port", port)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "stack").exists()


@pytest.mark.services
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    require_postgres()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        result = run_stack_cli("up", tmp_path / "stack", "--port", f"postgres={port}")
    assert result.returncode == 1
    assert f"port {port} is taken by python" in result.stderr
    assert "make services-up PORTS=" in result.stderr


def test_a_stack_that_never_was_cannot_be_asked(tmp_path: Path) -> None:
    result = run_stack_cli("status", tmp_path)
    assert result.returncode == 1
    assert "no stack was ever started here" in result.stderr


def test_a_missing_postgres_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.services.postgres._DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalServiceError, match="apt-get install postgresql"):
        find_bin_dir()


def test_a_stranger_with_the_same_process_id_is_not_ours(tmp_path: Path) -> None:
    record = tmp_path / "prefect"
    write_pid_file(record, os.getpid())
    assert running_pid(record) == os.getpid()
    host, boot, pid, ticks = record.read_text().split("|")
    record.write_text("|".join([host, boot, pid, str(int(ticks) - 1)]))
    assert running_pid(record) is None
    record.write_text("half of a rec")
    assert running_pid(record) is None


def test_a_private_file_is_nobody_elses_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_secrets_are_not_in_what_is_printed(tmp_path: Path) -> None:
    settings = load_or_create(tmp_path, {})
    assert settings.s3_key.secret not in repr(settings)
    assert settings.postgres_password not in repr(settings)
    assert repr(S3Key("a", "b")) == "S3Key(access='a')"
