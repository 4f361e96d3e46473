"""docs/operations.md promises commands, options, files and words; each exists."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from flows.cli.app import app
from flows.monitoring.json_logging import LOG_FORMAT_ENV
from flows.monitoring.notifications import WEBHOOK_URL_ENV, Event
from flows.preflight.checks import CHECKS
from tasks.runtime.errors import DiskFullError, GuardRailError, OutOfMemoryError, UserError

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "operations.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
_PROGRAMS = ("gleaner", "make", "dvc")
_ENDS = re.compile(r"\s(?:&&|\|\||\||;|>>|>|2>&1)\s?|$")


def commands(program: str) -> Iterator[str]:
    """Every call of a program in the guide: in blocks, and in inline code that is nothing else."""
    inline = [code for code in re.findall(r"`([^`\n]+)`", TEXT) if re.match(rf"({'|'.join(_PROGRAMS)}) [a-z]", code)]
    lines = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()] + inline
    lines += [code for code in re.findall(r"`([^`\n]+)`", TEXT) if "/bin/gleaner " in code]
    for line in lines:
        for part in re.split(r"\s&&\s|;\s", line):
            match = re.match(rf"(?:\S*/)?{program}\s+(.*)", part.strip())
            if match:
                yield _ENDS.split(" " + match[1])[0].strip()


def command_tree() -> Any:
    return typer.main.get_command(app)


def test_there_is_something_to_check() -> None:
    assert len(list(commands("gleaner"))) > 8
    assert len(list(commands("make"))) >= 3


@pytest.mark.parametrize("line", sorted(set(commands("gleaner"))))
def test_every_call_of_gleaner_exists(line: str) -> None:
    words = shlex.split(line)
    if words == ["--help"]:
        return
    command = command_tree()
    while hasattr(command, "commands") and words:
        verb = words.pop(0)
        assert verb in command.commands, f"gleaner has no {verb!r}"
        command = command.commands[verb]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.split("=")[0] for word in words if word.startswith("-")}
    assert asked <= known, f"gleaner {line}: unknown {asked - known}"


@pytest.mark.parametrize("line", sorted(set(commands("make"))))
def test_every_verb_of_make_exists(line: str) -> None:
    verbs = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[0] in verbs


@pytest.mark.parametrize("line", sorted(set(commands("dvc"))))
def test_every_call_of_dvc_is_understood(line: str) -> None:
    from dvc.cli import parse_args

    parse_args(shlex.split(line))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_shell(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_check_has_its_line() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", TEXT.split("### Checks of the doctor")[1], re.MULTILINE)
    assert [row for row in rows if row not in ("check", "---")] == [check.name for check in CHECKS]


def test_every_notification_has_its_line() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT.split("## Notifications")[1], re.MULTILINE)
    assert tuple(rows) == get_args(Event)


def test_every_exit_code_has_its_line() -> None:
    rows = {int(row) for row in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    exit_codes = {kind.exit_code for kind in (UserError, GuardRailError, OutOfMemoryError, DiskFullError)}
    assert rows == {0, 1, 130} | exit_codes


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (GUIDE.parent / target).is_file(), target
    assert {WEBHOOK_URL_ENV, LOG_FORMAT_ENV} <= set(re.findall(r"`(GLEANER_\w+)`", TEXT))
