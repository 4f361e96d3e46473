"""How the wheel of Detectron2 is made, and who is installed."""

import base64
import csv
import hashlib
import io
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.detectron2 import build_wheel, install
from infra.detectron2.build_wheel import BuildError, apply_patches, pinned_hash, read_source, write_wheel
from infra.detectron2.patches import NEW_FILE, PATCHES, VERSION, Patch

TOP = "pb1-detectron2-0.6"
CACHED_SOURCE = build_wheel.CACHE_DIR / f"{TOP}.tar.gz"

# One line of each file as it was and as it must become; a change of `times` n is tried on n such lines.
BEFORE_AND_AFTER = {
    ("detectron2/evaluation/coco_evaluation.py", "COCOeval_opt = COCOeval"): (
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "COCOeval_opt = COCOeval\n",
    ),
    ("detectron2/data/build.py", r"\1"): ("np.zeros(3, dtype=np.int)\n", "np.zeros(3, dtype=int)\n"),
    ("detectron2/data/datasets/pascal_voc.py", r"\1"): ("dtype=np.str)\n", "dtype=str)\n"),
    ("detectron2/evaluation/pascal_voc_evaluation.py", r"\1"): ("astype(np.bool)\n", "astype(bool)\n"),
    ("detectron2/evaluation/sem_seg_evaluation.py", r"\1"): ("np.float, np.float32\n", "float, np.float32\n"),
    ("detectron2/structures/masks.py", r"\1"): ("np.bool, np.bool_\n", "bool, np.bool_\n"),
    ("detectron2/utils/video_visualizer.py", r"\1"): ("dtype=np.bool\n", "dtype=bool\n"),
    ("detectron2/utils/visualizer.py", r"\1"): (".astype(np.bool)\n", ".astype(bool)\n"),
    ("detectron2/data/transforms/transform.py", "Image.BILINEAR"): (
        "interp=Image.LINEAR, other=Image.BILINEAR\n",
        "interp=Image.BILINEAR, other=Image.BILINEAR\n",
    ),
    ("detectron2/model_zoo/model_zoo.py", "from importlib import resources"): (
        "import pkg_resources\n",
        "from importlib import resources\n",
    ),
    ("detectron2/model_zoo/model_zoo.py", r'str(resources.files("detectron2.model_zoo").joinpath(\1))'): (
        'pkg_resources.resource_filename(\n  "detectron2.model_zoo", os.path.join("configs", name)\n)\n',
        'str(resources.files("detectron2.model_zoo").joinpath("configs", name))\n',
    ),
    (
        "detectron2/modeling/anchor_generator.py",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    ): (
        "torch.meshgrid(shifts_y, shifts_x)\n",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")\n',
    ),
    ("detectron2/engine/train_loop.py", "from torch.amp import"): (
        "    from torch.cuda.amp import autocast\n",
        "    from torch.amp import autocast\n",
    ),
    ("detectron2/engine/train_loop.py", 'with autocast("cuda"):'): (
        "    with autocast():\n",
        '    with autocast("cuda"):\n',
    ),
}


