from pathlib import Path

import pytest
import yaml

from tasks.data.seed_draw import BoxesPerClass, ImagePercent
from tasks.params import validate_params
from tasks.runtime.errors import UserError
from tasks.study.plan import StudyConfig, arm_params, load_study

ROOT = Path(__file__).parents[3]
TEMPLATE = (ROOT / "params.yaml").read_text()
VALID = {
    "name": "sound",
    "source": {"kind": "demo"},
    "seeds": [1, 2, 3],
    "rounds": 2,
    "seed_labels": 4,
    "calibration_images": 4,
    "settings": ["train.iterations=50", "train.burn_in_iterations=20"],
    "arms": {"mine": ["dwa.mode=entropy", "train.iterations=60"]},
}


def load_config(tmp_path: Path, **changes: object) -> StudyConfig:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**VALID, **changes}))
    return load_study(path, TEMPLATE, own_data_settings=("model.short_side_px=200",))


def test_random_and_equal_are_added_and_come_first(tmp_path: Path) -> None:
    plan = load_config(tmp_path)
    assert list(plan.arms) == ["random", "equal", "mine"]
    assert plan.added == ["random", "equal"]
    assert plan.all_baselines == ["random", "equal"]


def test_a_study_of_rankings_needs_no_other_arm(tmp_path: Path) -> None:
    plan = load_config(tmp_path, question="ranking", arms={"random": ["select.strategy=random"]})
    assert list(plan.arms) == ["random"]
    assert plan.all_baselines == []


def test_arms_the_file_names_stay_as_they_are(tmp_path: Path) -> None:
    arms = {"equal": ["dwa.mode=equal", "scoring.entropy=mean"], "random": ["select.strategy=random"]}
    plan = load_config(tmp_path, arms=arms, baselines=["equal"])
    assert plan.arms == arms
    assert plan.added == []
    assert plan.all_baselines == ["random", "equal"]


def test_own_settings_come_after_common_ones_and_the_seed_is_the_pairs(tmp_path: Path) -> None:
    plan = load_config(tmp_path)
    mine = validate_params(yaml.safe_load(arm_params(plan, "mine", 3, TEMPLATE, ["a", "b"])), "here")
    assert (mine.seed, mine.classes, mine.train.iterations, mine.dwa.mode) == (3, ["a", "b"], 60, "entropy")
    other = validate_params(yaml.safe_load(arm_params(plan, "random", 3, TEMPLATE, ["a", "b"])), "here")
    assert (other.train.iterations, other.dwa.mode, other.select.strategy) == (50, "learned", "random")


def test_arms_that_are_added_train_with_class_weights_of_1(tmp_path: Path) -> None:
    plan = load_config(tmp_path)
    for arm, expected in (("random", 1.0), ("equal", 1.0), ("mine", 3.0)):
        params = validate_params(yaml.safe_load(arm_params(plan, arm, 3, TEMPLATE, ["a", "b"])), "here")
        assert params.dwa.class_weight_max == expected


def test_data_of_ones_own_start_from_inits_settings(tmp_path: Path) -> None:
    source = {"kind": "voc", "images": "i", "annotations": "a"}
    assert load_config(tmp_path, source=source).settings[0] == "model.short_side_px=200"
    assert load_config(tmp_path).settings == VALID["settings"]
    assert load_config(tmp_path, rounds=0).rounds == 0


def test_seed_labels_are_a_number_or_a_rule(tmp_path: Path) -> None:
    assert load_config(tmp_path).seed_size == 4
    assert load_config(tmp_path, seed_labels={"per_class": 5}).seed_size == BoxesPerClass(5)
    assert load_config(tmp_path, seed_labels={"percent": 2}).seed_size == ImagePercent(2.0)
    assert load_config(tmp_path, seed_labels={"percent": 0.5}).seed_size == ImagePercent(0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed_labels": {}}, "per_class is None and percent is None, expected one of them"),
        ({"seed_labels": {"per_class": 5, "percent": 2}}, "per_class is 5 and percent is 2.0, expected one of them"),
        ({"seed_labels": {"percent": 100}}, "percent is 100, expected less than 100"),
        ({"seed_labels": {"per_class": 0}}, "per_class is 0, expected greater than 0"),
        ({"seed_labels": {"shots": 5}}, "shots is an unknown parameter"),
        ({"seeds": []}, "seeds is [], expected"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], expected no seed twice"),
        ({"rounds": -1}, "rounds is -1, expected"),
        ({"rounds": "3"}, "rounds is '3', expected"),
        ({"round": 3}, "round is an unknown parameter"),
        ({"added": []}, "added is an unknown parameter"),
        ({"name": "../up"}, "name is '../up', expected"),
        ({"arms": {"a/b": []}}, "a/b"),
        ({"source": {"kind": "coco"}}, "expected images and annotations with kind coco"),
        ({"source": {"kind": "demo", "images": "x"}}, "expected none with kind demo"),
        ({"model": "worst"}, "model is 'worst', expected"),
        ({"trainings_per_point": 0}, "trainings_per_point is 0, expected"),
        ({"baselines": ["nobody"]}, "baselines names 'nobody', expected one of the arms"),
        ({"arms": {"mine": ["dwa.mode=best"]}}, "arms.mine: dwa.mode is 'best', expected"),
        ({"arms": {"mine": ["dwa.mod=equal"]}}, "Did you mean dwa.mode?"),
        ({"settings": ["nonsense"]}, "the override is 'nonsense', expected section.key=value"),
        ({"full": ["train.iteration=5"]}, "full: train.iteration is an unknown parameter"),
        ({"arms": {"random": []}}, "arms.random: select.strategy is 'uncertainty', expected 'random'"),
        ({"arms": {"equal": ["dwa.mode=learned"]}}, "expected 'equal' and 'uncertainty'"),
        ({"settings": ["select.strategy=random"]}, "arms.equal: dwa.mode is 'equal' and select.strategy is 'random'"),
    ],
)
def test_what_is_refused_and_how(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(tmp_path, **changes)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is missing, expected a study file"):
        load_study(tmp_path / "none.yaml", TEMPLATE, own_data_settings=())
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        load_study(tmp_path / "broken.yaml", TEMPLATE, own_data_settings=())
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UserError, match="the file"):
        load_study(tmp_path / "list.yaml", TEMPLATE, own_data_settings=())


