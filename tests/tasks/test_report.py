"""The page as a whole: complete, self-contained, honest in every state a campaign can be in."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.data.paths import Workspace
from tasks.data.schemas import DETECTIONS_AT_SELECTION, SCORES
from tasks.params import load_stage_params
from tasks.report import report
from tasks.reporting.errors_by_class import confusion_matrix_rows, frequent_confusions, operating_rows
from tasks.reporting.thumbnails import crop_jpeg
from tasks.runtime.errors import UserError
from tasks.storage import files

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "br", "img", "hr", "input", "source"}


class Page(HTMLParser):
    """What a browser would load, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] != "style" else ""


def render_page(workspace: Workspace) -> Page:
    params = load_stage_params(workspace.params, "classes", "scoring", "report", "stopping")
    report(
        params.classes,
        params.scoring,
        params.report,
        params.stopping,
        workspace=workspace,
        out=workspace.derived("report"),
    )
    return Page((workspace.derived("report") / "report.html").read_text(encoding="utf-8"))


def text_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_page_is_self_contained_and_well_formed(synthetic_campaign):
    workspace = synthetic_campaign()
    page = render_page(workspace)
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert (page.unbalanced, page.open) == ([], [])


def test_page_shows_every_part(synthetic_campaign):
    page = render_page(synthetic_campaign())
    text = text_of(page)
    for part in (
        "Round 3: the teacher reaches 45.7 mAP with 120 images labeled",
        "a gain of 21.7 mAP points since round 0",
        "mAP against labels",
        "Class by class",
        "Weight in training",
        "Claimed background",
        "All rules that were compared",
        "one learned mixture for all images0.490.06 +0.020.02yes",
        "Uncertainty, and what was picked",
        "rank the teacher’s mistakes better: 0.51 against 0.47 of entropy alone, a lead of +0.04 with a standard error",
        "Metric weights by round",
        "An image’s weights lie 0.031 from their mean, on average. What moves them most: number of boxes, entropy and "
        "share of scores 0.2 to 0.4. The mean itself leans to entropy, which ranks the mistakes best by itself.",
        "number of boxes0.020 +0.011−0.020+0.009",
        "random draw",
        "Time by stage",
        "Losses",
        "IMG_0042.jpg at prepare: the image is unreadable",
        "b.xml at import: box 2 has area 0",
        "On import: 31 exact duplicates collapsed and 1 box clipped by a pixel.",
        "no detections: the teacher saw nothing here",
    ):
        assert part in text, part
    drawings = page.tags.count("svg")
    assert drawings == 4 + 4 + 1 + 2 + 12 + 2  # by round, of the pool, its map, of training, thumbnails, errors


def test_a_label_that_the_teacher_contradicts_is_listed(synthetic_campaign):
    workspace = synthetic_campaign()
    text = text_of(render_page(workspace))
    assert "1 label to look at again" in text
    (label,) = json.loads((workspace.derived("report") / "label_check.json").read_text())
    assert (label["image_id"], label["kind"], label["class_name"]) == (f"{3:016x}", "swapped", "one")
    assert (label["strength"], label["was_unseen"]) == (0.875, False)


def test_the_map_shows_every_group_and_pictures_of_what_is_picked(synthetic_campaign):
    workspace = synthetic_campaign()
    page = render_page(workspace)
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    assert "Map of 128 images by what the teacher sees in them: 108 left in the pool, 8 labeled" in html
    assert html.count('<g class="dot"') == 128
    assert html.count('class="peek"') == 12  # the others are not on this machine
    assert "Images that the teacher sees alike lie close together" in text_of(page)


