"""What a model may start from: packaged weights, a model-zoo YAML, a site's checkpoint; and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from detectron_ext.losses import CROWD_LABEL
from detectron_ext.meta_arch import cpu_state_dict, load_pretrained
from tasks.data import schemas
from tasks.model.detector import detect, load_detector, load_weights_file, new_detector, to_examples
from tasks.model.pretrained_weights import read_weights
from tasks.params import load_params
from tasks.params.training import ModelParams
from tasks.runtime.errors import UserError
from tasks.storage.files import sha256_file

ZOO = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
REPOSITORY = Path(__file__).parents[3]


def model_params(**changes: Any) -> ModelParams:
    own = load_params(REPOSITORY / "params.yaml").model
    return own.model_copy(update={"fpn_channels": 32, "short_side_px": 64, "long_side_px": 96, **changes})


def test_a_trained_detector_is_loaded_and_detects_in_pixels_of_the_original(tmp_path: Path) -> None:
    model = model_params()
    torch.save(cpu_state_dict(new_detector(model, 2, 1.5, tmp_path, "cpu")), tmp_path / "teacher.pth")
    detector = load_detector(model, 2, tmp_path / "teacher.pth", "cpu")
    images = [np.random.default_rng(n).integers(0, 256, (100 + n, 150, 3), dtype=np.uint8) for n in range(2)]
    for image, found in zip(images, detect(detector, images, model, True), strict=True):
        assert found.class_probs.shape == (len(found.scores), 3)
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy[:, [0, 2]] <= image.shape[1]).all()
        assert (found.boxes_xyxy[:, [1, 3]] <= image.shape[0]).all()


@pytest.mark.integration
def test_a_model_zoo_yaml_builds_and_starts_from_a_checkpoint(tmp_path: Path) -> None:
    """A ResNet-50 FPN goes through the same heads; of a COCO checkpoint the class layers do not fit and stay new."""
    model = model_params(architecture=ZOO, pretrained_weights="none")
    coco = new_detector(model, 80, 1.5, tmp_path, "cpu")
    state = {name: value.numpy() for name, value in cpu_state_dict(coco).items()}
    with (tmp_path / "model_final.pkl").open("wb") as stream:
        pickle.dump({"model": state, "__author__": "Detectron2 Model Zoo"}, stream)
    own = new_detector(model.model_copy(update={"pretrained_weights": "model_final.pkl"}), 2, 1.5, tmp_path, "cpu")
    for name, value in cpu_state_dict(own).items():
        if value.shape == state[name].shape:
            torch.testing.assert_close(value, torch.from_numpy(state[name]))
    assert own.roi_heads.box_predictor.cls_score.out_features == 3
    assert own.input_format == "BGR"
    found = detect(own.eval(), [np.zeros((80, 120, 3), dtype=np.uint8)], model, True)
    assert found[0].class_probs.shape[1] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "no_such_net", "pretrained_weights": "none"}, "backbone is 'no_such_net'"),
        ({"backbone": "resnet18"}, "pretrained_weights is 'imagenet' with timm_fpn on resnet18"),
        (
            {"pretrained_weights": "gone.pth"},
            "pretrained_weights is 'gone.pth', expected imagenet, none, an existing file",
        ),
        ({"pretrained_weights": "../outside.pth"}, "inside the workspace"),
        ({"architecture": "no/such.yaml", "pretrained_weights": "none"}, "is no Detectron2 YAML"),
        # its YAML runs eval(), so it is not even read
        (
            {"architecture": "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "pretrained_weights": "none"},
            "is no Detectron2 YAML",
        ),
        (
            {"architecture": "COCO-Detection/rpn_R_50_FPN_1x.yaml", "pretrained_weights": "none"},
            "is of ('ProposalNetwork'",
        ),
        ({"architecture": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "pretrained_weights": "none"}, "with FPN"),
    ],
)
def test_an_unusable_start_is_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        new_detector(model_params(**changes), 2, 1.5, tmp_path, "cpu")
    assert str(caught.value).startswith("params.yaml: model: ")
    assert words in str(caught.value)


def test_weights_that_carry_code_are_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    for name in ("evil.pkl", "evil.pth"):
        with (tmp_path / name).open("wb") as stream:
            pickle.dump({"model": Harm()}, stream, protocol=2)
        with pytest.raises(ValueError, match="unreadable"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_torn_weights_file_is_named(tmp_path: Path) -> None:
    model = model_params(pretrained_weights="none")
    detector = new_detector(model, 2, 1.5, tmp_path, "cpu")
    torch.save(cpu_state_dict(detector), tmp_path / "teacher.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "teacher.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match="Run: dvc repro train"):
        load_weights_file(detector, tmp_path / "torn.pth")


def test_the_file_of_an_address_starts_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector of another campaign; its class layers do not fit and start anew, which is said."""
    other = new_detector(model_params(pretrained_weights="none"), 5, 1.5, tmp_path, "cpu")
    torch.save(cpu_state_dict(other), tmp_path / "file.pth")
    digest = sha256_file(tmp_path / "file.pth")
    (tmp_path / "file.pth").rename(tmp_path / f"{digest}.pth")
    monkeypatch.setenv("GLEANER_WEIGHTS_CACHE", str(tmp_path))
    address = f"https://example.invalid/teacher.pth#sha256={digest}"
    lines: list[str] = []
    monkeypatch.setattr("tasks.model.detector.log.info", lambda text, *values: lines.append(text % values))
    own = new_detector(model_params(pretrained_weights=address), 2, 1.5, tmp_path, "cpu")
    assert torch.equal(own.backbone.fpn_output2.weight, other.backbone.fpn_output2.weight)
    assert lines == [
        f"starting from {len(own.state_dict()) - 2} tensors of {address}",
        "2 tensors of another shape, so they start anew: "
        "roi_heads.box_predictor.cls_score.bias, roi_heads.box_predictor.cls_score.weight",
    ]


