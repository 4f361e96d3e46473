"""The anchor to a source teacher as training uses it."""

import copy
from pathlib import Path

from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.source_anchor import SourceAnchor
from tasks.params.training import SslParams


def new_anchor(ssl: SslParams, init_from: str, warm_start: Path, teacher: PerImageRCNN) -> SourceAnchor | None:
    """Return the anchor that ``ssl.source_kl_weight`` wants; None: there is none, or no round before gave a teacher.

    Args:
        ssl: its weight, and the perturbation.
        init_from: of section train.
        warm_start: what the round before handed over.
        teacher: as training starts, before a checkpoint is read: the source is made anew where a run goes on.
    """
    has_source = init_from == "previous_round" and (warm_start / "teacher.pth").is_file()
    if ssl.source_kl_weight == 0 or not has_source:
        return None
    return SourceAnchor(copy.deepcopy(teacher), ssl.source_kl_weight, ssl.source_kl_perturbation_rms)
