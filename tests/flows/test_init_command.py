"""``gleaner init`` and ``gleaner import --check`` on exports as tools write them, and every command of the guide."""

import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tasks.data.formats.base import ParsedBox, ParsedClass, ParsedDocument, ParsedImage
from tasks.data.formats.coco import write_coco
from tasks.data.formats.cvat import write_cvat
from tasks.data.formats.ground_truth import write_ground_truth
from tasks.data.formats.label_studio import write_label_studio
from tasks.data.formats.voc import write_voc
from tasks.data.formats.yolo import write_yolo
from tasks.storage import files
from tests.flows.small_campaign import REPOSITORY, run_gleaner
from tests.tasks.data.test_import_cases import picture

GUIDE = REPOSITORY / "docs" / "guides" / "own-data.md"
COUNT = 60
ACCOUNTS = ("files: ", "listed images: ", "boxes read: ")


def document(count: int = COUNT, first: int = 0) -> ParsedDocument:
    box = ParsedBox("bolt", (4, 5, 24, 21), entry="annotations[0]")
    nut = ParsedBox("nut", (40, 30, 58, 44), entry="annotations[1]")
    images = [ParsedImage(f"p{n}.png", "", (box, nut), width_px=96, height_px=72) for n in range(first, first + count)]
    return ParsedDocument("coco", "drawn", (ParsedClass(1, "bolt"), ParsedClass(2, "nut")), tuple(images))


def draw(folder: Path, drawn: ParsedDocument) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in drawn.images:
        picture(int(re.sub(r"\D", "", image.name))).save(folder / image.name)


