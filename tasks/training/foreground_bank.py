"""The bank of trusted pseudo-labels as training uses it."""

from detectron_ext.foreground_bank import ForegroundBank
from tasks.params.training import SslParams


def new_bank(ssl: SslParams, num_classes: int, seed: int) -> ForegroundBank | None:
    """Return the bank that ``ssl.paste_pseudo_frac`` wants; None: only labeled objects are pasted."""
    if ssl.paste_pseudo_frac == 0:
        return None
    return ForegroundBank(
        num_classes, ssl.paste_pseudo_frac, ssl.paste_pseudo_score, seed, trains_box=ssl.pseudo_label_box_loss
    )
