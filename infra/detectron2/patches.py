"""Everything in which our wheel of Detectron2 differs from the published sources; README.md says why."""

from dataclasses import dataclass

VERSION = "0.6+gleaner.1"  # raise the last number with every change of PATCHES


@dataclass(frozen=True)
class Patch:
    """One edit of one file: each match of ``pattern`` becomes ``replacement``, and there are ``count`` of them."""

    path: str
    pattern: str
    replacement: str
    count: int
    reason: str


NEW_FILE = r"\A\Z"  # matches once, where a file is empty or not there
NUMPY_REASON = "NumPy 1.24 dropped its aliases of the builtin types"
RESOURCES_REASON = "setuptools 82 dropped pkg_resources"
AMP_REASON = "PyTorch 2.4 deprecated torch.cuda.amp"

STUB_EXTENSION = '''"""Stands in for the C++ extension, which this build does not have (added by Gleaner)."""


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

PATCHES = (
    Patch(
        path="detectron2/_C.py",
        pattern=NEW_FILE,
        replacement=STUB_EXTENSION,
        count=1,
        reason="the C++ sources are not in the archive",
    ),
    Patch(
        path="detectron2/evaluation/coco_evaluation.py",
        pattern=r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        replacement="COCOeval_opt = COCOeval",
        count=1,
        reason="the fast COCO evaluator is part of the C++ extension, and pycocotools gives the same numbers",
    ),
    Patch("detectron2/data/build.py", r"\bnp\.(int)\b", r"\1", 2, NUMPY_REASON),
    Patch("detectron2/data/datasets/pascal_voc.py", r"\bnp\.(str)\b", r"\1", 1, NUMPY_REASON),
    Patch("detectron2/evaluation/pascal_voc_evaluation.py", r"\bnp\.(bool)\b", r"\1", 2, NUMPY_REASON),
    Patch("detectron2/evaluation/sem_seg_evaluation.py", r"\bnp\.(int|float)\b", r"\1", 7, NUMPY_REASON),
    Patch("detectron2/structures/masks.py", r"\bnp\.(bool)\b", r"\1", 3, NUMPY_REASON),
    Patch("detectron2/utils/video_visualizer.py", r"\bnp\.(bool)\b", r"\1", 1, NUMPY_REASON),
    Patch("detectron2/utils/visualizer.py", r"\bnp\.(bool)\b", r"\1", 3, NUMPY_REASON),
    Patch(
        path="detectron2/data/transforms/transform.py",
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
        count=1,
        reason="Pillow 10 dropped the old name",
    ),
    Patch(
        path="detectron2/model_zoo/model_zoo.py",
        pattern=r"^import pkg_resources$",
        replacement="from importlib import resources",
        count=1,
        reason=RESOURCES_REASON,
    ),
    Patch(
        path="detectron2/model_zoo/model_zoo.py",
        pattern=r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", os\.path\.join\((.*)\)\s*\)',
        replacement=r'str(resources.files("detectron2.model_zoo").joinpath(\1))',
        count=1,
        reason=RESOURCES_REASON,
    ),
    Patch(
        path="detectron2/modeling/anchor_generator.py",
        pattern=r"torch\.meshgrid\(shifts_y, shifts_x\)",
        replacement='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        count=1,
        reason="PyTorch warns where the order is left to the default",
    ),
    Patch(
        path="detectron2/engine/train_loop.py",
        pattern=r"from torch\.cuda\.amp import",
        replacement="from torch.amp import",
        count=2,
        reason=AMP_REASON,
    ),
    Patch(
        path="detectron2/engine/train_loop.py",
        pattern=r"with autocast\(\):",
        replacement='with autocast("cuda"):',
        count=1,
        reason=AMP_REASON,
    ),
)
