from pathlib import Path

import pytest

from flows.workspace import dvc, git
from tasks.data.paths import Workspace


def test_a_refusal_of_dvc_says_why(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    git.init_repository(tmp_path)
    dvc.init_dvc(tmp_path)
    with pytest.raises(dvc.DvcError, match=r"dvc add ended with code 1 .*'images' does not exist"):
        dvc.add(workspace, tmp_path / "images")
