"""params.yaml: every mistake is one sentence that names the key, its value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.params import load_params, load_stage_params, validate_params
from tasks.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def content() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "params.yaml").read_text()))


def error_message(tmp_path: Path, content: dict[str, Any]) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "itertions", 10, "train.itertions is an unknown parameter"),
        ("train", "iterations", "many", "train.iterations is 'many', expected integer"),
        ("train", "iterations", 0, "train.iterations is 0, expected greater than 0"),
        ("train", "iterations", 10.5, "train.iterations is 10.5, expected"),
        ("ssl", "ema_decay", 1.0, "ssl.ema_decay is 1.0, expected less than 1"),
        ("ssl", "enabled", "yes", "ssl.enabled is 'yes', expected boolean"),
        ("ssl", "image_weighting", "sideways", "expected 'favor_uncertain', 'favor_certain' or 'uniform'"),
        ("select", "random_frac", 1.5, "select.random_frac is 1.5"),
        ("train", "learning_rate", float("inf"), "train.learning_rate is inf, expected a finite number"),
        ("model", "fpn_channels", 48, "model.fpn_channels is 48, expected a multiple of 32"),
    ],
)
def test_a_wrong_value_is_named(
    tmp_path: Path, content: dict[str, Any], section: str, key: str, value: Any, words: str
) -> None:
    content[section] = {**content[section], key: value}
    said = error_message(tmp_path, content)
    assert words in said
    assert "\n" not in said


def test_a_missing_parameter_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["infer"]["batch_size"]
    del content["scoring"]
    said = error_message(tmp_path, content)
    assert "infer.batch_size is missing" in said
    assert "scoring is missing" in said


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("train", {"burn_in_iterations": 10**6}, "burn_in_iterations is 1000000, expected at most iterations"),
        ("model", {"long_side_px": 1}, "long_side_px is 1, expected at least short_side_px"),
        ("dwa", {"fixed_weights": [0.5, 0.5, 0.5]}, "fixed_weights sum to 1.5, expected 1"),
        ("ssl", {"teacher_decays": [0.9]}, "teacher_decays is [0.9], expected each once and none equal to ema_decay"),
        ("ssl", {"teacher_decays": [0.5, 0.5]}, "two averages with one decay are the same teacher"),
        ("ssl", {"teacher_decays": [0.5], "enabled": False}, "expected [] where enabled is false"),
        ("ssl", {"noise_aware_labels": True}, "with noise_aware_loss none, expected generalized"),
        ("ssl", {"noise_aware_loss": "bootstrap", "noise_aware_labels": True}, "labels have no teacher's score"),
        ("ssl", {"noise_aware_loss": "generalized", "enabled": False}, "no image would be trained with it"),
        ("ssl", {"pseudo_label_check": "veto", "enabled": False}, "pseudo_label_check is veto, expected none where"),
        ("ssl", {"paste_objects_per_view": 3}, "paste_objects_per_view is 3 and paste_pseudo_frac 0 with paste_rare"),
        ("ssl", {"paste_pseudo_frac": 0.5}, "paste_pseudo_frac 0.5 with paste_rare_frac 0, expected 1 and 0"),
        (
            "ssl",
            {"paste_rare_frac": 0.5, "paste_pseudo_frac": 0.5, "paste_pseudo_score": 0.6},
            "paste_pseudo_score is 0.6, expected at least pseudo_label_threshold 0.7",
        ),
        ("ssl", {"objectness_doubt": True, "enabled": False}, "objectness_doubt is true, expected false where enabled"),
        ("ssl", {"fusion_mirrored_view": True, "enabled": False}, "fusion_mirrored_view is true, expected false where"),
        ("ssl", {"relation_weight": 1.0, "enabled": False}, "relation_weight is 1, expected 0 where enabled is false"),
        ("infer", {"backend": "tensorrt"}, "infer.backend is 'tensorrt', expected 'torch', 'onnx' or 'openvino'"),
        ("infer", {"backend_precision": "int8"}, "backend_precision is int8, expected fp32 where backend is torch"),
        ("select", {"strategy": "portfolio", "portfolio": ["committee", "random"]}, "infer.committee is 'none'"),
        ("select", {"portfolio": ["random", "random"]}, "portfolio is random, random, expected each once"),
        ("select", {"strategy": "committee"}, "infer.committee is 'none', expected 'student' or 'previous_teacher'"),
        ("select", {"strategy": "composite", "objectives": {"committee": 1.0}}, "infer.committee is 'none'"),
        (
            "select",
            {"strategy": "objectness_entropy"},
            "infer.objectness_entropy_frac is 0, expected more",
        ),
        (
            "dwa",
            {"mode": "objectness_entropy"},
            "infer.objectness_entropy_frac is 0, expected more",
        ),
        ("infer", {"backend": "onnx", "objectness_entropy_frac": 0.1}, "objectness_entropy_frac is 0.1, expected 0"),
    ],
)
def test_a_wrong_combination_is_named(
    tmp_path: Path, content: dict[str, Any], section: str, changes: dict[str, Any], words: str
) -> None:
    content[section] = {**content[section], **changes}
    assert words in error_message(tmp_path, content)


def test_a_backend_that_nobody_compared_with_the_architecture_is_refused(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["infer"]["backend"] = "onnx"
    assert validate_params(content, "here").infer.backend == "onnx"
    content["model"]["architecture"] = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
    words = "infer.backend is onnx, expected torch where model.architecture is COCO-Detection/faster_rcnn"
    assert words in error_message(tmp_path, content)


def test_pretraining_of_a_frozen_backbone_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train"]["pretrain_iterations"] = 50
    content["model"]["trainable_stages"] = 0
    words = "train.pretrain_iterations is 50, expected 0 where model.trainable_stages is 0"
    assert words in error_message(tmp_path, content)
    content["model"]["architecture"] = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"  # has stages of its own
    assert validate_params(content, "here").train.pretrain_iterations == 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_decays": [0.99]}, "ssl.teacher_decays is [0.99], expected [] where train.unlabeled_batch_size is 0"),
        ({"noise_aware_loss": "bootstrap"}, "ssl.noise_aware_loss is bootstrap, expected none where train.unlabeled"),
        ({"pseudo_label_check": "weight"}, "ssl.pseudo_label_check is weight, expected none where train.unlabeled"),
        ({"objectness_doubt": True}, "ssl.objectness_doubt is true, expected false where train.unlabeled_batch_size"),
        (
            {"fusion_earlier_teachers": 2},
            "ssl.fusion_earlier_teachers is 2, expected 0 where train.unlabeled_batch_size",
        ),
        ({"source_kl_weight": 1.0}, "ssl.source_kl_weight is 1, expected 0 where train.unlabeled_batch_size is 0"),
        ({"relation_weight": 1.0}, "ssl.relation_weight is 1, expected 0 where train.unlabeled_batch_size is 0"),
    ],
)
def test_learners_of_unlabeled_images_are_refused_without_any(
    tmp_path: Path, content: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    content["train"] = {**content["train"], "unlabeled_batch_size": 0}
    content["ssl"] = {**content["ssl"], **changes}
    assert words in error_message(tmp_path, content)


def test_an_anchor_needs_a_model_to_start_from(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train"] = {**content["train"], "init_from": "pretrained"}
    content["ssl"] = {**content["ssl"], "source_kl_weight": 1.0}
    words = "ssl.source_kl_weight is 1, expected 0 where train.init_from is pretrained"
    assert words in error_message(tmp_path, content)


def test_noisy_labels_need_no_pseudo_label(content: dict[str, Any]) -> None:
    content["ssl"] = {**content["ssl"], "enabled": False, "noise_aware_loss": "generalized", "noise_aware_labels": True}
    assert validate_params(content, "params").ssl.noise_aware_labels


def test_a_class_named_twice_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["classes"] = ["cat", "cat"]
    assert "expected no name twice" in error_message(tmp_path, content)


@pytest.mark.parametrize("text", ["seed: [", "just words", ""])
def test_rubbish_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_params(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gleaner init"):
        load_params(tmp_path / "params.yaml")


def test_a_stage_gets_only_what_it_declares() -> None:
    sections = load_stage_params(REPOSITORY / "params.yaml", "seed", "infer")
    assert sections.infer.batch_size > 0
    with pytest.raises(AttributeError, match="'train' is not declared"):
        _ = sections.train


def test_a_few_lines_that_mean_gigabytes_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join([*lines, "classes: *a9"]))
    with pytest.raises(UserError, match="an alias, expected the value itself") as raised:
        load_params(path)
    assert len(str(raised.value)) < 1000


def test_an_endless_list_of_mistakes_is_cut(tmp_path: Path, content: dict[str, Any]) -> None:
    unknown = {f"x{number}": 1 for number in range(5000)}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**content, **unknown, "seed": "y" * 100_000}))
    with pytest.raises(UserError, match=r"and \d+ more") as raised:
        load_params(path)
    assert len(str(raised.value)) < 10_000
