"""Whole-image embeddings: written out, without a trace of what the pyramid makes of the image, and told apart."""

import numpy as np
import pytest
import torch
from torch import nn

from detectron_ext.embeddings import EMBEDDING_DIM, embed_images, projection, recorded_stages


def test_stages_are_averaged_scaled_and_projected() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = {
        name: scale * torch.randn(2, channels, 4, 3, generator=generator)
        for name, channels, scale in (("s4", 3, 1.0), ("s8", 5, 1.0), ("s16", 7, 100.0), ("s32", 9, 0.01))
    }
    found = embed_images(stages).numpy()
    assert found.shape == (2, EMBEDDING_DIM)
    expected = []
    for name in ("s8", "s16", "s32"):
        mean = stages[name].numpy().mean(axis=(2, 3))
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        expected.append(unit @ projection(unit.shape[1]).numpy())
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-6)


def test_a_stage_that_is_the_same_for_all_images_hides_no_other() -> None:
    """The coarsest stage has the same huge output for both images; the finer ones still tell them apart."""
    fine = torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    dead = torch.full((2, 16, 2, 2), 1e4)
    first, second = embed_images({"s8": fine, "s16": fine.flip(1), "s32": dead})
    assert (first - second).norm() > 0.05 * first.norm()


def test_only_the_next_pass_is_recorded() -> None:
    class Body(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"s4": x, "s8": x[:, :, ::2, ::2]}

    body = Body()
    with recorded_stages(body) as stages:
        body(torch.ones(1, 2, 4, 4))
    body(torch.zeros(1, 2, 4, 4))
    assert list(stages) == ["s4", "s8"]
    assert stages["s8"].sum() == pytest.approx(8)
