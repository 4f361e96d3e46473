"""Inference and evaluation on a small random detector: what they compute in, in what order, and under what key."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import tasks.infer
from detectron_ext.inference import Detections
from tasks.data import schemas
from tasks.data.detections import read_detections, read_shards
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.evaluate import evaluate
from tasks.infer import infer, shard_name
from tasks.model import detector as detector_module
from tasks.model.detector import ImageReader, detect, detect_all, load_detector, new_detector
from tasks.model.engines import detection_job
from tasks.model.fingerprint import software_fingerprint
from tasks.params import StageParams, load_stage_params
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.selection.embed_image import embed_image
from tasks.storage import files

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]
CLASSES = ("disc", "square")
SIZES = [(64, 96), (96, 64), (64, 96), (64, 64), (96, 64), (64, 96), (70, 80)]  # (height, width) px
SETTINGS = [
    "model.pretrained_weights=none",
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "infer.batch_size=2",
    "infer.shard_size=4",
    "infer.score_threshold=0.0",
    "evaluate.batch_size=2",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_params(tmp_path)
    torch.manual_seed(0)
    model = stage_params(tmp_path).model
    for name in ("teacher", "student"):
        torch.save(new_detector(model, len(CLASSES), 0.0, tmp_path, "cpu").state_dict(), tmp_path / f"{name}.pth")
    images = [save_image(tmp_path, number, size) for number, size in enumerate(SIZES)]
    boxes = {"boxes_xyxy": [10.0, 10.0, 40.0, 50.0], "class_ids": [1], "batch": 0}
    files.write_table(tmp_path / "unlabeled.parquet", pa.Table.from_pylist(images[:5], schemas.UNLABELED))
    annotated = pa.Table.from_pylist([image | boxes for image in images[5:]], schemas.ANNOTATED)
    files.write_table(tmp_path / "annotated.parquet", annotated)
    files.write_table(tmp_path / "labeled.parquet", annotated.slice(1))
    names = [{"image_id": image["image_id"], "file_name": f"camera/{image['uri']}"} for image in images[5:]]
    files.write_table(tmp_path / "names.parquet", pa.Table.from_pylist(names, schemas.FILE_NAMES))
    return tmp_path


def write_params(folder: Path, *settings: str) -> None:
    text = render_params((REPOSITORY / "params.yaml").read_text(), classes=CLASSES, overrides=[*SETTINGS, *settings])
    (folder / "params.yaml").write_text(text)


def stage_params(folder: Path) -> StageParams:
    return load_stage_params(folder / "params.yaml", "classes", "model", "infer", "evaluate", "train")


def save_image(folder: Path, number: int, size: tuple[int, int]) -> dict[str, Any]:
    path = folder / f"{number}.png"
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    image_id = image_id_from_sha256(files.sha256_file(path))
    return {"image_id": image_id, "uri": path.name, "width_px": size[1], "height_px": size[0]}


def run_inference(folder: Path, second: Path | None = None) -> None:
    infer(
        stage_params(folder),
        root=folder,
        unlabeled=folder / "unlabeled.parquet",
        calibration=folder / "annotated.parquet",
        labeled=folder / "labeled.parquet",
        teacher=folder / "teacher.pth",
        second=second,
        scratch=folder / "scratch",
        out=folder / "out",
    )


def test_all_images_are_detected_in_the_order_of_their_ids(folder: Path) -> None:
    run_inference(folder)
    names = [shard_name(0, "labeled"), shard_name(0), shard_name(1)]
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    stored = list(read_detections(folder / "out"))
    ids = [one.image_id for one in stored]
    assert len(ids) == len(SIZES)
    assert ids == sorted(ids)
    assert all(len(one.scores) > 0 for one in stored)
    assert not (folder / "scratch").exists()
    [labeled] = read_shards(folder / "out", "labeled")
    expected = files.read_table(folder / "labeled.parquet", schemas.ANNOTATED)["image_id"].to_pylist()
    assert labeled["image_id"].to_pylist() == expected


def test_an_image_file_is_described_as_in_the_pool(folder: Path) -> None:
    run_inference(folder)
    workspace = Workspace(folder)
    workspace.derived("train").mkdir(parents=True)
    (workspace.derived("train") / "teacher.pth").symlink_to(folder / "teacher.pth")
    [row] = files.read_table(folder / "unlabeled.parquet", schemas.UNLABELED).to_pylist()[:1]
    embed_image(workspace, folder / row["uri"], folder / "like" / "embedding.npy")
    shards = (shard for shard in read_shards(folder / "out"))
    stored = {one["image_id"]: one["embedding"] for shard in shards for one in shard.to_pylist()}
    described = np.load(folder / "like" / "embedding.npy")
    np.testing.assert_allclose(described, np.array(stored[row["image_id"]], dtype=np.float32), atol=2e-3)
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png: the image is unreadable"):
        embed_image(workspace, folder / "broken.png", folder / "like" / "embedding.npy")


def test_batch_size_and_shards_change_no_detection(folder: Path) -> None:
    run_inference(folder)
    expected = {one.image_id: one for one in read_detections(folder / "out")}
    write_params(folder, "infer.batch_size=1", "infer.shard_size=100")
    (folder / "out" / shard_name(1)).unlink()
    run_inference(folder)
    for one in read_detections(folder / "out"):
        assert len(one.scores) == len(expected[one.image_id].scores)
        np.testing.assert_allclose(one.scores, expected[one.image_id].scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes_xyxy, expected[one.image_id].boxes_xyxy, atol=1e-2)


def box_disagreements(folder: Path) -> list[float | None]:
    rows = [row for shard in read_shards(folder / "out") for row in shard.to_pylist()]
    assert all((row["box_disagreement"] is None) == (row["class_disagreement"] is None) for row in rows)
    return [row["box_disagreement"] for row in rows]


def test_a_committee_of_one_teacher_agrees_and_one_of_two_does_not(folder: Path) -> None:
    run_inference(folder)
    assert box_disagreements(folder) == [None] * len(SIZES)
    expected = [one.scores.tolist() for one in read_detections(folder / "out")]
    run_inference(folder, folder / "teacher.pth")
    assert box_disagreements(folder) == [0.0] * len(SIZES)
    run_inference(folder, folder / "student.pth")
    assert all(value is not None and value > 0 for value in box_disagreements(folder))
    assert [one.scores.tolist() for one in read_detections(folder / "out")] == expected


def test_doubt_about_objects_is_stored_where_it_is_asked_for(folder: Path) -> None:
    def rows() -> list[dict[str, Any]]:
        run_inference(folder)
        return [row for shard in read_shards(folder / "out") for row in shard.to_pylist()]

    plain = rows()
    assert {row["objectness_entropy_raw"] for row in plain} == {None}
    write_params(folder, "infer.objectness_entropy_frac=0.1")
    for row, before in zip(rows(), plain, strict=True):
        assert 0 < row["objectness_entropy_raw"] <= 1
        assert len(row["objectness_entropy_map"]) == 256
        measured = {"objectness_entropy_raw": None, "objectness_entropy_map": None}
        assert row | measured == before


def test_the_second_member_is_the_teacher_before_or_the_student(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    student, previous = workspace.derived("train") / "student.pth", workspace.warm_start / "teacher.pth"
    assert tasks.infer._second_member(workspace, "none") is None
    assert tasks.infer._second_member(workspace, "previous_teacher") == student  # the first round
    previous.parent.mkdir(parents=True)
    previous.touch()
    assert tasks.infer._second_member(workspace, "previous_teacher") == previous
    assert tasks.infer._second_member(workspace, "student") == student


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def kill_at_third_piece(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt the third piece, once; return the list that gets the number of images of each piece."""
    detect_images = detection_job.detect_images
    numbers: list[int] = []

    def detect_or_die(*args: Any) -> pa.Table:
        numbers.append(len(args[2]))
        if len(numbers) == 3:
            raise KeyboardInterrupt
        return detect_images(*args)

    monkeypatch.setattr(detection_job, "detect_images", detect_or_die)
    return numbers


