"""Write the sentences of the page; they claim no more than the figures support."""

from collections.abc import Sequence

from tasks.reporting.pool_map import PoolMap
from tasks.reporting.report_data import Document, ReportData
from tasks.reporting.stopping import CONSIDER_STOPPING, minutes_per_point
from tasks.runtime.formatting import join_and, number, pluralize, signed


def headline(history: Sequence[Document]) -> str:
    """Summarize the campaign in one line."""
    now = history[-1]
    reached, labels = now["teacher"]["mAP"], f"{pluralize(now['labels'], 'image')} labeled"
    if reached is None:
        return f"Round {now['round']}: {labels}, and nothing to measure the teacher on"
    if len(history) == 1:
        return f"Round {now['round']}: the teacher starts at {number(reached)} mAP with {labels}"
    return f"Round {now['round']}: the teacher reaches {number(reached)} mAP with {labels}"


def summary(data: ReportData, history: Sequence[Document]) -> list[str]:
    """Write the summary paragraph for readers of nothing else; one sentence per entry."""
    return [_progress(history), _next_batch(data), _weights_summary(data.dwa)]


def _progress(history: Sequence[Document]) -> str:
    points = [entry["teacher"]["mAP"] for entry in history]
    if len(points) == 1 or points[-1] is None or points[0] is None:
        return "This is the first point of the curve; there is nothing to compare it with yet."
    since = f"{_change_text(points[-1] - points[0])} since round {history[0]['round']}"
    if len(points) == 2 or points[-2] is None:
        return f"That is {since}, for {_labels_between(history[0], history[-1])}."
    last = f"{_change_text(points[-1] - points[-2])} since round {history[-2]['round']}"
    return f"That is {since}, for {_labels_between(history[0], history[-1])}, and {last}."


def _labels_between(first: Document, now: Document) -> str:
    return f"{pluralize(now['labels'] - first['labels'], 'more image')} labeled"


def _change_text(points: float) -> str:
    """Describe a difference in mAP; one that rounds to zero is called no change."""
    if abs(points) < 0.05:
        return "no change"
    return f"a {'gain' if points > 0 else 'loss'} of {number(abs(points))} mAP points"


_NOISE_POINTS = 2.0
"""Of mAP: what a small validation set moves by chance, as the page says."""


def teacher_lag_warning(now: Document) -> str:
    """Warn where the teacher is worse than the student it is averaged from, and say what to do; else empty."""
    teacher, student = now["teacher"]["mAP"], now["student"]["mAP"]
    if teacher is None or student is None or student - teacher < _NOISE_POINTS:
        return ""
    return (
        f"The student is {number(student - teacher)} mAP points ahead: the moving average lags behind. "
        "A lower ssl.ema_decay, or more iterations after the burn-in, let the teacher catch up."
    )


def pseudo_labels_verdict(train_summary: Document) -> str:
    """Say whether unlabeled images took part in training, and which classes did not."""
    pseudo_labels = train_summary["pseudo_labels"]
    if not pseudo_labels["takes_part"]:
        return f"This round was trained on labels only: {pseudo_labels['reason']}."
    excluded = [f"“{name}”" for name in pseudo_labels["excluded_classes"]]
    if not excluded:
        return "Unlabeled images took part: the student learns the teacher’s surest boxes on them."
    return (
        "Unlabeled images took part, without pseudo-labels of "
        f"{join_and(excluded)}: too few of those that people checked were right."
    )


def pretraining(train_summary: Document) -> str:
    """Say how the backbone was trained without labels before this round; empty where it was not."""
    found = train_summary.get("pretraining")
    if found is None:
        return ""
    if not found["iterations"]:
        return f"The backbone was not pretrained on the pool in this round: {found['reason']}."
    return (
        f"Before the first label was seen, the backbone was trained on {pluralize(found['images'], 'image')} without"
        f" labels, for {pluralize(found['iterations'], 'iteration')}; the loss went from"
        f" {number(found['first_loss'], 2)} to {number(found['last_loss'], 2)}."
    )


_MAX_PSEUDO_BOX_RATIO = 3.0
"""Labeled images are chosen, so classes are not equally frequent in the pool; but not as different as this."""


