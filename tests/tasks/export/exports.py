"""A tiny detector, and its exports."""

from dataclasses import dataclass
from pathlib import Path

from detectron_ext.meta_arch import PerImageRCNN
from tasks.export.package import ExportImages, ExportRequest
from tasks.export.packages import Format
from tasks.params import StageParams, load_params

REPOSITORY = Path(__file__).parents[3]
CLASSES = ["square", "disk"]
SECTIONS = ("seed", "classes", "model", "train", "augmentation", "ssl", "evaluate", "preannotation", "export")
LINEAGE = {"model": "tiny-1234", "version": 3, "tag": "round-0002", "teacher_sha256": "ab" * 32}


def small_params(**changes: object) -> StageParams:
    """Parameters of a network that is quick to run; ``changes`` are of section model."""
    params = load_params(REPOSITORY / "params.yaml")
    small = {"fpn_channels": 32, "short_side_px": 64, "long_side_px": 96, "pretrained_weights": "none", **changes}
    sections = {"classes": CLASSES, "model": params.model.model_copy(update=small)}
    return StageParams(params.model_copy(update=sections), SECTIONS)


@dataclass(frozen=True)
class Exported:
    """What was exported, and where to."""

    model: PerImageRCNN
    params: StageParams
    images: ExportImages
    val_paths: list[Path]
    parent: Path

    def folder(self, export_format: Format) -> Path:
        """Where the fp32 export of a format is."""
        return self.parent / export_format

    def request(self, export_format: Format, precision: str, tolerance_points: float = 100.0) -> ExportRequest:
        """A request for an export."""
        limits = self.params.export.model_copy(update={"map_tolerance_points": tolerance_points, "timed_images": 2})
        return ExportRequest(
            self.model, self.params, limits, export_format, precision, LINEAGE, {"square": {"score_threshold": 0.4}}
        )
