"""MkDocs hooks: generated pages, equations as MathML, links out of docs/, and a check of names in handwritten pages.

Nothing here needs a network: equations become MathML while the site is built, and browsers draw MathML themselves.
"""

import html
import importlib.util
import logging
import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
log = logging.getLogger("mkdocs.plugins.gleaner")

SERVICES = ("infra/services/README.md", "infra/stack/README.md")
"""Where the guide to the local services lies, or lay before the renaming; links to either lead to the page."""
REPOSITORY_PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "infra/detectron2/README.md": "project/detectron2.md",
    **dict.fromkeys(SERVICES, "operations/services.md"),
}
"""Files outside docs/ that are pages of the site, with their place on it."""
CHECKED = re.compile(r"^(index|quickstart|method|related|architecture|walks|glossary|operations)\.md$|^guides/")
"""Handwritten pages in which every command, option, make target and parameter has to exist."""

_MATH_BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MATH_INLINE = re.compile(r"\$`([^`\n]+)`\$")
_TAG = re.compile(r"\\tag\{(\d+)\}")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
_SHELL = re.compile(r"^```(?:sh|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"(?<!`)`([a-z_]+)\.([a-z_0-9]+)(?:: [^`]*)?`(?!`)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages and the pages that lie elsewhere in the repository."""
    for path, content in _reference().pages().items():
        files.append(File.generated(config, path, content=content))
    for source, path in REPOSITORY_PAGES.items():
        if source in SERVICES and not (ROOT / source).is_file():
            continue
        files.append(File.generated(config, path, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Equations and links; then the check."""
    path = page.file.src_uri
    if CHECKED.match(path):
        report = log.warning if config.extra.get("names_are_final") else log.info
        for problem in _unknown_names(markdown):
            report("%s: %s", path, problem)
    if _MATH_BLOCK.search(markdown) or _MATH_INLINE.search(markdown):
        markdown = _MATH_BLOCK.sub(_display_equation, markdown)
        markdown = _MATH_INLINE.sub(_inline_equation, markdown)
    origins = [own for own, at in REPOSITORY_PAGES.items() if at == path and (ROOT / own).is_file()]
    source = origins[0] if origins else f"docs/{path}"
    return _outside_fences(markdown, lambda text: _LINK.sub(lambda link: _link(link, source, path), text))


def _reference() -> ModuleType:
    """docs/generate_reference.py, which is a script and in no package."""
    name = "generate_reference"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _display_equation(found: re.Match[str]) -> str:
    latex = found[1]
    number = _TAG.search(latex)
    body = _one_line(convert(_TAG.sub("", latex).strip(), display="block"))
    if number is None:
        return f'<div class="equation">{body}</div>'
    label = number[1]
    return f'<div class="equation" id="eq-{label}">{body}<a class="number" href="#eq-{label}">({label})</a></div>'


def _inline_equation(found: re.Match[str]) -> str:
    # In a span: Markdown takes a line that begins with <math> for a block of its own.
    return f'<span class="math">{_one_line(convert(found[1], display="inline"))}</span>'


def _one_line(mathml: str) -> str:
    return " ".join(mathml.split())


def _outside_fences(markdown: str, change: Any) -> str:
    parts, last = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, change(markdown[last:])])


def _link(link: re.Match[str], source: str, path: str) -> str:
    """Links of a page as it lies in the repository, turned into links of the site.

    A file of the repository that is no page of the site is shown as its path.
    """
    text, target = link[1], link[2]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    place, _, anchor = target.partition("#")
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), place))
    at = REPOSITORY_PAGES.get(in_repository)
    if at is None and in_repository.startswith("docs/"):
        at = in_repository.removeprefix("docs/")
    if at is None:
        if not (ROOT / in_repository).exists():
            log.warning("%s: the link to %s leads nowhere", source, target)
        return text if text.strip("`") == in_repository else f"{text} (`{in_repository}`)"
    relative = posixpath.relpath(at, posixpath.dirname(path) or ".")
    return f"[{text}]({relative}{'#' + anchor if anchor else ''})"


def _unknown_names(markdown: str) -> list[str]:
    """Commands, options, make targets and parameters that do not exist."""
    reference = _reference()
    reference.pages()  # puts the repository on the path
    sections = reference.sections()
    problems = []
    for section, name in _PARAMETER.findall(_FENCE.sub("", markdown)):
        if section in sections and name not in sections[section] | {"py", "yaml"}:
            problems.append(f"`{section}.{name}` is no parameter")
        if section in {"augmentation", "label_validation", "preannotation"} - set(sections):
            problems.append(f"`{section}.{name}`: there is no section {section}")
    commands = dict(reference.walk(reference.command_tree(), "gleaner"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for block in _SHELL.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            code = line.split(" #")[0]
            problems += [f"make {word}: no such target" for word in _targets(code) if word not in targets]
            problems += _unknown_command(code, commands, sections)
            for module in re.findall(r"python -m ((?:infra|tasks|flows)[\w.]*)", code):
                if not list(ROOT.glob(module.replace(".", "/") + "*")):
                    problems.append(f"python -m {module}: no such module")
            folders = re.findall(r"(?:^|&& )\. (\.[a-z]+)/env", code)
            problems += [
                f"{folder}/env: the Makefile names no such folder" for folder in folders if folder not in makefile
            ]
    for code in re.findall(r"(?<!`)`((?:gleaner|make) [^`]+)`", _FENCE.sub("", markdown)):
        problems += [f"make {word}: no such target" for word in _targets(code) if word not in targets]
        problems += _unknown_command(code, commands, sections)
    return list(dict.fromkeys(problems))


def _targets(code: str) -> list[str]:
    return re.findall(r"(?:^|&& |; )make ((?!-)[a-z-]+)", code.strip())


def _unknown_command(code: str, commands: dict[str, Any], sections: dict[str, set[str]]) -> list[str]:
    problems = []
    for call in re.findall(r"(?:^|&& |; )(gleaner [^&;|]*)", html.unescape(code.strip())):
        words = call.split()
        path = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in commands), None)
        if path is None:
            if words[1:2] and not words[1].startswith("-"):
                problems.append(f"{' '.join(words[:2])}: no such command")
            continue
        known = {name for option in commands[path].params for name in [*option.opts, *option.secondary_opts]}
        problems += [
            f"{path} {word}: no such option"
            for word in words
            if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in known | {"--help"}
        ]
        for key, name in re.findall(r"--set ([a-z_]+)\.([a-z_0-9]+)=", call):
            if name not in sections.get(key, set()):
                problems.append(f"--set {key}.{name}: no such parameter")
    return problems
