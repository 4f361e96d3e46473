"""One real Label Studio for all tests; its migrated database is kept in .cache, so it starts in seconds."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from infra.label_studio.admin_user import load_or_create_admin
from infra.label_studio.install import REPOSITORY_ROOT, REQUIREMENTS_LOCK, installed_program
from infra.label_studio.service import label_studio as describe
from infra.services.ports import free_ports
from tasks.storage import files
from tests.flows.annotation.providers.label_studio_users import Annotator, Team, new_team, sign_up
from tests.services import S3Server, running_service, skip_or_fail


@dataclass(frozen=True)
class LabelStudioServer:
    """A running Label Studio with two users, which serves the files below ``files``."""

    url: str
    files: Path
    owner: Annotator
    second: Annotator


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[LabelStudioServer]:
    """The server, with credentials of the S3 server; every test has its own campaign and project."""
    program = installed_program()
    if program is None:
        skip_or_fail("Label Studio is not installed: python -m infra.label_studio.install")
        return
    folder = tmp_path_factory.mktemp("label_studio")
    shutil.copytree(migrated_data_folder(program), folder / "data")
    served = folder / "files"
    served.mkdir()
    account = load_or_create_admin(folder / "data", {})
    with pytest.MonkeyPatch.context() as patch:
        s3_server.set_environment(patch)
        service = describe(program, folder / "data", served, free_ports(), account)
    with running_service(service):
        owner = Annotator(account.email, account.password, account.token, service.url)
        second = sign_up(owner, "second@example.com", "a password of theirs")
        yield LabelStudioServer(service.url, served, owner, second)


def migrated_data_folder(program: Path) -> Path:
    """Create a data folder with a first start, once per version of the requirements lock."""
    kept = REPOSITORY_ROOT / ".cache" / "label_studio" / files.sha256_file(REQUIREMENTS_LOCK)[:12]
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.is_dir():
            building = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".building-"))
            data = building / "data"
            with running_service(describe(program, data, building, free_ports(), load_or_create_admin(data, {}))):
                pass
            data.rename(kept)
            shutil.rmtree(building)
    return kept


@pytest.fixture
def team(label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch) -> Team:
    """A campaign whose token is that of the server's owner."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    return new_team(label_studio.files / f"table-{secrets.token_hex(4)}", label_studio.url)
