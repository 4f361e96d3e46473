"""Turn the index of a table into a list of image ids."""

import pandas as pd


def text_ids(index: pd.Index) -> list[str]:
    """Return image ids as texts. Iterating over an index takes microseconds an item, which a large pool notices.

    Of an index of objects, such as that of a pool's candidates, the texts are the index's own: no copies.
    """
    texts = index if index.dtype == object else index.astype(str)
    ids: list[str] = texts.to_numpy(dtype=object).tolist()
    return ids
