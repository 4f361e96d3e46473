"""A campaign's params.yaml: what the stages' reader reads is what was meant."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params import load_params
from tasks.params.template import render_params
from tasks.runtime.errors import UserError

TEMPLATE = (Path(__file__).parents[3] / "params.yaml").read_text()


def test_only_the_classes_change() -> None:
    made = render_params(TEMPLATE, classes=["a"], overrides=())
    expected = yaml.safe_load(TEMPLATE) | {"classes": ["a"]}
    assert yaml.safe_load(made) == expected
    kept = [line for line in TEMPLATE.splitlines() if line not in made.splitlines()]
    assert kept == [TEMPLATE.splitlines()[3]]
    assert "\n\n\n" not in made


def test_comments_stay() -> None:
    template = re.sub(r"(  iterations: \d+)\n", r"\1 # why\n", TEMPLATE, count=1)
    assert "iterations: 999 # why" in render_params(template, classes=["a"], overrides=["train.iterations=999"])


@settings(max_examples=30, deadline=None)
@given(
    classes=st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12), min_size=1, unique=True)
)
def test_class_names_survive_as_text(classes: list[str]) -> None:
    assert yaml.safe_load(render_params(TEMPLATE, classes=classes, overrides=()))["classes"] == classes


@pytest.mark.parametrize(
    "name", ["no", "on", "null", "~", "1", "1e3", "12:30", "0x1", "a, b", "[a]", "a: b", "#a", "{", "'"]
)
def test_class_names_that_yaml_would_take_for_something_else(name: str) -> None:
    assert yaml.safe_load(render_params(TEMPLATE, classes=[name], overrides=()))["classes"] == [name]


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.learning_rate=1e-5", "train", "learning_rate", 1e-5),
        ("train.learning_rate=0.0008", "train", "learning_rate", 0.0008),
        ("budget.amount=10", "budget", "amount", 10),
        ("ssl.enabled=false", "ssl", "enabled", False),
        ("dwa.fixed_weights=[0.2, 0.3, 0.5]", "dwa", "fixed_weights", [0.2, 0.3, 0.5]),
        ("model.backbone=resnet18", "model", "backbone", "resnet18"),
    ],
)
def test_override_arrives(tmp_path: Path, override: str, section: str, key: str, value: object) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(render_params(TEMPLATE, classes=["a"], overrides=[override]))
    assert getattr(getattr(load_params(path), section), key) == value


@settings(max_examples=30, deadline=None)
@given(value=st.floats(min_value=1e-300, max_value=1e300))
def test_any_float_is_read_back_as_itself(value: float) -> None:
    made = render_params(TEMPLATE, classes=["a"], overrides=[f"train.learning_rate={value!r}"])
    assert yaml.safe_load(made)["train"]["learning_rate"] == value


def test_later_override_wins() -> None:
    made = render_params(TEMPLATE, classes=["a"], overrides=["seed=1", "seed=2"])
    assert yaml.safe_load(made)["seed"] == 2


def test_a_parameter_that_is_a_map_is_replaced_as_a_whole() -> None:
    made = render_params(TEMPLATE, classes=["a"], overrides=["select.objectives={novelty: 1e-1, diversity: 2}"])
    assert yaml.safe_load(made)["select"]["objectives"] == {"novelty": 0.1, "diversity": 2}
    assert "objectives: {novelty: 0.1, diversity: 2}" in made


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train={iterations: 3}", "train is a section, expected one of its parameters"),
        ("select.objectives=3", "select.objectives is a section, expected one of its parameters"),
        ("select.objectives={beauty: 1}", "expected 'uncertainty', "),
        ("train.lerning_rate=1", "train.lerning_rate is an unknown parameter.*Did you mean train.learning_rate"),
        ("nothing.like.it=1", "nothing.like.it is an unknown parameter"),
        ("train", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("train=3", "train is a section, expected one of its parameters"),
        ("train.iterations=many", "train.iterations is 'many', expected integer"),
        ("train.iterations=-5", "train.iterations is -5, expected greater than 0"),
        ("train.iterations=1.5", "train.iterations is 1.5, expected integer"),
        ("ssl.enabled=0", "ssl.enabled is 0, expected boolean"),
        ("select.strategy=best", "select.strategy is 'best', expected"),
        ("train.learning_rate=1e400", "train.learning_rate is inf, expected"),
        ("train.learning_rate=.nan", "train.learning_rate is nan, expected"),
        ("dwa.fixed_weights=[1, 1, 1]", "fixed_weights sum to 3, expected 1"),
        ("seed={a: 1", "expected a value in YAML"),
        ("classes=[a]", "classes comes from the annotations"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render_params(TEMPLATE, classes=["a"], overrides=[override])