def archive_of(files: dict[str, str], path: Path) -> str:
    """Write a source archive and return its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{TOP}/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cached_source() -> Path:
    if not CACHED_SOURCE.exists():
        pytest.skip("the sources are not in .cache: python -m infra.detectron2.build_wheel")
    return CACHED_SOURCE


# --- the table of changes ---


@pytest.mark.parametrize("change", [c for c in PATCHES if c.pattern != NEW_FILE], ids=lambda c: c.path)
def test_change_applies_as_declared(change: Patch) -> None:
    before, after = BEFORE_AND_AFTER[change.path, change.replacement]
    changed = apply_patches({change.path: (before * change.count).encode()}, [change])
    note = f"\n# Changed by Gleaner: {change.reason}.\n"
    assert changed[change.path].decode() == after * change.count + note


@pytest.mark.parametrize("change", [c for c in PATCHES if c.pattern != NEW_FILE], ids=lambda c: c.path)
@pytest.mark.parametrize("surplus", [-1, 1])
def test_another_number_of_occurrences_stops_the_build(change: Patch, surplus: int) -> None:
    before, _ = BEFORE_AND_AFTER[change.path, change.replacement]
    text = before * (change.count + surplus)
    with pytest.raises(BuildError, match=f"matches {change.count + surplus} times, expected {change.count}"):
        apply_patches({change.path: text.encode()}, [change])


def test_new_file_is_added_and_never_overwrites() -> None:
    change = next(c for c in PATCHES if c.pattern == NEW_FILE)
    assert apply_patches({}, [change]) == {change.path: change.replacement.encode()}
    with pytest.raises(BuildError, match="matches 0 times, expected 1"):
        apply_patches({change.path: b"from somewhere import real_extension\n"}, [change])


def test_all_changes_fit_the_real_sources(cached_source: Path) -> None:
    files = read_source(cached_source, pinned_hash())
    changed = apply_patches(files, PATCHES)
    assert {path for path in changed if changed[path] != files.get(path)} == {c.path for c in PATCHES}
    gone = re.compile(rb"\bnp\.(bool|int|float|str|object)\b|Image\.LINEAR|pkg_resources|torch\.cuda\.amp")
    code = {path: data.partition(b"# Changed by")[0] for path, data in changed.items()}
    assert [p for p, data in code.items() if p.startswith("detectron2/") and gone.search(data)] == []
    for path in {c.path for c in PATCHES}:
        compile(changed[path], path, "exec")


# --- the sources ---


def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive_of({"LICENSE": "text"}, tmp_path / "other.tar.gz")
    with pytest.raises(BuildError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {pinned_hash()}"):
        build_wheel.build(tmp_path, tmp_path / "other.tar.gz")
    assert not list(tmp_path.glob("*.whl"))


def test_source_is_read_by_path_below_its_top_folder(tmp_path: Path) -> None:
    sha256 = archive_of({"LICENSE": "text", "detectron2/a.py": "1"}, tmp_path / "some.tar.gz")
    files = read_source(tmp_path / "some.tar.gz", sha256)
    assert files == {"LICENSE": b"text", "detectron2/a.py": b"1"}


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in pip's settings, with an archive whose own code must not run."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {"LICENSE": "text", "setup.py": "raise SystemExit('setup.py was run')"}
    sha256 = archive_of(files, folder / f"{TOP}.tar.gz")
    source_file = tmp_path / "source.txt"
    source_file.write_text(f"pb1-detectron2==0.6 --hash=sha256:{sha256}\n")
    monkeypatch.setattr(build_wheel, "SOURCE_FILE", source_file)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return source_file


def test_download_uses_pips_settings_and_runs_no_code_of_the_archive(local_index: Path, tmp_path: Path) -> None:
    archive = build_wheel.download(tmp_path / "cache")
    assert set(read_source(archive, pinned_hash())) == {"LICENSE", "setup.py"}


def test_download_of_another_archive_is_refused(local_index: Path, tmp_path: Path) -> None:
    local_index.write_text(f"pb1-detectron2==0.6 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(subprocess.CalledProcessError):
        build_wheel.download(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tar.gz"))


# --- the wheel ---


def small_wheel(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return write_wheel({"detectron2/b.py": b"2", "LICENSE": b"text", "setup.py": b"", "detectron2/a.py": b"1"}, folder)


def check_record(wheel: Path) -> None:
    info = f"detectron2-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel) as opened:
        rows = list(csv.reader(opened.read(f"{info}/RECORD").decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(opened.namelist())
        for path, digest, size in rows:
            if path == f"{info}/RECORD":
                assert (digest, size) == ("", "")
                continue
            data = opened.read(path)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={expected}", str(len(data)))


def test_wheel_holds_the_package_and_a_right_record(tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path)
    assert wheel.name == f"detectron2-{VERSION}-py3-none-any.whl"
    check_record(wheel)
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        assert names == sorted(names)
        assert "setup.py" not in names
        metadata = opened.read(f"detectron2-{VERSION}.dist-info/METADATA").decode()
    assert f"\nName: detectron2\nVersion: {VERSION}\n" in metadata


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    assert small_wheel(tmp_path / "one").read_bytes() == small_wheel(tmp_path / "two").read_bytes()


def test_real_wheel_is_the_same_twice_and_whole(cached_source: Path, tmp_path: Path) -> None:
    one = build_wheel.build(tmp_path / "one", cached_source)
    two = build_wheel.build(tmp_path / "two", cached_source)
    assert one.read_bytes() == two.read_bytes()
    check_record(one)
    with zipfile.ZipFile(one) as opened:
        assert "detectron2/model_zoo/configs/COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml" in opened.namelist()


# --- who is installed ---


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip_install", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(install, "check_import", lambda: None)
    monkeypatch.setattr(install, "build", lambda: Path("ours.whl"))
    monkeypatch.delenv("GLEANER_DETECTRON2", raising=False)
    return calls


@pytest.mark.parametrize("found", [None, VERSION])
def test_our_wheel_is_installed_where_there_is_no_other(
    found: str | None, pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed_version", lambda: found)
    assert install.install() == f"Detectron2 {VERSION} is installed."
    assert [call[-1] for call in pip_calls] == ["ours.whl"]


@pytest.mark.parametrize("found", ["0.6", "unknown"])
def test_the_sites_own_build_is_left_alone(
    found: str, pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed_version", lambda: found)
    assert install.install() == f"Detectron2 {found} was installed here before and is left alone."
    assert pip_calls == []


def test_the_chosen_build_is_installed_whatever_is_there(
    pip_calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEANER_DETECTRON2", "/wheels/own.whl")
    monkeypatch.setattr(install, "installed_version", lambda: "0.6")
    assert "from GLEANER_DETECTRON2=/wheels/own.whl" in install.install()
    assert [call[-1] for call in pip_calls] == ["/wheels/own.whl"]


def test_a_build_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: undefined symbol: torch")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(BuildError, match=r"does not import \(ImportError: undefined symbol: torch\)"):
        install.check_import()
