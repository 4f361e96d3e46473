"""Render figures, sentences and tables into one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from tasks.data.schemas import ALL_METRICS, AnnotationTask
from tasks.params.stages import ScoringParams
from tasks.reporting import errors_by_class, narrative, plots, tables
from tasks.reporting.checked_pseudo_labels import check_text, checked_pictures
from tasks.reporting.error_crops import error_crops
from tasks.reporting.feature_importance import importance_rows, importance_text
from tasks.reporting.pool_map import GROUP_TEXT, draw_pool_map
from tasks.reporting.report_data import Document, ReportData
from tasks.reporting.thumbnails import class_colors, map_thumbnail, thumbnail
from tasks.runtime import formatting

_CURVE_POINTS = 160


def render(data: ReportData, history: Sequence[Document], scoring: ScoringParams, thumbnails: int) -> str:
    """Render the whole page.

    Args:
        data: this round.
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
    environment.filters |= {name: getattr(formatting, name) for name in ("number", "signed", "duration", "pluralize")}
    environment.filters["rule_name"] = narrative.rule_name
    environment.filters["metric_name"] = lambda name: name.replace("_", " ").capitalize()
    environment.filters["summed"] = lambda row, keys: sum(row[key] for key in keys)
    return environment.get_template("report.html.j2").render(
        figures=_plots(data, history, with_pictures=thumbnails > 0),
        picks=_selected(data, thumbnails),
        checked=checked_pictures(data.train_summary, data.root, class_colors(data.classes), thumbnails),
        **_text(data, history, scoring),
        **_tables(data, history, with_pictures=thumbnails > 0),
        **_raw(data, history),
    )


def _text(data: ReportData, history: Sequence[Document], scoring: ScoringParams) -> dict[str, Any]:
    return {
        "headline": narrative.headline(history),
        "summary": narrative.summary(data, history),
        "teacher_lag_warning": narrative.teacher_lag_warning(history[-1]),
        "pretraining_text": narrative.pretraining(data.train_summary),
        "pseudo_labels_verdict": narrative.pseudo_labels_verdict(data.train_summary),
        "pseudo_label_check_text": check_text(data.train_summary),
        "pseudo_box_warning": narrative.pseudo_box_warning(data.train_summary, data.assemble_summary),
        "kpi_cards": _kpi_cards(data, history),
        "dwa_text": [narrative.dwa_verdict(data.dwa), narrative.dwa_caution(data.dwa)],
        "pool_error_text": narrative.pool_error(data.pool_error),
        "checked_labels": narrative.checked_labels(data.assemble_summary),
        "selection_shares": narrative.selection_shares(data.selection_summary),
        "stopping_text": narrative.stopping(history[-1]),
        "dwa_record": narrative.dwa_record(history),
        "pool_map_text": None if data.pool_map is None else narrative.pool_map(data.pool_map),
        "importance_text": importance_text(data.dwa),
        "import_corrections": narrative.import_corrections(data.import_counts),
        "agreement_text": narrative.agreement(history),
        "captions": {
            "confidence": narrative.CONFIDENCE[scoring.confidence],
            "entropy": narrative.ENTROPY[scoring.entropy],
            "overlap": narrative.OVERLAP,
            "objectness_entropy": narrative.OBJECTNESS_ENTROPY,
        },
    }


def _tables(data: ReportData, history: Sequence[Document], *, with_pictures: bool) -> dict[str, Any]:
    return {
        "rounds_shown": tables.rounds_shown(history),
        "class_rows": tables.class_rows(data.classes, history),
        **_errors(data, with_pictures=with_pictures),
        "pseudo_label_rows": tables.pseudo_label_rows(data.train_summary),
        "selection": data.selection.head(tables.SELECTED_SHOWN).to_dict("records"),
        "reviewed": tables.review_rows(data),
        "doubtful_labels": data.doubtful_labels[: tables.DOUBTFUL_SHOWN],
        "num_doubtful": len(data.doubtful_labels),
        "wanted_rows": tables.wanted_rows(data),
        "bought_rows": tables.bought_rows(data.selection_summary),
        "importance_rows": importance_rows(data.dwa),
        "stages": tables.stage_rows(data.stage_seconds),
        "seconds": sum(data.stage_seconds.values()),
        "rejected": tables.rejected_rows(data),
        "rejected_shown": tables.REJECTED_SHOWN,
    }


