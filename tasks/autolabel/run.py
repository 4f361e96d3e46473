"""Label the pool with one model as far as its precision is shown, and say what is left to people."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.autolabel.acceptance import Acceptance, accept, rule_document
from tasks.autolabel.audit import SAMPLE, audit_tasks, draw_audit
from tasks.autolabel.evidence import Evidence, ModelRef, gather_evidence
from tasks.autolabel.labels import LabeledRecord, accepted_records, people_records, pool_rows
from tasks.autolabel.output import write_labels
from tasks.autolabel.summary import render_summary
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.selection.inputs import earlier_picks_of, input_paths, read_inputs
from tasks.selection.strategies.value_per_minute import ValuePerMinute
from tasks.storage import files

SUMMARY = "summary.json"
PEOPLE = "people.csv"
_PEOPLE_COLUMNS = ("rank", "image_id", "file_name", "expected_minutes", "accepted_boxes", "reason")
Document = dict[str, Any]


@dataclass(frozen=True)
class AutolabelResult:
    """Everything that is written."""

    records: tuple[LabeledRecord, ...]
    """People's first, then the model's."""
    people: tuple[Document, ...]
    """Images left to people, most valuable per minute first."""
    sample: Document
    """What the audit checks."""
    audit_tasks: tuple[AnnotationTask, ...]
    summary: Document
    classes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write all files but the pictures of the audit.

        Args:
            folder: new folder; the caller gives it its name when it is whole.
        """
        write_labels(folder, self.records, self.classes)
        files.write_bytes(folder / PEOPLE, _people_csv(self.people))
        files.write_json(folder / "audit" / SAMPLE, self.sample)
        files.write_json(folder / SUMMARY, self.summary)
        files.write_bytes(folder / "summary.md", render_summary(self.summary).encode())


def autolabel(
    workspace: Workspace, params: Params, model: ModelRef, detections: Path, open_batches: Mapping[str, int]
) -> AutolabelResult:
    """Choose what is accepted of the pool, and gather it with the labels of people.

    Args:
        workspace: a campaign with a finished round.
        params: all sections.
        model: whose detections are accepted.
        detections: its detections of the pool, the calibration and the labeled images.
        open_batches: images that are with annotators, and the batch each was offered in.

    Raises:
        UserError: a table is missing or malformed, or the pool is empty.
    """
    classes, own = list(params.classes), params.autolabel
    evidence = gather_evidence(
        workspace,
        model,
        detections,
        classes=classes,
        open_batches=open_batches,
        min_iou=own.box_iou,
        score_threshold=params.infer.score_threshold,
    )
    if not len(evidence.pool):
        raise UserError(workspace.root, "unlabeled images that are not with annotators are 0, expected at least 1")
    acceptance = accept(evidence, own, classes)
    people = tuple(people_records(workspace, classes))
    accepted = tuple(accepted_records(workspace, evidence, acceptance, model, own, classes))
    rest = _left_to_people(workspace, params, evidence, acceptance)
    sample = draw_audit(accepted, own, params.seed)
    summary = _summary(workspace, params, model, evidence, acceptance, people, accepted, rest, sample)
    summary["inputs_sha256"] = inputs_sha256(workspace, params, model, open_batches)
    tasks = tuple(audit_tasks(accepted, sample, model))
    return AutolabelResult((*people, *accepted), tuple(rest.rows), sample, tasks, summary, tuple(classes))


def inputs_sha256(workspace: Workspace, params: Params, model: ModelRef, open_batches: Mapping[str, int]) -> str:
    """Return the digest of everything that decides the result: a folder that has it need not be written again."""
    assembled = workspace.derived("assemble")
    tables = (workspace.val, workspace.calibration, assembled / "unlabeled.parquet")
    return files.sha256_json(
        [
            asdict(model),
            params.seed,
            list(params.classes),
            params.autolabel.model_dump(),
            params.infer.score_threshold,
            params.budget.model_dump(),
            files.sha256_tree(workspace.labels),
            [files.sha256_file(path) for path in tables],
            dict(open_batches),
        ]
    )


@dataclass(frozen=True)
class _Rest:
    """Images left to people, and what the campaign's cost model says of all images."""

    rows: Sequence[Document]
    minutes_by_id: Mapping[str, float]
    minutes_per_box: float


