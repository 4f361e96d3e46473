"""Build the tables of the section on the teacher's errors: operating points, confusions, and mAP by slice."""

from collections.abc import Mapping, Sequence
from typing import Any

MATRIX_CLASSES = 15
"""With more classes only the most frequent confusions are shown."""
CONFUSIONS_SHOWN = 15
BACKGROUND = "background"


def operating_rows(protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name and operating points of each class, that of all classes last; empty where they were not computed."""
    points = protocols.get("operating_point", {}).get("by_class", {})
    return [{"name": name, **of_class} for name, of_class in points.items()]


def confusion_matrix_rows(protocols: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return true class, counts by predicted class, and their shares of the row; empty with too many classes."""
    matrix = protocols.get("confusion", {}).get("matrix", [])
    if len(classes) > MATRIX_CLASSES:
        return []
    rows: list[dict[str, Any]] = []
    for name, counts in zip([*classes, BACKGROUND], matrix, strict=False):
        total = max(sum(counts), 1)
        rows.append({"name": name, "cells": [{"count": n, "percent": 100 * n / total} for n in counts]})
    return rows


def frequent_confusions(protocols: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent pairs of different classes; background stands for a miss or a false alarm."""
    matrix = protocols.get("confusion", {}).get("matrix", [])
    names = [*classes, BACKGROUND]
    pairs = [
        {"true": true, "predicted": predicted, "count": count}
        for true, counts in zip(names, matrix, strict=False)
        for predicted, count in zip(names, counts, strict=True)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair["count"], pair["true"], pair["predicted"]))[:CONFUSIONS_SHOWN]


def slice_rows(protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the slices that have objects with their metrics, by what they slice, the worst mAP first."""
    rows = [
        {"by": by, "name": name, **found}
        for by, slices in protocols.get("slices", {}).items()
        for name, found in slices.items()
        if found["objects"]
    ]
    return sorted(rows, key=lambda row: (row["by"], row["mAP"], row["name"]))
