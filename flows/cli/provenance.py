"""Commands ``gleaner lineage``, ``audit`` and ``reproduce``: trace, check and repeat what is recorded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from flows.cli.options import JsonOption, TrustOption, WorkspaceOption, look_at
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment
from tasks.runtime.formatting import pluralize

if TYPE_CHECKING:
    from flows.provenance.audit import Check
    from flows.provenance.reproduce import Reproduction

_MAX_IMAGES = 30
_SEED_DELIVERY = 0
_EXIT_FINDINGS = 1
_STYLES = {"pass": "green", "fail": "red", "skip": "yellow"}
_EXIT_DIFFERENT = 1


def lineage(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="name@champion, name/3, @candidate, /3 or round-0003.",
            show_default="the champion",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="ID", help="Show the lineage of an image instead; the beginning of its id is enough."
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
    trust_campaign: TrustOption = False,
) -> None:
    """Show the lineage of a model: its labels and annotators, and why each image was selected, back to the seed."""
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    from flows.provenance.lineage import image_lineage, model_lineage
    from flows.provenance.snapshot import resolve_model_ref

    document: dict[str, Any]
    if image is not None:
        document = image_lineage(campaign, image)
        tree = image_tree(document)
    else:
        document = model_lineage(campaign, resolve_model_ref(campaign, model))
        tree = model_tree(document)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        SafeConsole().print(tree)


def model_tree(lineage: Mapping[str, Any]) -> Tree:
    """Render the lineage of a model."""
    tree = Tree(_model_line(lineage))
    _add_lineage(tree, lineage)
    return tree


def image_tree(lineage: Mapping[str, Any]) -> RenderableType:
    """Render the lineage of an image."""
    tree = Tree(f"[bold]{lineage['image_id']}[/bold]")
    name = lineage.get("file_name") or lineage["uri"]
    tree.add(escape(f"imported {lineage['imported_at']} as {name} ({lineage['uri']})"))
    delivery_node = tree.add("deliveries" if lineage["deliveries"] else "in no delivery")
    for delivery in lineage["deliveries"]:
        boxes = pluralize(delivery["num_preannotations"], "box", "boxes")
        delivery_node.add(
            escape(
                f"delivery {delivery['delivery']} ({delivery['state']}, {delivery['created_at']}), "
                f"rank {delivery['rank']}: {delivery['reason']}; "
                f"{boxes} pre-annotated by {_short_hash(delivery['selection_model_sha256'])}"
            )
        )
    annotation_node = tree.add("annotations" if lineage["annotations"] else "no annotation")
    for annotation in lineage["annotations"]:
        use = "used in training" if annotation["is_used"] else "not used in training"
        checks = annotation["checks_batch"]
        checked = "" if checks is None else f", check of the label of batch {checks}"
        annotation_node.add(
            escape(
                f"batch {annotation['batch']}: {annotation['status']}, "
                f"{pluralize(len(annotation['boxes']), 'box', 'boxes')} by {annotation['annotator']} "
                f"({annotation['provider']}), {annotation['finished_at']}{checked}: {use}"
            )
        )
    for entry in lineage["quarantined"]:
        tree.add(escape(f"quarantined: {entry['reason']}"), style="yellow")
    return Group(tree, _rounds_table(lineage))


def _add_lineage(tree: Tree, lineage: Mapping[str, Any]) -> None:
    model, training = lineage["model"], lineage["training"]
    for decision in model["promotions"]:
        line = f"{decision['action']} {decision['timestamp']} by {decision['author']}: {decision['reason']}"
        tree.add(escape(line), style="dim")
    for export in model["exports"]:
        name = f"{export['name']}/{export['version']}"
        line = f"exported {export['timestamp']} by {export['author']} as {name}, mAP {export['map_export']:.1f}"
        tree.add(escape(line), style="dim")
    branch = tree.add(
        f"trained as [bold]{training['tag']}[/bold] at {_short_hash(training['git_revision'])} on "
        f"{pluralize(training['labels'], 'label')}, {pluralize(training['boxes'], 'box', 'boxes')}, "
        f"mAP {_format_value(model['teacher_map'], 1)}"
    )
    branch.add(_environment_line(training), style="dim")
    for batch in lineage["labels"]:
        _add_batch(branch, batch)


def _model_line(lineage: Mapping[str, Any]) -> str:
    model = lineage["model"]
    aliases = "".join(f" @{alias}" for alias in model["aliases"])
    return escape(f"{model['name']}/{model['version']}{aliases}  {_short_hash(model['sha256'])}")


def _environment_line(training: Mapping[str, Any]) -> str:
    gleaner = training["gleaner"]
    version = _short_hash(gleaner["git_revision"]) if gleaner["git_revision"] else gleaner["version"]
    changes = " with uncommitted changes" if gleaner["dirty"] else ""
    start = _short_hash(training["started_from_sha256"]) if training["started_from_sha256"] else "pretrained weights"
    machine = f"{training['host']} ({training['device'] or 'device unknown'})"
    return escape(f"started from {start}, Gleaner {version or 'of unknown version'}{changes} on {machine}")


def _add_batch(branch: Tree, batch: Mapping[str, Any]) -> None:
    """Add a batch, with its images only where it is the newest: older ones are listed with an earlier model."""
    annotators = ", ".join(f"{name} {_counts(counts)}" for name, counts in batch["annotators"].items())
    source = f"batch {batch['batch']} ({batch['provider']}, {batch['collected_at']}) {_short_hash(batch['sha256'])}"
    node = branch.add(escape(f"{source}: {annotators}"))
    if not batch["is_newest"]:
        return
    for delivery in batch["deliveries"]:
        _add_images(node, delivery)
    if "selection_model" in batch:
        selection_node = node.add(f"selected by {_model_line(batch['selection_model'])}")
        _add_lineage(selection_node, batch["selection_model"])


def _counts(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {status}" for status, count in counts.items())


def _add_images(node: Tree, delivery: Mapping[str, Any]) -> None:
    title = "seed" if delivery["delivery"] == _SEED_DELIVERY else f"delivery {delivery['delivery']}"
    images = delivery["images"]
    branch = node.add(f"{title}: {pluralize(len(images), 'image')}")
    for image in images[:_MAX_IMAGES]:
        rank = f"{image['rank']}. " if image["rank"] else ""
        boxes = pluralize(image["num_boxes"], "box", "boxes")
        branch.add(
            escape(f"{rank}{image['image_id']} {image['reason']}: {image['status']}, {boxes}, by {image['annotator']}")
        )
    if len(images) > _MAX_IMAGES:
        branch.add(f"and {len(images) - _MAX_IMAGES} more: --json", style="dim")


def _rounds_table(lineage: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in (
        "round", "model", "data set", "boxes", "conf.", "entropy", "overlap", "uncertainty", "rank", "selected as",
    ):  # fmt: skip
        table.add_column(header)
    for entry in lineage["rounds"]:
        rank = entry["uncertainty_rank"]
        table.add_row(
            str(entry["round"]), str(entry["model_version"]), ", ".join(entry["datasets"]) or "-",
            "-" if entry["num_boxes"] is None else str(entry["num_boxes"]),
            *(_format_value(entry[name]) for name in ("confidence", "entropy", "overlap", "uncertainty")),
            "-" if rank is None else f"{rank} of {entry['num_unlabeled']}", str(entry["selection_rank"] or "-"),
        )  # fmt: skip
    return table


def _short_hash(digest: str | None) -> str:
    return digest[:12] if digest else "-"


def _format_value(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def audit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="name@champion, name/3 or round-0003: audit its round and all earlier ones.",
            show_default="all rounds, and the workspace",
        ),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also evaluate the stored weights of the model; takes minutes.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
    trust_campaign: TrustOption = False,
) -> None:
    """Compare everything that is stored with the digests in the ledgers.

    Every digest is computed from the stored bytes. Lists every difference; the exit code is then 1.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    from flows.provenance.audit.run import run_audit
    from flows.provenance.snapshot import resolve_model_ref

    console = SafeConsole()
    number = None if model is None else resolve_model_ref(campaign, model)
    with console.status("auditing ...") as status:
        checks = run_audit(
            campaign, number, recompute=recompute,
            on_check=lambda done: status.update(f"{done.area}: {done.name} {done.state}"),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_audit_document(checks), indent=2, ensure_ascii=False))
    else:
        _print_audit(checks, console)
    if not _audit_passed(checks):
        raise typer.Exit(_EXIT_FINDINGS)


