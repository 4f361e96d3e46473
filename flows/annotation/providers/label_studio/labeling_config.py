"""Build and check the labeling configuration: the image, why it was selected, and a button for each class."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence

CONTROL, IMAGE = "label", "image"
"""Names of the two tags that every region refers to."""
_HOTKEYS = "1234567890"
_PALETTE = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#8C564B",
    "#7F3FBF",
    "#17BECF",
    "#BCBD22",
    "#E377C2",
    "#2CA02C",
    "#FF9896",
    "#1F3A93",
    "#AEC7E8",
    "#A65628",
    "#98DF8A",
    "#B2182B",
    "#5E3C99",
]
"""The first seven are those of Okabe and Ito, which are distinguishable with color blindness."""


def labeling_config(classes: Sequence[str]) -> str:
    """Build the configuration; a class keeps its color and key when others are appended.

    The first ten classes get the keys 1 to 9 and 0; Label Studio assigns free letters to the others.
    """
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$about", size="5")
    control = ET.SubElement(view, "RectangleLabels", name=CONTROL, toName=IMAGE, canRotate="false", strokeWidth="2")
    for number, name in enumerate(classes):
        label = ET.SubElement(control, "Label", value=name, background=_PALETTE[number % len(_PALETTE)])
        if number < len(_HOTKEYS):
            label.set("hotkey", _HOTKEYS[number])
    ET.SubElement(view, "Image", name=IMAGE, value="$image", zoom="true", zoomControl="true", rotateControl="false")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def config_error(config: str, classes: Sequence[str]) -> str | None:
    """Return why boxes drawn with a configuration could not be read; None: they can.

    Teams may change colors and keys, and add classes and tags.
    """
    try:
        root = ET.fromstring(config)
    except ET.ParseError as error:
        return f"the labeling configuration is no XML ({error})"
    control = root.find(f".//RectangleLabels[@name='{CONTROL}'][@toName='{IMAGE}']")
    if control is None or root.find(f".//Image[@name='{IMAGE}'][@value='$image']") is None:
        return f"the labeling configuration has no RectangleLabels {CONTROL!r} on an Image {IMAGE!r}"
    configured = {label.get("value") for label in control.iter("Label")}
    if missing := [name for name in classes if name not in configured]:
        return f"the labeling configuration lacks {', '.join(map(repr, missing))}, expected all classes of params.yaml"
    return None
