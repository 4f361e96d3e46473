"""Check params.yaml."""

from typing import Any

import yaml

from flows.preflight.context import CheckContext
from flows.preflight.result import CheckSkipped, Finding, failed, passed, warned
from flows.workspace import git
from flows.workspace.code_version import packaged_file
from flows.workspace.rounds import last_published_round
from tasks.data.annotations import read_annotated
from tasks.data.label_store import read_labels
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import is_class_path


def check_parameters(context: CheckContext) -> Finding:
    """Check that every value is present and in range; a missing one is shown with the shipped value."""
    try:
        params = context.params
    except UserError as error:
        missing = _missing_keys(context.raw_params) if context.raw_params else []
        fix = "\n  ".join(["Add to params.yaml, as in the shipped file:", *missing]) if missing else error.fix
        return failed(error.problem, fix or "Put it right in params.yaml; tasks/params/stages.py says what it means.")
    if is_class_path(params.select.strategy):  # found now, not hours later by the stage
        from tasks.selection.strategies.registry import create_strategy

        create_strategy(params.select.strategy, context.workspace.root)
    return passed(f"{len(params.classes)} classes, {params.budget.amount:g} {params.budget.unit} a batch")


def check_classes(context: CheckContext) -> Finding:
    """Check that labels and fixed sets use the classes of params.yaml, in the order of the last teacher."""
    if context.classes is None:
        raise CheckSkipped("classes in params.yaml are unreadable")
    workspace = context.workspace
    for path in (workspace.val, workspace.calibration):
        read_annotated(path, context.classes)  # says which class it does not find
    labeled = {
        box.category
        for annotation in read_labels(workspace.labels).current.values()
        for box in annotation.label.boxes
    }  # fmt: skip
    unknown = sorted(labeled - set(context.classes))
    if unknown:
        return failed(
            f"labels name {', '.join(unknown)}, expected classes of params.yaml only",
            "Add the class to params.yaml, or take the boxes out of the label batch.",
        )
    previous_classes = _classes_of_last_round(context)
    if previous_classes is not None and previous_classes != context.classes:
        return warned(
            f"the last teacher had the classes {previous_classes}, params.yaml has {context.classes}",
            "Set train.init_from to pretrained for one round: its output layer belongs to the old list.",
        )
    unseen = [name for name in context.classes if name not in labeled]
    if unseen:
        return warned(f"no label has a box of {', '.join(unseen)} yet", "The detector cannot learn it until one has.")
    return passed(f"{', '.join(context.classes)}: each has labels, all sets agree")


def _missing_keys(content: dict[str, Any]) -> list[str]:
    """List the keys of the shipped params.yaml that the campaign's lacks, one line of YAML each."""
    shipped: dict[str, Any] = yaml.safe_load(packaged_file("params.yaml").read_text(encoding="utf-8"))
    lines = []
    for section, values in shipped.items():
        if section not in content:
            lines.append(f"{section}: {_inline_yaml(values)}")
        elif isinstance(values, dict) and isinstance(content.get(section), dict):
            absent = [key for key in values if key not in content[section]]
            lines += [f"under {section}: {key}: {_inline_yaml(values[key])}" for key in absent]
    return lines


def _inline_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _classes_of_last_round(context: CheckContext) -> list[str] | None:
    """Return ``classes`` of the newest finished round; None before the first."""
    number = last_published_round(context.workspace)
    if number < 0:
        return None
    text = git.run_git(context.workspace.root, "show", f"{git.round_tag(number)}:params.yaml")
    classes: list[str] = yaml.safe_load(text)["classes"]
    return classes