def test_a_picked_image_shows_where_the_teacher_is_in_doubt(synthetic_campaign):
    workspace = synthetic_campaign()
    plain = render_page(workspace)
    assert "whether there is an object" not in plain.text
    path = workspace.derived("weigh") / "dwa.json"
    dwa = files.read_json(path)
    for name, value in (("mean_weights", 0.25), ("weight_quantiles", [0.2, 0.25, 0.3]), ("spearman_by_metric", 0.4)):
        dwa[name]["objectness_entropy"] = value
    files.write_json(path, dwa | {"feature_importance": None})
    scores = workspace.derived("score") / "scores.parquet"
    table = files.read_table(scores, SCORES)
    column = table.schema.get_field_index("objectness_entropy_raw")
    doubt = pa.array([0.5] * len(table))
    files.write_table(scores, table.set_column(column, "objectness_entropy_raw", doubt))
    picked = pq.read_table(workspace.derived("select") / "selection.parquet")["image_id"].to_pylist()
    rows = [{"image_id": image, "objectness_entropy_map": [0] * 255 + [100]} for image in picked[:2]]
    table = pa.Table.from_pylist(rows, schema=DETECTIONS_AT_SELECTION)
    files.write_table(workspace.derived("handoff") / "detections.parquet", table)
    page = render_page(workspace)
    assert (page.unbalanced, page.open) == ([], [])
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    assert html.count("Where the teacher doubts in image") == 2
    assert "Four metrics" in page.text
    assert "Objectness entropy" in page.text