def _left_to_people(workspace: Workspace, params: Params, evidence: Evidence, acceptance: Acceptance) -> _Rest:
    """Order what was not accepted whole by value per minute, with the scores of the newest round."""
    read_picks = earlier_picks_of(workspace, params.classes, params.dwa.focal_gamma)
    inputs = read_inputs(params.budget, **input_paths(workspace), earlier_picks=read_picks)
    pool = evidence.pool
    counts_P = np.bincount(pool.image_of_box[acceptance.is_box_accepted], minlength=len(pool)).tolist()
    num_accepted = dict(zip(pool.image_ids, counts_P, strict=True))
    left = {i for i, is_whole in zip(pool.image_ids, acceptance.is_image_accepted, strict=True) if not is_whole}
    known = inputs.pool.candidates
    view = inputs.pool.with_candidates(known[known.index.isin(left)], batch_size=inputs.pool.batch_size)
    strategy = ValuePerMinute()
    order = strategy.rank(view, seed=params.seed)
    names = pool_rows(workspace)
    rows = [
        {
            "rank": rank,
            "image_id": row.image_id,
            "file_name": names[row.image_id]["file_name"],
            "expected_minutes": round(float(row.expected_minutes), 3),
            "accepted_boxes": num_accepted[row.image_id],
            "reason": strategy.reason(row, position=rank, num_candidates=len(order)),
        }
        for rank, (_, row) in enumerate(view.candidates.loc[order].reset_index().iterrows(), start=1)
    ]
    cost = inputs.cost_model
    expected_P = np.bincount(pool.image_of_box, weights=pool.scores, minlength=len(pool))
    minutes_P = (cost.minutes_per_image + cost.minutes_per_box * expected_P).tolist()
    minutes = dict(zip(pool.image_ids, minutes_P, strict=True))
    rows += [
        {
            "rank": rank,
            "image_id": image_id,
            "file_name": names[image_id]["file_name"],
            "expected_minutes": round(minutes[image_id], 3),
            "accepted_boxes": num_accepted[image_id],
            "reason": "not ranked: it was with annotators when the round was computed",
        }
        for rank, image_id in enumerate(sorted(left - set(order)), start=len(rows) + 1)
    ]
    return _Rest(rows, minutes, cost.minutes_per_box)


def _summary(
    workspace: Workspace,
    params: Params,
    model: ModelRef,
    evidence: Evidence,
    acceptance: Acceptance,
    people: Sequence[LabeledRecord],
    accepted: Sequence[LabeledRecord],
    rest: _Rest,
    sample: Document,
) -> Document:
    whole = [record for record in accepted if record.is_complete]
    partial = [record for record in accepted if not record.is_complete]
    boxes = {
        name: sum(len(record.rows) for record in records)
        for name, records in (("people", people), ("whole", whole), ("partial", partial))
    }
    by_class = Counter(
        row["category"] for record in accepted for row in record.rows if row["promised_precision"] is not None
    )
    audited = sum(rest.minutes_by_id.get(image_id, 0.0) for image_id in sample["shown"])
    return {
        "model": asdict(model),
        "parameters": params.autolabel.model_dump(),
        "sample": {
            "images": len(evidence.sample.found),
            "calibration_images": evidence.num_calibration,
            "returned_random_draws": len(evidence.sample.found) - evidence.num_calibration,
        },
        "pool": {"images": len(evidence.pool), "detections": len(evidence.pool.scores), "chosen": evidence.num_chosen},
        "classes": {
            rule.category: {**rule_document(rule), "accepted_boxes": by_class[rule.category]}
            for rule in acceptance.class_rules
        },
        "whole_images": {**rule_document(acceptance.image_rule), "accepted_images": len(whole)},
        "images": {
            "labeled_by_people": len(people),
            "accepted_whole": len(whole),
            "accepted_in_part": len(partial),
            "left_to_people": len(rest.rows),
        },
        "boxes": boxes,
        "people_images_frac": round(len(people) / max(len(people) + len(whole), 1), 4),
        "people_boxes_frac": round(boxes["people"] / max(sum(boxes.values()), 1), 4),
        "minutes": {
            "spent_by_people": read_labels(workspace.labels).minutes_spent,
            "saved_by_whole_images": round(sum(rest.minutes_by_id.get(one.image_id, 0.0) for one in whole), 3),
            "saved_by_boxes": round(boxes["partial"] * rest.minutes_per_box, 3),
            "audit": round(audited, 3),
            "left_to_people": round(sum(row["expected_minutes"] for row in rest.rows), 3),
        },
        "audit": {
            "boxes": len(sample["boxes"]),
            "whole_images": len(sample["images"]),
            "images_shown": len(sample["shown"]),
        },
    }


def _people_csv(rows: Sequence[Document]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _PEOPLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
