"""What annotators' browsers get: a picture with the model's pixels, converted only where they would not show it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.label_studio_client import Project
from flows.annotation.providers.label_studio_tasks import TaskImages
from tasks.data.image_decoding import open_rgb
from tasks.data.images import inspect_image
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import AnnotationTask
from tasks.runtime.errors import UserError
from tasks.storage import files

PIXELS = np.random.default_rng(5).integers(0, 256, (20, 32, 3)).astype(np.uint8)
PROJECT = Project(1, "http://ls/projects/1", "", "", "")


def picture() -> Image.Image:
    return Image.fromarray(PIXELS)


def sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def frames() -> dict[str, object]:
    return {"save_all": True, "append_images": [picture().rotate(180)], "duration": 100}


def deep_ppm(path: Path) -> None:
    path.write_bytes(b"P6 32 20 65535\n" + PIXELS.astype(">u2").tobytes())


def heic(path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture().save(path)


SHOWN: dict[str, Callable[[Path], None]] = {
    "a.jpg": lambda path: picture().save(path),
    "gray.jpg": lambda path: picture().convert("L").save(path),
    "turned.jpg": lambda path: picture().save(path, exif=sideways()),
    "a.png": lambda path: picture().save(path),
    "clear.png": lambda path: picture().convert("RGBA").save(path),
    "a.webp": lambda path: picture().save(path),
    "a.bmp": lambda path: picture().save(path),
    "a.gif": lambda path: picture().save(path),
}
CONVERTED: dict[str, Callable[[Path], None]] = {
    "a.tif": lambda path: picture().save(path),
    "turned.tif": lambda path: picture().save(path, exif=sideways()),
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path),
    "cmyk.tif": lambda path: picture().convert("CMYK").save(path),
    "turned.png": lambda path: picture().save(path, exif=sideways()),
    "turned.webp": lambda path: picture().save(path, exif=sideways()),
    "moving.gif": lambda path: picture().save(path, **frames()),
    "moving.png": lambda path: picture().save(path, **frames()),
    "a.ppm": lambda path: picture().save(path),
    "deep.ppm": deep_ppm,
    "a.avif": lambda path: picture().save(path),
    "a.heic": heic,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "campaign"
    (root / "data" / "images").mkdir(parents=True)
    return Workspace(root)


def make_task(workspace: Workspace, name: str, write: Callable[[Path], None]) -> AnnotationTask:
    path = workspace.images / name
    write(path)
    facts = inspect_image(path, max_pixels=10**6)
    return AnnotationTask(
        image_id=image_id_from_sha256(facts.sha256), uri=f"data/images/{name}", width_px=facts.width_px,
        height_px=facts.height_px, rank=1, reason="", uncertainty=0.5, predictions=(), model_digest="",
    )  # fmt: skip


def test_every_ending_of_a_store_that_is_fetched_is_one_of_a_picture() -> None:
    assert {Path(name).suffix for name in CONVERTED} - {".jpg", ".png", ".webp"} <= media_endings()


def media_endings() -> frozenset[str]:
    from flows.annotation.providers import label_studio_tasks

    return label_studio_tasks._NOT_SHOWN_ENDINGS


@pytest.mark.parametrize("name", SHOWN)
def test_what_browsers_show_is_served_as_it_is(workspace: Workspace, name: str) -> None:
    task = make_task(workspace, name, SHOWN[name])
    images = TaskImages(workspace, "..")
    assert images.url(task) == f"/data/local-files/?d=campaign/data/images/{name}"
    assert not workspace.scratch("label_studio").exists()


@pytest.mark.parametrize("name", CONVERTED)
def test_what_browsers_do_not_show_is_served_as_png_with_the_model_s_pixels(workspace: Workspace, name: str) -> None:
    task = make_task(workspace, name, CONVERTED[name])
    images = TaskImages(workspace, "..")
    assert images.url(task) == f"/data/local-files/?d=campaign/.gleaner/label_studio/{task.image_id}.png"
    path = images.served_file(task)
    assert path is not None
    with Image.open(path) as shown:
        assert (shown.format, shown.size, shown.getexif()) == ("PNG", (task.width_px, task.height_px), Image.Exif())
        assert np.array_equal(np.asarray(shown), np.asarray(open_rgb(workspace.root / task.uri)))
    assert images.sha256(task) == files.sha256_file(workspace.root / task.uri)  # the answer is about this image
    before = path.stat().st_mtime_ns
    again = TaskImages(workspace, "..")
    again.restore_converted([task])
    assert path.stat().st_mtime_ns == before
    path.unlink()
    TaskImages(workspace, "..").restore_converted([task])
    assert path.is_file()


class FakeClient:
    """Serves the files below a folder, and remembers which folders were allowed."""

    url = "http://ls"

    def __init__(self, document_root: Path, changed: str = "") -> None:
        self.root, self.changed, self.folders = document_root, changed, [str(document_root / "other")]

    def list_local_folders(self, project: Project) -> list[str]:
        return self.folders

    def add_local_storage(self, project: Project, folder: str) -> None:
        self.folders.append(folder)

    def fetch_file(self, address: str) -> bytes | None:
        path = self.root / address.partition("?d=")[2]
        allowed = any(path.is_relative_to(folder) for folder in self.folders)
        if self.changed and self.changed in address:
            return b"another"
        return path.read_bytes() if allowed and path.is_file() else None


def test_both_folders_are_allowed_and_verified(workspace: Workspace, tmp_path: Path) -> None:
    tasks = [make_task(workspace, name, make[name]) for make, name in ((SHOWN, "a.jpg"), (CONVERTED, "a.tif"))]
    client = FakeClient(tmp_path)
    TaskImages(workspace, "..").grant_access(client, PROJECT, tasks)  # type: ignore[arg-type]
    folders = [workspace.images, workspace.scratch("label_studio")]
    assert client.folders[1:] == [str(folder) for folder in folders]
    for changed in ("a.jpg", "label_studio"):
        with pytest.raises(ProviderError, match="another file there"):
            TaskImages(workspace, "..").grant_access(FakeClient(tmp_path, changed), PROJECT, tasks)  # type: ignore[arg-type]


def test_objects_of_a_store_are_fetched_only_where_their_ending_asks_for_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = {n: make_task(workspace, n, {**SHOWN, **CONVERTED}[n]) for n in ("a.jpg", "cmyk.jpg", "a.tif", "a.gif")}
    images, fetched = TaskImages(workspace, ".."), []

    def fetch(uri: str, image_id: str, reader: Callable[[Path], object]) -> object:
        fetched.append(uri)
        return reader(workspace.images / uri.rpartition("/")[2])

    monkeypatch.setattr(images._source, "open", fetch)
    remote = {name: task.model_copy(update={"uri": f"s3://bucket/{name}"}) for name, task in local.items()}
    assert [images.url(remote[name]) for name in ("a.jpg", "cmyk.jpg", "a.gif")] == [
        "s3://bucket/a.jpg", "s3://bucket/cmyk.jpg", "s3://bucket/a.gif",
    ]  # fmt: skip
    assert images.url(remote["a.tif"]).endswith(f"{local['a.tif'].image_id}.png")
    assert set(fetched) == {"s3://bucket/a.gif", "s3://bucket/a.tif"}


def test_an_image_that_is_gone_or_broken_is_named_with_the_fix(workspace: Workspace) -> None:
    gone, broken = (make_task(workspace, name, CONVERTED["a.tif"]) for name in ("gone.tif", "broken.tif"))
    (workspace.root / gone.uri).unlink()
    (workspace.root / broken.uri).write_bytes(b"no picture")
    for task in (gone, broken):
        with pytest.raises(UserError, match=r"data/images/.*dvc checkout"):
            TaskImages(workspace, "..").url(task)


def test_png_encoding_is_the_picture_of_the_model(tmp_path: Path) -> None:
    from tasks.data.images import encode_png

    picture().save(tmp_path / "a.tif", exif=sideways())
    with Image.open(io.BytesIO(encode_png(tmp_path / "a.tif"))) as png:
        assert np.array_equal(np.asarray(png), np.rot90(PIXELS, -1))
