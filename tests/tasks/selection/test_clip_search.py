"""Images found by words, and images that cover the classes without any label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli.app import app
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import INDEX
from tasks.model.clip import Clip
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.selection.clip_search import search_by_classes, search_by_text
from tasks.selection.cover_classes import cover_classes, standardized_similarity
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch

REPOSITORY = Path(__file__).parents[3]
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def test_classes_take_turns_and_the_most_similar_image_that_is_left() -> None:
    """Cosines of five images with two classes; the second class is unlike all pictures, but not equally."""
    cosines = np.array([[0.9, 0.10], [0.8, 0.11], [0.7, 0.12], [0.6, 0.13], [0.5, 0.30]])
    images = np.concatenate([cosines, np.sqrt(1 - (cosines**2).sum(axis=1, keepdims=True))], axis=1)
    classes = np.eye(3)[:2]
    found = standardized_similarity(images, classes)
    expected = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert cover_classes(images, classes, 4) == [(0, 0), (4, 1), (1, 0), (3, 1)]
    assert [row for row, _ in cover_classes(images, classes, 9)] == [0, 4, 1, 3, 2]
    assert cover_classes(np.zeros((0, 3)), classes, 3) == []


def num_covered(seed: int) -> tuple[int, int]:
    """Classes shown by 10 of 300 made images of 10 classes with a long tail: by their names, and by a random draw."""
    random = np.random.default_rng(seed)
    share = 0.6 ** np.arange(10)
    truth = random.choice(10, size=300, p=share / share.sum())
    centers = random.normal(size=(10, 32))
    images = centers[truth] + random.normal(0, 1.0, (300, 32))
    classes = centers + random.normal(0, 0.5, centers.shape)  # a sentence is near to its pictures, not among them
    images, classes = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, classes))
    chosen = [row for row, _ in cover_classes(images, classes, 10)]
    drawn = random.choice(300, size=10, replace=False)
    return len(set(truth[chosen])), len(set(truth[drawn]))


def test_more_classes_are_covered_than_by_a_random_draw() -> None:
    counts = np.array([num_covered(seed) for seed in range(20)])
    lead = counts[:, 0] - counts[:, 1]
    assert lead.min() >= 0
    assert lead.mean() > 2


class ColorClip:
    """Describes a picture by its mean color, and a text by the colors that it names."""

    num_described = 0

    def describe_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.num_described += len(images)
        return self._unit([image.mean(axis=(0, 1)) for image in images])

    def describe_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._unit([sum(np.array(COLORS[word]) for word in COLORS if word in text) for text in texts])

    def describe_classes(self, classes: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        return self.describe_texts([prompts[0].replace("{}", name) for name in classes])

    def _unit(self, rows: Sequence[Any]) -> np.ndarray:
        found = np.array(rows, dtype=np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.fixture
def campaign(tmp_path: Path) -> tuple[Workspace, Params, dict[str, str]]:
    """Nine pictures in three colors, most of them red; one red one is labeled, and no round has run."""
    workspace = Workspace(tmp_path)
    rows = []
    for number, name in enumerate(["red"] * 6 + ["green", "green", "blue"]):
        path = tmp_path / f"{number}.png"
        pixels = np.full((12, 10, 3), 40, np.uint8) + (np.array(COLORS[name]) * (0.5 + number / 40)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        image_id = image_id_from_sha256(files.sha256_file(path))
        rows.append({"image_id": image_id, "uri": path.name, "file_name": f"{name}-{number}.png"})
    files.write_table(workspace.index, pa.Table.from_pylist(rows, INDEX))
    write_batch(workspace.labels, 0, make_label(rows[0]["image_id"], offered_batch=0))
    text = (
        (REPOSITORY / "params.yaml").read_text().replace("[zero, one, two, three, four, seven]", "[red, green, blue]")
    )
    workspace.params.write_text(text)
    return workspace, load_params(workspace.params), {row["file_name"]: row["image_id"] for row in rows}


def test_words_find_their_images_and_describe_each_once(
    campaign: tuple[Workspace, Params, dict[str, str]],
) -> None:
    workspace, params, _ = campaign
    stub = ColorClip()
    found = search_by_text(workspace, cast(Clip, stub), params, "something blue", 2)
    assert found[0]["file_name"] == "blue-8.png"
    assert found[0]["similarity"] > found[1]["similarity"]
    assert stub.num_described == 8  # not the labeled one
    assert search_by_text(workspace, cast(Clip, stub), params, "something blue", 2) == found
    assert stub.num_described == 8


def test_a_first_batch_shows_every_class(campaign: tuple[Workspace, Params, dict[str, str]]) -> None:
    workspace, params, _ = campaign
    found = search_by_classes(workspace, cast(Clip, ColorClip()), params, 3)
    assert [row["class_name"] for row in found] == ["red", "green", "blue"]
    assert [row["file_name"].partition("-")[0] for row in found] == ["red", "green", "blue"]


def test_the_command_takes_words_where_they_are_no_id(
    campaign: tuple[Workspace, Params, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _, _ = campaign
    calls = []

    def run_module(workspace: Workspace, module: str, arguments: Sequence[str], on_line: Any) -> None:
        calls.append((module, *arguments[:-1]))
        row = {"image_id": "f0", "file_name": None, "similarity": 0.5, "class_name": "red"}
        files.write_json(Path(arguments[-1]), [row])

    monkeypatch.setattr("flows.workspace.run_lock.require_workspace", lambda root: Workspace(root))
    monkeypatch.setattr("flows.workspace.module_runner.run_module", run_module)

    def select(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["select", *arguments, "--workspace", str(workspace.root)])

    assert isinstance(select("--like", "a red car").exception, UserError)  # no model of words: it must be an id
    assert not calls
    assert "f0" in select("--like", "text:bed", "--number", "3").stdout
    params = workspace.params.read_text().replace("weights: ''", "weights: clip.pt")
    workspace.params.write_text(params.replace("weights_sha256: ''", f"weights_sha256: {'a' * 64}"))
    assert select("--like", "a red car").exit_code == 0
    assert "red" in select("--cover-classes").stdout
    assert isinstance(select("--like", "bed").exception, UserError)  # could be an id
    assert select("--cover-classes", "--like", "a").exit_code == 2
    assert {module for module, *_ in calls} == {"tasks.selection.clip_search"}
    words = [["--like", "bed", "3"], ["--like", "a red car", "20"]]
    assert [query for _, *query in calls] == [*words, ["--cover-classes", "20"]]
