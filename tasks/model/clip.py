"""A network of pictures and words (OpenCLIP), loaded from a local file that is known by its digest.

Shape shorthand: P pictures, T texts, K classes, C numbers of a description.
"""

import importlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.augmentation import Pixels
from tasks.data.paths import resolve_uri
from tasks.model.detector import default_device
from tasks.params.clip import ClipParams
from tasks.runtime.errors import UserError
from tasks.storage import files

Descriptions = NDArray[np.float32]
_WHERE = "params.yaml: clip"


class Clip:
    """Describes pictures and texts by vectors of length 1 that can be compared with each other."""

    def __init__(self, network: Any, transform: Any, tokenizer: Any, device: str) -> None:
        """Keep the network, in eval mode on ``device``, and what makes its inputs."""
        self._network, self._transform, self._tokenizer = network, transform, tokenizer
        self._device = device

    @torch.inference_mode()
    def describe_images(self, images: Sequence[Pixels]) -> Descriptions:
        """Return the descriptions of RGB images (H, W, 3) uint8, (P, C)."""
        batch = torch.stack([self._transform(Image.fromarray(pixels)) for pixels in images])
        return _unit_rows(self._network.encode_image(batch.to(self._device)))

    @torch.inference_mode()
    def describe_texts(self, texts: Sequence[str]) -> Descriptions:
        """Return the descriptions of texts, (T, C)."""
        return _unit_rows(self._network.encode_text(self._tokenizer(list(texts)).to(self._device)))

    def describe_classes(self, classes: Sequence[str], prompts: Sequence[str]) -> Descriptions:
        """Return the mean direction of the prompts of each class, (K, C)."""
        means = [
            self.describe_texts([prompt.replace("{}", name) for prompt in prompts]).mean(axis=0) for name in classes
        ]
        return _unit_rows(torch.from_numpy(np.stack(means)))


def _unit_rows(features: Tensor) -> Descriptions:
    return np.asarray(F.normalize(features.float(), dim=-1).cpu().numpy())


def load_clip(params: ClipParams, root: Path, device: str | None = None) -> Clip:
    """Build the network and load its weights; nothing is fetched, and nothing in the file is run.

    Args:
        params: section clip.
        root: the campaign, which the file's path is relative to.
        device: of the network; None: a GPU where there is one.

    Raises:
        UserError: the package or the file is missing, the file is another one, or its tensors do not fit.
    """
    if not params.weights:
        problem = "weights is empty, expected the file of a checkpoint"
        raise UserError(_WHERE, problem, "See the guide on pictures and words.")
    open_clip = _import_open_clip()
    _check_architecture(open_clip, params.architecture)
    path = resolve_uri(root, params.weights)
    if not path.is_file():
        raise UserError(_WHERE, f"weights is {params.weights!r}, expected an existing file")
    digest = files.sha256_file(path)
    if digest != params.weights_sha256:
        problem = f"the SHA-256 of {params.weights} is {digest}, expected {params.weights_sha256}"
        raise UserError(_WHERE, problem, "Fetch the file again, or write its digest to clip.weights_sha256.")
    network = open_clip.create_model(params.architecture, pretrained=None, load_weights=False)
    try:
        network.load_state_dict(_read_tensors(path), strict=True)
    except (OSError, RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"the tensors are unusable for {params.architecture} ({message})"
        raise UserError(path, problem, "Choose the file's own architecture, or a file of tensors alone.") from None
    used_device = device or default_device()
    network.eval().to(used_device)
    size_and_colors = open_clip.transform.PreprocessCfg(**network.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(size_and_colors, is_train=False)
    return Clip(network, transform, open_clip.get_tokenizer(params.architecture), used_device)


def _import_open_clip() -> Any:
    """Import the package by name: it is an extra, which a campaign without clip.weights never needs."""
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        problem = f"weights is set and open_clip cannot be imported ({error}), expected the package"
        raise UserError(_WHERE, problem, "Run: pip install 'gleaner[clip]'") from None


def _check_architecture(open_clip: Any, name: str) -> None:
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(_WHERE, f"architecture is {name!r}, expected one of open_clip.list_models()")
    text = config.get("text_cfg", {})
    if "hf_tokenizer_name" in text or "hf_model_name" in text:
        problem = f"architecture is {name!r}, whose words come from Hugging Face, expected one with its own tokenizer"
        raise UserError(_WHERE, problem, "Choose ViT-B-32 or another that fetches nothing.")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a PyTorch file that holds tensors alone, also those of a training under its keys."""
    if path.suffix == ".safetensors":
        found = dict(importlib.import_module("safetensors.torch").load_file(path, device="cpu"))
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected tensors by name")
        found = content.get("state_dict", content)
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found
