"""The user's images folder, which file names from annotations may not leave."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from tasks.data.images import IMAGE_SUFFIXES, ImageMetadata, ImageProblem, inspect_image
from tasks.runtime.errors import UserError


class ImageResolver(Protocol):
    """Images by the names annotations use for them. Such names are untrusted text."""

    def inspect(self, file_name: str) -> tuple[Path | str, ImageMetadata]:
        """Where the image lies (a local file, or an s3 uri), and what it is."""

    def names(self) -> Iterator[str]:
        """Names of everything that ends like a picture."""


def image_resolver(images: Path | ImageResolver, *, max_pixels: int) -> ImageResolver:
    """The images of a folder, or what was made a source already.

    Raises:
        UserError: no such folder.
    """
    return ImageFolder(images, max_pixels) if isinstance(images, Path) else images


@dataclass(frozen=True)
class ImageFolder:
    """Image files by the names annotations use for them. Such names are untrusted text."""

    root: Path
    max_pixels: int

    def __post_init__(self) -> None:
        """Refuse a folder that is not there.

        Raises:
            UserError: missing or not a folder.
        """
        if not self.root.is_dir():
            raise UserError(self.root, "the images folder is missing, expected a folder", "Check --images.")

    def locate(self, file_name: str) -> Path:
        """Path of a file below the folder.

        Raises:
            ImageProblem: the name is absolute, climbs out, leaves through a link, or is no file name at all.
        """
        pure = PurePosixPath(file_name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in file_name:
            raise ImageProblem(f"the file name is {file_name[:100]!r}, expected a name inside the images folder")
        try:
            path = self.root.joinpath(*pure.parts)
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError, UnicodeEncodeError):  # too long, a loop of links, lone surrogates
            raise ImageProblem(f"the file name is {file_name[:100]!r}, expected one the system accepts") from None
        if not inside:
            raise ImageProblem(f"the file {file_name!r} is a link out of the images folder, expected a file in it")
        return path

    def inspect(self, file_name: str) -> tuple[Path, ImageMetadata]:
        """Locate, hash and decode one image.

        Raises:
            ImageProblem: as in ``locate`` and ``tasks.data.images.inspect_image``.
        """
        path = self.locate(file_name)
        return path, inspect_image(path, max_pixels=self.max_pixels)

    def names(self) -> Iterator[str]:
        """Names of all files that end like a picture, hidden ones left out, sorted within each folder."""
        for folder, subfolders, found in os.walk(self.root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(found):
                path = Path(folder, name)
                if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield path.relative_to(self.root).as_posix()
