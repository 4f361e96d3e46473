"""Lineage of a model back to the seed, and of an image."""

import json

import pytest

from flows.annotation.batches import read_manifest
from flows.provenance.lineage import image_lineage, model_lineage
from flows.provenance.snapshot import resolve_model_ref
from flows.workspace.rounds import read_ledger
from tasks.data.annotations import read_annotated
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import CLASSES, run_gleaner

pytestmark = pytest.mark.integration


def test_models_have_many_names(two_rounds: Workspace) -> None:
    name = read_ledger(two_rounds, 0)["mlflow"]["model_name"]
    names = {
        None: 1,
        name: 1,
        f"{name}@champion": 1,
        f"models:/{name}@candidate": 1,
        f"{name}/1": 0,
        "/2": 1,
        "@champion": 1,
    }
    assert {asked: resolve_model_ref(two_rounds, asked) for asked in names} == names
    assert resolve_model_ref(two_rounds, "round-0000") == 0
    for wrong in ("another@champion", f"{name}/7", "@best", "round-0009"):
        with pytest.raises(UserError, match="expected"):
            resolve_model_ref(two_rounds, wrong)


def test_the_tree_leads_back_to_the_seed(two_rounds: Workspace) -> None:
    tree = model_lineage(two_rounds, 1)
    ledgers = [read_ledger(two_rounds, number) for number in (0, 1)]
    assert tree["model"]["aliases"] == ["champion", "candidate"]
    assert tree["model"]["sha256"] == files.sha256_file(two_rounds.derived("train") / "teacher.pth")
    assert tree["training"]["git_revision"] == ledgers[1]["git_revision"]
    newest, seed = tree["labels"]
    assert newest["annotators"] == {"oracle": {"labeled": 3}}
    assert newest["sha256"] == ledgers[1]["labels_sha256"]
    assert seed["provider"] == "imported"
    (delivery,) = newest["deliveries"]
    offered = read_manifest(two_rounds.delivery(1) / "manifest.jsonl")
    assert [(image["image_id"], image["reason"]) for image in delivery["images"]] == [
        (task.image_id, task.reason) for task in offered
    ]
    picker = newest["selection_model"]
    assert delivery["selection_model_sha256"] == picker["model"]["sha256"] == ledgers[0]["teacher"]["sha256"]
    (first,) = picker["labels"]
    assert "selection_model" not in first
    assert {image["reason"] for image in first["deliveries"][0]["images"]} == {"part of the seed"}


def test_lineage_of_an_image(two_rounds: Workspace) -> None:
    picked = read_manifest(two_rounds.delivery(1) / "manifest.jsonl")[0]
    lineage = image_lineage(two_rounds, picked.image_id[:10])
    assert lineage["image_id"] == picked.image_id
    assert lineage["file_name"].endswith(".png")
    before, after = lineage["rounds"]
    assert (before["datasets"], after["datasets"]) == (["unlabeled"], ["labeled"])
    assert (before["selection_rank"], before["uncertainty_rank"], before["num_unlabeled"]) == (1, 1, 8)
    assert before["uncertainty"] == pytest.approx(picked.uncertainty)
    assert after["uncertainty"] is None
    (delivery,), (annotation,) = lineage["deliveries"], lineage["annotations"]
    assert (delivery["delivery"], delivery["rank"], delivery["state"]) == (1, 1, "collected")
    assert (annotation["batch"], annotation["annotator"], annotation["is_used"]) == (1, "oracle", True)
    assert annotation["finished_at"] == next(
        image.finished_at for image in read_batch(two_rounds.label_batch(1)).images if image.image_id == picked.image_id
    )


def test_a_superseded_annotation_is_listed_as_unused(after_two_rounds: Workspace) -> None:
    content = files.read_json(after_two_rounds.label_batch(1))
    content["other_annotations"] = [
        {**content["images"][0], "annotator": "ann", "finished_at": "2026-01-01T00:00:00+00:00"}
    ]
    files.write_json(after_two_rounds.label_batch(1), content)
    from flows.workspace import git

    git.run_git(after_two_rounds.root, "commit", "--quiet", "--all", "--message", "x")
    git.run_git(after_two_rounds.root, "tag", "--force", "round-0001")
    answers = image_lineage(after_two_rounds, content["images"][0]["image_id"])["annotations"]
    assert [(answer["annotator"], answer["is_used"]) for answer in answers] == [("oracle", True), ("ann", False)]


def test_a_validation_image_is_in_no_delivery(two_rounds: Workspace) -> None:
    image = read_annotated(two_rounds.val, CLASSES)[0]
    lineage = image_lineage(two_rounds, image.image_id)
    assert [entry["datasets"] for entry in lineage["rounds"]] == [["validation"], ["validation"]]
    assert (lineage["deliveries"], lineage["annotations"]) == ([], [])
    with pytest.raises(UserError, match="whose id begins with 'zz' is 0"):
        image_lineage(two_rounds, "zz")


def test_the_command_prints_a_tree_or_json(two_rounds: Workspace) -> None:
    shown = run_gleaner("lineage", cwd=two_rounds.root)
    assert shown.returncode == 0, shown.stderr
    for words in ("@champion", "trained as round-0001", "selected by", "batch 0 (imported", "seed: 3 images"):
        assert words in shown.stdout
    image_id = read_manifest(two_rounds.delivery(2) / "manifest.jsonl")[0].image_id
    printed = run_gleaner("lineage", "--image", image_id, "--json", cwd=two_rounds.root)
    assert json.loads(printed.stdout)["deliveries"][0]["delivery"] == 2
