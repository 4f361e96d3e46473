"""Weights files from outside, read without running anything they carry."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detectron_ext.meta_arch import Naming

# All that a pickle of NumPy arrays needs; anything else in it would be code.
_ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class PretrainedWeights(NamedTuple):
    """Tensors of a checkpoint by name."""

    tensors: dict[str, Tensor]
    naming: Naming

    @property
    def is_detector(self) -> bool:
        """Whether they are of a whole detector of Detectron2's or Gleaner's, not of a backbone alone."""
        return any(name.startswith("backbone.") for name in self.tensors)


def read_weights(path: Path) -> PretrainedWeights:
    """Tensors of a PyTorch file or of a Detectron2 model-zoo pickle.

    Raises:
        ValueError: unreadable, or it carries more than arrays.
    """
    try:
        content = _read_pickle(path) if path.suffix == ".pkl" else torch.load(path, "cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, AttributeError, KeyError, IndexError, pickle.UnpicklingError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path.name} is unreadable ({message})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected tensors by name")
    inner: dict[str, Any] = content.get("model") or content.get("blobs") or content
    tensors = {name: torch.as_tensor(value) for name, value in inner.items() if _is_array(value)}
    return PretrainedWeights(tensors, _naming(path, content))


def _naming(path: Path, content: dict[str, Any]) -> Naming:
    """Tell the form by the same marks as Detectron2's own checkpointer."""
    if path.suffix == ".pkl" and "__author__" not in content:
        return "caffe2"
    return "suffix" if content.get("matching_heuristics") else "exact"


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__module__ == "numpy"


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, expected arrays only")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as stream:
        return _ArrayUnpickler(stream, encoding="latin1").load()