def _audit_passed(checks: "Sequence[Check]") -> bool:
    return all(check.state != "fail" for check in checks)


def _audit_document(checks: "Sequence[Check]") -> dict[str, object]:
    rows = [
        {"area": check.area, "name": check.name, "state": check.state, "examined": check.examined,
         "findings": list(check.findings), "skip_reason": check.skip_reason}
        for check in checks
    ]  # fmt: skip
    return {"state": "pass" if _audit_passed(checks) else "fail", "checks": rows}


def _print_audit(checks: "Sequence[Check]", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("area", "check", "examined", "state"):
        table.add_column(header)
    area = ""
    for check in checks:
        state = f"[{_STYLES[check.state]}]{check.state}[/]"
        table.add_row(check.area if check.area != area else "", check.name, check.skip_reason or check.examined, state)
        area = check.area
    console.print(table)
    findings = [finding for check in checks for finding in check.findings]
    for finding in findings:
        console.print(escape(finding), style="red", soft_wrap=True, highlight=False)
    num_skipped = sum(check.state == "skip" for check in checks)
    summary = pluralize(len(findings), "finding") if findings else "Nothing was altered"
    counts = f"{pluralize(len(checks) - num_skipped, 'check')} done, {num_skipped} skipped"
    console.print(f"{summary}: {counts}.", highlight=False)


def reproduce(
    tag: Annotated[str, typer.Argument(metavar="ROUND", help="Tag of the round, such as round-0003.")],
    into: Annotated[
        Path | None,
        typer.Option(
            help="New folder for the clone.", show_default="one below .gleaner, removed if all outputs are identical"
        ),
    ] = None,
    tolerance_points: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Allowed difference of mAP in percent points, in another environment."),
    ] = 2.0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Run a round again from its labels in a separate clone, and compare the digests of all outputs.

    Also works in a fresh clone of the campaign: data comes from the DVC remote. Takes as long as the round took. The
    exit code is 1 where outputs differ; in another environment, only where the mAP differs by more than the tolerance.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.provenance.reproduce import reproduce_round

    console = SafeConsole(stderr=as_json)
    result = reproduce_round(
        campaign, tag, into, tolerance_points=tolerance_points,
        on_line=lambda line: console.print(escape(line), style="dim", soft_wrap=True, highlight=False),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_reproduction_document(result), indent=2, ensure_ascii=False))
    else:
        _print_reproduction(result, console)
    if not result.is_reproduced:
        raise typer.Exit(_EXIT_DIFFERENT)