def test_every_drawing_has_words_for_those_who_do_not_see_it(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg[^>]*>", html)
    assert drawings
    assert all(re.search(r'role="img" aria-label="[^"]{10,}"', drawing) for drawing in drawings)
    assert html.count("<figure>") == html.count("<figcaption>")


def test_first_round_says_in_words_what_cannot_be_drawn_yet(synthetic_campaign):
    page = render_page(synthetic_campaign(rounds=1))
    text = text_of(page)
    assert "Round 0: the teacher starts at 24.0 mAP with 48 images labeled" in text
    assert "there is nothing to compare it with yet" in text
    assert "The curve begins when the next batch of labels is back." in text
    assert "What moves the weights" not in text
    assert "Equal weights ranked the images: 12 images with both detections and human labels are too few" in text
    assert "first measurement" in text
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_rounds_without_any_correlation_are_told_not_drawn(synthetic_campaign):
    text = text_of(render_page(synthetic_campaign(rounds=3, acquisition_weights="cold")))
    assert "No round so far had enough labeled images to measure a rank correlation." in text
    assert "Equal weights ranked the images" in text
    assert "None" not in text


def test_lost_comparison_is_admitted(synthetic_campaign):
    text = text_of(render_page(synthetic_campaign(acquisition_weights="equal")))
    assert "Equal weights ranked the images. Learned weights do not rank the teacher’s mistakes clearly better" in text
    assert "Learned weights were used in 0 of 4 rounds so far." in text


@pytest.mark.parametrize(("pool", "picked"), [(0, 0), (1, 1), (5, 5)])
def test_small_and_empty_pools(synthetic_campaign, pool, picked):
    text = text_of(render_page(synthetic_campaign(pool_images=pool, num_selected=picked)))
    if pool == 0:
        assert "No unlabeled image is left: there is nothing more to ask for." in text
        assert "No image was picked: nothing unlabeled is left." in text
    elif pool == 1:
        assert "The last unlabeled image is asked for next" in text
    else:
        assert "All 5 unlabeled images are asked for next" in text


def test_names_from_outside_are_text_not_markup(synthetic_campaign):
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{1}{2}$", "red & blue", "猫", "a")
    workspace = synthetic_campaign(classes=hostile)
    page = render_page(workspace)
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html
    assert all(name in page.text for name in hostile)
    assert (page.unbalanced, page.open) == ([], [])


def test_same_inputs_give_the_same_files(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    first = [path.read_bytes() for path in sorted(workspace.derived("report").iterdir())]
    render_page(workspace)
    assert [path.read_bytes() for path in sorted(workspace.derived("report").iterdir())] == first
    assert str(workspace.root).encode() not in b"".join(first)


def test_history_does_not_depend_on_timings(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    before = (workspace.derived("report") / "history.json").read_bytes()
    for path in workspace.timing("train").parent.iterdir():
        path.unlink()
    text = text_of(render_page(workspace))
    assert (workspace.derived("report") / "history.json").read_bytes() == before
    assert "Time by stage" not in text


def test_history_is_the_earlier_one_and_this_round(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    history = json.loads((workspace.derived("report") / "history.json").read_text())
    earlier = json.loads((workspace.warm_start / "history.json").read_text())
    assert history[:-1] == earlier
    assert set(history[-1]) == {*earlier[-1], "stopping"}
    assert (history[-1]["round"], history[-1]["dwa_used"]) == (3, True)
    weights = pq.read_table(workspace.derived("weigh") / "uncertainty.parquet")["uncertainty"].to_pylist()
    assert history[-1]["mean_uncertainty"] == pytest.approx(sum(weights) / len(weights))


def write_annotations(workspace: Workspace, *annotators: str) -> None:
    """Everybody keeps one of two pre-drawn boxes of an image, takes out the other and draws a third."""
    preannotations = [{"category": "zero", "xyxy_px": [x, 0, x + 9, 9]} for x in (0, 20)]
    annotations = [
        {
            "image_id": "a" * 16, "status": "labeled",
            "boxes": [preannotations[0], {"category": "one", "xyxy_px": [50, 0, 60, 9]}],
            "annotator": annotator, "finished_at": f"2026-03-01T10:00:0{n}+00:00", "seconds_spent": 30.0,
            "offered_batch": 3, "preannotations": preannotations,
        }
        for n, annotator in enumerate(annotators)
    ]  # fmt: skip
    path = workspace.label_batch(3)
    files.write_json(path, {**files.read_json(path), "images": annotations[-1:], "other_annotations": annotations[:-1]})


def test_agreement_is_told_in_words_and_by_annotator(synthetic_campaign):
    workspace = synthetic_campaign()
    assert "No answer of the newest batch says what boxes it started from." in text_of(render_page(workspace))
    write_annotations(workspace, "ann", "<b>bob</b>")
    page = render_page(workspace)
    text = text_of(page)
    assert (
        "Of 4 pre-drawn boxes 2 were unchanged, 0 were adjusted, 0 were given another class and 2 were deleted; "
        "2 boxes were added." in text
    )
    assert "F1 by round: 0.67, 0.67, 0.67, 0.50." in text
    assert "1 time two people labeled the same image, with an F1 of 1.00." in text
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    cells = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "&lt;b&gt;bob&lt;/b&gt; 1 1 0 0 1 1 0.50 1.00" in cells
    assert "Together 2 2 0 0 2 2 0.50 1.00" in cells
    assert (page.unbalanced, page.open) == ([], [])
    now = files.read_json(workspace.derived("report") / "history.json")[-1]
    assert now["agreement"]["with_preannotations"]["annotators"]["ann"]["f1"] == 0.5
    assert now["agreement"]["between_annotators"]["f1"] == 1.0


def test_a_history_from_before_agreement_was_measured_is_no_obstacle(synthetic_campaign):
    workspace = synthetic_campaign()
    path = workspace.warm_start / "history.json"
    old = [
        {k: v for k, v in entry.items() if k not in ("agreement", "annotation_cost")} for entry in files.read_json(path)
    ]
    files.write_json(path, old)
    write_annotations(workspace, "ann")
    text = text_of(render_page(workspace))
    assert "F1 by round" not in text
    assert "No image of the newest batch was labeled by two people." in text


def test_the_cost_of_the_next_batch_says_where_it_comes_from(synthetic_campaign):
    text = text_of(render_page(synthetic_campaign()))
    assert "of work, at 0.25 minutes an image and 0.50 a box (fitted to 43 answers)." in text


def test_a_class_that_floods_the_pseudo_labels_is_told(synthetic_campaign):
    workspace = synthetic_campaign()
    assert "pseudo-boxes must be mistakes" not in text_of(render_page(workspace))
    assembled = files.read_json(workspace.derived("assemble") / "summary.json")
    name, boxes = next(iter(assembled["boxes_per_class"].items()))
    summary = workspace.derived("train") / "summary.json"
    trained = files.read_json(summary)
    trained["pseudo_boxes_per_image_by_class"][name] = 7 * boxes / assembled["labeled_images"]
    files.write_json(summary, trained)
    assert f"The teacher draws “{name}” 7 times as often in unlabeled images" in text_of(render_page(workspace))


def test_page_grows_from_its_own_history(synthetic_campaign):
    """The next round starts from what this one wrote."""
    workspace = synthetic_campaign(rounds=1)
    render_page(workspace)
    files.write_json(
        workspace.warm_start / "history.json", files.read_json(workspace.derived("report") / "history.json")
    )
    summary = workspace.derived("assemble") / "summary.json"
    files.write_json(summary, {**files.read_json(summary), "round": 1, "labels": 72})
    text = text_of(render_page(workspace))
    assert "That is no change since round 0, for 24 more images labeled." in text
    assert len(files.read_json(workspace.derived("report") / "history.json")) == 2


def test_missing_curves_and_pictures_leave_words(synthetic_campaign):
    workspace = synthetic_campaign()
    (workspace.derived("train") / "curves.parquet").unlink()
    for picture in workspace.images.iterdir():
        picture.write_bytes(b"not a picture")
    text = text_of(render_page(workspace))
    assert "The training left no curves." in text
    assert text.count("The image is not on this machine.") == 12


def test_supervised_training_has_no_pseudo_labels_to_show(synthetic_campaign):
    workspace = synthetic_campaign()
    path = workspace.derived("train") / "curves.parquet"
    files.write_table(path, pq.read_table(path).slice(0, 100))  # before the teacher takes part
    assert "The teacher took no part in this training: it was all on labels." in text_of(render_page(workspace))


def test_no_thumbnails_when_none_are_wanted(synthetic_campaign):
    workspace = synthetic_campaign()
    params = load_stage_params(workspace.params, "classes", "scoring", "report", "stopping")
    none = params.report.model_copy(update={"thumbnails": 0})
    report(params.classes, params.scoring, none, params.stopping, workspace=workspace, out=workspace.derived("report"))
    html = (workspace.derived("report") / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html
    assert "All 12 images as a table" in html


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("data/warm_start/history.json", "{}", "the content is not a list of rounds, expected one"),
        ("data/warm_start/history.json", "[1]", "the content is not a list of rounds, expected one"),
        ("derived/handoff/manifest.jsonl", "{}\n", "a line is not a task"),
        ("derived/evaluate/metrics.json", "no", "the content is not JSON"),
    ],
)
def test_broken_input_is_named(synthetic_campaign, path, content, message):
    workspace = synthetic_campaign()
    (workspace.root / path).write_text(content)
    with pytest.raises(UserError) as raised:
        render_page(workspace)
    assert message in str(raised.value)
    assert path.split("/")[-1] in str(raised.value)


def test_runs_as_a_module_in_a_workspace(synthetic_campaign):
    workspace = synthetic_campaign()
    command = [sys.executable, "-m", "tasks.report"]
    done = subprocess.run(command, cwd=workspace.root, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in workspace.derived("report").iterdir())
    assert written == ["history.json", "label_check.json", "report.html"]


def test_pseudo_labels_are_shown_by_class_with_their_measured_precision(synthetic_campaign):
    workspace = synthetic_campaign()
    text = text_of(render_page(workspace))
    assert "Unlabeled images took part, without pseudo-labels of “seven”" in text
    assert "zero 0.45 40 90 81 0.32 yes, measured" in text
    assert "one 0.70 3 100 – 0.32 yes" in text
    assert "seven 0.70 30 10 4 0.32 no" in text
    kept = files.read_json(workspace.derived("report") / "history.json")[-1]["pseudo_labels"]
    assert kept["took_part"] is True
    assert kept["by_class"]["precision"]["seven"] == 0.1
    assert kept["by_class"]["takes_part"] == dict.fromkeys(("zero", "one", "two", "three", "four"), True) | {
        "seven": False
    }


def test_errors_are_shown_by_class(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    page = (workspace.derived("report") / "report.html").read_text()
    section = page[page.index('<section id="errors">') : page.index('<section id="uncertainty">')]
    assert "For precision 90 %" in section
    assert section.count("all classes") == 2  # its cell and the cell's title
    num_classes = len(load_stage_params(workspace.params, "classes").classes)
    matrix = section[section.index("Confusion matrix") : section.index("mAP by slice")]
    assert matrix.count("<tr>") == num_classes + 3  # two rows of heads, one for each class, one for nothing
    assert matrix.count('style="--v: 83') == num_classes + 1  # 50 of 60


def test_frequent_errors_are_shown_as_parts_of_the_validation_images(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    page = (workspace.derived("report") / "report.html").read_text()
    first, second = load_stage_params(workspace.params, "classes").classes[:2]
    crops = page[page.index('<div class="crops">') :]
    crops = crops[: crops.index("</div>")]
    assert crops.count("<image ") == 2  # the third image is not here
    assert f'aria-label="{first} taken for {second}: image val0, score 0.87"' in crops
    assert f'aria-label="{first}, missed: image val0"' in crops
    assert f"{first}, where nothing is" in crops


def test_a_crop_shows_the_box_with_what_is_around_it(tmp_path: Path) -> None:
    """A box of 40 x 20 px, 35 % of the longer side around it; the left border of the image cuts the margin off."""
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    uri = crop_jpeg("a.png", "a", tmp_path, [5.0, 30.0, 45.0, 50.0])
    crop = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    left, top, right, bottom = 0, 15, 61, 66  # margins of 15 px
    assert crop.width == 110
    assert crop.height == round(110 * (bottom - top) / (right - left))


def test_slices_with_objects_are_listed_the_worst_first(synthetic_campaign):
    workspace = synthetic_campaign()
    render_page(workspace)
    page = (workspace.derived("report") / "report.html").read_text()
    table = page[page.index("mAP by slice") :]
    table = table[: table.index("</table>")]
    assert table.index(">dark<") < table.index(">bright<")
    assert ">12.5<" in table
    assert ">8.0 to 18.0<" in table
    assert "06 to 12" not in table


def test_with_many_classes_the_most_frequent_confusions_are_listed():
    names = [f"class {number}" for number in range(16)]
    matrix = [[0] * 17 for _ in range(17)]
    matrix[3][4], matrix[16][2], matrix[5][16], matrix[7][7] = 5, 9, 2, 100
    protocols = {"confusion": {"score_threshold": 0.5, "matrix": matrix}}
    assert confusion_matrix_rows(protocols, names) == []
    assert frequent_confusions(protocols, names) == [
        {"true": "background", "predicted": "class 2", "count": 9},
        {"true": "class 3", "predicted": "class 4", "count": 5},
        {"true": "class 5", "predicted": "background", "count": 2},
    ]
    assert operating_rows(protocols) == []


def test_checked_pseudo_labels_are_shown_with_both_values(synthetic_campaign):
    workspace = synthetic_campaign()
    path = workspace.derived("train") / "summary.json"
    box = {
        "xyxy_px": [1, 1, 9, 9],
        "class_name": "<b>",
        "score": 0.9,
        "activation": 0.31,
        "similarity": 0.42,
        "value": 0.13,
    }
    shown = {
        "image_id": "1",
        "uri": "no.png",
        "width_px": 40,
        "height_px": 30,
        "boxes": [box],
        "map_percent": [[0, 100]],
    }
    check = {"mode": "veto", "threshold": 0.2, "judged": 50, "below": 10, "examples": [shown]}
    assert "Checked pseudo-labels" not in text_of(render_page(workspace))
    files.write_json(path, {**files.read_json(path), "pseudo_label_check": check})
    page = render_page(workspace)
    assert not page.unbalanced
    assert "<b> 0.90 activation 0.31, similarity 0.42: below" in text_of(page)
