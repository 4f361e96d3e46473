"""A user whose git is configured against us."""

from pathlib import Path

import pytest


def hostile_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git settings of a user that would all change or prevent a commit."""
    hooks = folder / "hooks"
    hooks.mkdir(parents=True)
    for name in ("pre-commit", "prepare-commit-msg", "commit-msg", "reference-transaction"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    template = folder / "template" / "info"
    template.mkdir(parents=True)
    (template / "exclude").write_text("*\n")
    (folder / "ignore").write_text("*.json\n*.yaml\n*.dvc\ndvc.lock\n.gitignore\n")
    (folder / "attributes").write_text("*.yaml text eol=crlf\n* filter=missing\n")
    (folder / "gitconfig").write_text(f"""
[core]
    hooksPath = {hooks}
    autocrlf = true
    safecrlf = true
    excludesFile = {folder / "ignore"}
    attributesFile = {folder / "attributes"}
    editor = false
[commit]
    gpgSign = true
[tag]
    gpgSign = true
[gpg]
    program = false
[init]
    defaultBranch = trunk
    templateDir = {folder / "template"}
[color]
    ui = always
[status]
    showUntrackedFiles = no
[user]
    useConfigOnly = true
[filter "missing"]
    clean = false
    required = true
""")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(folder / "gitconfig"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "xdg"))
    (folder / "xdg" / "git").mkdir(parents=True)
    (folder / "xdg" / "git" / "ignore").write_text("*\n")
    (folder / "xdg" / "git" / "attributes").write_text("* text eol=crlf\n")
