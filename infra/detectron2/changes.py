"""Everything in which our wheel of Detectron2 differs from the published sources; README.md says why."""

from dataclasses import dataclass

VERSION = "0.6+gleaner.1"  # raise the last number with every change of CHANGES


@dataclass(frozen=True)
class Change:
    """One edit of one file: each match of ``pattern`` becomes ``new``, and there are ``times`` of them."""

    path: str
    pattern: str
    new: str
    times: int
    reason: str


NEW_FILE = r"\A\Z"  # matches once, where a file is empty or not there
NUMPY = "NumPy 1.24 dropped its aliases of the builtin types"
RESOURCES = "setuptools 82 dropped pkg_resources"
AMP = "PyTorch 2.4 deprecated torch.cuda.amp"

NO_EXTENSION = '''"""Stands in for the C++ extension, which this build does not have (added by Gleaner)."""


def get_compiler_version() -> str:
    return "none, this build has no C++ extension"


get_cuda_version = get_compiler_version


def has_cuda() -> bool:
    return False


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"detectron2._C.{name} is not in this build of Detectron2, which has no C++ extension. "
        "Rotated boxes, deformable convolution and the fast COCO evaluator need the official build."
    )
'''

CHANGES = (
    Change(
        path="detectron2/_C.py",
        pattern=NEW_FILE,
        new=NO_EXTENSION,
        times=1,
        reason="the C++ sources are not in the archive",
    ),
    Change(
        path="detectron2/evaluation/coco_evaluation.py",
        pattern=r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        new="COCOeval_opt = COCOeval",
        times=1,
        reason="the fast COCO evaluator is part of the C++ extension, and pycocotools gives the same numbers",
    ),
    Change("detectron2/data/build.py", r"\bnp\.(int)\b", r"\1", 2, NUMPY),
    Change("detectron2/data/datasets/pascal_voc.py", r"\bnp\.(str)\b", r"\1", 1, NUMPY),
    Change("detectron2/evaluation/pascal_voc_evaluation.py", r"\bnp\.(bool)\b", r"\1", 2, NUMPY),
    Change("detectron2/evaluation/sem_seg_evaluation.py", r"\bnp\.(int|float)\b", r"\1", 7, NUMPY),
    Change("detectron2/structures/masks.py", r"\bnp\.(bool)\b", r"\1", 3, NUMPY),
    Change("detectron2/utils/video_visualizer.py", r"\bnp\.(bool)\b", r"\1", 1, NUMPY),
    Change("detectron2/utils/visualizer.py", r"\bnp\.(bool)\b", r"\1", 3, NUMPY),
    Change(
        path="detectron2/data/transforms/transform.py",
        pattern=r"\bImage\.LINEAR\b",
        new="Image.BILINEAR",
        times=1,
        reason="Pillow 10 dropped the old name",
    ),
    Change(
        path="detectron2/model_zoo/model_zoo.py",
        pattern=r"^import pkg_resources$",
        new="from importlib import resources",
        times=1,
        reason=RESOURCES,
    ),
    Change(
        path="detectron2/model_zoo/model_zoo.py",
        pattern=r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", os\.path\.join\((.*)\)\s*\)',
        new=r'str(resources.files("detectron2.model_zoo").joinpath(\1))',
        times=1,
        reason=RESOURCES,
    ),
    Change(
        path="detectron2/modeling/anchor_generator.py",
        pattern=r"torch\.meshgrid\(shifts_y, shifts_x\)",
        new='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        times=1,
        reason="PyTorch warns where the order is left to the default",
    ),
    Change(
        path="detectron2/engine/train_loop.py",
        pattern=r"from torch\.cuda\.amp import",
        new="from torch.amp import",
        times=2,
        reason=AMP,
    ),
    Change(
        path="detectron2/engine/train_loop.py",
        pattern=r"with autocast\(\):",
        new='with autocast("cuda"):',
        times=1,
        reason=AMP,
    ),
)
