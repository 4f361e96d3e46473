"""The page: figures, sentences and tables put into one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from tasks.contracts import METRICS
from tasks.reporting import plots, tables, words
from tasks.reporting.drivers import driver_rows, drivers_in_words
from tasks.reporting.evidence import Document, Evidence
from tasks.reporting.thumbnails import colours_of, thumbnail
from tasks.sections import ScoringParams

_CURVE_POINTS = 160


def render(evidence: Evidence, history: Sequence[Document], scoring: ScoringParams, thumbnails: int) -> str:
    """The whole page.

    Args:
        evidence: this round.
        history: all rounds, this one last.
        scoring: how the metrics were formed, for the captions.
        thumbnails: images shown at most, by rank.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks", "reporting"),
        autoescape=True,  # class names and reasons come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in ("number", "signed", "duration", "counted")}
    environment.filters["summed"] = lambda row, keys: sum(row[key] for key in keys)
    return environment.get_template("report.html.j2").render(
        figures=_figures(evidence, history),
        picks=_picks(evidence, thumbnails),
        **_in_words(evidence, history, scoring),
        **_in_rows(evidence, history),
        **_as_they_are(evidence, history),
    )


def _in_words(evidence: Evidence, history: Sequence[Document], scoring: ScoringParams) -> dict[str, Any]:
    return {
        "headline": words.headline(history),
        "lead": words.lead(evidence, history),
        "teacher_lag": words.teacher_lag(history[-1]),
        "pseudo_box_flood": words.pseudo_box_flood(evidence.trained, evidence.assembled),
        "tiles": _tiles(evidence, history),
        "dwa_words": [words.dwa_verdict(evidence.dwa), words.dwa_caution(evidence.dwa)],
        "dwa_record": words.dwa_record(history),
        "drivers": drivers_in_words(evidence.dwa),
        "corrections": words.corrections(evidence.imported),
        "agreement_words": words.agreement(history),
        "captions": {
            "confidence": words.CONFIDENCE[scoring.confidence],
            "entropy": words.ENTROPY[scoring.entropy],
            "overlap": words.OVERLAP,
        },
    }


def _in_rows(evidence: Evidence, history: Sequence[Document]) -> dict[str, Any]:
    return {
        "rounds_shown": tables.rounds_shown(history),
        "class_rows": tables.class_rows(evidence.classes, history),
        "selection": evidence.selection.head(tables.PICKS_SHOWN).to_dict("records"),
        "reviewed": tables.review_rows(evidence),
        "driver_rows": driver_rows(evidence.dwa),
        "stages": tables.stage_rows(evidence.seconds),
        "seconds": sum(evidence.seconds.values()),
        "set_aside": tables.set_aside_rows(evidence),
        "set_aside_shown": tables.SET_ASIDE_SHOWN,
    }


def _as_they_are(evidence: Evidence, history: Sequence[Document]) -> dict[str, Any]:
    return {
        "now": history[-1],
        "history": history,
        "metrics": METRICS,
        "dwa": evidence.dwa,
        "picked": evidence.picked,
        "pool_images": len(evidence.metrics_of),
        "zero_detections": int(evidence.metrics_of["zero_detections"].sum()),
        "trained": evidence.trained,
        "val_images": evidence.metrics["val_images"],
    }


def _tiles(evidence: Evidence, history: Sequence[Document]) -> list[tuple[str, str, str]]:
    """Name, figure and remark of each big number."""
    now, picked = history[-1], evidence.picked
    before = history[-2] if len(history) > 1 else None
    spent = now["minutes_spent"]
    return [
        ("Teacher mAP", words.number(now["teacher"]["mAP"]), _since("teacher", now, before)),
        ("Student mAP", words.number(now["student"]["mAP"]), _since("student", now, before)),
        ("Images labeled", words.number(now["labels"], 0), words.counted(now["boxes"], "box", "boxes")),
        (
            "Still unlabeled",
            words.number(now["unlabeled_images"], 0),
            f"of {_images(evidence.assembled['pool_images'])}",
        ),
        (
            "Asked for next",
            words.number(picked["picked"], 0),
            f"{picked['explored']} of them drawn at random",
        ),
        (
            "Time spent labeling",
            words.DASH if spent is None else words.duration(60 * spent),
            "the label tool reports none" if spent is None else "as the label tool reports",
        ),
    ]


def _since(model: str, now: Document, before: Document | None) -> str:
    if before is None or now[model]["mAP"] is None or before[model]["mAP"] is None:
        return "first measurement"
    return f"{words.signed(now[model]['mAP'] - before[model]['mAP'])} since round {before['round']}"


def _images(count: int) -> str:
    return words.counted(count, "image")


def _figures(evidence: Evidence, history: Sequence[Document]) -> dict[str, Markup]:
    """Figures by name; one that would show nothing is left out, and the page says why in words."""
    return {**_by_round(history), **_of_pool(evidence), **_of_training(evidence.curves)}


