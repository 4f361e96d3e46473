"""Read one text file per image with a line per object, as YOLO, DOTA and VisDrone have them."""

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from tasks.data.formats.base import ParsedBox, ParsedImage
from tasks.data.formats.decoding import decode_text

_MAX_BYTES = 64 << 20


def parse_object_lines(
    content: bytes,
    file_name: str,
    parse_line: Callable[[str, str], Iterable[ParsedBox]],
    is_label_folder: Callable[[str], bool],
) -> ParsedImage:
    """Read one label file.

    Args:
        content: of the file.
        file_name: its path, which says which image is meant.
        parse_line: gives the boxes of a line, which is not blank, and of its name for messages.
        is_label_folder: whether tools look for the images of a folder of this name in ``images`` beside it.
    """
    if len(content) > _MAX_BYTES:
        problem = f"the file is {len(content)} bytes long, expected at most {_MAX_BYTES}"
        return ParsedImage(file_name, file_name, problems=(problem,))
    boxes: list[ParsedBox] = []
    for position, line in enumerate(decode_text(content)[0].splitlines(), start=1):
        if text := line.replace("\x00", " ").strip():
            boxes.extend(parse_line(text, f"line {position}"))
    return ParsedImage(
        file_name, file_name, tuple(boxes), alternative_names=_image_folder_name(file_name, is_label_folder)
    )


def _image_folder_name(file_name: str, is_label_folder: Callable[[str], bool]) -> tuple[str, ...]:
    """The path with ``images`` in the place of the last folder of labels, if there is one."""
    parts = list(PurePosixPath(file_name).parts)
    at = next((n for n in range(len(parts) - 2, -1, -1) if is_label_folder(parts[n])), None)
    return () if at is None else ("/".join([*parts[:at], "images", *parts[at + 1 :]]),)
