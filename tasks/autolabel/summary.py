"""Say in Markdown what was accepted and promised, and what the audit found."""

from typing import Any

from tasks.runtime.formatting import DASH, number

Document = dict[str, Any]
_VERDICTS = {
    "broken": "the promise is **broken**: less is right than was promised",
    "not refuted": "the promise is not refuted",
    "shown": "the promise is shown by this sample alone",
    "not checked": "nothing was checked",
}


def render_summary(summary: Document) -> str:
    """Render ``summary.json`` for a reader."""
    params, minutes, images, boxes = (summary[key] for key in ("parameters", "minutes", "images", "boxes"))
    model, sample = summary["model"], summary["sample"]
    lines = [
        f"# Labels by model version {model['version']} (round {model['round_number']})",
        "",
        f"Promised, each with a confidence of {_percent(params['confidence_level'])}: at least "
        f"{_percent(params['wanted_precision'])} of the accepted boxes of a class are right (IoU of at least "
        f"{params['box_iou']:g}), and at most {_percent(params['max_wrong_images_frac'])} of the images accepted whole "
        "have a wrong box or lack an object. In images of which only some boxes were accepted, nothing is promised of "
        "the rest: objects without a box are there.",
        "",
        f"Measured on {sample['images']} labeled random images that the model was not trained on "
        f"({sample['calibration_images']} calibration images, {sample['returned_random_draws']} random draws that came "
        "back).",
        "",
        "| class | accepted from score | bound on precision | accepted boxes | wrong in the sample | its images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rule in summary["classes"].items():
        lines.append(
            f"| {_cell(name)} | {number(rule['threshold'], 3)} | {_percent(rule['precision_bound'])} | "
            f"{rule['accepted_boxes']} | {rule['num_wrong']} of {rule['num_sample_boxes']} | "
            f"{rule['num_sample_images']} |"
        )
    notes = [f"- {name}: {_note(rule)}." for name, rule in summary["classes"].items() if rule["threshold"] is None]
    lines += ["", "Not accepted:", "", *notes] if notes else []
    whole = summary["whole_images"]
    lines += [
        "",
        _whole_images(whole),
        "",
        "| | images | boxes |",
        "| --- | --- | --- |",
        f"| labeled by people | {images['labeled_by_people']} | {boxes['people']} |",
        f"| accepted whole | {images['accepted_whole']} | {boxes['whole']} |",
        f"| accepted in part | {images['accepted_in_part']} | {boxes['partial']} |",
        f"| left to people | {images['left_to_people']} | {DASH} |",
        "",
        f"People labeled {_percent(summary['people_images_frac'])} of the complete images and "
        f"{_percent(summary['people_boxes_frac'])} of the boxes.",
        "",
        f"By the campaign's cost model, whole images save {minutes['saved_by_whole_images']:.1f} minutes, boxes in "
        f"other images {minutes['saved_by_boxes']:.1f} where people leave them as they are; the audit takes up to "
        f"{minutes['audit']:.1f}, and what is left to people {minutes['left_to_people']:.1f}.",
        "",
    ]
    return "\n".join(lines)


def render_audit(result: Document) -> str:
    """Render the result of an audit for a reader."""
    level = _percent(result["confidence_level"])
    lines = [f"# Audit (exact intervals of {level})", "", "| what | promised | right | found | interval | |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    rows = [("accepted boxes", result["boxes"])]
    rows += [(f"of class {name}", found) for name, found in result["by_class"].items()]
    rows.append(("images accepted whole", result["images"]))
    for name, found in rows:
        lines.append(
            f"| {_cell(name)} | {_percent(found['promised'])} | {found['right']} of {found['checked']} | "
            f"{_percent(found['found'])} | {_percent(found['low'])} to {_percent(found['high'])} | "
            f"{_VERDICTS[found['verdict']]} |"
        )
    if result["unanswered"]:
        lines += ["", f"Images without an answer: {len(result['unanswered'])}. They say nothing."]
    return "\n".join([*lines, ""])


def _whole_images(rule: Document) -> str:
    if rule["max_expected_errors"] is None:
        return f"No image is accepted whole: {_note(rule)}."
    return (
        f"Images accepted whole: {rule['accepted_images']}, those with at most {rule['max_expected_errors']:.3f} "
        f"expected errors. Of {rule['num_sample_images']} such images of the sample {rule['num_wrong']} are wrong; "
        f"bound {_percent(rule['wrong_bound'])}."
    )


def _note(rule: Document) -> str:
    needed = rule["calibration_images_needed"]
    return str(rule["reason"]) + (f"; at least {needed} labeled random images are needed" if needed else "")


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
