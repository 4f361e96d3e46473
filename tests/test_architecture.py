"""The design, held by tests. What may import what is held by import-linter (`make imports`), the rest here.

Each test lists everything that breaks its rule, and no rule has exceptions.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.workspace.dvc import is_code
from infra import stage_dependencies
from tasks.data.paths import STAGES
from tasks.params import Params, load_params

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "detectron_ext", "infra")
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DRAW = yaml.safe_load((ROOT / "examples" / "digits" / "dvc.yaml").read_text())["stages"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def names(entries: list[object]) -> list[str]:
    return [str(next(iter(entry))) if isinstance(entry, dict) else str(entry) for entry in entries]


def test_no_file_is_a_place_for_anything() -> None:
    assert [path for path in sources() if path.stem in {"utils", "helpers", "common", "misc"}] == []


def test_the_graph_has_the_stages_in_order_and_the_room_only_them() -> None:
    assert tuple(GRAPH) == STAGES
    assert {path.stem for path in (ROOT / "tasks").glob("*.py")} == {"__init__", "__main__", *STAGES}


def differences_to_dvc_yaml(stage: str, node: dict[str, Any], module: Path) -> list[str]:
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    fields = re.findall(r"^(Reads|Writes|Params)\s+(.+(?:\n {7}.+)*)$", docstring, re.M)
    declared = {key: re.split(r",\s*", value) for key, value in fields}
    reads = [path for path in node["deps"] if not is_code(path)]
    expected = {
        "Reads": reads or ["nothing"],
        "Writes": names(node.get("outs", []) + node.get("metrics", [])),
        "Params": names(node.get("params", ["nothing"])),
    }
    return [f"{stage}: {key} is {declared.get(key)}" for key, value in expected.items() if declared.get(key) != value]


def test_docstrings_of_stages_say_what_dvc_yaml_says() -> None:
    wrong = differences_to_dvc_yaml("draw", DRAW["draw"], ROOT / "tasks" / "demo" / "draw.py")
    for stage, node in GRAPH.items():
        wrong += differences_to_dvc_yaml(stage, node, ROOT / "tasks" / f"{stage}.py")
        if node["cmd"] != f"python -m tasks {stage}" or not node["desc"]:
            wrong.append(f"{stage}: cmd or desc")
    assert wrong == []


def test_a_stage_has_its_function_and_its_entry() -> None:
    modules = {stage: importlib.import_module(f"tasks.{stage}") for stage in STAGES}
    lacking = [
        stage
        for stage, module in modules.items()
        if not callable(getattr(module, stage, None)) or not callable(getattr(module, "main", None))
    ]
    assert lacking == []


class TestDependencies:
    """A change of any module that can change a stage's outputs reruns the stage."""

    def test_dvc_yaml_names_all_code_that_a_stage_imports(self) -> None:
        graph = stage_dependencies.build_import_graph()
        stale = [
            name
            for name in stage_dependencies.GRAPHS
            if stage_dependencies.up_to_date((ROOT / name).read_text(), graph) != (ROOT / name).read_text()
        ]
        assert stale == [], "Run: python -m infra.stage_dependencies"

    def test_no_stage_loads_a_module_that_the_imports_do_not_show(self) -> None:
        """Modules in memory after a real import, each stage in a fork of its own; torch is loaded only once."""
        script = """
import importlib, json, os, sys
import detectron2.modeling, pandas, pycocotools.cocoeval, torch, torchvision
for stage in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(f"tasks.{stage}")
        loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("tasks", "detectron_ext", "flows"))
        os.write(1, (json.dumps([stage, loaded]) + "\\n").encode())
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""
        command = [sys.executable, "-W", "ignore", "-c", script, *STAGES]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        loaded = dict(json.loads(line) for line in output.splitlines())
        assert set(loaded) == set(STAGES)
        missing = []
        for stage, modules in loaded.items():
            for module in modules:
                path = "/".join(module.split("."))
                candidates = [f"{path}.py", f"{path}/__init__.py", *map(str, Path(path).parents), path]
                if not set(candidates) & set(GRAPH[stage]["deps"]):
                    missing.append(f"{stage}: {module}")
        assert missing == []

    def test_imports_of_imports_and_the_packages_around_them_count(self) -> None:
        graph = grimp.ImportGraph()
        for module in ("tasks", "tasks.a", "tasks.room", "tasks.room.b", "tasks.c", "tasks.unused"):
            graph.add_module(module)
        graph.add_import(importer="tasks.a", imported="tasks.room.b")
        graph.add_import(importer="tasks.room.b", imported="tasks.c")
        graph.add_import(importer="tasks.unused", imported="tasks.c")
        found = stage_dependencies.imported_modules(graph, "tasks.a")
        assert found == {"tasks", "tasks.a", "tasks.room", "tasks.room.b", "tasks.c"}

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            (["room/a.py"], ["tasks/__init__.py", "tasks/room"]),
            (["room/a.py", "room/unused.py"], ["tasks/__init__.py", "tasks/room/__init__.py", "tasks/room/a.py"]),
            (["room/a.py", "room/unused.py", "room/page.j2"], ["tasks/__init__.py", "tasks/room"]),
            (["room/a.py", "room/py.typed"], ["tasks/__init__.py", "tasks/room"]),
        ],
        ids=["all of it", "not all of it", "with a template", "with the mark of types"],
    )
    def test_a_folder_stands_for_its_files_where_all_are_used(
        self, tmp_path: Path, files: list[str], expected: list[str]
    ) -> None:
        for name in ("__init__.py", "unused.py", "room/__init__.py", *files):
            path = tmp_path / "tasks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert stage_dependencies.code_dependencies(["tasks", "tasks.room", "tasks.room.a"], tmp_path) == expected


def test_the_repositorys_parameters_are_complete_and_valid() -> None:
    load_params(ROOT / "params.yaml")
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) == set(Params.model_fields)


def test_every_parameter_is_read_by_some_code() -> None:
    code = "\n".join(path.read_text() for path in sources() if (ROOT / "tasks" / "params") not in path.parents)
    unread = [
        f"{section}.{name}"
        for section, field in Params.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
        if not re.search(rf"\.{name}\b", code) and f"{section}.model_dump()" not in code
    ]
    assert unread == []


def test_the_light_modules_stay_light() -> None:
    """The command line must answer at once: parameters and paths load no network library."""
    heavy = ("torch", "prefect", "mlflow")
    script = f"import sys, flows.cli, tasks.params; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_stages_start_without_libraries_that_only_some_rounds_need() -> None:
    """These four together took longer to import than most stages work."""
    heavy = ("torch", "sklearn", "scipy.stats", "matplotlib")
    stages = ", ".join(f"tasks.{name}" for name in ("prepare", "assemble", "score", "select", "handoff"))
    script = f"import sys, flows.nightly, {stages}; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


class TestRequirements:
    """pyproject.toml says what a wheel needs, requirements.in why, the locks which versions."""

    @staticmethod
    def locked(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text()
        return {
            canonicalize_name(package): version for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)
        }

    @staticmethod
    def listed(name: str) -> list[Requirement]:
        lines = (line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines())
        return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]

    def declared(self, *extras: str) -> list[Requirement]:
        texts = [
            *PROJECT["dependencies"],
            *(text for extra in extras for text in PROJECT["optional-dependencies"][extra]),
        ]
        return [Requirement(text) for text in texts]

    @pytest.mark.parametrize("name", LOCKS)
    def test_a_lock_names_no_index_and_hashes_everything(self, name: str) -> None:
        lock = (ROOT / name).read_text()
        assert "://" not in lock
        assert "--index" not in lock
        blocks = [block for block in re.split(r"\n(?=\S)", lock.strip()) if not block.startswith("#")]
        assert [block for block in blocks if "--hash=sha256:" not in block] == []

    def test_the_locks_agree(self) -> None:
        runtime, development = map(self.locked, LOCKS)
        assert {name: version for name, version in runtime.items() if development.get(name) != version} == {}

    @pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
    def test_a_lock_holds_what_its_source_asks_for(self, name: str) -> None:
        locked = self.locked(f"{name}.lock")
        listed = self.listed(f"{name}.in")
        assert [str(one) for one in listed if not one.specifier.contains(locked[canonicalize_name(one.name)])] == []

    def test_the_locks_satisfy_the_package(self) -> None:
        runtime, development = map(self.locked, LOCKS)
        for locked, extras in (
            (runtime, ("label-studio", "cvat", "s3", "services", "ray", "export")),
            (development, ("clip", "heic", "dev", "docs")),
        ):
            wrong = [
                str(one)
                for one in self.declared(*extras)
                if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))
            ]
            assert wrong == []

    def test_every_requirement_of_the_package_has_its_reason(self) -> None:
        """What is in pyproject.toml is in requirements.in too, where the reasons are."""
        listed = {
            canonicalize_name(one.name)
            for name in ("requirements.in", "requirements-dev.in")
            for one in self.listed(name)
        }
        extras = PROJECT["optional-dependencies"]
        assert {canonicalize_name(one.name) for one in self.declared(*extras)} - listed == set()

    def test_the_three_packages_import_only_what_is_declared(self) -> None:
        """A wheel with all runtime extras finds each library that the code imports."""
        runtime = self.declared("label-studio", "cvat", "s3", "services", "ray", "export", "heic")
        declared = {canonicalize_name(one.name) for one in runtime} | {"detectron2"}
        providers = importlib.import_module("importlib.metadata").packages_distributions()
        undeclared: dict[str, str] = {}
        for package in ("flows", "tasks", "detectron_ext"):
            for path in (ROOT / package).rglob("*.py"):
                for module in imported_libraries(path):
                    distributions = {canonicalize_name(name) for name in providers.get(module, [module])}
                    if not distributions & declared:
                        undeclared[module] = str(path.relative_to(ROOT))
        assert undeclared == {}


def imported_libraries(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {*PACKAGES}


def test_the_packages_are_typed_and_the_version_is_one() -> None:
    assert [name for name in ("flows", "tasks", "detectron_ext") if not (ROOT / name / "py.typed").is_file()] == []
    version = PROJECT["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## .*{re.escape(version)}", (ROOT / "CHANGELOG.md").read_text(), re.M)
