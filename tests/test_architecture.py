"""The design, held by tests: what may import what is held by import-linter (`make imports`), the rest here."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.data.paths import STAGES
from tasks.params import Params, load_params

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "detectron_ext", "infra")
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MAX_LINES = 300
NOT_DATA = ("tasks/", "detectron_ext")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines, expected at most {MAX_LINES}"
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def test_the_graph_has_the_stages_in_order() -> None:
    assert list(GRAPH) == ["draw", *STAGES]


def names(entries: list[object]) -> list[str]:
    return [str(next(iter(entry))) if isinstance(entry, dict) else str(entry) for entry in entries]


@pytest.mark.parametrize("stage", list(GRAPH))
def test_a_stage_opens_with_what_dvc_yaml_says(stage: str) -> None:
    node = GRAPH[stage]
    assert node["cmd"] == f"python -m tasks.{stage}"
    assert node["desc"]
    doc = ast.get_docstring(ast.parse((ROOT / "tasks" / f"{stage}.py").read_text())) or ""
    said = {key: re.split(r",\s*", value) for key, value in re.findall(r"^(Reads|Writes|Params)\s+(.+)$", doc, re.M)}
    reads = [dep for dep in node["deps"] if not dep.startswith(NOT_DATA)]
    assert said["Reads"] == (reads or ["nothing"])
    assert said["Writes"] == names(node.get("outs", []) + node.get("metrics", []))
    assert said["Params"] == node.get("params", ["nothing"])


@pytest.mark.parametrize("stage", list(GRAPH))
def test_a_stage_names_its_own_code_and_all_code_it_imports(stage: str) -> None:
    """A change in imported code must rerun the stage: every project module it loads is a dependency."""
    ignored = {"tasks", "tasks.data.schemas", "tasks.runtime.stage_main", "tasks.runtime.errors", "tasks.storage.files", "tasks.params"} | {
        "tasks.params.annotation", "tasks.params.promotion", "tasks.runtime.resource_errors",
        "tasks.data.paths", "tasks.runtime.progress", "tasks.storage.s3", "tasks.storage.image_cache", "tasks.data.image_metadata_cache",
        "tasks.data.image_source", "tasks.params.stages", "tasks.data.images", "tasks.data.annotations", "tasks.data.detections",
        "detectron_ext",
    }  # fmt: skip
    script = (
        f"import sys, tasks.{stage}; "
        "print('\\n'.join(m for m in sys.modules if m.split('.')[0] in ('tasks', 'detectron_ext', 'flows')))"
    )
    loaded = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    code = [dep for dep in GRAPH[stage]["deps"] if dep.startswith(NOT_DATA)]
    for module in sorted(set(loaded.stdout.split()) - ignored):
        path = module.replace(".", "/")
        assert any(path == dep.removesuffix(".py") or path.startswith(f"{dep}/") or path == dep for dep in code), (
            f"{stage} imports {module}, expected it among the deps {code} in dvc.yaml"
        )


def test_the_repositorys_parameters_are_complete_and_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) == set(Params.model_fields)
    assert params.draw is not None


def test_every_parameter_is_read_by_some_code() -> None:
    code = "\n".join(path.read_text() for path in sources() if path.name not in {"sections.py", "params.py"})
    for section, field in Params.model_fields.items():
        for name in getattr(field.annotation, "model_fields", {}):
            used = re.search(rf"\.{name}\b", code) or (
                section == "augmentation" and "augmentation.model_dump()" in code
            )
            assert used, f"params.yaml: {section}.{name} is read by no code"


@pytest.mark.parametrize("stage", list(GRAPH))
def test_a_stage_has_its_function_and_its_entry(stage: str) -> None:
    module = importlib.import_module(f"tasks.{stage}")
    assert callable(getattr(module, stage))
    assert callable(module.main)


def test_the_light_modules_stay_light() -> None:
    """The command line must answer at once: parameters and paths load no network library."""
    heavy = ("torch", "prefect", "mlflow")
    script = f"import sys, flows.cli, tasks.params; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_nothing_committed_names_an_index_or_a_secret() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", lock.strip()) if not block.startswith("#"))