def pseudo_box_warning(train_summary: Document, assemble_summary: Document) -> str:
    """Warn of classes with far more pseudo-boxes than labeled boxes, and say what to do; else empty."""
    labeled = {
        name: boxes / assemble_summary["labeled_images"] for name, boxes in assemble_summary["boxes_per_class"].items()
    }
    pseudo_boxes = train_summary["pseudo_boxes_per_image_by_class"]
    excessive = [
        name for name, boxes in labeled.items() if boxes and pseudo_boxes[name] >= _MAX_PSEUDO_BOX_RATIO * boxes
    ]
    if not excessive:
        return ""
    times = [f"“{name}” {number(pseudo_boxes[name] / labeled[name], 0)} times" for name in excessive]
    return (
        f"The teacher draws {join_and(times)} as often in unlabeled images as people did in labeled ones: most of "
        "these pseudo-boxes must be mistakes, and the student learns them. A higher ssl.pseudo_label_threshold, with "
        "ssl.pseudo_label_threshold_mode “fixed”, keeps them out."
    )


def _next_batch(data: ReportData) -> str:
    picked, left = data.selection_summary["selected"], data.assemble_summary["unlabeled_images"]
    if not left:
        return "No unlabeled image is left: there is nothing more to ask for."
    if not picked:
        return f"None of the {pluralize(left, 'unlabeled image')} was picked."
    which = (
        f"All {pluralize(left, 'unlabeled image')} are"
        if picked == left
        else f"{picked} of {left} unlabeled images are"
    )
    if picked == left == 1:
        which = "The last unlabeled image is"
    work = f"about {pluralize(round(data.selection_summary['expected_boxes']), 'box', 'boxes')} to check"
    minutes = pluralize(round(data.selection_summary["expected_minutes"]), "minute")
    return f"{which} asked for next, {work}, {minutes} of work."


def _weights_summary(dwa: Document) -> str:
    if dwa["mode"] != "learned":
        return f"The metric weights are set to “{dwa['mode']}” in params.yaml, not learned."
    return f"They are ranked by {rule_name(dwa['used'])}."


def selection_shares(selection_summary: Document) -> str:
    """Say what each objective or strategy had for its share in the batch; empty where one alone chose."""
    sentences = []
    for key, what in (("objectives", "the objectives"), ("portfolio", "the strategies")):
        shares = {
            name: found["share"] if isinstance(found, dict) else found
            for name, found in selection_summary.get(key, {}).items()
        }
        if len(shares) > 1:
            parts = [
                f"{name} {number(100 * share, 0)} %" for name, share in sorted(shares.items(), key=lambda x: -x[1])
            ]
            sentences.append(f"Shares of {what} in this batch: {join_and(parts)}.")
    relabel = selection_summary.get("relabel", {"images": 0})
    if relabel["images"]:
        minutes = pluralize(relabel["expected_minutes"], "minute")
        asked = pluralize(relabel["images"], "label")
        sentences.append(f"With it {asked} that the teachers doubt are to be checked, in about {minutes}.")
    if selection_summary.get("near_duplicates"):
        avoided = pluralize(selection_summary["near_duplicates"], "near duplicate")
        sentences.append(f"{avoided} of labeled or picked images came last.")
    return " ".join(sentences)


def checked_labels(assemble_summary: Document) -> str:
    """Say how many labels people have checked, and how many of them changed; empty where none was."""
    checked = assemble_summary.get("checked_labels", 0)
    if not checked:
        return ""
    changed = assemble_summary["changed_labels"]
    return f"{pluralize(checked, 'label was', 'labels were')} checked so far, {number(changed, 0)} of them changed."


_RULE_NAMES = {"equal": "equal weights", "learned": "learned weights", "common": "one learned mixture for all images"}


def rule_name(rule: str) -> str:
    """Say a rule of dwa.json as people do: ``entropy`` is entropy alone, ``-entropy`` low entropy alone."""
    if rule.startswith("per_image"):
        return f"a learned mixture per image, {rule.removeprefix('per_image_').replace('=', ' = ')}"
    rule = rule.replace("_", " ")
    return _RULE_NAMES.get(rule, f"low {rule[1:]} alone" if rule.startswith("-") else f"{rule} alone")


