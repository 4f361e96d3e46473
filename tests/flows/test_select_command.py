"""Why an image is, or is not, in the batch: figures of the stage's own tables, what is nearest, and what is similar."""

import io
import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

import tasks.select
from flows.cli.app import app
from flows.cli.select import batch_table, explanation_view, similar_table
from infra.bench.selection import write_inputs
from tasks.data.detections import read_shards
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX, SCORES, UNCERTAINTY
from tasks.runtime.errors import UserError
from tasks.selection.explanation import explain, read_selection
from tasks.selection.similar import find_similar
from tasks.storage import files


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """120 candidates, of which 20 are in the batch; strategy composite with five objectives."""
    workspace = Workspace(tmp_path_factory.mktemp("campaign"))
    write_inputs(workspace, num_images=120, num_labeled=15)
    text = workspace.params.read_text().replace("amount: 1000", "amount: 20")
    workspace.params.write_text(text)
    tasks.select._body(workspace)
    ids = [row["image_id"] for shard in read_shards(workspace.derived("infer")) for row in shard.to_pylist()]
    rows = [{"image_id": image, "uri": image, "file_name": f"camera/{image}.jpg"} for image in ids]
    files.write_table(workspace.index, pa.Table.from_pylist(rows, INDEX))
    return workspace


