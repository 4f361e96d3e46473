"""Resample the validation images and compute the teacher's mAP on each bootstrap sample."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from flows.provenance.snapshot import RoundSnapshot, filter_by_model, load_snapshots
from flows.study.workspaces import Study
from flows.workspace.dvc_cache import MissingDataError
from tasks.evaluation.paired_bootstrap import bootstrap_map
from tasks.storage import files

BOOTSTRAP_SAMPLES = 300
_SEED = 0
BootstrapMaps = dict[tuple[int, str, int], tuple[float, ...]]


def bootstrap_teacher_map(study: Study, rows: Iterable[Mapping[str, Any]]) -> BootstrapMaps:
    """By seed, arm and round; worked out once, from what the round stored. Arms of a seed have the same draws.

    Args:
        study: whose campaigns hold the rounds.
        rows: of ``results.parquet``; a round whose predictions are not in the cache is left out.
    """
    load = cache(lambda seed, arm: load_snapshots(study.workspace(seed, arm)))
    bootstrap_maps: BootstrapMaps = {}
    for row in rows:
        seed, arm, number = row["seed"], row["arm"], row["round"]
        path = study.measurements_path(seed, arm, number)
        path = path.with_name(f"{path.stem}-draws.json")
        try:
            if not path.is_file():
                files.write_json(path, {"teacher_map": _bootstrap(load(seed, arm)[number])})
        except MissingDataError:
            continue
        bootstrap_maps[seed, arm, number] = tuple(files.read_json(path)["teacher_map"])
    return bootstrap_maps


def _bootstrap(snapshot: RoundSnapshot) -> list[float]:
    truth, predictions = snapshot.validation_images(), filter_by_model(snapshot.predictions(), "teacher")
    map_samples = bootstrap_map(truth, predictions, classes=snapshot.classes(), samples=BOOTSTRAP_SAMPLES, seed=_SEED)
    return [round(value, 4) for value in map_samples.tolist()]