_IMPORT_CORRECTIONS = (
    ("duplicates_collapsed", "exact duplicate", "exact duplicates", "collapsed"),
    ("val_duplicates_dropped", "image", "images", "kept out of the pool because validation has the same"),
    ("clipped_boxes", "box", "boxes", "clipped by a pixel"),
)


def import_corrections(import_counts: Document) -> str:
    """Describe what the import corrected; empty where it corrected nothing."""
    done = [
        f"{pluralize(import_counts[key], one, many)} {what}"
        for key, one, many, what in _IMPORT_CORRECTIONS
        if import_counts.get(key)
    ]
    return f"On import: {join_and(done)}." if done else ""


def dwa_verdict(dwa: Document) -> str:
    """Say which metric weights were used, and on what evidence, also where learning did not pay."""
    pairs = pluralize(dwa["num_samples"], "image")
    if dwa["mode"] != "learned":
        return (
            f"This campaign does not learn its metric weights: dwa.mode is “{dwa['mode']}”, "
            "so every image gets the same ones."
        )
    if not dwa["candidates"]:
        equal = dwa["spearman_equal"]
        equal_only = "" if equal is None else f" For equal weights alone it is {number(equal, 2)}."
        used = rule_name(dwa["used"])
        return (
            f"{used[0].upper()}{used[1:]} ranked the images: {pairs} with both detections and human labels "
            f"{'is' if dwa['num_samples'] == 1 else 'are'} too few to learn from and to compare fairly.{equal_only}"
        )
    learned, best = _candidate(dwa, "learned"), _candidate(dwa, dwa["best_simple"])
    comparison = (
        f"{number(learned['spearman'], 2)} against {number(best['spearman'], 2)} of {rule_name(best['name'])}, a lead "
        f"of {signed(learned['gain'], 2)} with a standard error of {number(learned['gain_standard_error'], 2)}"
    )
    if dwa["used"] == "learned":
        return (
            "Learned weights were used. On images that they had not learned from they rank the teacher’s mistakes "
            f"better: {comparison}, on {pairs}."
        )
    used = rule_name(dwa["used"])
    return (
        f"{used[0].upper()}{used[1:]} ranked the images. Learned weights do not rank the teacher’s mistakes clearly "
        f"better: {comparison}, on {pairs}."
    )


def _candidate(dwa: Document, name: str) -> Document:
    found: Document = next(candidate for candidate in dwa["candidates"] if candidate["name"] == name)
    return found


def pool_error(found: Document) -> str:
    """Say how many objects the teacher misses per image of the pool, and whether choosing finds more than drawing."""
    sentences = []
    for source, whose in (("calibration", "this round’s teacher"), ("drawn", "the teachers of all rounds so far")):
        estimate = found[source]
        if estimate["misses"] is not None:
            misses, loss = (
                f"{number(estimate[name]['mean'], 2)} ({number(estimate[name]['low'], 2)} to "
                f"{number(estimate[name]['high'], 2)})"
                for name in ("misses", "loss")
            )
            sentences.append(
                f"By {pluralize(estimate['num_images'], 'randomly drawn image')}, {whose} missed {misses} objects per "
                f"image of the pool, at a loss of {loss}; the intervals are of {number(100 * found['level'], 0)} %."
            )
    if not sentences:
        return "Too few randomly drawn images are labeled to estimate the error that is left in the pool."
    if found["chosen"]["loss"] is not None and found["drawn"]["loss"] is not None:
        sentences.append(
            f"The images that were chosen had a loss of {number(found['chosen']['loss']['mean'], 2)}, "
            f"those drawn {number(found['drawn']['loss']['mean'], 2)}: choosing pays where it finds more errors."
        )
    return " ".join(sentences)


def stopping(now: Document) -> list[str]:
    """Say whether further labels still pay, what a point of mAP costs, and how far the last two teachers agree."""
    found = now["stopping"]
    verdict = "Consider stopping" if found["advice"] == CONSIDER_STOPPING else "Go on"
    sentences = [f"{verdict}: {found['reason']}."]
    if found["points_per_batch"] is not None:
        per_batch = found["points_per_batch"]
        sentences.append(
            f"Over the last {pluralize(found['rounds'], 'round')} a batch brought {signed(per_batch['mean'])} points "
            f"({signed(per_batch['low'])} to {signed(per_batch['high'])}), {minutes_per_point(found)}."
        )
    if now["teacher_agreement"] is not None:
        sentences.append(
            "On the validation images this teacher and the previous one report the same objects with an F1 of "
            f"{number(now['teacher_agreement'], 2)}."
        )
    return sentences


