"""A program for torchrun: stage train on the files of ``test_launch``; arguments: folder and output folder."""

import logging
import sys
from pathlib import Path

from tasks.params import load_stage_params
from tasks.train import train

SECTIONS = ("seed", "classes", "model", "train", "augmentation", "ssl", "scoring", "infer")

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = Path(sys.argv[1])
    train(
        load_stage_params(folder / "params.yaml", *SECTIONS),
        root=folder,
        assembled=folder / "assembled",
        warm_start=folder / "previous",
        scratch=folder / "scratch",
        out=folder / sys.argv[2],
    )