def _errors(data: ReportData, *, with_pictures: bool) -> dict[str, Any]:
    """Return the tables of the teacher's errors, each empty where its protocol is not in ``evaluate.protocols``."""
    protocols = data.metrics["protocols"]["teacher"]
    return {
        "operating_rows": errors_by_class.operating_rows(protocols),
        "operating": protocols.get("operating_point"),
        "matrix_rows": errors_by_class.confusion_matrix_rows(protocols, data.classes),
        "confusions": errors_by_class.frequent_confusions(protocols, data.classes),
        "confusion_threshold": protocols.get("confusion", {}).get("score_threshold"),
        "error_crops": error_crops(data, protocols) if with_pictures else [],
        "slice_rows": errors_by_class.slice_rows(protocols),
    }


def _raw(data: ReportData, history: Sequence[Document]) -> dict[str, Any]:
    return {
        "now": history[-1],
        "history": history,
        "metrics": _metrics_shown(data.dwa),
        "metric_legend": [(name, name.replace("_", " "), "") for name in _metrics_shown(data.dwa)],
        "dwa": data.dwa,
        "picked": data.selection_summary,
        "pool_images": len(data.pool_metrics),
        "has_no_detections": int(data.pool_metrics["has_no_detections"].sum()),
        "trained": data.train_summary,
        "val_images": data.metrics["val_images"],
    }


def _metrics_shown(weighed: Document) -> list[str]:
    """Return the metrics that the mixture was made of, in their fixed order."""
    return [name for name in ALL_METRICS if name in weighed["mean_weights"]]


def _kpi_cards(data: ReportData, history: Sequence[Document]) -> list[tuple[str, str, str]]:
    """Return name, figure and remark of each headline number."""
    now, picked = history[-1], data.selection_summary
    before = history[-2] if len(history) > 1 else None
    spent = now["minutes_spent"]
    return [
        ("Teacher mAP", formatting.number(now["teacher"]["mAP"]), _delta("teacher", now, before)),
        ("Student mAP", formatting.number(now["student"]["mAP"]), _delta("student", now, before)),
        ("Images labeled", formatting.number(now["labels"], 0), formatting.pluralize(now["boxes"], "box", "boxes")),
        (
            "Still unlabeled",
            formatting.number(now["unlabeled_images"], 0),
            f"of {_num_images(data.assemble_summary['pool_images'])}",
        ),
        (
            "Asked for next",
            formatting.number(picked["selected"], 0),
            f"{picked['random_picks']} of them drawn at random",
        ),
        (
            "Time spent labeling",
            formatting.DASH if spent is None else formatting.duration(60 * spent),
            "the label tool reports none" if spent is None else "as the label tool reports",
        ),
    ]


def _delta(model: str, now: Document, before: Document | None) -> str:
    if before is None or now[model]["mAP"] is None or before[model]["mAP"] is None:
        return "first measurement"
    return f"{formatting.signed(now[model]['mAP'] - before[model]['mAP'])} since round {before['round']}"


def _num_images(count: int) -> str:
    return formatting.pluralize(count, "image")


def _plots(data: ReportData, history: Sequence[Document], *, with_pictures: bool) -> dict[str, Markup]:
    """Draw the figures by name; one that would be empty is left out, and the page says why."""
    return {
        **_round_plots(history),
        **_pool_plots(data),
        **_map(data, with_pictures=with_pictures),
        **_training_plots(data.curves),
    }


def _map(data: ReportData, *, with_pictures: bool) -> dict[str, Markup]:
    if data.pool_map is None:
        return {}
    counts = [f"{data.pool_map.count(group)} {text}" for group, text in GROUP_TEXT.items()]
    alt = f"Map of {_num_images(len(data.pool_map.image_ids))} by what the teacher sees in them: {', '.join(counts)}."
    return {"pool_map": draw_pool_map(data.pool_map, data.root, alt, with_pictures=with_pictures)}


