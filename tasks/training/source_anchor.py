"""The anchor to a source teacher as training uses it."""

import copy

from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.source_anchor import SourceAnchor
from tasks.params.training import SslParams


def new_anchor(ssl: SslParams, teacher: PerImageRCNN, *, has_source: bool) -> SourceAnchor | None:
    """Return the anchor that ``ssl.source_kl_weight`` wants; None: its weight is 0, or no round before gave a teacher.

    Args:
        ssl: its weight, and the perturbation.
        teacher: as training starts, before a checkpoint is read: the source is made anew where a run goes on.
        has_source: whether it is the teacher of the round before.
    """
    if ssl.source_kl_weight == 0 or not has_source:
        return None
    return SourceAnchor(copy.deepcopy(teacher), ssl.source_kl_weight, ssl.source_kl_perturbation_rms)
