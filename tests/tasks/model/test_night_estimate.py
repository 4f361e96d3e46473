"""How long a night will take: measured with the real training and inference, multiplied by what there is to do."""

from pathlib import Path

import pytest
import yaml

from tasks.data import schemas
from tasks.data.paths import Workspace
from tasks.model.night_estimate import _multiply, estimate_night
from tasks.params import Params, load_params, validate_params
from tasks.params.profiles import profile_overrides
from tasks.params.template import render_params
from tasks.storage import files

pytestmark = pytest.mark.integration
TEMPLATE = (Path(__file__).parents[3] / "params.yaml").read_text()
SMALL = ("model.short_side_px=64", "model.long_side_px=96", "train.num_workers=0", "infer.batch_size=2")


def make_params(*overrides: str) -> Params:
    text = render_params(TEMPLATE, classes=["disc", "bar"], overrides=overrides)
    return validate_params(yaml.safe_load(text), "params.yaml")


def test_minutes_are_what_was_measured_times_what_there_is_to_do(tiny_campaign: Workspace) -> None:
    before = sorted(tiny_campaign.root.rglob("*"))
    classes = load_params(tiny_campaign.params).classes
    params = make_params(
        *SMALL, "train.iterations=1000", "train.burn_in_iterations=400", "train.pretrain_iterations=500"
    )
    params = params.model_copy(update={"classes": classes})
    found = estimate_night(tiny_campaign, params)
    assert sorted(tiny_campaign.root.rglob("*")) == before
    measured, counts, minutes = found["measured"], found["counts"], found["minutes"]
    assert min(measured.values()) > 0
    pool = files.read_table(tiny_campaign.index, schemas.INDEX).num_rows
    val = files.read_table(tiny_campaign.val, schemas.ANNOTATED).num_rows
    assert (counts["pool_images"], counts["validation_images"]) == (pool, val)
    assert (counts["supervised_steps"], counts["semi_supervised_steps"]) == (400, 600)
    train_s = measured["training_startup_s"] + 500 * measured["pretraining_step_s"]
    train_s += 400 * measured["supervised_step_s"]
    train_s += 600 * measured["semi_supervised_step_s"]
    assert counts["scored_images"] == min(params.ssl.max_scored_images, pool)
    train_s += counts["scored_images"] * measured["inference_image_s"]
    assert minutes["train"] == pytest.approx(train_s / 60, rel=0.02, abs=0.01)
    assert minutes["infer"] == pytest.approx(pool * measured["inference_image_s"] / 60, rel=0.02, abs=0.01)
    assert minutes["evaluate"] == pytest.approx(2 * val * measured["inference_image_s"] / 60, rel=0.02, abs=0.01)
    assert found["total_minutes"] == pytest.approx(sum(minutes.values()), abs=0.03)


def test_a_committee_detects_twice(tiny_campaign: Workspace) -> None:
    minutes = [
        _multiply(tiny_campaign, make_params(f"infer.committee={committee}"), 0.0, 0.0, 0.0, 600.0, 0.0)["minutes"]
        for committee in ("none", "student")
    ]
    assert minutes[1]["infer"] == 2 * minutes[0]["infer"] > 0
    assert minutes[1]["evaluate"] == minutes[0]["evaluate"]


def test_the_detector_of_the_gpu_profile_trains_and_detects(
    tiny_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-50 FPN with the profile's own schedule, on whatever device there is, at a small size."""
    monkeypatch.setattr("tasks.model.night_estimate._STEPS", 2)
    classes = load_params(tiny_campaign.params).classes
    profile = profile_overrides("gpu", num_gpus=1)
    small = ("train.labeled_batch_size=1", "train.unlabeled_batch_size=1", "model.pretrained_weights=none")
    params = make_params(*profile, *SMALL, *small).model_copy(update={"classes": classes})
    found = estimate_night(tiny_campaign, params)
    assert found["counts"]["supervised_steps"] + found["counts"]["semi_supervised_steps"] == 12000
    assert found["measured"]["semi_supervised_step_s"] > 0