SELECTION_ARMS = {"random", "equal", "entropy", "activeteacher", "dwa"}


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("bccd", SELECTION_ARMS),
        ("bccd-first", SELECTION_ARMS),
        ("bccd-schedule", {"random", "supervised", "late", "adaptive"}),
        ("bccd-ssl", {"random", "supervised"}),
        ("bccd-ssl-long", {"random", "supervised"}),
        ("bccd-weights", {"random", "certain", "none"}),
        ("demo", SELECTION_ARMS),
        ("demo-ssl", {"random", "supervised", "ema90", "ema95", "threshold5", "lambda2", "ramp10", "mild", "long"}),
        ("demo-weights", {"random", "certain", "none"}),
    ],
)
def test_the_ready_studies_are_sound(name: str, arms: set[str]) -> None:
    plan = load_study(ROOT / "docs" / "studies" / f"{name}.yaml", TEMPLATE, own_data_settings=())
    assert plan.name == name
    assert plan.added == [arm for arm in ("random", "equal") if arm not in arms]
    assert len(plan.seeds) >= 3
    assert arms <= set(plan.arms)


def test_wrong_classes_are_of_an_arm_and_of_a_study_without_rounds(tmp_path: Path) -> None:
    assert load_config(tmp_path, rounds=0, wrong_classes={"mine": 0.4, "random": 0.2}).wrong_classes["mine"] == 0.4
    for changes, words in (
        ({"rounds": 0, "wrong_classes": {"yours": 0.4}}, "wrong_classes names 'yours', expected one of the arms"),
        ({"rounds": 1, "wrong_classes": {"mine": 0.4}}, "rounds is 1, expected 0 with wrong_classes"),
        ({"rounds": 0, "wrong_classes": {"mine": 1.5}}, "wrong_classes.mine is 1.5, expected less than or equal to 1"),
    ):
        with pytest.raises(UserError, match=words):
            load_config(tmp_path, **changes)  # type: ignore[arg-type]


LEARNERS = {"random", "teachers", "tau-norm", "generalized", "bootstrap", "sim-ota"}
LEARNERS |= {"check-veto", "check-weight", "dense-paste", "relations"}


@pytest.mark.parametrize(("name", "arms"), [("learners-bccd", LEARNERS), ("learners-noise-bccd", {"noise40"})])
def test_arms_of_the_studies_of_learners_differ_by_what_they_are_named_for(name: str, arms: set[str]) -> None:
    plan = load_study(ROOT / "docs" / "studies" / f"{name}.yaml", TEMPLATE, own_data_settings=())
    assert arms <= set(plan.arms)
    assert plan.rounds == 0
    base = validate_params(yaml.safe_load(arm_params(plan, "random", 1, TEMPLATE, ["a", "b"])), "random")
    for arm in set(plan.arms) - set(plan.added) - {"random"}:
        params = validate_params(yaml.safe_load(arm_params(plan, arm, 1, TEMPLATE, ["a", "b"])), arm)
        assert (params != base) or arm in plan.wrong_classes
        assert (params.train.iterations, params.model) == (base.train.iterations, base.model)


DATA_SETS = ("bccd", "demo", "deep-pcb", "medical-waste", "paddy-disease")


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_studies_over_minutes_have_all_rivals_and_plain_baselines(data_set: str) -> None:
    plan = load_study(ROOT / "docs" / "studies" / f"minutes-{data_set}.yaml", TEMPLATE, own_data_settings=())
    assert plan.added == []
    assert len(plan.seeds) >= 8
    assert {"random", "equal", "entropy", "dwa"} <= set(plan.arms)  # what a claim needs; others may be added
    for arm in plan.arms:
        params = validate_params(yaml.safe_load(arm_params(plan, arm, 1, TEMPLATE, ["a"])), arm)
        assert params.budget.unit == "minutes"
        assert params.train.init_from == "pretrained"
        assert (params.dwa.class_weight_max == 1) == (arm != "dwa")


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_studies_of_rankings_learn_from_random_labels(data_set: str) -> None:
    plan = load_study(ROOT / "docs" / "studies" / f"ranking-{data_set}.yaml", TEMPLATE, own_data_settings=())
    assert (plan.question, list(plan.arms), len(plan.seeds)) == ("ranking", ["random"], 5)
    params = validate_params(yaml.safe_load(arm_params(plan, "random", 1, TEMPLATE, ["a"])), "random")
    assert (params.select.strategy, params.dwa.mode) == ("random", "learned")
