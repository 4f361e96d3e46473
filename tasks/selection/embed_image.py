"""Describe one image by the newest teacher: ``python -m tasks.selection.embed_image IMAGE OUT.npy``.

A process of its own, because ``flows`` hold no tensors.
"""

import sys
from pathlib import Path

import numpy as np

from tasks.data.image_decoding import ImageProblem, open_rgb
from tasks.data.paths import Workspace
from tasks.model.detector import detect, load_detector
from tasks.params import load_stage_params
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.storage import files


def embed_image(workspace: Workspace, image: Path, out: Path) -> None:
    """Write the image embedding (C,) of a file, as the stage ``infer`` computes it.

    Raises:
        UserError: the image is unreadable, or the weights of the newest round are missing.
    """
    params = load_stage_params(workspace.params, "classes", "model", "train")
    try:
        pixels = np.asarray(open_rgb(image))
    except (OSError, ImageProblem, SyntaxError) as error:
        raise UserError(image, f"the image is unreadable ({error}), expected a whole image") from None
    detector = load_detector(params.model, len(params.classes), workspace.derived("train") / "teacher.pth")
    [found] = detect(detector, [pixels], params.model, params.train.mixed_precision)
    with files.atomic_write(out) as temporary, temporary.open("wb") as stream:
        np.save(stream, found.embedding)


def main() -> None:
    """Describe the image of the command line."""
    image, out = map(Path, sys.argv[1:])
    stage_main("select --like", lambda workspace: embed_image(workspace, image, out))


if __name__ == "__main__":
    main()
