"""Teacher mAP on draws of the validation images: what another set of such images might have said of a round."""

from collections.abc import Mapping

import pyarrow.compute as pc

from flows.records.dvc_objects import MissingBytesError
from flows.records.recorded import RecordedRound, recorded_rounds
from flows.study.campaigns import Study
from tasks import files
from tasks.contracts import ANNOTATED, PREDICTIONS
from tasks.paired_bootstrap import map_draws
from tasks.paths import Workspace

DRAWS = 300
_SEED = 0
Draws = dict[tuple[int, str, int], tuple[float, ...]]


def image_draws(study: Study, campaigns: Mapping[tuple[int, str], Workspace]) -> Draws:
    """By seed, arm and round; worked out once, from what the round stored. Arms of a seed have the same draws.

    A round whose predictions are gone from the cache is left out.
    """
    draws: Draws = {}
    for (seed, arm), workspace in campaigns.items():
        if not workspace.labels.is_dir():
            continue
        for number, recorded in recorded_rounds(workspace).items():
            path = study.measured(seed, arm, number)
            path = path.with_name(f"{path.stem}-draws.json")
            if not path.is_file():
                try:
                    files.write_json(path, {"teacher_map": _drawn(recorded)})
                except MissingBytesError:
                    continue
            draws[seed, arm, number] = tuple(files.read_json(path)["teacher_map"])
    return draws


def _drawn(recorded: RecordedRound) -> list[float]:
    truth = files.read_table(recorded.stored("derived/assemble/val.parquet"), ANNOTATED)
    predictions = files.read_table(recorded.stored("derived/evaluate/predictions.parquet"), PREDICTIONS)
    teacher = predictions.filter(pc.equal(predictions["model"], "teacher"))
    drawn = map_draws(truth, teacher, classes=recorded.classes(), samples=DRAWS, seed=_SEED)
    return [round(value, 4) for value in drawn.tolist()]
