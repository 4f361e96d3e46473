"""Checks on params.yaml."""

from typing import Any

import yaml

from flows import vcs
from flows.code_digests import packaged
from flows.doctor.context import Context
from flows.doctor.finding import Finding, NotTriedError, failed, passed, warned
from flows.position import finished_round
from tasks.annotated import read_annotated
from tasks.errors import UserError
from tasks.label_store import read_labels

_ONLY_IN_REPOSITORY = "draw"


def check_parameters(context: Context) -> Finding:
    """Every value is there and within its range; what is missing is shown with the value Gleaner ships."""
    try:
        params = context.params
    except UserError as error:
        missing = _missing(context.raw_params) if context.raw_params else []
        fix = "\n  ".join(["Add to params.yaml, as in the shipped file:", *missing]) if missing else error.fix
        return failed(error.problem, fix or "Put it right in params.yaml; tasks/sections.py says what it means.")
    return passed(f"{len(params.classes)} classes, {params.budget.amount:g} {params.budget.unit} a batch")


def check_classes(context: Context) -> Finding:
    """Labels and fixed sets know the same class names, and the last teacher had them in the same order."""
    if context.classes is None:
        raise NotTriedError("classes in params.yaml are unreadable")
    workspace = context.workspace
    for path in (workspace.val, workspace.calibration):
        read_annotated(path, context.classes)  # says which class it does not find
    labeled = {
        box.category
        for answer in read_labels(workspace.labels).answers.values()
        for box in answer.label.boxes
    }  # fmt: skip
    foreign = sorted(labeled - set(context.classes))
    if foreign:
        return failed(
            f"labels name {', '.join(foreign)}, expected classes of params.yaml only",
            "Add the class to params.yaml, or take the boxes out of the label batch.",
        )
    before = _classes_of_last_round(context)
    if before is not None and before != context.classes:
        return warned(
            f"the last teacher had the classes {before}, params.yaml has {context.classes}",
            "Set train.initialisation to pretrained for one round: its output layer belongs to the old list.",
        )
    unseen = [name for name in context.classes if name not in labeled]
    if unseen:
        return warned(f"no label has a box of {', '.join(unseen)} yet", "The detector cannot learn it until one has.")
    return passed(f"{', '.join(context.classes)}: each has labels, all sets agree")


def _missing(content: dict[str, Any]) -> list[str]:
    """Keys of the shipped params.yaml that a campaign's lacks, one line of YAML each."""
    shipped: dict[str, Any] = yaml.safe_load(packaged("params.yaml").read_text(encoding="utf-8"))
    lines = []
    for section, values in shipped.items():
        if section not in content and section != _ONLY_IN_REPOSITORY:
            lines.append(f"{section}: {_one_line(values)}")
        elif isinstance(values, dict) and isinstance(content.get(section), dict):
            absent = [key for key in values if key not in content[section]]
            lines += [f"under {section}: {key}: {_one_line(values[key])}" for key in absent]
    return lines


def _one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _classes_of_last_round(context: Context) -> list[str] | None:
    """``classes`` as the newest finished round had them; None before the first."""
    number = finished_round(context.workspace)
    if number < 0:
        return None
    text = vcs.git(context.workspace.root, "show", f"{vcs.round_tag(number)}:params.yaml")
    classes: list[str] = yaml.safe_load(text)["classes"]
    return classes
