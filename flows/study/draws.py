"""Teacher mAP on draws of the validation images: what another set of such images might have said of a round."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from flows.records.dvc_objects import MissingBytesError
from flows.records.recorded import RecordedRound, of_model, recorded_rounds
from flows.study.campaigns import Study
from tasks import files
from tasks.paired_bootstrap import map_draws

DRAWS = 300
_SEED = 0
Draws = dict[tuple[int, str, int], tuple[float, ...]]


def image_draws(study: Study, rows: Iterable[Mapping[str, Any]]) -> Draws:
    """By seed, arm and round; worked out once, from what the round stored. Arms of a seed have the same draws.

    Args:
        study: whose campaigns hold the rounds.
        rows: of ``results.parquet``; a round whose predictions are gone from the cache is left out.
    """
    recorded = cache(lambda seed, arm: recorded_rounds(study.campaign(seed, arm)))
    draws: Draws = {}
    for row in rows:
        seed, arm, number = row["seed"], row["arm"], row["round"]
        path = study.measured(seed, arm, number)
        path = path.with_name(f"{path.stem}-draws.json")
        try:
            if not path.is_file():
                files.write_json(path, {"teacher_map": _drawn(recorded(seed, arm)[number])})
        except MissingBytesError:
            continue
        draws[seed, arm, number] = tuple(files.read_json(path)["teacher_map"])
    return draws


def _drawn(recorded: RecordedRound) -> list[float]:
    truth, found = recorded.validation_images(), of_model(recorded.predictions(), "teacher")
    drawn = map_draws(truth, found, classes=recorded.classes(), samples=DRAWS, seed=_SEED)
    return [round(value, 4) for value in drawn.tolist()]