def lay_out(root: Path, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def pack(root: Path) -> None:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in sorted(root.rglob("*.*")):
            if path.is_file():
                archive.write(path, path.relative_to(root).as_posix())


def roboflow(root: Path) -> None:
    for split, drawn in (("train", document()), ("valid", document(8, 100)), ("test", document(4, 200))):
        draw(root / split, drawn)
        lay_out(root, {f"{split}/_annotations.coco.json": write_coco(drawn)})
    pack(root)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with every export that the guide names."""
    drawn = document()
    roboflow(tmp_path / "roboflow")
    for name in (
        "photos",
        "cvat/images",
        "label-studio-yolo/images",
        "yolo/images",
        "coco/images",
        "VOC2007/JPEGImages",
        "dota/images",
        "visdrone/images",
    ):
        draw(tmp_path / name, drawn)
    labels = dict(write_yolo(drawn))
    data = labels.pop("data.yaml")
    sheets = dict(write_voc(drawn))
    lay_out(
        tmp_path, {"cvat/annotations.xml": write_cvat(drawn), "cvat-annotations/annotations.xml": write_cvat(drawn)}
    )
    lay_out(tmp_path, {"label-studio.json": write_label_studio(drawn), "labels.json": write_coco(drawn)})
    lay_out(tmp_path, {"output.manifest": write_ground_truth(drawn, created_at="2026-03-02T08:00:00")})
    lay_out(tmp_path / "label-studio-yolo", {"classes.txt": b"bolt\nnut\n", "notes.json": b"{}"})
    for folder in ("label-studio-yolo/labels", "yolo/labels", "labels"):
        lay_out(tmp_path / folder, labels)
    lay_out(tmp_path, {"yolo/data.yaml": data, "coco/labels.json": write_coco(drawn), "val.txt": b"p1\np2.png\n"})
    lay_out(tmp_path / "sheets", sheets)
    lay_out(tmp_path / "VOC2007/Annotations", sheets)
    for name in labels:
        quadrilaterals = (
            b"imagesource:GoogleEarth\ngsd:0.15\n4 5 24 5 24 21 4 21 bolt 0\n49 30 58 37 49 44 40 37 nut 1\n"
        )
        lay_out(tmp_path, {f"dota/labelTxt/{name}": quadrilaterals})
        lay_out(
            tmp_path, {f"visdrone/annotations/{name}": b"4,5,20,16,1,4,0,0\n40,30,18,14,1,1,0,0\n60,2,9,9,0,0,0,0\n"}
        )
    lists = {"train": range(40), "val": range(40, COUNT)}
    for split, numbers in lists.items():
        names = "".join(f"p{n}\n" for n in numbers)
        lay_out(tmp_path, {f"VOC2007/ImageSets/Main/{split}.txt": names.encode()})
    for name in ("cvat", "cvat-annotations", "label-studio-yolo"):
        pack(tmp_path / name)
    return tmp_path


def commands() -> list[list[str]]:
    """Every command line of the guide that starts with ``gleaner init`` or ``gleaner import``."""
    text = GUIDE.read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    inline = re.findall(r"`(gleaner (?:init|import) [^`]*--(?:dataset|annotations)[^`]*)`", text)
    lines = [*blocks.splitlines(), *inline]
    return [shlex.split(line)[1:] for line in lines if re.match(r"gleaner (init|import) ", line)]


@pytest.mark.integration
def test_every_command_of_the_guide_works(desk: Path) -> None:
    found = commands()
    assert len(found) >= 14
    for command in found:
        result = run_gleaner(*command, cwd=desk, COLUMNS="200")
        assert result.returncode == 0, (command, result.stderr)
        lines = [line for line in result.stdout.splitlines() if line.startswith(ACCOUNTS)]
        assert len(lines) == len(ACCOUNTS), (command, result.stdout)
        assert "not found" not in result.stdout
        assert (" 60 annotated" in lines[1]) or (" 68 annotated" in lines[1]), (command, lines)
    assert files.read_json(desk / "report.json")["accounts"]["files"]["parts"]["validation"] == 8


def test_an_export_needs_no_further_options_and_a_check_makes_nothing(tmp_path: Path) -> None:
    roboflow(tmp_path / "roboflow")
    before = sorted(tmp_path.rglob("*"))
    checked = run_gleaner("import", "--check", "--dataset", "roboflow", "--seed-labels", "5", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert sorted(tmp_path.rglob("*")) == before
    made = run_gleaner("init", "new", "--dataset", "roboflow", "--seed-labels", "5", "--oracle", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    lines = [line for line in checked.stdout.splitlines() if line.startswith(ACCOUNTS)]
    assert lines == [line for line in made.stdout.splitlines() if line.startswith(ACCOUNTS)]
    assert "COCO JSON, as Roboflow exports it" in made.stdout
    report = files.read_json(tmp_path / "new" / "data" / "import_report.json")
    assert report["accounts"]["files"]["parts"]["left out"] == 4
    assert {entry["code"] for entry in report["left_out"]} == {"test_split"}
    assert report["counts"]["val_images"] == 8
    params = yaml.safe_load((tmp_path / "new" / "params.yaml").read_text())
    assert params["pool"]["images_uri"] == f"{tmp_path}/roboflow/train"
    picture(500).save(tmp_path / "roboflow" / "train" / "later.png")
    synced = run_gleaner("pool", "sync", cwd=tmp_path / "new")
    assert synced.returncode == 0, synced.stderr
    assert "later.png" in synced.stdout
    assert "p1.png" not in synced.stdout  # the others are where they were


@pytest.mark.parametrize(("options", "iterations"), [((), 300), (("--profile", "gpu"), 12000)])
def test_a_profile_is_written_into_the_parameters(tmp_path: Path, options: tuple[str, ...], iterations: int) -> None:
    """Without the option it follows the machine; here no GPU is visible."""
    roboflow(tmp_path / "roboflow")
    command = (
        "init",
        "new",
        "--dataset",
        "roboflow",
        "--seed-labels",
        "5",
        *options,
        "--set",
        "model.long_side_px=999",
    )
    made = run_gleaner(*command, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "new" / "params.yaml").read_text()
    params = yaml.safe_load(text)
    assert params["train"]["iterations"] == iterations
    assert params["model"]["long_side_px"] == 999  # what is set by hand goes before a profile
    assert "# digits have a handedness" in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "data are missing, expected --dataset, or --images and --annotations"),
        (["--images", "photos"], "--annotations is missing"),
        (["--dataset", "x.json"], "expected a folder or a zip archive"),
        (["--dataset", "nowhere"], "the path is missing"),
        (["--dataset", "photos", "--annotations", "x.json"], "--annotations is given beside --dataset"),
        (["--dataset", "photos"], "the annotation format is none"),
    ],
)
def test_mistaken_options_are_named(tmp_path: Path, options: list[str], problem: str) -> None:
    draw(tmp_path / "photos", document(2))
    (tmp_path / "x.json").write_text("{}")
    result = run_gleaner("init", "new", *options, cwd=tmp_path, COLUMNS="300")
    assert result.returncode == 2
    assert problem in result.stderr
    assert not (tmp_path / "new").exists()


def test_import_without_check_points_at_init(tmp_path: Path) -> None:
    result = run_gleaner("import", "--dataset", "x", cwd=tmp_path, COLUMNS="300")
    assert result.returncode == 2
    assert "gleaner init DIR" in result.stderr