def printed(view: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_a_selected_image_is_explained_by_the_figures_of_the_stages(campaign: Workspace) -> None:
    row = next(row for row in read_selection(campaign) if not row["is_random_pick"])
    found = explain(campaign, row["image_id"])
    assert found["selected"] == {key: row[key] for key in ("rank", "is_random_pick", "picked_by")}
    assert row["reason"].startswith(found["reason"])
    scores = {
        r["image_id"]: r for r in files.read_table(campaign.derived("score") / "scores.parquet", SCORES).to_pylist()
    }
    assert found["metrics"]["entropy"]["raw"] == pytest.approx(scores[row["image_id"]]["entropy_raw"])
    weights = {entry["name"]: entry["weight"] for entry in found["objectives"] if entry["weight"]}
    assert weights == pytest.approx(
        {
            "uncertainty": 1 / 3.5,
            "rarity": 0.5 / 3.5,
            "localization": 0.5 / 3.5,
            "novelty": 0.5 / 3.5,
            "diversity": 1 / 3.5,
        }
    )
    table = files.read_table(campaign.derived("weigh") / "uncertainty.parquet", UNCERTAINTY).to_pylist()
    own = next(r["uncertainty"] for r in table if r["image_id"] == row["image_id"])
    share = sum(r["uncertainty"] < own for r in table) / (len(table) - 1)
    first = found["objectives"][0]
    assert (first["name"], first["share"]) == ("uncertainty", pytest.approx(share, abs=1e-6))
    assert first["value"] == pytest.approx(own, abs=1e-6)
    assert json.loads(json.dumps(found)) == found


def test_an_image_that_was_not_selected_names_the_nearest_one_that_was(campaign: Workspace) -> None:
    batch = read_selection(campaign)
    chosen = {row["image_id"] for row in batch}
    ids = [
        row["image_id"] for row in files.read_table(campaign.derived("score") / "scores.parquet", SCORES).to_pylist()
    ]
    image = next(image for image in ids if image not in chosen)
    before = {path: path.read_bytes() for path in campaign.root.rglob("*") if path.is_file()}
    found = explain(campaign, image)
    assert {path: path.read_bytes() for path in campaign.root.rglob("*") if path.is_file()} == before
    assert found["selected"] is None
    assert found["nearest_selected"]["image_id"] in chosen
    assert found["nearest_labeled"]["image_id"] not in ids
    assert 0 < found["nearest_selected"]["distance"] < 2
    text = printed(explanation_view(found))
    assert f"not among the 20 images of the batch; rank {found['rank']} of 120 by strategy composite" in text
    assert f"Nearest picked image: {found['nearest_selected']['image_id']}" in text


def test_nearest_images_by_cosine_written_out(campaign: Workspace) -> None:
    image = read_selection(campaign)[3]["image_id"]
    vectors: dict[str, Any] = {}
    for kind in ("pool", "labeled"):
        for row in (row for shard in read_shards(campaign.derived("infer"), kind) for row in shard.to_pylist()):
            summed = np.array(row["region_features"], dtype=np.float64).reshape(len(row["region_class_ids"]), -1).sum(0)
            vectors[row["image_id"]] = summed / np.linalg.norm(summed)
    mean = np.mean(list(vectors.values()), axis=0)
    own = vectors[image] - mean

    def distance(other: str) -> float:
        vector = vectors[other] - mean
        return 1 - float(vector @ own / np.linalg.norm(vector) / np.linalg.norm(own))

    found = explain(campaign, image)
    chosen = [row["image_id"] for row in read_selection(campaign) if row["image_id"] != image]
    labeled = [row["image_id"] for row in files.read_json(campaign.label_batch(0))["images"]]
    for key, others in (("nearest_selected", chosen), ("nearest_labeled", labeled)):
        nearest = min(others, key=distance)
        assert found[key] == {"image_id": nearest, "distance": pytest.approx(distance(nearest), abs=1e-3)}


def test_the_beginning_of_an_id_is_enough_and_must_be_of_one_image(campaign: Workspace) -> None:
    image = read_selection(campaign)[0]["image_id"]
    shortest = next(image[:n] for n in range(1, 17) if len(matching(campaign, image[:n])) == 1)
    assert explain(campaign, shortest)["image_id"] == image
    with pytest.raises(UserError, match="id begins with '0' are 135, expected 1"):
        explain(campaign, "0")
    with pytest.raises(UserError, match="are 0, expected 1"):
        explain(campaign, "nothing")


def matching(campaign: Workspace, beginning: str) -> list[str]:
    ids = [
        row["image_id"] for row in files.read_table(campaign.derived("score") / "scores.parquet", SCORES).to_pylist()
    ]
    labels = files.read_json(campaign.label_batch(0))["images"]
    return [image for image in [*ids, *(label["image_id"] for label in labels)] if image.startswith(beginning)]


def test_a_labeled_image_says_so(campaign: Workspace) -> None:
    label = files.read_json(campaign.label_batch(0))["images"][0]
    found = explain(campaign, label["image_id"])
    assert found == {"image_id": label["image_id"], "state": "labeled in batch 0"}
    assert printed(explanation_view(found)).strip() == f"{label['image_id']} is no candidate: labeled in batch 0."


def test_the_batch_is_listed_by_rank(campaign: Workspace) -> None:
    rows = read_selection(campaign)
    text = printed(batch_table(rows))
    assert [row["rank"] for row in rows] == list(range(1, 21))
    assert all(row["image_id"] in text for row in rows)
    assert "20 images" in text


def test_the_command_prints_json(campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.workspace.run_lock.require_workspace", lambda root: Workspace(root))
    image = read_selection(campaign)[0]["image_id"]
    for arguments, expected in (
        (["--explain", image], explain(campaign, image)),
        ([], read_selection(campaign)),
    ):
        done = CliRunner().invoke(app, ["select", *arguments, "--json", "--workspace", str(campaign.root)])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == expected
    done = CliRunner().invoke(app, ["select", "--explain", image, "--workspace", str(campaign.root)])
    assert "number 1 of the batch" in done.stdout


def image_embeddings(campaign: Workspace, kind: Literal["pool", "labeled"]) -> dict[str, Any]:
    shards = read_shards(campaign.derived("infer"), kind)
    return {row["image_id"]: np.array(row["embedding"], np.float64) for shard in shards for row in shard.to_pylist()}


@pytest.mark.parametrize("kind", ["pool", "labeled"])
def test_similar_images_by_cosine_written_out(campaign: Workspace, kind: Literal["pool", "labeled"]) -> None:
    pool, labeled = image_embeddings(campaign, "pool"), image_embeddings(campaign, "labeled")
    mean = np.mean([*pool.values(), *labeled.values()], axis=0)
    image = list(image_embeddings(campaign, kind))[5]
    own = (pool | labeled)[image] - mean

    def cosine(other: str) -> float:
        vector = pool[other] - mean
        return float(vector @ own / np.linalg.norm(vector) / np.linalg.norm(own))

    expected = sorted((other for other in pool if other != image), key=cosine, reverse=True)[:7]
    found = find_similar(campaign, image, 7)
    assert [row["image_id"] for row in found] == expected
    assert [row["similarity"] for row in found] == pytest.approx([cosine(other) for other in expected], abs=1e-4)
    assert found[0]["file_name"] == f"camera/{expected[0]}.jpg"
    assert all(other in printed(similar_table(found)) for other in expected)


def test_an_image_from_outside_is_compared_by_its_embedding(campaign: Workspace) -> None:
    image, embedding = list(image_embeddings(campaign, "pool").items())[3]
    found = find_similar(campaign, embedding.astype(np.float32), 200)
    assert len(found) == 120
    assert (found[0]["image_id"], found[0]["similarity"]) == (image, pytest.approx(1, abs=1e-3))


def test_an_image_that_is_neither_known_nor_a_file_is_named(campaign: Workspace) -> None:
    with pytest.raises(UserError, match=r"begins with 'nothing\.jpg' are 0, expected 1, or an image file"):
        find_similar(campaign, "nothing.jpg", 7)
    assert CliRunner().invoke(app, ["select", "--like", "0", "--explain", "0"]).exit_code == 2