def pool_map(found: PoolMap) -> str:
    """Say what the map holds, and how many images look like one that is labeled or picked."""
    near = found.near_duplicates
    num_rest, num_picked = found.count("pool"), found.count("picked") + found.count("explored")
    near_picked = near["picked"] + near["explored"]
    held = number(100 * found.variance_frac, 0)
    return (
        f"Images that the teacher sees alike lie close together; the two directions hold {held} % of the differences. "
        f"Of {pluralize(num_rest, 'image')} left in the pool {near['pool']} look nearly like a labeled or picked one "
        f"and were not taken; of {num_picked} picked ones {near_picked} {'does' if near_picked == 1 else 'do'}."
    )


def dwa_caution(dwa: Document) -> str:
    """Say how far the correlations can be trusted."""
    if not dwa["candidates"]:
        return ""
    margin = min(1.0, 1.96 * _candidate(dwa, "learned")["standard_error"])
    return (
        f"With {pluralize(dwa['num_samples'], 'image')} each figure is uncertain by about ±{number(margin, 2)} (95 %). "
        "A lead is surer than that, since both rules rank the same images."
    )


CONFIDENCE = {
    "sum": "The sum of an image’s scores: how much the teacher is sure to see in it.",
    "least_confidence": "The mean of 1 − score over an image’s boxes: doubtful images stand on the right.",
}
ENTROPY = {
    "sum": "The summed entropy of the class posteriors (nats): doubt about what the boxes hold.",
    "mean": "The mean entropy of the class posteriors (nats): doubt about what a box holds.",
}
OBJECTNESS_ENTROPY = (
    "The mean entropy of objectness over the most doubtful cells of an image (bits): doubt whether there is an object."
)
OVERLAP = "The mean IoU between pairs of boxes that survived suppression: boxes that pile up."


def dwa_record(history: Sequence[Document]) -> str:
    """Say in how many rounds the learned weights were used."""
    if len(history) == 1:
        return ""
    used = sum(bool(entry.get("dwa_used")) for entry in history)
    return f"Learned weights were used in {used} of {pluralize(len(history), 'round')} so far."


_CHANGES = (
    ("unchanged", "unchanged"),
    ("box_adjusted", "adjusted"),
    ("class_changed", "given another class"),
    ("deleted", "deleted"),
)


def agreement(history: Sequence[Document]) -> list[str]:
    """Describe what annotators changed of the pre-drawn boxes, and how far they agree."""
    now = history[-1]["agreement"]
    return [
        _preannotation_agreement(now["with_preannotations"], history),
        _annotator_agreement(now["between_annotators"]),
    ]


def _preannotation_agreement(now: Document, history: Sequence[Document]) -> str:
    if not now["images"]:
        return "No answer of the newest batch says what boxes it started from."
    num_preannotations = sum(now[key] for key, _ in _CHANGES)
    changed = join_and([f"{number(now[key], 0)} were {change}" for key, change in _CHANGES])
    added = f"{pluralize(now['added'], 'box was', 'boxes were')} added"
    changes = (
        f"Of {pluralize(num_preannotations, 'pre-drawn box', 'pre-drawn boxes')} {changed}"
        if num_preannotations
        else "No box was pre-drawn"
    )
    known = [entry["agreement"]["with_preannotations"]["f1"] for entry in history if "agreement" in entry]
    measured = [number(f1, 2) for f1 in known if f1 is not None]
    trend = f" F1 by round: {', '.join(measured)}." if len(measured) > 1 else ""
    return f"{changes}; {added}.{trend}"


def _annotator_agreement(now: Document) -> str:
    if not now["images"]:
        return "No image of the newest batch was labeled by two people."
    score = "" if now["f1"] is None else f", with an F1 of {number(now['f1'], 2)}"
    return f"{pluralize(now['images'], 'time')} two people labeled the same image{score}."
