"""Checks on campaign, labels and images, each against a campaign broken by hand."""

import json
from typing import Any

import pyarrow as pa
import pytest
import yaml

from flows.preflight import campaign
from flows.preflight.runner import Check, CheckContext, CheckSkipped, Finding, run_checks
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
        campaign.check_parameters,
        campaign.check_classes,
        campaign.check_labels,
        campaign.check_fixed_sets,
        campaign.check_images,
        campaign.check_pool,
    ],
)
def test_a_healthy_campaign_passes(small_campaign: Workspace, check: Any) -> None:
    finding = finding_of(check, small_campaign)
    assert (finding.state, finding.fix) == ("pass", "")


def test_what_an_older_gleaner_did_not_write_is_shown_as_the_shipped_file_has_it(small_campaign: Workspace) -> None:
    edit_params(small_campaign, lambda params: (params.pop("provider"), params["budget"].pop("unit")))
    finding = finding_of(campaign.check_parameters, small_campaign)
    assert finding.state == "fail"
    assert "provider is missing" in finding.message
    assert "provider: {kind: oracle, url: '', " in finding.fix
    assert "under budget: unit: images" in finding.fix


def test_added_as_it_says_the_parameters_are_whole_again(small_campaign: Workspace) -> None:
    edit_params(small_campaign, lambda params: params.pop("provider"))
    line = finding_of(campaign.check_parameters, small_campaign).fix.splitlines()[-1].strip()
    with small_campaign.params.open("a") as file:
        file.write(f"{line}\n")
    assert finding_of(campaign.check_parameters, small_campaign).state == "pass"


def test_parameters_that_are_no_yaml_break_only_what_needs_them(small_campaign: Workspace) -> None:
    small_campaign.params.write_text("classes: [bright\n  dark: {")
    assert finding_of(campaign.check_parameters, small_campaign).state == "fail"
    assert finding_of(campaign.check_labels, small_campaign).message.startswith("not tried")
    assert finding_of(campaign.check_images, small_campaign).state == "pass"
    with pytest.raises(CheckSkipped):
        campaign.check_classes(CheckContext(small_campaign))


def test_a_class_that_params_do_not_know(small_campaign: Workspace) -> None:
    edit_params(small_campaign, lambda params: params.update(classes=["bright"]))
    finding = finding_of(campaign.check_classes, small_campaign)
    assert finding.state == "fail"
    assert "dark" in finding.message


def test_a_class_without_labels_is_a_warning(small_campaign: Workspace) -> None:
    edit_params(small_campaign, lambda params: params["classes"].append("purple"))
    finding = finding_of(campaign.check_classes, small_campaign)
    assert (finding.state, "purple" in finding.message) == ("warn", True)


@pytest.mark.integration
def test_classes_that_changed_since_the_last_teacher(after_two_rounds: Workspace) -> None:
    edit_params(after_two_rounds, lambda params: params.update(classes=["dark", "bright"]))
    finding = finding_of(campaign.check_classes, after_two_rounds)
    assert finding.state == "warn"
    assert "the last teacher had the classes ['bright', 'dark']" in finding.message


def test_a_label_batch_cut_off_in_the_middle(small_campaign: Workspace) -> None:
    path = small_campaign.label_batch(0)
    path.write_bytes(path.read_bytes()[:100])
    finding = finding_of(campaign.check_labels, small_campaign)
    assert finding.state == "fail"
    assert "batch-0000.json" in finding.message
    assert "restore" in finding.fix


def test_a_box_outside_its_image_and_how_many_more(small_campaign: Workspace) -> None:
    def move_all(batch: Any) -> None:
        for image in batch["images"]:
            for box in image["boxes"]:
                box["xyxy_px"] = [10, 8, 4000, 24]

    edit_labels(small_campaign, move_all)
    finding = finding_of(campaign.check_labels, small_campaign)
    assert finding.state == "fail"
    assert "4000" in finding.message
    assert "inside 40 x 32 px" in finding.message
    boxes = sum(bool(image["boxes"]) for image in files.read_json(small_campaign.label_batch(0))["images"])
    assert (f"and {boxes - 1} more" in finding.message) == (boxes > 1)


def test_a_label_of_an_image_nobody_knows(small_campaign: Workspace) -> None:
    edit_labels(small_campaign, lambda batch: batch["images"][0].update(image_id="f" * 16))
    finding = finding_of(campaign.check_labels, small_campaign)
    assert (finding.state, "f" * 16 in finding.message) == ("fail", True)


def test_a_validation_image_that_is_trained_on(small_campaign: Workspace) -> None:
    val = files.read_table(small_campaign.val, ANNOTATED)["image_id"][0].as_py()
    edit_labels(small_campaign, lambda batch: batch["images"][0].update(image_id=val))
    finding = finding_of(campaign.check_fixed_sets, small_campaign)
    assert (finding.state, "validation" in finding.message) == ("fail", True)


def test_an_empty_validation_set(small_campaign: Workspace) -> None:
    metadata = pa.parquet.read_schema(small_campaign.val).metadata
    files.write_table(small_campaign.val, ANNOTATED.with_metadata(metadata).empty_table())
    assert (
        finding_of(campaign.check_fixed_sets, small_campaign).message == "validation images are 0, expected at least 1"
    )


@pytest.mark.parametrize("how", ["gone", "altered", "a folder"])
def test_an_image_that_is_not_what_the_index_says(small_campaign: Workspace, how: str) -> None:
    row = CheckContext(small_campaign).index[0]
    path = small_campaign.root / row["uri"]
    content = path.read_bytes()
    path.unlink()
    if how == "altered":
        path.write_bytes(content[:-1] + b"x")
    elif how == "a folder":
        path.mkdir()
    finding = finding_of(campaign.check_images, small_campaign)
    assert finding.state == "fail"
    assert row["uri"] in finding.message
    assert "dvc checkout" in finding.fix


def test_an_index_that_points_outside_is_not_followed(small_campaign: Workspace) -> None:
    rows = CheckContext(small_campaign).index
    rows[0]["uri"] = "../../etc/passwd"
    files.write_table(small_campaign.index, pa.Table.from_pylist(rows, schema=INDEX))
    assert "inside the workspace" in finding_of(campaign.check_images, small_campaign).message


def test_a_broken_index_is_told_by_its_own_checks_only(small_campaign: Workspace) -> None:
    small_campaign.index.unlink()
    small_campaign.index.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="unreadable"):
        campaign.check_images(CheckContext(small_campaign))
    assert finding_of(campaign.check_classes, small_campaign).state == "pass"


def test_a_pool_with_nothing_left(small_campaign: Workspace) -> None:
    labeled = {image["image_id"] for image in files.read_json(small_campaign.label_batch(0))["images"]}
    assert len(labeled) == SEED
    rows = [row for row in CheckContext(small_campaign).index if row["image_id"] in labeled]
    files.write_table(small_campaign.index, pa.Table.from_pylist(rows, schema=INDEX))
    assert finding_of(campaign.check_pool, small_campaign).state == "warn"
