"""Both profiles are valid for any machine, keep the template's comments, and scale with the GPUs."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params import validate_params
from tasks.params.profiles import PROFILES, Profile, profile_overrides
from tasks.params.template import render_params

TEMPLATE = (Path(__file__).parents[3] / "params.yaml").read_text()


def render(profile: Profile, num_gpus: int = 1) -> str:
    overrides = profile_overrides(profile, num_gpus=num_gpus)
    return render_params(TEMPLATE, classes=["a"], overrides=overrides)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(PROFILES), st.integers(0, 16))
def test_every_profile_is_valid_on_every_machine(profile: Profile, num_gpus: int) -> None:
    params = validate_params(yaml.safe_load(render(profile, num_gpus)), profile)
    assert params.train.num_workers == "auto"
    for batch_size in (params.train.labeled_batch_size, params.train.unlabeled_batch_size):
        assert batch_size % max(num_gpus, 1) == 0 or profile == "cpu"


@pytest.mark.parametrize("profile", PROFILES)
def test_comments_stay(profile: Profile) -> None:
    comments = re.findall(r"#.*", TEMPLATE)
    assert len(comments) > 3
    assert re.findall(r" #.*|^#.*", render(profile), re.M) != []
    assert [comment for comment in comments if comment not in render(profile)] == []


def test_batch_and_learning_rate_grow_with_the_gpus() -> None:
    one, four = (yaml.safe_load(render("gpu", gpus))["train"] for gpus in (1, 4))
    assert (one["labeled_batch_size"], four["labeled_batch_size"]) == (8, 32)
    assert (one["learning_rate"], four["learning_rate"]) == (1e-4, 4e-4)


def test_what_is_set_by_hand_holds() -> None:
    overrides = (*profile_overrides("gpu", num_gpus=1), "train.iterations=7000")
    assert yaml.safe_load(render_params(TEMPLATE, classes=["a"], overrides=overrides))["train"]["iterations"] == 7000
