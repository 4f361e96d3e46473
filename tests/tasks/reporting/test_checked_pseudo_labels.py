"""Checked pseudo-labels in the report: the map lies where it belongs, and what was held back is said."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.reporting.checked_pseudo_labels import check_text, checked_pictures


def summary(mode: str = "veto") -> dict[str, Any]:
    sure = {"class_name": "a", "score": 0.9, "activation": 0.8, "similarity": 1.0, "value": 0.8}
    doubtful = {"class_name": "b", "score": 0.7, "activation": 0.3, "similarity": 0.5, "value": 0.15}
    boxes = [{"xyxy_px": [0, 0, 80, 60], **sure}, {"xyxy_px": [400, 0, 800, 600], **doubtful}]
    shown = {"image_id": "1", "uri": "a.png", "width_px": 800, "height_px": 600, "boxes": boxes}
    examples = [{**shown, "map_percent": [[0, 100], [0, 100]]}]
    return {
        "pseudo_label_check": {"mode": mode, "threshold": 0.2, "judged": 50, "below": 10, "examples": examples},
    }


def test_the_map_colors_the_active_part_of_a_gray_picture(tmp_path: Path) -> None:
    Image.new("RGB", (800, 600), (200, 10, 10)).save(tmp_path / "a.png")
    [picture] = checked_pictures(summary(), tmp_path, {"a": 0, "b": 3}, 6)
    assert (picture.width_px, picture.height_px) == (400, 300)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data_uri.split(",")[1]))), dtype=float)
    quiet, active = pixels[150, 20], pixels[150, 380]
    assert quiet.max() - quiet.min() < 12  # gray
    gray = quiet.mean()
    np.testing.assert_allclose(active, 0.25 * gray + 0.75 * np.array([213, 94, 0]), atol=12)
    doubtful, sure = picture.boxes  # the lower value first
    assert (doubtful.x, doubtful.width, doubtful.color, doubtful.is_below) == (200, 200, 3, True)
    assert (sure.width, sure.height, sure.is_below) == (40, 30, False)


def test_an_image_that_is_not_here_leaves_an_empty_picture_and_none_are_drawn_where_none_are_wanted(
    tmp_path: Path,
) -> None:
    [picture] = checked_pictures(summary(), tmp_path, {}, 6)
    assert picture.data_uri == ""
    assert checked_pictures(summary(), tmp_path, {}, 0) == []
    assert checked_pictures({}, tmp_path, {}, 6) == []


def test_the_text_says_what_became_of_doubtful_pseudo_labels() -> None:
    assert check_text({}) == ""
    assert "judged 50 pseudo-labels over the training; 10 (20 %) had a value below 0.2 and were left out" in check_text(
        summary()
    )
    assert check_text(summary("weight")).endswith("and were counted less.")
    nothing = {"pseudo_label_check": {**summary()["pseudo_label_check"], "judged": 0, "below": 0}}
    assert "judged 0 pseudo-labels over the training; 0 had" in check_text(nothing)