def test_a_killed_inference_repeats_one_piece_and_ends_with_the_same_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.infer, "PIECE_IMAGES", 2)
    run_inference(folder)
    expected = read_all(folder)
    numbers = kill_at_third_piece(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_inference(folder)
    run_inference(folder)
    assert numbers == [2, 2, 2, 2, 1, 1]  # the third piece twice; the labeled image is a piece of its own
    assert read_all(folder) == expected


def test_a_shard_that_was_killed_before_its_pieces_were_deleted_is_not_detected_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inference(folder)
    expected = read_all(folder)

    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tasks.infer, "_link_or_copy", killed)
        with pytest.raises(KeyboardInterrupt):
            run_inference(folder)
    images: list[int] = []
    detect_images = detection_job.detect_images
    monkeypatch.setattr(
        detection_job, "detect_images", lambda *args: images.append(len(args[2])) or detect_images(*args)
    )
    (shard,) = (path for path in (folder / "scratch").rglob("*.parquet") if "piece" not in path.name)
    assert shard.name.endswith(shard_name(0))
    run_inference(folder)
    assert images == []
    assert read_all(folder) == expected


def test_processes_share_the_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two GPUs would do, one process after the other."""
    monkeypatch.setattr(tasks.infer, "PIECE_IMAGES", 2)
    run_inference(folder)
    expected = read_all(folder)
    shares: list[list[str]] = []

    def launch_two(_stage: str, function: Any, *args: Any) -> None:
        for number in range(2):
            monkeypatch.setattr(detection_job, "rank", lambda number=number: number)
            monkeypatch.setattr(detection_job, "world_size", lambda: 2)
            before = {path.name for path in (folder / "scratch").rglob("*.parquet")}
            function(*args)
            shares.append(sorted({path.name for path in (folder / "scratch").rglob("*.parquet")} - before))

    monkeypatch.setattr(detection_job, "launch", launch_two)
    run_inference(folder)
    assert [len(share) for share in shares] == [3, 2]
    assert not set(shares[0]) & set(shares[1])
    assert read_all(folder) == expected


def test_shard_names_sort_like_numbers() -> None:
    numbers = [0, 9, 10, 999, 9_999, 10_000, 123_456]
    assert sorted(map(shard_name, numbers)) == list(map(shard_name, numbers))


@pytest.mark.parametrize("mixed_precision", [True, False])
def test_stages_compute_in_the_precision_that_the_parameters_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mixed_precision: bool
) -> None:
    write_params(folder, f"train.mixed_precision={str(mixed_precision).lower()}")
    seen: set[bool] = set()
    original = detector_module.detect_prepared

    def recording(model: Any, images: Any, mixed_precision: bool, doubt_frac: float) -> list[Detections]:
        seen.add(mixed_precision)
        return original(model, images, mixed_precision, doubt_frac)

    monkeypatch.setattr(detector_module, "detect_prepared", recording)
    run_inference(folder)
    assert seen == {mixed_precision}
    seen.clear()
    run_evaluation(folder)
    assert seen == {mixed_precision}


def run_evaluation(folder: Path) -> None:
    evaluate(
        stage_params(folder),
        root=folder,
        val=folder / "annotated.parquet",
        val_names=folder / "names.parquet",
        weights={name: folder / f"{name}.pth" for name in ("teacher", "student")},
        out=folder / "evaluated",
    )


def test_evaluation_decodes_an_image_once_for_both_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = ImageReader.__call__

    def counting(self: ImageReader, uri: str) -> Any:
        decoded.append(uri)
        return original(self, uri)

    monkeypatch.setattr(ImageReader, "__call__", counting)
    run_evaluation(folder)
    assert sorted(decoded) == ["5.png", "6.png"]
    table = files.read_table(folder / "evaluated" / "predictions.parquet", schemas.PREDICTIONS)
    assert table["model"].to_pylist() == ["teacher"] * 2 + ["student"] * 2
    ids = files.read_table(folder / "annotated.parquet", schemas.ANNOTATED)["image_id"].to_pylist()
    assert table["image_id"].to_pylist() == ids * 2


def test_slices_are_measured_where_they_are_asked_for(folder: Path) -> None:
    """The two images of the set differ in size and brightness."""
    run_evaluation(folder)
    assert "slices" not in files.read_json(folder / "evaluated" / "metrics.json")["protocols"]["teacher"]
    write_params(folder, "evaluate.protocols=[slices]")
    run_evaluation(folder)
    metrics = files.read_json(folder / "evaluated" / "metrics.json")
    slices = metrics["protocols"]["teacher"]["slices"]
    assert set(slices) == {"size", "brightness"}
    assert [found["images"] for found in slices["size"].values()] == [1, 1]
    assert set(slices["size"]) == {"small", "large"}


def test_finished_shards_of_another_version_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, keys = stage_params(folder), set()
    keys.add(tasks.infer._input_key(params, "digest"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"another {name}")
    keys.add(tasks.infer._input_key(params, "digest"))
    assert len(keys) == 2


def test_the_fingerprint_follows_the_code(tmp_path: Path) -> None:
    module = tmp_path / "stage.py"
    module.write_text("a = 1")
    before = software_fingerprint(module)
    assert software_fingerprint(module) == before
    module.write_text("a = 2")
    assert software_fingerprint(module) != before


def test_images_are_read_ahead_within_bounds_and_keep_their_results(folder: Path) -> None:
    params = stage_params(folder)
    detector = load_detector(params.model, len(CLASSES), folder / "teacher.pth", "cpu")
    read = 0
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES * 4]

    def reader(number: int) -> Any:
        nonlocal read
        read += 1
        return pictures[number]

    results = detect_all([detector], range(len(pictures)), reader, params.model, batch_size=2, mixed_precision=False)
    first = list(itertools.islice(results, 1))
    assert read <= 2 * 4 * 2  # ahead, and waiting for others of their shape
    found = dict([*first, *results])
    assert sorted(found) == list(range(len(pictures)))
    for number in (0, 1, 6):
        [alone] = detect(detector, [pictures[number]], params.model, False)
        np.testing.assert_allclose(found[number][0].boxes_xyxy, alone.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(found[number][0].embedding, alone.embedding, atol=1e-4)


def test_inference_and_evaluation_detect_large_pictures_by_tiles(folder: Path) -> None:
    def num_detections() -> tuple[dict[str, int], int]:
        run_inference(folder)
        stored = {one.image_id: len(one.scores) for one in read_detections(folder / "out")}
        weights = {name: folder / f"{name}.pth" for name in ("teacher", "student")}
        places = {"val": folder / "annotated.parquet", "val_names": folder / "names.parquet", "out": folder / "ev"}
        evaluate(stage_params(folder), root=folder, weights=weights, **places)
        found = files.read_table(folder / "ev" / "predictions.parquet", schemas.PREDICTIONS)
        return stored, sum(map(len, found["scores"].to_pylist()))

    whole, whole_val = num_detections()
    write_params(folder, "model.tile_side_px=64", "evaluate.score_threshold=0.0")
    tiled, tiled_val = num_detections()
    assert tiled.keys() == whole.keys()
    tables = (("unlabeled", schemas.UNLABELED), ("annotated", schemas.ANNOTATED))
    rows = [row for name, schema in tables for row in files.read_table(folder / f"{name}.parquet", schema).to_pylist()]
    sides = {row["image_id"]: max(row["width_px"], row["height_px"]) for row in rows}
    assert sorted(sides.values())[:2] == [64, 80]
    for image_id, side in sides.items():
        assert (tiled[image_id] > whole[image_id]) is (side > 64)
    assert tiled_val > whole_val


def test_an_image_reader_reads_in_a_process_of_its_own(folder: Path) -> None:
    rows = files.read_table(folder / "unlabeled.parquet", schemas.UNLABELED).select(["image_id", "uri"]).to_pylist()
    reader = ImageReader(folder, rows)
    pixels = reader("0.png")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))("0.png"), pixels)