def _round_plots(history: Sequence[Document]) -> dict[str, Markup]:
    if len(history) < 2:
        return {}
    rounds, labels = [entry["round"] for entry in history], [entry["labels"] for entry in history]
    reached = {model: [entry[model]["mAP"] for entry in history] for model in ("teacher", "student")}
    last = ", ".join(f"{model} {formatting.number(values[-1])}" for model, values in reached.items())
    figures = {
        "progress": plots.progress(labels, reached, y="mAP (%)", alt=f"mAP against images labeled. Now: {last}.")
    }
    strictness = {measure: [entry["teacher"][measure] for entry in history] for measure in ("AP50", "mAP", "AP75")}
    last = ", ".join(f"{measure} {formatting.number(values[-1])}" for measure, values in strictness.items())
    alt = f"The teacher's AP at three levels of strictness against images labeled. Now: {last}."
    figures["strictness"] = plots.progress(labels, strictness, y="teacher (%)", alt=alt)
    correlated = {name: [entry[f"spearman_{key}"] for entry in history] for name, key in _CORRELATED.items()}
    if any(value is not None for values in correlated.values() for value in values):
        alt = "Rank correlation of uncertainty with real error by round, learned and equal weights."
        figures["correlations"] = plots.correlations(rounds, correlated, alt=alt)
    weighed = [entry for entry in history if any(entry["mean_weights"].values())]
    if len(weighed) > 1:
        names = _metrics_shown(history[-1])
        means = {name: [entry["mean_weights"].get(name, 0.0) for entry in weighed] for name in names}
        quantiles = {name: [entry["weight_quantiles"].get(name, [0.0] * 3) for entry in weighed] for name in names}
        bands = {name: [[found[i] for found in quantiles[name]] for i in (0, 2)] for name in names}
        last = ", ".join(f"{name} {formatting.number(values[-1], 2)}" for name, values in means.items())
        alt = f"Mean metric weights by round with 10 to 90 percent bands. Now: {last}."
        figures["weights"] = plots.weights([entry["round"] for entry in weighed], means, bands, alt=alt)
    return figures


_CORRELATED = {"learned": "dwa", "equal": "equal"}


def _pool_plots(data: ReportData) -> dict[str, Markup]:
    pool = data.pool_metrics
    if pool.empty:
        return {}
    is_random_pick = data.selection["reason"].str.startswith("random pick")
    selected = set(data.selection["image_id"][~is_random_pick])
    random_picks = set(data.selection["image_id"][is_random_pick])
    groups = pool.index.map(
        lambda image: "picked" if image in selected else "explored" if image in random_picks else "pool"
    )
    parts = {name: pool["uncertainty"][groups == name].tolist() for name in ("picked", "explored", "pool")}
    alt = f"Histogram of the uncertainty of {_num_images(len(pool))}; the picked ones are marked."
    figures = {"uncertainty": plots.stacked_histogram(parts, x="uncertainty", alt=alt)}
    for name in _metrics_shown(data.dwa):
        alt = f"Histogram of {name} over {_num_images(len(pool))}."
        figures[name] = plots.histogram(pool[f"{name}_raw"].tolist(), x=name.replace("_", " "), color=name, alt=alt)
    return figures


_WITH_TEACHER = ("loss_unsup", "pseudo_boxes_per_image")


def _training_plots(curves: pd.DataFrame | None) -> dict[str, Markup]:
    if curves is None or len(curves) < 2:
        return {}
    # Zeros from before the teacher took part must not be averaged into what follows.
    teacher_only = {name: curves[name].where(curves["lambda_unsup"] > 0) for name in _WITH_TEACHER}
    smooth = curves.assign(**teacher_only).rolling(max(1, len(curves) // 30), min_periods=1).mean()
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
    alt = f"{formatting.join_and([name.capitalize() for name in losses])} loss over the training iterations."
    figures["losses"] = plots.training(iterations, losses, y="loss", alt=alt)
    return figures


def _selected(data: ReportData, max_images: int) -> list[dict[str, Any]]:
    """Return the first tasks by rank, with thumbnails."""
    class_color = class_colors(data.classes)
    shown = sorted(data.tasks, key=lambda task: task.rank)[:max_images]
    is_shown = data.pool_metrics.index.isin([task.image_id for task in shown])
    known = {str(image): row.to_dict() for image, row in data.pool_metrics[is_shown].iterrows()}
    return [
        {
            "task": task,
            "is_random": task.reason.startswith("random pick"),
            "shares": tables.metric_contributions(known.get(task.image_id, {})),
            "thumbnail": thumbnail(task, data.root, class_color),
            "doubt": _doubt_picture(task, data),
        }
        for task in shown
    ]


def _doubt_picture(task: AnnotationTask, data: ReportData) -> str:
    """Draw where the proposal network was in doubt as a data URI; empty where that was not measured."""
    percent = data.doubt_maps.get(task.image_id)
    if percent is None:
        return ""
    size_px = task.width_px, task.height_px
    return map_thumbnail(task.uri, task.image_id, data.root, size_px, percent)[0]
