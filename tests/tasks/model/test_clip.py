"""A network of pictures and words: from a file that is known by its digest, and no code in it is run."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from tasks.model.clip import load_clip
from tasks.params.clip import ClipParams
from tasks.runtime.errors import UserError
from tasks.storage import files

WORDS = ("red", "green", "blue")


class TinyNetwork(nn.Module):
    """The interface of OpenCLIP's networks: a picture's mean color and a text's words, each through a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.visual = SimpleNamespace(preprocess_cfg={"size": 2})

    def encode_image(self, batch: Tensor) -> Tensor:
        return self.picture(batch.mean(dim=(2, 3)))

    def encode_text(self, counts: Tensor) -> Tensor:
        return self.text(counts)


def fake_open_clip() -> ModuleType:
    configs: dict[str, dict[str, Any]] = {"tiny": {"text_cfg": {}}, "hf": {"text_cfg": {"hf_tokenizer_name": "x"}}}

    def image_transform_v2(cfg: dict[str, int], *, is_train: bool) -> Any:
        side = cfg["size"]
        return lambda image: torch.from_numpy(np.array(image.resize((side, side)))).permute(2, 0, 1) / 255

    def tokenize(texts: list[str]) -> Tensor:
        return torch.tensor([[float(text.count(word)) for word in WORDS] for text in texts])

    module = ModuleType("open_clip")
    vars(module).update(
        get_model_config=configs.get,
        create_model=lambda name, *, pretrained, load_weights: TinyNetwork(),
        get_tokenizer=lambda name: tokenize,
        transform=SimpleNamespace(PreprocessCfg=lambda **cfg: cfg, image_transform_v2=image_transform_v2),
    )
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the stand-in for ``open_clip``."""
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())
    torch.manual_seed(3)
    torch.save(TinyNetwork().state_dict(), tmp_path / "clip.pt")
    return tmp_path


def clip_params(folder: Path, name: str = "clip.pt", architecture: str = "tiny", **changes: Any) -> ClipParams:
    given: dict[str, Any] = {"weights": name, "weights_sha256": files.sha256_file(folder / name)}
    return ClipParams(**{"architecture": architecture, "prompts": ["a {}", "one {}"], **given, **changes})


def test_descriptions_are_the_networks_with_length_one(folder: Path) -> None:
    clip = load_clip(clip_params(folder), folder, "cpu")
    state = torch.load(folder / "clip.pt", weights_only=True)
    picture = np.zeros((6, 9, 3), np.uint8)
    picture[..., 1] = 255
    [found] = clip.describe_images([picture])
    expected = state["picture.weight"][:, 1].numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-5)
    [text] = clip.describe_texts(["green and green"])
    np.testing.assert_allclose(text, state["text.weight"][:, 1] / state["text.weight"][:, 1].norm(), rtol=1e-5)


def test_a_class_is_the_mean_direction_of_its_prompts(folder: Path) -> None:
    clip = load_clip(clip_params(folder), folder, "cpu")
    found = clip.describe_classes(["red", "blue"], ["{}", "{} and green"])
    for row, name in zip(found, ["red", "blue"], strict=True):
        mean = clip.describe_texts([name, f"{name} and green"]).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)


def test_safetensors_and_tensors_of_a_training_are_read_too(folder: Path) -> None:
    from safetensors.torch import save_file

    state = torch.load(folder / "clip.pt", weights_only=True)
    save_file(state, folder / "clip.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "training.pt")
    expected = load_clip(clip_params(folder), folder, "cpu").describe_texts(WORDS)
    for name in ("clip.safetensors", "training.pt"):
        found = load_clip(clip_params(folder, name), folder, "cpu").describe_texts(WORDS)
        np.testing.assert_array_equal(found, expected)


class Payload:
    """Would create a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_code_in_a_file_is_refused_and_not_run(folder: Path) -> None:
    torch.save({"state_dict": Payload(folder / "ran")}, folder / "code.pt")
    with pytest.raises(UserError, match="the tensors are unusable"):
        load_clip(clip_params(folder, "code.pt"), folder, "cpu")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "", "weights_sha256": ""}, "weights is empty, expected the file of a checkpoint"),
        ({"weights": "no.pt"}, "weights is 'no.pt', expected an existing file"),
        ({"weights_sha256": "0" * 64}, f", expected {'0' * 64}"),
        ({"architecture": "none"}, "architecture is 'none', expected one of"),
        ({"architecture": "hf"}, "expected one with its own tokenizer"),
    ],
)
def test_what_cannot_be_loaded_is_named(folder: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        load_clip(clip_params(folder, **changes), folder, "cpu")
    assert words in str(raised.value)


def test_tensors_of_another_network_and_a_missing_package_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"picture.weight": torch.zeros(4, 3)}, folder / "other.pt")
    with pytest.raises(UserError, match="the tensors are unusable for tiny"):
        load_clip(clip_params(folder, "other.pt"), folder, "cpu")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="open_clip cannot be imported"):
        load_clip(clip_params(folder), folder, "cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": ""}, "weights is empty, expected a value where weights_sha256 has one"),
        ({"weights_sha256": ""}, "weights_sha256 is empty, expected a value where weights has one"),
        ({"prompts": ["a photo"]}, "expected {} once in each"),
    ],
)
def test_a_half_set_section_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        clip_params(folder, **changes)
    assert words in str(raised.value)


@pytest.mark.integration
def test_a_small_network_of_the_real_package_is_loaded(tmp_path: Path) -> None:
    """Random weights: the mechanics only."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "gleaner-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "gleaner-tiny.json")
    torch.manual_seed(0)
    network = open_clip.create_model("gleaner-tiny", pretrained=None, load_weights=False).eval()
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    clip = load_clip(clip_params(tmp_path, architecture="gleaner-tiny"), tmp_path, "cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    _, _, transform = open_clip.create_model_and_transforms("gleaner-tiny", pretrained=None, load_weights=False)
    with torch.inference_mode():
        expected = network.encode_image(transform(Image.fromarray(pixels))[None], normalize=True)
        words = network.encode_text(open_clip.get_tokenizer("gleaner-tiny")(["a cat"]), normalize=True)
    np.testing.assert_allclose(clip.describe_images([pixels]), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.describe_texts(["a cat"]), words.numpy(), atol=1e-5)
