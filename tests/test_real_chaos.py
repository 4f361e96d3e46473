"""Nights with the real detector that are killed, ended, cut off from their servers, renamed and copied, at random.

After each night: every accepted label exists once, every ledger follows from the one before, no finished stage was
repeated, and the champion is the log's. At the end, undisturbed nights finish what is left, and the audit recomputes
every digest. ``GLEANER_REAL_NIGHTS`` sets the number of nights (the usual number keeps the suite short),
``GLEANER_CHAOS_SEED`` draws others, and ``GLEANER_CHAOS_LOG`` names a file that gets a line for each.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.workspace import git
from flows.workspace.lock import LockOwner, ProcessIdentity, write_owner
from flows.workspace.promotion_log import current_champion, first_corrupt_line
from flows.workspace.rounds import stage_log
from flows.workspace.scaffold import create_workspace
from tasks.data.label_store import read_batch
from tasks.data.paths import STAGES, Workspace
from tasks.storage import files
from tests.flows.cli_runner import process_commands, stage_processes, start_cli_run
from tests.flows.small_campaign import make_source, run_gleaner, workspace_config
from tests.test_real_round import SETTINGS

NIGHTS = int(os.environ.get("GLEANER_REAL_NIGHTS", "1"))
SEED = int(os.environ.get("GLEANER_CHAOS_SEED", "1"))
NIGHT_TIMEOUT_S = 900.0
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200 + NIGHTS * 400)]
NOWHERE = "http://127.0.0.1:9"


class Nights:
    """One campaign and everything that befalls it."""

    def __init__(self, folder: Path) -> None:
        source = make_source(folder / "source", num_images=16 + 3 * NIGHTS)
        create_workspace(folder / "campaign-0", workspace_config(source, *SETTINGS))
        self.folder = folder
        self.workspace = Workspace(folder / "campaign-0")
        self.draws = random.Random(SEED)
        self.duration_s = 60.0
        self.counts: Counter[str] = Counter()
        self.entries_at_round_start: dict[str, Any] = {}

    def undisturbed(self) -> str:
        started_s = time.monotonic()
        done = run_gleaner("run", cwd=self.workspace.root, timeout_s=NIGHT_TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        self.duration_s = time.monotonic() - started_s
        return "finished"

    def killed(self) -> str:
        """SIGKILL, at any moment."""
        return self._ended_by(signal.SIGKILL)

    def terminated(self) -> str:
        """SIGTERM, as a scheduler sends it."""
        return self._ended_by(signal.SIGTERM)

    def _ended_by(self, signal_number: signal.Signals) -> str:
        night = self._start()
        with suppress(subprocess.TimeoutExpired):
            night.wait(self.draws.uniform(2, self.duration_s))
        moment = " ".join(self._running_stages()) or "between stages"
        if night.poll() is None:
            night.send_signal(signal_number)
        code = night.wait(NIGHT_TIMEOUT_S)
        if signal_number == signal.SIGTERM:
            endings = (0, 1, 3, 130, 143, -signal.SIGTERM)  # the last: Prefect passes the signal on
            assert code in endings, (code, self._output())
        self._wait_for_processes()
        return f"in {moment}, exit code {code}"

    def stage_killed(self) -> str:
        """SIGKILL to one stage, as the kernel does where memory runs out; the night repeats it or names it."""
        night = self._start()
        deadline_s = time.monotonic() + self.draws.uniform(2, self.duration_s)
        killed = "nothing"
        while night.poll() is None:
            is_due = time.monotonic() > deadline_s and killed == "nothing"
            for process in stage_processes(self.workspace.root)[:1] if is_due else ():
                with suppress(psutil.NoSuchProcess):
                    killed = process.cmdline()[-1]
                    process.kill()
            time.sleep(0.02)
        assert "Traceback" not in self._output(), self._output()
        self._wait_for_processes()
        return f"{killed}, exit code {night.returncode}"

    def without_mlflow(self) -> str:
        return self._without("MLFLOW_TRACKING_URI")

    def without_prefect(self) -> str:
        return self._without("PREFECT_API_URL")

    def _without(self, variable: str) -> str:
        done = run_gleaner("run", cwd=self.workspace.root, timeout_s=NIGHT_TIMEOUT_S, **{variable: NOWHERE})
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or "127.0.0.1:9" in done.stdout + done.stderr, done.stdout + done.stderr
        return f"exit code {done.returncode}"

    def after_another_host_died(self) -> str:
        """Its lock, and a lock of git, are still there."""
        dead = replace(ProcessIdentity.own(), host="elsewhere", boot="another")
        write_owner(self.workspace.lock.with_name("lock.owner"), LockOwner(dead, "2026-01-01T00:00:00+00:00"))
        git_lock = self.workspace.root / ".git" / "index.lock"
        git_lock.touch()
        os.utime(git_lock, (0, 0))
        return self.undisturbed()

    def renamed(self) -> str:
        """MLflow records where the artifacts were, so the next run stops until somebody says that this is the place."""
        target = self.folder / f"campaign-{sum(self.counts.values())}"
        self.workspace.root.rename(target)
        self.workspace = Workspace(target)
        stopped = run_gleaner("run", cwd=target, timeout_s=NIGHT_TIMEOUT_S)
        assert "gleaner adopt" in stopped.stderr, stopped.stderr
        adopted = run_gleaner("adopt", "--reason", "renamed", cwd=target)
        assert adopted.returncode == 0, adopted.stderr
        return self.undisturbed()

    def copied(self) -> str:
        """A copy beside the original does nothing; the original goes on."""
        copy = self.folder / "copy"
        shutil.copytree(self.workspace.root, copy, symlinks=True)
        done = run_gleaner("run", cwd=copy, timeout_s=NIGHT_TIMEOUT_S)
        assert done.returncode != 0
        assert "gleaner adopt" in done.stderr + done.stdout, done.stderr + done.stdout
        shutil.rmtree(copy)
        return self.undisturbed()

    def _start(self) -> "subprocess.Popen[str]":
        with (self.folder / "night.log").open("w") as log:
            return start_cli_run(self.workspace.root, log)

    def _output(self) -> str:
        return (self.folder / "night.log").read_text()

    def _running_stages(self) -> list[str]:
        names = []
        for process in stage_processes(self.workspace.root):
            with suppress(psutil.Error):  # it ended meanwhile
                names.append(process.cmdline()[-1])
        return names

    def _wait_for_processes(self) -> None:
        deadline_s = time.monotonic() + 60
        while alive := process_commands(self.workspace.root):
            assert time.monotonic() < deadline_s, f"outlived its night: {alive}"
            time.sleep(0.1)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def stage_runs(self, round_number: int) -> dict[str, int]:
        """How often each stage of a round was begun."""
        logs = {stage: stage_log(self.workspace, round_number, stage) for stage in STAGES}
        return {
            stage: path.read_text().count(f"Running stage '{stage}'") for stage, path in logs.items() if path.is_file()
        }

    def lock_entries(self) -> dict[str, Any]:
        """What DVC knows of the last finished run of each stage."""
        path = self.workspace.root / "dvc.lock"
        return dict(yaml.safe_load(path.read_text())["stages"]) if path.is_file() else {}

    def require_invariants(self) -> None:
        labels = Counter(
            label.image_id
            for path in self.workspace.labels.glob("batch-*.json")
            for label in read_batch(path).images
        )  # fmt: skip
        assert max(labels.values()) == 1, labels
        tags = sorted(tag for tag in git.run_git(self.workspace.root, "tag").split() if tag.startswith("round-"))
        assert tags == [f"round-{number:04d}" for number in range(len(tags))]
        for number in range(len(tags)):
            previous = files.sha256_file(self.workspace.ledger(number - 1)) if number else None
            assert files.read_json(self.workspace.ledger(number))["previous_ledger_sha256"] == previous
        assert first_corrupt_line(self.workspace) is None
        if tags:
            assert current_champion(self.workspace) is not None

    def run(self, name: str) -> None:
        """Run one night and check it."""
        round_number = len(list((self.workspace.root / "rounds").glob("round-*.json")))
        runs_before, entries = self.stage_runs(round_number), self.lock_entries()
        if not runs_before:
            self.entries_at_round_start = entries
        finished = [stage for stage, entry in entries.items() if entry != self.entries_at_round_start.get(stage)]
        started_s = time.monotonic()
        outcome = getattr(self, name)()
        self.counts[name] += 1
        self.require_invariants()
        runs_after = self.stage_runs(round_number)
        assert {stage: runs_after[stage] for stage in finished} == {stage: runs_before[stage] for stage in finished}
        self.write_log(night=name, outcome=outcome, took_s=round(time.monotonic() - started_s, 1))

    def write_log(self, **entry: Any) -> None:
        if path := os.environ.get("GLEANER_CHAOS_LOG"):
            with Path(path).open("a") as stream:
                stream.write(json.dumps(entry) + "\n")


DISTURBED = (
    "killed", "killed", "killed", "terminated", "stage_killed", "stage_killed", "without_mlflow", "without_prefect",
    "after_another_host_died", "renamed", "copied",
)  # fmt: skip


def test_nights_that_anything_may_befall_end_as_if_nothing_had(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.run("undisturbed")
    for number in range(NIGHTS):
        nights.run("killed" if number == 0 else nights.draws.choice(DISTURBED))
    nights.run("undisturbed")
    rounds = len(git.run_git(nights.workspace.root, "tag", "--list", "round-*").split())
    assert rounds >= 2
    audit = run_gleaner("audit", cwd=nights.workspace.root, timeout_s=NIGHT_TIMEOUT_S)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    nights.write_log(nights=dict(nights.counts), rounds=rounds)
