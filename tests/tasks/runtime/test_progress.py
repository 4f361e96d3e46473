"""A bar where somebody looks, nothing where nobody does."""

import pytest
from rich.console import Console

from tasks.runtime import progress


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track([1, 2, 3], "counting", total=3)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True))
    assert list(progress.track([1, 2, 3], "counting", total=3)) == [1, 2, 3]
    shown = capsys.readouterr()
    assert "counting" in shown.err
    assert shown.out == ""
