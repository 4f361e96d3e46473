"""No text that leaves the process holds a secret, nor a sequence that a terminal obeys."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from rich.markup import escape
from rich.table import Table

from flows.runtime.masking import SafeConsole, mask_exception, masked_errors, safe_text
from flows.runtime.process_env import redact
from tasks.runtime.errors import UserError
from tests.flows.small_campaign import subprocess_env

PASSWORD = "pw-mlflow-99"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET http://alice:pw-x@host/a failed", "GET http://***@host/a failed"),
        ("https://ghp_TOKEN123@host/x", "https://***@host/x"),
        ("http://bob:pa/ss/word@host:1/x", "http://***@host:1/x"),
        ("https://host/a@b and http://host/c", "https://host/a@b and http://host/c"),
        ("mail ada@example.org", "mail ada@example.org"),
    ],
)
def test_passwords_and_tokens_in_addresses_are_masked(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_password_of_an_address_in_the_environment_is_masked_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:p%40ss%2Fword@127.0.0.1:9")
    assert redact("login of alice with p@ss/word (p%40ss%2Fword) refused") == "login of alice with *** (***) refused"


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=False, width=200)
    table = Table()
    table.add_column("name")
    table.add_row(escape("a\x1b]0;PWNED\x07b"))
    console.print(table)
    console.print(escape("x\x1b[2Jy\x9bz\r!"))
    assert not set(stream.getvalue()) & {"\x1b", "\x07", "\x9b", "\r"}
    assert r"a\x1b]0;PWNED" in stream.getvalue()
    assert r"x\x1b[2Jy\x9bz\r!" in stream.getvalue()
    assert safe_text("a\u202egpj.exe\u2028b\u2066c") == r"a\u202egpj.exe\u2028b\u2066c"
    assert safe_text("plain\ttext\nü") == "plain\ttext\nü"


def test_a_console_keeps_its_own_colors() -> None:
    stream = io.StringIO()
    SafeConsole(file=stream, force_terminal=True, color_system="standard").print("[red]x[/red]")
    assert "\x1b[31m" in stream.getvalue()


def test_an_exception_is_masked_with_all_that_caused_it() -> None:
    def fail() -> None:
        with masked_errors():
            try:
                raise MlflowException(f"API request to http://alice:{PASSWORD}@127.0.0.1:9/ failed")
            except MlflowException as error:
                raise UserError("MLflow", str(error), f"see http://alice:{PASSWORD}@h") from error

    with pytest.raises(UserError) as raised:
        fail()
    cause = raised.value.__cause__
    assert isinstance(cause, MlflowException)
    for text in (str(raised.value), raised.value.problem, raised.value.fix, str(cause), cause.message):
        assert PASSWORD not in text
        assert "***@" in text or text == str(raised.value)
    loop = ValueError("a")
    loop.__context__ = loop
    mask_exception(loop)


CHILD = f"""
import logging, os, sys
from flows.runtime.masking import install_masking
install_masking(); install_masking()
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("prefect.flow_runs")
log.info("calling %s", "http://alice:{PASSWORD}@h/")
log.info("the token is %s", os.environ["MY_TOKEN"])
try:
    raise ValueError("http://alice:{PASSWORD}@h/")
except ValueError:
    log.exception("bug")
raise RuntimeError("http://alice:{PASSWORD}@h/ and " + os.environ["MY_TOKEN"])
"""


def test_logs_and_tracebacks_of_a_process_are_masked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=subprocess_env(MY_TOKEN="tok-123456789"), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "calling http://***@h/" in done.stderr
    assert done.stderr.count("Traceback") == 2
    assert done.stderr.endswith("RuntimeError: http://***@h/ and ***\n")
    for secret in (PASSWORD, "tok-123456789"):
        assert secret not in done.stdout + done.stderr


def test_a_record_with_arguments_that_do_not_fit_is_left_to_logging() -> None:
    from flows.runtime.masking import _mask_record

    _mask_record(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
