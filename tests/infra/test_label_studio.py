"""What a Label Studio of ours is started with. That it starts and works, tests/flows/providers shows."""

import re
import stat
import subprocess
from pathlib import Path

import pytest

from infra.label_studio import install
from infra.label_studio.admin_user import CREDENTIALS_FILE, load_or_create_admin
from infra.label_studio.service import label_studio


def test_an_account_is_made_up_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = load_or_create_admin(tmp_path, {})
    again = load_or_create_admin(tmp_path, {})
    assert (made.email, made.password, made.token) == (again.email, again.password, again.token)
    assert re.fullmatch(r"[0-9a-f]{40}", made.token)
    assert stat.S_IMODE((tmp_path / CREDENTIALS_FILE).stat().st_mode) == 0o600
    assert made.token not in repr(made)
    assert made.password not in repr(made)


def test_a_shell_can_source_the_account(tmp_path: Path) -> None:
    made = load_or_create_admin(tmp_path, {"LABEL_STUDIO_USERNAME": "it's me@example.com"})
    command = f". {tmp_path / CREDENTIALS_FILE} && env"
    output = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert f"LABEL_STUDIO_API_KEY={made.token}" in output.splitlines()


def test_the_environment_goes_first_and_is_not_written_down(tmp_path: Path) -> None:
    load_or_create_admin(tmp_path, {})
    chosen = {"LABEL_STUDIO_API_KEY": "f" * 40, "LABEL_STUDIO_PASSWORD": "from the vault"}
    account = load_or_create_admin(tmp_path, chosen)
    assert (account.token, account.password) == ("f" * 40, "from the vault")
    kept = (tmp_path / CREDENTIALS_FILE).read_text()
    assert "f" * 40 not in kept
    assert "from the vault" not in kept


def test_it_listens_on_loopback_and_reports_nowhere(tmp_path: Path) -> None:
    account = load_or_create_admin(tmp_path, {})
    service = label_studio(Path("label-studio"), tmp_path, tmp_path / "files", 9581, account)
    assert service.command[-4:] == ("--internal-host", "127.0.0.1", "--port", "9581")
    assert service.env["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] == str(tmp_path / "files")
    assert service.env["COLLECT_ANALYTICS"] == "false"
    assert service.env["SENTRY_DSN"] == service.env["FRONTEND_SENTRY_DSN"] == ""
    assert not any(account.token in word or account.password in word for word in service.command)


def test_every_package_is_pinned_by_its_hash() -> None:
    requirements = re.findall(r"^[a-z0-9].*(?:\n .*)*", install.REQUIREMENTS_LOCK.read_text(), flags=re.MULTILINE)
    assert len(requirements) > 100
    assert all("==" in text.splitlines()[0] and "--hash=sha256:" in text for text in requirements)


def test_an_environment_counts_only_when_it_is_whole_current_and_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEANER_LABEL_STUDIO_VENV", str(tmp_path / "venv"))
    assert install.installed_program() is None
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".complete").write_text(install._fingerprint())
    assert install.installed_program() == tmp_path / "venv" / "bin" / "label-studio"
    (tmp_path / "venv").rename(tmp_path / "moved")
    monkeypatch.setenv("GLEANER_LABEL_STUDIO_VENV", str(tmp_path / "moved"))
    assert install.installed_program() is None
