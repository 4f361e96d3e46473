"""Turn the index of a table into a list of image ids."""

import pandas as pd


def text_ids(index: pd.Index) -> list[str]:
    """Return image ids as texts. Iterating over an index takes microseconds an item, which a large pool notices."""
    ids: list[str] = index.astype(str).to_numpy(dtype=object).tolist()
    return ids