def _by_round(history: Sequence[Document]) -> dict[str, Markup]:
    if len(history) < 2:
        return {}
    rounds, labels = [entry["round"] for entry in history], [entry["labels"] for entry in history]
    reached = {model: [entry[model]["mAP"] for entry in history] for model in ("teacher", "student")}
    last = ", ".join(f"{model} {words.number(values[-1])}" for model, values in reached.items())
    figures = {
        "progress": plots.progress(labels, reached, y="mAP (%)", alt=f"mAP against images labeled. Now: {last}.")
    }
    strictness = {measure: [entry["teacher"][measure] for entry in history] for measure in ("AP50", "mAP", "AP75")}
    last = ", ".join(f"{measure} {words.number(values[-1])}" for measure, values in strictness.items())
    alt = f"The teacher's AP at three levels of strictness against images labeled. Now: {last}."
    figures["strictness"] = plots.progress(labels, strictness, y="teacher (%)", alt=alt)
    correlated = {name: [entry[f"spearman_{key}"] for entry in history] for name, key in _CORRELATED.items()}
    if any(value is not None for values in correlated.values() for value in values):
        alt = "Rank correlation of uncertainty with real error by round, learned and equal weights."
        figures["correlations"] = plots.correlations(rounds, correlated, alt=alt)
    weighed = [entry for entry in history if sum(entry["mean_weights"].values()) > 0]
    if len(weighed) > 1:
        means = {name: [entry["mean_weights"][name] for entry in weighed] for name in METRICS}
        bands = {name: [[entry["weight_quantiles"][name][i] for entry in weighed] for i in (0, 2)] for name in METRICS}
        last = ", ".join(f"{name} {words.number(values[-1], 2)}" for name, values in means.items())
        alt = f"Mean metric weights by round with 10 to 90 percent bands. Now: {last}."
        figures["weights"] = plots.weights([entry["round"] for entry in weighed], means, bands, alt=alt)
    return figures


_CORRELATED = {"learned": "dwa", "equal": "equal"}


def _of_pool(evidence: Evidence) -> dict[str, Markup]:
    pool = evidence.metrics_of
    if pool.empty:
        return {}
    explored = evidence.selection["reason"].str.startswith("explore")
    picked = set(evidence.selection["image_id"][~explored])
    drawn = set(evidence.selection["image_id"][explored])
    groups = pool.index.map(lambda image: "picked" if image in picked else "explored" if image in drawn else "pool")
    parts = {name: pool["uncertainty"][groups == name].tolist() for name in ("picked", "explored", "pool")}
    alt = f"Histogram of the uncertainty of {_images(len(pool))}; the picked ones are marked."
    figures = {"uncertainty": plots.stacked(parts, x="uncertainty", alt=alt)}
    for name in METRICS:
        alt = f"Histogram of {name} over {_images(len(pool))}."
        figures[name] = plots.distribution(pool[f"{name}_raw"].tolist(), x=name, colour=name, alt=alt)
    return figures


_WITH_TEACHER = ("loss_unsup", "pseudo_boxes_per_image")


def _of_training(curves: pd.DataFrame | None) -> dict[str, Markup]:
    if curves is None or len(curves) < 2:
        return {}
    # Zeros from before the teacher took part must not be averaged into what follows.
    only_ours = {name: curves[name].where(curves["lambda_unsup"] > 0) for name in _WITH_TEACHER}
    smooth = curves.assign(**only_ours).rolling(max(1, len(curves) // 30), min_periods=1).mean()
    smooth = smooth.assign(iteration=curves["iteration"], lambda_unsup=curves["lambda_unsup"])
    points = smooth.iloc[:: max(1, len(smooth) // _CURVE_POINTS)]
    with_teacher = points["lambda_unsup"] > 0
    iterations = points["iteration"].astype(int).tolist()

    def only_with_teacher(column: str) -> list[float | None]:
        return [float(v) if on else None for v, on in zip(points[column], with_teacher, strict=True)]

    losses: Mapping[str, Any] = {"supervised": points["loss_sup"].tolist()}
    figures: dict[str, Markup] = {}
    if with_teacher.any():
        losses = {**losses, "unsupervised": only_with_teacher("loss_unsup")}
        boxes = {"unsupervised": only_with_teacher("pseudo_boxes_per_image")}
        alt = "Pseudo-boxes per unlabeled image over the training iterations."
        figures["pseudo"] = plots.training(iterations, boxes, y="pseudo-boxes per image", alt=alt)
    alt = f"{words.listed([name.capitalize() for name in losses])} loss over the training iterations."
    figures["losses"] = plots.training(iterations, losses, y="loss", alt=alt)
    return figures


def _picks(evidence: Evidence, at_most: int) -> list[dict[str, Any]]:
    """The first tasks by rank, with pictures."""
    colour_of = colours_of(evidence.classes)
    first = sorted(evidence.tasks, key=lambda task: task.rank)[:at_most]
    of_first = evidence.metrics_of.index.isin([task.image_id for task in first])
    known = {str(image): row.to_dict() for image, row in evidence.metrics_of[of_first].iterrows()}
    return [
        {
            "task": task,
            "explored": task.reason.startswith("explore"),
            "shares": tables.shares(known.get(task.image_id, {})),
            "thumbnail": thumbnail(task, evidence.root, colour_of),
        }
        for task in first
    ]
