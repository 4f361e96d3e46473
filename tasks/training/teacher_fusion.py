"""The fusion of the teacher's detections as training uses it."""

from detectron_ext.teacher_fusion import FusionSpec, TeacherFusion
from tasks.params.training import SslParams


def new_fusion(ssl: SslParams) -> TeacherFusion | None:
    """Return the fusion that ``ssl.fusion_*`` wants; None: the teacher's detections are taken as they are."""
    if not (ssl.fusion_mirrored_view or ssl.fusion_earlier_teachers):
        return None
    return TeacherFusion(
        FusionSpec(
            mirrors=ssl.fusion_mirrored_view,
            max_earlier=ssl.fusion_earlier_teachers,
            every=ssl.fusion_every_iterations,
            decay=ssl.fusion_decay_iterations,
            iou_threshold=ssl.fusion_iou_threshold,
        )
    )
