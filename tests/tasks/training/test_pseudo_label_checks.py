"""What training tells the report about checked pseudo-labels, on a small random detector."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectron_ext.augmentation import Example
from detectron_ext.pseudo_labels import ScoreThreshold
from tasks.model.detector import ImageReader, new_detector
from tasks.params import load_params
from tasks.params.template import render_params
from tasks.training.pseudo_label_checks import NUM_SHOWN, check_summary, new_check

REPOSITORY = Path(__file__).parents[3]
CLASSES = ["disc", "square"]
SETTINGS = [
    "model.pretrained_weights=none",
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "ssl.pseudo_label_check=veto",
]


class Trainer:
    """What the summary reads of a trainer."""

    def __init__(self, teacher: Any, check: Any, min_score: float) -> None:
        self.teacher, self.check = teacher, check
        self.threshold = ScoreThreshold("fixed", min_score, len(CLASSES))


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    (tmp_path / "params.yaml").write_text(
        render_params((REPOSITORY / "params.yaml").read_text(), classes=CLASSES, overrides=SETTINGS)
    )
    params = load_params(tmp_path / "params.yaml")
    torch.manual_seed(0)
    detector = new_detector(params.model, len(CLASSES), 0.0, tmp_path, "cpu").eval()
    examples = []
    for number in range(NUM_SHOWN + 3):
        pixels = np.random.default_rng(number).integers(0, 255, (128, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        examples.append(Example(str(number), f"{number}.png", np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    read = ImageReader(tmp_path, [{"uri": one.uri, "image_id": one.image_id} for one in examples])
    return params, detector, examples, read


def test_examples_go_from_the_most_doubtful_to_the_least_in_pixels_of_the_original(parts: Any) -> None:
    params, detector, examples, read = parts
    check = new_check(params.ssl, detector, len(CLASSES), seed=1)
    assert check is not None
    features = torch.from_numpy(
        np.random.default_rng(1).normal(size=(3, detector.roi_heads.box_head.output_shape.channels))
    )
    check.prototypes.update(features, torch.arange(3))
    check.num_judged, check.num_below = 10, 4
    summary = check_summary(Trainer(detector, check, 0.02), examples, read, params.model, CLASSES)  # type: ignore[arg-type]
    assert summary is not None
    assert (summary["mode"], summary["judged"], summary["below"]) == ("veto", 10, 4)
    lowest = [min(box["value"] for box in shown["boxes"]) for shown in summary["examples"]]
    assert len(lowest) == NUM_SHOWN
    assert lowest == sorted(lowest)
    for shown in summary["examples"]:
        assert (shown["width_px"], shown["height_px"]) == (160, 128)  # twice what the detector sees
        assert (len(shown["map_percent"]), len(shown["map_percent"][0])) == (8, 10)
        assert max(map(max, shown["map_percent"])) == 100
        assert max(box["xyxy_px"][2] for box in shown["boxes"]) > 80
        for box in shown["boxes"]:
            assert box["value"] == pytest.approx(box["activation"] * box["similarity"], abs=1e-3)


def test_there_is_nothing_to_show_without_pseudo_labels_or_a_check(parts: Any) -> None:
    params, detector, examples, read = parts
    check = new_check(params.ssl, detector, len(CLASSES), seed=1)
    summary = check_summary(Trainer(detector, check, 1.0), examples, read, params.model, CLASSES)  # type: ignore[arg-type]
    assert summary is not None
    assert summary["examples"] == []
    off = params.ssl.model_copy(update={"pseudo_label_check": "none"})
    assert new_check(off, detector, len(CLASSES), seed=1) is None
    assert check_summary(Trainer(detector, None, 1.0), examples, read, params.model, CLASSES) is None  # type: ignore[arg-type]
