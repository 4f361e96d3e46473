"""Which images are finished, by whom and when; and that no file is lost without a message."""

import io
import json
import os
import time
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from flows.annotation.annotation_rules import annotation_digest
from flows.annotation.providers import folder_inbox
from tests.flows.annotation.folder.conftest import HEIGHT, WIDTH, Team


def test_coco_of_the_whole_batch_finishes_only_images_with_changed_boxes(team: Team) -> None:
    boxes: list[tuple[int, str, list[float]]] = [
        (0, "cat", [3.2, 4.4, 17.0, 25.6]),
        (1, "cat", [1, 1, 8, 8]),
        (3, "dog, small", [5, 6, 7, 8]),
    ]
    team.write_to_inbox("batch-0003/instances.json", team.coco(boxes))
    answers, problems = team.collect()
    first, second, third, fourth = (task.image_id for task in team.tasks)
    assert problems == []
    assert set(answers) == {second, fourth}  # image 0 has the pre-annotations to half a pixel, image 2 has no boxes
    assert answers[fourth]["boxes"] == [{"category": "dog, small", "xyxy_px": [5.0, 6.0, 12.0, 14.0], "shape": "box"}]
    assert answers[second]["status"] == "labeled"
    assert {first, third}.isdisjoint(answers)
    assert team.provider.status(team.delivery).finished == 2
    assert team.provider.status(team.delivery).open == 2


@pytest.mark.parametrize(
    "how", ["list of names", "list of numbers", "flag", "status", "reviewed.csv", "star", "csv with another name"]
)
def test_reviewed_images_are_finished_with_what_is_there(team: Team, how: str) -> None:
    first, _, third, _ = (task.image_id for task in team.tasks)
    document = team.coco([(0, "cat", [3.0, 4.5, 17.25, 25.5])])
    csv = {"reviewed.csv": f"image\n{first}\nimages/{third}.png\n", "star": "image\n*\n"}.get(how)
    if how == "list of names":
        document["reviewed"] = [f"{first}.png", f"{third}.png"]
    elif how == "list of numbers":
        document["reviewed"] = [0, 2]
    elif how in ("flag", "status"):
        for number, status in ((0, "labeled"), (2, "empty")):
            document["images"][number] |= {"reviewed": True} if how == "flag" else {"status": status}
    elif how == "csv with another name":
        csv = f"image;status;annotator;seconds_spent;finished_at\n{first};;jo;30;2026-03-02T08:00:00+01:00\n{third};;;;"
    if csv:
        team.write_to_inbox("batch-0003/reviewed.csv", csv)
    team.write_to_inbox("batch-0003/export/a.json", document)
    answers, problems = team.collect()
    assert problems == []
    assert answers[first]["status"] == "labeled"
    assert (answers[third]["status"], answers[third]["boxes"]) == ("empty", [])
    assert len(answers) == (4 if how == "star" else 2)
    if how.startswith("csv"):
        stated = [answers[first][key] for key in ("annotator", "seconds_spent", "finished_at")]
        assert stated == ["jo", 30.0, "2026-03-02T08:00:00+01:00"]


def test_crowd_regions_of_a_coco_file_are_kept(team: Team) -> None:
    document = team.coco([(0, "cat", [3.0, 4.5, 17.25, 25.5]), (0, "cat", [0.0, 0.0, 40.0, 32.0])])
    document["annotations"][1]["iscrowd"] = 1  # beside the box that was pre-drawn
    team.write_to_inbox("batch-0003/instances.json", document)
    (raw,) = team.provider.collect(team.delivery)
    assert [(box["shape"], box.get("is_crowd", False)) for box in raw["boxes"]] == [("box", False), ("box", True)]


def test_a_review_line_states_empty_or_skipped_by_itself_but_an_image_without_status_is_not_empty(team: Team) -> None:
    first, second, third, _ = (task.image_id for task in team.tasks)
    team.write_to_inbox("batch-0003/reviewed.csv", f"image,status\n{first},empty\n{second},skipped\n{third},\n")
    answers, problems = team.collect()
    assert problems == []
    assert {image_id: answer["status"] for image_id, answer in answers.items()} == {first: "empty", second: "skipped"}


