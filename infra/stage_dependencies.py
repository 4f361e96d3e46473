"""Name the code of every stage in dvc.yaml: ``python -m infra.stage_dependencies`` derives it from the imports.

A stage must run again when any module changes that it imports, directly or through others. The lists are too long to be
kept by hand, so this writes them, and a test checks that they are up to date. Grain: single files, so that a change
elsewhere reruns nothing; a whole folder where a stage imports all of it, or where it holds templates.
"""

import argparse
import io
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import grimp
from ruamel.yaml import YAML

from flows.workspace.dvc import CODE_PACKAGES, is_code

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ("dvc.yaml", "examples/digits/dvc.yaml")


def imported_modules(graph: grimp.ImportGraph, module: str) -> set[str]:
    """List what Python executes when a module is imported: the module, its imports and the packages around them.

    Imports inside functions count; those for type checking only do not.
    """
    pending, found = [module], set[str]()
    while pending:
        current = pending.pop()
        if current in found:
            continue
        found.add(current)
        pending += graph.find_modules_directly_imported_by(current)
        package = current.rpartition(".")[0]
        if package:
            pending.append(package)
    return found


def code_dependencies(modules: Collection[str], root: Path = ROOT) -> list[str]:
    """Turn modules into paths relative to ``root``: folders where all of a package is used, else files."""
    files = {_source_file(module, root) for module in modules}
    folders = [path.parent for path in files if path.name == "__init__.py" and _is_used_whole(path.parent, files)]
    covered = [path for path in (*folders, *files) if not any(folder in path.parents for folder in folders)]
    return sorted(str(path.relative_to(root)) for path in covered)


def _source_file(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_used_whole(package: Path, files: Collection[Path]) -> bool:
    content = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".typed")]
    has_data = any(path.suffix != ".py" and path.parent == package for path in content)
    return has_data or all(path in files for path in content)


def up_to_date(text: str, graph: grimp.ImportGraph, root: Path = ROOT) -> str:
    """Rewrite the text of a dvc.yaml so that each stage depends on the code it imports."""
    yaml = YAML()
    yaml.width = 4096  # no line is folded
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: dict[str, Any] = yaml.load(text)
    for stage in document["stages"].values():
        code = code_dependencies(_started_modules(graph, stage["cmd"]), root)
        stage["deps"] = [*code, *_data_dependencies(stage["deps"])]
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _started_modules(graph: grimp.ImportGraph, command: str) -> set[str]:
    """List what ``python -m tasks train`` or ``python -m tasks.demo.draw`` executes."""
    package, *stage = command.removeprefix("python -m ").split()
    if not stage:
        return imported_modules(graph, package)
    return {f"{package}.__main__"} | imported_modules(graph, f"{package}.{stage[0]}")


def _data_dependencies(dependencies: Iterable[str]) -> list[str]:
    return [path for path in dependencies if not is_code(path)]


def build_import_graph() -> grimp.ImportGraph:
    """Read the imports of the packages that stages are made of."""
    return grimp.build_graph(*CODE_PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def main() -> int:
    """Write the files, or with ``--check`` name those that are not up to date."""
    parser = argparse.ArgumentParser(description="Name the code of every stage in dvc.yaml, derived from the imports.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where something would change")
    check: bool = parser.parse_args().check
    graph = build_import_graph()
    stale = []
    for name in GRAPHS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = up_to_date(before, graph)
        if after == before:
            continue
        stale.append(name)
        if not check:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: written")
    if check and stale:
        print(f"{', '.join(stale)}: code dependencies differ from the imports. Run: python -m infra.stage_dependencies")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
