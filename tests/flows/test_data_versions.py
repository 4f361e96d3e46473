from pathlib import Path

import pytest

from flows import data_versions, vcs
from tasks.paths import Workspace


def test_a_refusal_of_dvc_says_why(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    vcs.init_repository(tmp_path)
    data_versions.init_dvc(tmp_path)
    with pytest.raises(data_versions.DvcError, match=r"dvc add ended with code 1 .*'images' does not exist"):
        data_versions.add(workspace, tmp_path / "images")
