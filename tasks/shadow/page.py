"""Render a comparison of two models on a stream as one self-contained HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from tasks.reporting.thumbnails import small_jpeg
from tasks.shadow.compare import Comparison
from tasks.shadow.drift import LEVEL

_PICTURE_PX = 220


def render_page(
    comparison: Comparison,
    names: Mapping[str, tuple[str, str]],
    root: Path,
    facts: Mapping[str, Any],
    num_pictures: int,
) -> str:
    """Render the page.

    Args:
        comparison: what to show.
        names: file name and uri by image id.
        root: folder that uris are relative to.
        facts: ``champion``, ``challenger``, ``stream``, ``set_aside`` (lines of text) and ``known``, a count.
        num_pictures: images that are shown, by priority.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.FileSystemLoader(Path(__file__).parent), jinja2.PackageLoader("tasks", "reporting")]
        ),
        autoescape=True,  # file names and class names come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        {**row, "name": names[row["image_id"]][0],
         "data_uri": small_jpeg(names[row["image_id"]][1], row["image_id"], root, _PICTURE_PX)}
        for row in comparison.table.head(num_pictures).to_dict("records")
    ]  # fmt: skip
    return environment.get_template("page.html.j2").render(
        pictures=pictures, drift=comparison.drift, level=LEVEL, boxes_by_class=comparison.boxes_by_class, **facts
    )
