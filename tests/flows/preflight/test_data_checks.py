"""Checks on parameters, labels and images, each against a campaign broken by hand."""

import json
from typing import Any

import pyarrow as pa
import pytest
import yaml

from flows.preflight import data, parameters
from flows.preflight.context import CheckContext
from flows.preflight.result import Check, CheckSkipped, Finding
from flows.preflight.runner import run_checks
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, INDEX
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import SEED


def edit_params(workspace: Workspace, change: Any) -> None:
    content = yaml.safe_load(workspace.params.read_text())
    change(content)
    workspace.params.write_text(yaml.safe_dump(content))


def edit_labels(workspace: Workspace, change: Any) -> None:
    path = workspace.label_batch(0)
    content = files.read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def finding_of(check: Any, workspace: Workspace) -> Finding:
    """As the doctor tells it."""
    return run_checks(CheckContext(workspace), [Check("it", check, 30)])[0].finding


@pytest.mark.parametrize(
    "check",
    [
        parameters.check_parameters,
        parameters.check_classes,
        data.check_labels,
        data.check_fixed_sets,
        data.check_images,
        data.check_pool,
    ],
)
def test_a_healthy_campaign_passes(tiny: Workspace, check: Any) -> None:
    finding = finding_of(check, tiny)
    assert (finding.state, finding.fix) == ("pass", "")


def test_what_an_older_gleaner_did_not_write_is_shown_as_the_shipped_file_has_it(tiny: Workspace) -> None:
    edit_params(tiny, lambda params: (params.pop("provider"), params["budget"].pop("unit")))
    finding = finding_of(parameters.check_parameters, tiny)
    assert finding.state == "fail"
    assert "provider is missing" in finding.message
    assert "provider: {kind: oracle, url: '', " in finding.fix
    assert "under budget: unit: images" in finding.fix
    assert "draw" not in finding.fix


def test_added_as_it_says_the_parameters_are_whole_again(tiny: Workspace) -> None:
    edit_params(tiny, lambda params: params.pop("provider"))
    line = finding_of(parameters.check_parameters, tiny).fix.splitlines()[-1].strip()
    with tiny.params.open("a") as file:
        file.write(f"{line}\n")
    assert finding_of(parameters.check_parameters, tiny).state == "pass"


def test_parameters_that_are_no_yaml_break_only_what_needs_them(tiny: Workspace) -> None:
    tiny.params.write_text("classes: [bright\n  dark: {")
    assert finding_of(parameters.check_parameters, tiny).state == "fail"
    assert finding_of(data.check_labels, tiny).message.startswith("not tried")
    assert finding_of(data.check_images, tiny).state == "pass"
    with pytest.raises(CheckSkipped):
        parameters.check_classes(CheckContext(tiny))


def test_a_class_that_params_do_not_know(tiny: Workspace) -> None:
    edit_params(tiny, lambda params: params.update(classes=["bright"]))
    finding = finding_of(parameters.check_classes, tiny)
    assert finding.state == "fail"
    assert "dark" in finding.message


def test_a_class_without_labels_is_a_warning(tiny: Workspace) -> None:
    edit_params(tiny, lambda params: params["classes"].append("purple"))
    finding = finding_of(parameters.check_classes, tiny)
    assert (finding.state, "purple" in finding.message) == ("warn", True)


@pytest.mark.slow
def test_classes_that_changed_since_the_last_teacher(after_two_rounds: Workspace) -> None:
    edit_params(after_two_rounds, lambda params: params.update(classes=["dark", "bright"]))
    finding = finding_of(parameters.check_classes, after_two_rounds)
    assert finding.state == "warn"
    assert "the last teacher had the classes ['bright', 'dark']" in finding.message


def test_a_label_batch_cut_off_in_the_middle(tiny: Workspace) -> None:
    path = tiny.label_batch(0)
    path.write_bytes(path.read_bytes()[:100])
    finding = finding_of(data.check_labels, tiny)
    assert finding.state == "fail"
    assert "batch-0000.json" in finding.message
    assert "restore" in finding.fix


def test_a_box_outside_its_image_and_how_many_more(tiny: Workspace) -> None:
    def move_all(batch: Any) -> None:
        for image in batch["images"]:
            for box in image["boxes"]:
                box["xyxy_px"] = [10, 8, 4000, 24]

    edit_labels(tiny, move_all)
    finding = finding_of(data.check_labels, tiny)
    assert finding.state == "fail"
    assert "4000" in finding.message
    assert "inside 40 x 32 px" in finding.message
    boxes = sum(bool(image["boxes"]) for image in files.read_json(tiny.label_batch(0))["images"])
    assert (f"and {boxes - 1} more" in finding.message) == (boxes > 1)


def test_a_label_of_an_image_nobody_knows(tiny: Workspace) -> None:
    edit_labels(tiny, lambda batch: batch["images"][0].update(image_id="f" * 16))
    finding = finding_of(data.check_labels, tiny)
    assert (finding.state, "f" * 16 in finding.message) == ("fail", True)


def test_a_validation_image_that_is_trained_on(tiny: Workspace) -> None:
    val = files.read_table(tiny.val, ANNOTATED)["image_id"][0].as_py()
    edit_labels(tiny, lambda batch: batch["images"][0].update(image_id=val))
    finding = finding_of(data.check_fixed_sets, tiny)
    assert (finding.state, "validation" in finding.message) == ("fail", True)


def test_an_empty_validation_set(tiny: Workspace) -> None:
    metadata = pa.parquet.read_schema(tiny.val).metadata
    files.write_table(tiny.val, ANNOTATED.with_metadata(metadata).empty_table())
    assert finding_of(data.check_fixed_sets, tiny).message == "validation images are 0, expected at least 1"


@pytest.mark.parametrize("how", ["gone", "altered", "a folder"])
def test_an_image_that_is_not_what_the_index_says(tiny: Workspace, how: str) -> None:
    row = CheckContext(tiny).index[0]
    path = tiny.root / row["uri"]
    content = path.read_bytes()
    path.unlink()
    if how == "altered":
        path.write_bytes(content[:-1] + b"x")
    elif how == "a folder":
        path.mkdir()
    finding = finding_of(data.check_images, tiny)
    assert finding.state == "fail"
    assert row["uri"] in finding.message
    assert "dvc checkout" in finding.fix


def test_an_index_that_points_outside_is_not_followed(tiny: Workspace) -> None:
    rows = CheckContext(tiny).index
    rows[0]["uri"] = "../../etc/passwd"
    files.write_table(tiny.index, pa.Table.from_pylist(rows, schema=INDEX))
    assert "inside the workspace" in finding_of(data.check_images, tiny).message


def test_a_broken_index_is_told_by_its_own_checks_only(tiny: Workspace) -> None:
    tiny.index.unlink()
    tiny.index.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="unreadable"):
        data.check_images(CheckContext(tiny))
    assert finding_of(parameters.check_classes, tiny).state == "pass"


def test_a_pool_with_nothing_left(tiny: Workspace) -> None:
    labeled = {image["image_id"] for image in files.read_json(tiny.label_batch(0))["images"]}
    assert len(labeled) == SEED
    rows = [row for row in CheckContext(tiny).index if row["image_id"] in labeled]
    files.write_table(tiny.index, pa.Table.from_pylist(rows, schema=INDEX))
    assert finding_of(data.check_pool, tiny).state == "warn"
