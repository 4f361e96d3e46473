"""Fixtures of the tests that need a CUDA device; every one of them takes ``device`` and skips without CUDA."""

import pytest
import torch

from tests.detectron_ext.conftest import batch_of, example  # noqa: F401 (fixtures)


@pytest.fixture
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.fixture
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute convolutions in float32, where results are compared to less than TF32 resolves."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