@pytest.mark.integration
def test_a_backbones_names_are_mapped(tmp_path: Path) -> None:
    """As in the zoo's ImageNetPretrained/torchvision/R-50.pkl: Detectron2's names without the detector's prefixes."""
    model = model_params(architecture=ZOO, pretrained_weights="none")
    source = new_detector(model, 2, 1.5, tmp_path, "cpu").backbone.bottom_up
    state = {name: value.numpy() for name, value in cpu_state_dict(source).items()} | {"fc1000.bias": np.zeros(1000)}
    with (tmp_path / "R-50.pkl").open("wb") as stream:
        pickle.dump({"model": state, "__author__": "torchvision", "matching_heuristics": True}, stream)
    read = read_weights(tmp_path / "R-50.pkl")
    own = new_detector(model, 2, 1.5, tmp_path, "cpu")
    report = load_pretrained(own, read.tensors, read.naming)
    assert report.num_taken == len(state) - 1
    assert report.not_in_model == ["fc1000.bias"]
    assert torch.equal(own.backbone.bottom_up.res5[2].conv3.weight, source.res5[2].conv3.weight)


def test_crowd_regions_become_examples_with_a_label_of_their_own() -> None:
    row = {
        "image_id": "a",
        "uri": "a.png",
        "width_px": 9,
        "height_px": 9,
        "boxes_xyxy": [1.0, 2, 3, 4, 0, 0, 9, 9],
        "class_ids": [1, 0],
    }
    marked, unmarked = (
        to_examples(pa.Table.from_pylist([row | {"is_crowd": is_crowd}], schemas.ANNOTATED))[0]
        for is_crowd in ([False, True], None)
    )
    assert (marked.class_ids.tolist(), unmarked.class_ids.tolist()) == ([1, CROWD_LABEL], [1, 0])
    bare = pa.Table.from_pylist([{"image_id": "a", "uri": "a.png", "width_px": 9, "height_px": 9}], schemas.UNLABELED)
    assert to_examples(bare)[0].class_ids.shape == (0,)
