"""The README's section "With your annotators", run in two shells, with annotators between the rounds.

The home directory and the port differ from the README, and the stages that need torch are replaced.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.workspace import git
from infra.label_studio.admin_user import load_or_create_admin
from infra.label_studio.install import installed_program
from infra.label_studio.run import DEFAULT_PORT
from infra.services.ports import free_ports
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.annotation.providers.conftest import migrated_data_folder
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES, Annotator, make_region, make_source
from tests.flows.small_campaign import REPOSITORY, fake_heavy_stages, mlflow_client, subprocess_env
from tests.services import skip_or_fail

pytestmark = [pytest.mark.e2e, pytest.mark.services, pytest.mark.timeout(1800)]
SECTION = (REPOSITORY / "README.md").read_text().split("## With your annotators\n")[1].split("\n## ")[0]
SERVER, CAMPAIGN = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
COMMANDS = CAMPAIGN.replace("\\\n", "").splitlines()
ANNOTATED, UNLABELED, SEED, BATCH = 65, 80, 50, 24
"""A fifth of the annotated pictures is for validation; the section's command takes 50 of the others as seed labels."""


class Shell:
    """An interactive bash."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start(self, command: str, ready: str) -> None:
        """Start a command that keeps running, and wait for a text in its output."""
        self._type(command)
        assert ready in "".join(self._lines_until(ready))

    def run(self, command: str) -> str:
        """Run a command and return its output; asserts exit code 0."""
        self._type(command)
        self._type('echo "ended with $?"')
        *lines, end = self._lines_until("ended with ")
        assert end == "ended with 0\n", f"{command}\n{''.join(lines)}{end}"
        return "".join(lines)

    def close(self) -> None:
        """Terminate it with its children."""
        os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.communicate(timeout=120)

    def _type(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()

    def _lines_until(self, last: str) -> list[str]:
        assert self._bash.stdout is not None
        lines = []
        for line in self._bash.stdout:
            lines.append(line)
            if last in line:
                break
        return lines


@contextmanager
def shell(cwd: Path, env: dict[str, str]) -> Iterator[Shell]:
    opened = Shell(cwd, env)
    try:
        yield opened
    finally:
        opened.close()


def label_all(annotator: Annotator) -> int:
    """Annotate every task of the label stream with the drawn boxes; return the number."""
    (project,) = annotator.sdk.projects.list()
    done = 0
    while task := annotator.next_task(project.id):
        annotator.annotate(task["id"], *[make_region(name, *box) for name, box in zip(CLASSES, BOXES, strict=True)])
        done += 1
    return done


def test_the_section_runs_as_written(tmp_path: Path, shared_prefect_server: dict[str, str]) -> None:
    program = installed_program()
    if program is None:
        skip_or_fail("Label Studio is not installed: python -m infra.label_studio.install")
        return
    home, port = tmp_path / "home", free_ports()
    shutil.copytree(
        migrated_data_folder(program), home / "label-studio"
    )  # as its first start leaves it: that takes minutes
    make_source(tmp_path / "photos", tmp_path / "labels.json", ANNOTATED + UNLABELED, ANNOTATED)
    env = {name: value for name, value in subprocess_env(HOME=str(home)).items() if not name.startswith("LABEL_STUDIO")}
    serve, rest = SERVER.rstrip().split("  #")
    account = load_or_create_admin(home / "label-studio", {})
    annotator = Annotator(account.email, account.password, account.token, f"http://127.0.0.1:{port}")
    campaign = Workspace(home / "campaigns" / "parts")
    token, init, first_night, each_further_night = COMMANDS
    with shell(REPOSITORY, env) as one, shell(tmp_path, env) as another:
        one.start(f"{serve} --port {port}  #{rest}", ready="Its password and token: ")
        another.run(token)
        assert "--oracle" not in another.run(init.replace(f"127.0.0.1:{DEFAULT_PORT}", f"127.0.0.1:{port}"))
        fake_heavy_stages(campaign)
        output = another.run(first_night)
        for name, value in shared_prefect_server.items():  # the first night has shown that it needs none
            another.run(f"export {name}={value}")
        for number in (1, 2, 3):
            assert f"Batch {number}: {BATCH} images are out for labeling (label_studio)." in output
            assert "Waiting for labels" in another.run(each_further_night)
            assert label_all(annotator) == BATCH
            output = another.run(each_further_night)
            assert f"Batch {number}: {BATCH} images labeled, 0 rejected, 0 withdrawn" in output
    require_three_batches_and_a_grown_model(campaign)


def require_three_batches_and_a_grown_model(campaign: Workspace) -> None:
    batches = [files.read_json(campaign.label_batch(number)) for number in range(4)]
    assert [len(batch["images"]) for batch in batches] == [SEED, BATCH, BATCH, BATCH]
    assert not list(campaign.quarantine.glob("*.json"))
    assert git.run_git(campaign.root, "tag").split() == [f"round-{number:04d}" for number in range(4)]
    ledgers = [files.read_json(campaign.ledger(number)) for number in range(4)]
    assert [ledger["metrics"]["labels"] for ledger in ledgers] == [50, 74, 98, 122]
    versions = mlflow_client(campaign).search_model_versions(f"name = '{ledgers[0]['mlflow']['model_name']}'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4]