def test_yolo_and_voc_files_with_boxes_finish_their_image_and_blank_ones_do_not(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third, fourth = (task.image_id for task in team.tasks)
    team.write_to_inbox(f"batch-0003/labels/train/{first}.txt", "1 0.5 0.5 0.5 0.25\n")
    team.write_to_inbox(f"batch-0003/labels/train/{second}.txt", "")
    team.write_to_inbox(f"batch-0003/{third}.xml", "<annotation><annotator>jo</annotator></annotation>")
    team.write_to_inbox(
        f"batch-0003/{fourth}.xml",
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><seconds_spent>9</seconds_spent>"
        "<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax><ymax>11</ymax></bndbox></object>"
        "</annotation>",
    )
    answers, problems = team.collect()
    assert problems == []
    assert {image_id: raw["status"] for image_id, raw in answers.items()} == {first: "labeled", fourth: "labeled"}
    assert f"{second}.txt: 1 image is neither marked as reviewed nor different" in caplog.text
    assert f"{third}.xml: 1 image is neither" in caplog.text
    assert answers[first]["boxes"] == [{"category": "dog, small", "xyxy_px": [10.0, 12.0, 30.0, 20.0], "shape": "box"}]
    assert answers[fourth]["boxes"][0]["xyxy_px"] == [1.0, 2.0, 10.0, 11.0]
    assert (answers[fourth]["seconds_spent"], answers[fourth]["image_size_px"]) == (9.0, [WIDTH, HEIGHT])
    team.write_to_inbox("batch-0003/reviewed.csv", f"image,annotator\n{second},ann\n{third},\n")
    answers, problems = team.collect()
    assert problems == []
    assert {(raw["status"], raw["annotator"]) for raw in (answers[second], answers[third])} == {
        ("empty", "ann"),
        ("empty", "jo"),
    }


def test_dota_and_visdrone_files_with_boxes_finish_their_image(team: Team) -> None:
    first, second, third, _ = (task.image_id for task in team.tasks)
    team.write_to_inbox(f"batch-0003/labelTxt/{first}.txt", "gsd:0.15\n1 2 20 2 20 21 1 21 cat 0\n")
    team.write_to_inbox(f"batch-0003/labelTxt/{second}.txt", "10 2 20 12 10 22 0 12 cat 0\n")
    team.write_to_inbox(f"batch-0003/annotations/{third}.txt", "1,2,19,19,1,4,0,0\n")
    answers, problems = team.collect()
    assert problems == []
    found = {image_id: [(box["category"], box["shape"], box["xyxy_px"]) for box in raw["boxes"]]
             for image_id, raw in answers.items()}  # fmt: skip
    assert found == {
        first: [("cat", "box", [1.0, 2.0, 20.0, 21.0])],
        second: [("cat", "polygon", [0.0, 2.0, 20.0, 22.0])],
        third: [("car", "box", [1.0, 2.0, 20.0, 21.0])],
    }


def test_a_manifest_comes_back_from_a_ground_truth_job(team: Team) -> None:
    """The published manifest, with the answers of an adjustment job beside the boxes that were pre-drawn."""
    team.provider.deliver(team.delivery)
    published = (team.read_outbox("batch-0003/preannotations/ground_truth.manifest") or b"").decode()
    team.write_to_inbox("batch-0003/unchanged.manifest", published)
    assert team.collect() == ({}, [])  # nobody has answered
    first, second, third, fourth = (json.loads(line) for line in published.splitlines())
    metadata = {
        **first["gleaner-metadata"], "human-annotated": "yes", "job-name": "labeling-job/night-3",
        "creation-date": "2026-03-02T08:00:00.5", "class-map": {"0": "cat", "1": "dog, small"},
    }  # fmt: skip
    size = first["gleaner"]["image_size"]
    box = {"class_id": 1, "left": 2, "top": 3, "width": 10, "height": 11}
    # As drawn by the model, found empty by a person, corrected by a person; the fourth was not reached.
    first |= {"night-3": first["gleaner"], "night-3-metadata": metadata}
    second |= {"night-3": {"image_size": size, "annotations": []}, "night-3-metadata": metadata}
    third |= {"night-3": {"image_size": size, "annotations": [box]}, "night-3-metadata": metadata}
    lines = [json.dumps(entry) for entry in (first, second, third, fourth)]
    team.write_to_inbox("batch-0003/output.manifest", "\n".join([*lines, "{broken}"]))
    answers, problems = team.collect()
    ids = [task.image_id for task in team.tasks]
    assert {image_id: raw["status"] for image_id, raw in answers.items()} == dict(
        zip(ids, ("labeled", "empty", "labeled"), strict=False)
    )
    assert answers[ids[2]]["boxes"] == [{"category": "dog, small", "xyxy_px": [2.0, 3.0, 12.0, 14.0], "shape": "box"}]
    assert (answers[ids[0]]["annotator"], answers[ids[0]]["finished_at"]) == (
        "night-3",
        "2026-03-02T08:00:00.500000+00:00",
    )
    assert len(problems) == 1
    assert problems[0].startswith("output.manifest: line 5: the line is no JSON")


def test_a_status_in_a_voc_file_finishes_an_image_without_boxes(team: Team) -> None:
    first, second, *_ = (task.image_id for task in team.tasks)
    team.write_to_inbox(f"batch-0003/{first}.xml", "<annotation><status>empty</status></annotation>")
    team.write_to_inbox(f"batch-0003/{second}.xml", "<annotation><status>done</status></annotation>")
    answers, problems = team.collect()
    assert {image_id: raw["status"] for image_id, raw in answers.items()} == {first: "empty"}
    assert len(problems) == 1
    assert f"{second}.xml: status is 'done'" in problems[0]


def test_an_export_of_cvat_with_all_images_finishes_those_with_changed_boxes(team: Team) -> None:
    box = '<box label="cat" xtl="1" ytl="2" xbr="20" ybr="21" rotation="{}" />'
    rows = [box.format(0), box.format(30), "", ""]
    images = "".join(
        f'<image id="{n}" name="{task.image_id}.png" width="{WIDTH}" height="{HEIGHT}">{row}</image>'
        for n, (task, row) in enumerate(zip(team.tasks, rows, strict=True))
    )
    team.write_to_inbox("batch-0003/annotations.xml", f"<annotations><version>1.1</version>{images}</annotations>")
    answers, problems = team.collect()
    assert problems == []
    shapes = {image_id: [box["shape"] for box in raw["boxes"]] for image_id, raw in answers.items()}
    assert shapes == {team.tasks[0].image_id: ["box"], team.tasks[1].image_id: ["rotated"]}  # validation refuses that


def test_a_label_studio_export_finishes_submitted_images(team: Team) -> None:
    first, second, third, _ = (task.image_id for task in team.tasks)
    value = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
    region = {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    times = {"updated_at": "2026-03-02T08:00:00Z", "completed_by": {"email": "jo@example.com"}}
    annotations = {first: [{"result": [region], **times}], second: [{"result": [], **times}], third: []}
    tasks = [
        {"id": n, "data": {"image": f"/data/upload/1/ab12cd34-{image_id}.png"}, "annotations": submitted}
        for n, (image_id, submitted) in enumerate(annotations.items())
    ]
    team.write_to_inbox("batch-0003/export.json", json.dumps(tasks))
    answers, problems = team.collect()
    assert problems == []
    assert {image_id: raw["status"] for image_id, raw in answers.items()} == {first: "labeled", second: "empty"}
    assert answers[first]["boxes"][0]["xyxy_px"] == [4.0, 3.2, 24.0, 19.2]
    assert answers[first]["annotator"] == "jo@example.com"


def test_side_files_of_an_unpacked_export_are_ignored(team: Team) -> None:
    names = ("labelmap.txt", "obj.data", "notes.json", "LICENSE", "README.roboflow.txt", "ImageSets/Main/train.txt")
    for name in names:
        team.write_to_inbox(f"batch-0003/{name}", "x")
    assert team.collect() == ({}, [])


@pytest.fixture(autouse=True)
def published(team: Team) -> None:
    """Publish the batch of every test."""
    team.provider.deliver(team.delivery)


def test_published_files_returned_unchanged_are_no_annotation_unless_reviewed(team: Team) -> None:
    for name in team.list_names("outbox/batch-0003/preannotations"):
        team.write_to_inbox(f"batch-0003/{name}", team.read_outbox(f"batch-0003/preannotations/{name}") or b"")
    assert team.collect() == ({}, [])
    team.write_to_inbox("batch-0003/reviewed.csv", f"image\n{team.tasks[0].image_id}\n")
    found = team.provider.collect(team.delivery)
    assert [answer["image_id"] for answer in found] == 4 * [team.tasks[0].image_id]  # one per file
    for answer in found:
        rounded_px = 0.5 if answer["url"].endswith(".manifest") else 0.01
        assert answer["boxes"][0]["xyxy_px"] == pytest.approx([3.0, 4.5, 20.25, 30.0], abs=rounded_px)


def test_verified_files_of_labelimg_are_finished_with_unchanged_boxes(team: Team) -> None:
    first = team.tasks[0].image_id
    content = team.read_outbox(f"batch-0003/preannotations/voc/{first}.xml") or b""
    team.write_to_inbox(f"batch-0003/{first}.xml", content.replace(b"<annotation>", b'<annotation verified="yes">'))
    assert list(team.collect()[0]) == [first]


def test_class_numbers_are_those_of_the_nearest_list(team: Team) -> None:
    first, second, third, _ = (task.image_id for task in team.tasks)
    team.write_to_inbox("batch-0003/jo/data.yaml", "names: ['dog, small', cat]")
    team.write_to_inbox(f"batch-0003/jo/labels/{first}.txt", "0 0.5 0.5 0.5 0.5")
    team.write_to_inbox("batch-0003/ann/classes.txt", "bird\ncat\n")
    team.write_to_inbox(f"batch-0003/ann/{second}.txt", "0 0.5 0.5 0.5 0.5")
    team.write_to_inbox(f"batch-0003/{third}.txt", "0 0.5 0.5 0.5 0.5")
    answers, _ = team.collect()
    named = {image_id: answer["boxes"][0]["category"] for image_id, answer in answers.items()}
    assert named == {first: "dog, small", second: "bird", third: "cat"}  # validation refuses birds


def test_class_numbers_without_a_published_batch_are_a_problem(team: Team) -> None:
    (Path(team.location) / "outbox" / "batch-0003" / "_COMPLETE").unlink()
    team.write_to_inbox(f"batch-0003/{team.tasks[0].image_id}.txt", "0 0.5 0.5 0.5 0.5")
    answers, problems = team.collect()
    assert answers == {}
    assert "meaning of its class numbers is unknown" in problems[0]


def test_names_outside_the_batch_and_unknown_files_are_problems(team: Team) -> None:
    document = team.coco([(0, "cat", [1, 1, 5, 5]), (1, "cat", [1, 1, 5, 5])])
    document["images"][0]["file_name"] = "somewhere/else.png"
    document["annotations"][1]["image_id"] = 99
    team.write_to_inbox("batch-0003/a.json", document)
    team.write_to_inbox("batch-0003/notes.docx", b"PK\x03\x04")
    team.write_to_inbox("batch-0003/export.7z", b"7z")
    team.write_to_inbox("batch-0003/settings.json", {"theme": "dark"})
    team.write_to_inbox("batch-0003/other.xml", "<svg></svg>")
    team.write_to_inbox("batch-0003/hello.txt", "hello")
    team.write_to_inbox("batch-0003/reviewed.csv", "image\nsomething\n")
    for ignored in ("Thumbs.db", ".DS_Store", "__MACOSX/x.json", "images/a.png"):
        team.write_to_inbox(f"batch-0003/{ignored}", b"x")
    team.write_to_inbox("batch-0003/train.txt", "data/images/a.png\ndata/images/b.JPG\n")
    answers, problems = team.collect()
    assert answers == {}
    text = "\n".join(sorted(problems))
    for expected in (
        "a.json: the image name is 'somewhere/else.png', expected", "a.json: annotations[1]: image_id is 99, expected",
        "notes.docx: the format is unknown, expected COCO", "manifest (unpack the archive, or use zip)",
        "settings.json: the JSON is an object with ['theme'], expected", "other.xml: the XML's root is <svg>",
        "hello.txt: the format is unknown", "reviewed.csv: image is 'something'",
    ):  # fmt: skip
        assert expected in text
    assert len(problems) == 8


def test_every_file_is_returned_with_its_time(team: Team) -> None:
    first = team.tasks[0].image_id
    team.write_to_inbox(
        "batch-0003/old.json", team.coco([(0, "cat", [1, 1, 5, 5])], info={"annotator": "jo"}), age_s=9000
    )
    team.write_to_inbox(
        "batch-0003/new.json", team.coco([(0, "cat", [2, 2, 5, 5])], info={"annotator": "jo"}), age_s=600
    )
    team.write_to_inbox(
        "batch-0003/ann.json", team.coco([(0, "cat", [3, 3, 5, 5])], info={"annotator": "ann"}), age_s=9000
    )
    found = team.provider.collect(team.delivery)
    assert {(a["annotator"], a["boxes"][0]["xyxy_px"][0], a["answer_id"]) for a in found} == {
        ("ann", 3.0, f"batch-0003/ann/{first}"),
        ("jo", 1.0, f"batch-0003/jo/{first}"),
        ("jo", 2.0, f"batch-0003/jo/{first}"),
    }
    newest = max(found, key=lambda answer: datetime.fromisoformat(answer["finished_at"]))
    assert newest["url"] == str(Path(team.location) / "inbox/batch-0003/new.json")


def test_truncated_files_are_read_again_at_the_next_run(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    whole = json.dumps(team.coco([(0, "cat", [1, 1, 5, 5])]))
    team.write_to_inbox("batch-0003/a.json", whole[:-30])
    team.write_to_inbox(f"batch-0003/{team.tasks[1].image_id}.xml", "<annotation><object>")
    team.write_to_inbox("batch-0003/c.json", "")
    team.write_to_inbox(f"batch-0003/{team.tasks[2].image_id}.txt", "0 0.5 0.5 0.5 0.5")
    answers, problems = team.collect()
    assert (list(answers), problems) == ([team.tasks[2].image_id], [])
    logged = " ".join(record.getMessage() for record in caplog.records)
    for name in ("a.json", f"{team.tasks[1].image_id}.xml", "c.json"):
        assert f"{name}: the" in logged
    team.write_to_inbox("batch-0003/a.json", whole)
    assert set(team.collect()[0]) == {team.tasks[0].image_id, team.tasks[2].image_id}


def test_a_file_that_stays_truncated_becomes_a_problem(team: Team) -> None:
    team.write_to_inbox("batch-0003/a.json", '{"images": [', age_s=3 * 86_400)
    assert team.collect() == ({}, ["a.json: the end of the JSON is missing, expected a whole file"])


def test_a_file_that_is_being_written_is_not_read(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (task.image_id for task in team.tasks[:2])
    team.write_to_inbox(f"batch-0003/{first}.txt", "0 0.5 0.5 0.5 0.5\n", age_s=0)
    team.write_to_inbox(f"batch-0003/{second}.txt", "0 0.5 0.5 0.5 0.5\n", age_s=0)
    waited_s: list[float] = []

    def write_on(seconds: float) -> None:
        waited_s.append(seconds)
        path = Path(team.location) / "inbox" / "batch-0003" / f"{second}.txt"
        path.write_text("0 0.5 0.5 0.5 0.5\n0 0.5")
        now = time.time()
        os.utime(path, (now, now))

    monkeypatch.setattr("flows.annotation.providers.folder_inbox.time.sleep", write_on)
    assert list(team.collect()[0]) == [first]
    assert 0 < waited_s[0] <= folder_inbox._STABLE_AFTER_S


def test_links_pipes_and_names_that_are_no_utf8_are_problems(team: Team, tmp_path: Path) -> None:
    inbox = Path(team.location) / "inbox" / "batch-0003"
    inbox.mkdir(parents=True, exist_ok=True)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(team.coco([(0, "cat", [1, 1, 5, 5])])))
    (inbox / "a.json").symlink_to(secret)
    (inbox / "b").symlink_to(tmp_path)
    os.mkfifo(inbox / "c.json")
    Path(os.fsdecode(os.fsencode(inbox) + b"/\xff\xfe.json")).write_text("{}")
    past = time.time() - 100
    for path in inbox.iterdir():
        os.utime(path, (past, past), follow_symlinks=False)
    answers, problems = team.collect()
    assert answers == {}
    assert len(problems) == 4
    assert sum("no plain file" in problem for problem in problems) == 3
    json.dumps(problems).encode()
    [problem.encode() for problem in problems]


def test_an_unreadable_file_does_not_affect_the_others(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (task.image_id for task in team.tasks[:2])
    team.write_to_inbox(f"batch-0003/{first}.txt", "0 0.5 0.5 0.5 0.5")
    team.write_to_inbox(f"batch-0003/closed/{second}.txt", "0 0.5 0.5 0.5 0.5")
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.parent.name == "closed":
            raise PermissionError(13, os.strerror(13))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read)  # root, who runs tests in containers, may read everything
    answers, problems = team.collect()
    assert list(answers) == [first]
    assert problems == [f"closed/{second}.txt: the file system's answer is 'Permission denied', expected none"]


def test_a_fault_of_a_reader_does_not_affect_the_other_files(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    first = team.tasks[0].image_id
    team.write_to_inbox(f"batch-0003/{first}.txt", "0 0.5 0.5 0.5 0.5")
    team.write_to_inbox("batch-0003/odd.json", team.coco([(1, "cat", [1, 1, 5, 5])]))

    def fail(*_: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setitem(folder_inbox.ONE_FILE, "coco", fail)
    answers, problems = team.collect()
    assert list(answers) == [first]
    assert problems == [f"odd.json: reading failed (RecursionError), expected {folder_inbox._EXPECTED}"]


def test_an_export_of_the_whole_project_makes_one_problem_and_the_same_when_it_is_saved_again(team: Team) -> None:
    document = team.coco([(0, "cat", [1, 1, 5, 5])])
    others = [{"id": 1000 + n, "file_name": f"other-{n:03d}.png", "width": 9, "height": 9} for n in range(300)]
    document["images"] += others
    document["annotations"] += [
        {"id": 5000 + n, "image_id": other["id"], "category_id": 1, "bbox": [1, 1, 5, 5]}
        for n, other in enumerate(others)
    ]
    team.write_to_inbox("batch-0003/project.json", document, age_s=9000)
    [problem] = [answer for answer in team.provider.collect(team.delivery) if "problem" in answer]
    heading = "project.json: images that are not of this batch: 300, expected none. The first: the image name is "
    assert problem["problem"].startswith(f"{heading}'other-000.png'")
    assert problem["problem"].endswith("others: 'other-001.png', 'other-002.png', 'other-003.png', 'other-004.png'")
    document["images"].reverse()
    team.write_to_inbox("batch-0003/project.json", document, age_s=600)
    [again] = [answer for answer in team.provider.collect(team.delivery) if "problem" in answer]
    assert annotation_digest(3, again) == annotation_digest(3, problem)


def test_problems_of_one_kind_are_one_for_each_file_list_and_archive(team: Team) -> None:
    document = team.coco([(99, "cat", [1, 1, 5, 5])] * 30)
    document["images"] += [{"id": 1000 + n, "width": 9, "height": 9} for n in range(20)]
    team.write_to_inbox("batch-0003/a.json", document)
    team.write_to_inbox("batch-0003/reviewed.csv", "image\n" + "".join(f"other-{n}.png\n" for n in range(40)))
    for folder in ("jo/train", "jo/val"):
        for n in range(10):
            team.write_to_inbox(f"batch-0003/{folder}/other-{n}.txt", "0 0.5 0.5 0.5 0.5")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for n in range(50):
            archive.writestr(f"labels/other-{n}.txt", "0 0.5 0.5 0.5 0.5")
    team.write_to_inbox("batch-0003/export.zip", packed.getvalue())
    answers, problems = team.collect()
    assert answers == {}
    assert sorted(problem.partition(", expected none. The first: ")[0] for problem in problems) == [
        "a.json: annotations of images that the file does not list: 30",
        "a.json: entries without an image name: 20",
        "export.zip/labels/other-0.txt: files of images that are not of this batch: 50",
        "jo/train/other-0.txt: files of images that are not of this batch: 20",
        "reviewed.csv: images that are not of this batch: 40",
    ]


def test_a_review_list_with_an_endless_line_and_a_file_of_the_year_1_are_read(team: Team) -> None:
    first = team.tasks[0].image_id
    team.write_to_inbox("batch-0003/reviewed.csv", "image" + "x" * 200_000)
    team.write_to_inbox(f"batch-0003/{first}.txt", "0 0.5 0.5 0.5 0.5", age_s=6.4e10)
    answers, [problem] = team.collect()
    assert list(answers) == [first]
    assert problem.startswith("reviewed.csv: the content is no CSV")