def _reproduction_document(result: "Reproduction") -> dict[str, object]:
    document = asdict(result)
    return {
        "round": document.pop("round_number"),
        **document,
        "folder": str(result.folder),
        "is_bit_identical": result.is_bit_identical,
        "is_reproduced": result.is_reproduced,
    }


def _print_reproduction(result: "Reproduction", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("stage", "output", "recorded MD5", "reproduced MD5", ""):
        table.add_column(header)
    for output in result.outputs:
        state = "[green]same[/]" if output.is_same else "[red]differs[/]"
        reproduced = (output.reproduced_md5 or "-")[:12]
        table.add_row(output.stage, output.path, output.recorded_md5[:12], reproduced, state)
    console.print(table)
    for difference in result.environment_differences:
        console.print(escape(difference), style="yellow", soft_wrap=True, highlight=False)
    console.print(escape(_reproduction_summary(result)), soft_wrap=True, highlight=False)


def _reproduction_summary(result: "Reproduction") -> str:
    maps = f"mAP is {result.reproduced_map:.4f}, recorded is {result.recorded_map:.4f}"
    if result.is_bit_identical:
        return f"All outputs are identical: {maps}."
    clone = f"The clone is {result.folder}"
    if not result.environment_differences:
        return f"Not reproduced: outputs differ in the same environment. {maps}. {clone}"
    verdict = "Reproduced" if result.is_reproduced else "Not reproduced"
    within = "within" if result.is_reproduced else "beyond"
    return (
        f"{verdict}: outputs differ, mAP {within} the tolerance of {result.tolerance_points:g} points. {maps}. {clone}"
    )
