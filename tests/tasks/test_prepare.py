"""Every pool image looked at; the bad ones named, the good ones measured."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from tasks.data import image_metadata_cache
from tasks.data.images import ImageMetadata, inspect_image
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, INDEX, POOL, UNLABELED
from tasks.params.stages import PrepareParams
from tasks.prepare import prepare
from tasks.runtime.errors import UserError
from tasks.storage import files

LIMITS = PrepareParams(min_image_side_px=16, max_pixels=100_000)
Rows = list[dict[str, Any]]


def run(workspace: Workspace, limits: PrepareParams = LIMITS) -> tuple[Rows, dict[str, str]]:
    out = workspace.derived("prepare")
    prepare(limits, index=workspace.index, val=workspace.val, root=workspace.root, out=out)
    pool: Rows = files.read_table(out / "pool.parquet", POOL).to_pylist()
    return pool, {entry["item"]: entry["reason"] for entry in files.read_json(out / "quarantine.json")}


def rows(workspace: Workspace) -> Rows:
    found: Rows = files.read_table(workspace.index, INDEX).to_pylist()
    return found


def val_rows(workspace: Workspace) -> Rows:
    found: Rows = files.read_table(workspace.val, ANNOTATED).to_pylist()
    return found


def usable_val(workspace: Workspace) -> set[str]:
    return set(files.read_table(workspace.derived("prepare") / "val.parquet", UNLABELED)["image_id"].to_pylist())


def rewrite(workspace: Workspace, changed: Rows) -> None:
    files.write_table(workspace.index, pa.Table.from_pylist(changed, schema=INDEX))


def test_good_pool_is_measured(tiny_campaign: Workspace) -> None:
    pool, quarantine = run(tiny_campaign)
    assert quarantine == {}
    assert [row["image_id"] for row in pool] == sorted(row["image_id"] for row in rows(tiny_campaign))
    for row in pool:
        with Image.open(tiny_campaign.root / row["uri"]) as image:
            assert (row["width_px"], row["height_px"]) == image.size


def test_second_run_writes_the_same_bytes(tiny_campaign: Workspace) -> None:
    run(tiny_campaign)
    digest = files.sha256_tree(tiny_campaign.derived("prepare"))
    run(tiny_campaign)
    assert files.sha256_tree(tiny_campaign.derived("prepare")) == digest


def test_missing_broken_and_exchanged_images_are_set_aside(tiny_campaign: Workspace) -> None:
    gone, cut, exchanged, *rest = rows(tiny_campaign)
    (tiny_campaign.root / gone["uri"]).unlink()
    path = tiny_campaign.root / cut["uri"]
    path.write_bytes(path.read_bytes()[:300])
    (tiny_campaign.root / exchanged["uri"]).write_bytes((tiny_campaign.root / rest[0]["uri"]).read_bytes())
    pool, quarantine = run(tiny_campaign)
    assert [row["image_id"] for row in pool] == [row["image_id"] for row in rest]
    assert "missing" in quarantine[gone["image_id"]]
    assert "unreadable" in quarantine[cut["image_id"]]
    assert "SHA-256" in quarantine[exchanged["image_id"]]
    assert all(row["file_name"] in quarantine[row["image_id"]] for row in (gone, cut, exchanged))


def test_limits_set_images_aside(tiny_campaign: Workspace) -> None:
    sides = {row["image_id"]: (row["width_px"], row["height_px"]) for row in run(tiny_campaign)[0]}
    val_sides = {row["image_id"]: (row["width_px"], row["height_px"]) for row in val_rows(tiny_campaign)}
    side_px = 75
    pool, quarantine = run(tiny_campaign, PrepareParams(min_image_side_px=side_px, max_pixels=100_000))
    assert {row["image_id"] for row in pool} == {i for i, side in sides.items() if min(side) >= side_px}
    assert usable_val(tiny_campaign) == {i for i, side in val_sides.items() if min(side) >= side_px}
    assert all(f"at least {side_px}" in reason for reason in quarantine.values())
    limit = min(width * height for width, height in val_sides.values())
    pool, quarantine = run(tiny_campaign, PrepareParams(min_image_side_px=1, max_pixels=limit))
    assert {row["image_id"] for row in pool} == {i for i, (w, h) in sides.items() if w * h <= limit}
    assert usable_val(tiny_campaign) == {i for i, (w, h) in val_sides.items() if w * h <= limit}
    assert all("pixels" in reason for reason in quarantine.values())


def test_validation_images_are_checked_like_all_others(tiny_campaign: Workspace) -> None:
    gone, cut, whole = val_rows(tiny_campaign)
    (tiny_campaign.root / gone["uri"]).unlink()
    path = tiny_campaign.root / cut["uri"]
    path.write_bytes(path.read_bytes()[:300])
    pool, quarantine = run(tiny_campaign)
    assert usable_val(tiny_campaign) == {whole["image_id"]}
    assert len(pool) == len(rows(tiny_campaign))
    assert set(quarantine) == {gone["image_id"], cut["image_id"]}
    assert quarantine[gone["image_id"]].startswith(f"validation image {gone['uri']}: the image file is missing")
    assert "unreadable" in quarantine[cut["image_id"]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width_px": 7}, "expected 7 x .* px as when its boxes were read"),
        ({"image_id": "0" * 16}, "expected [0-9a-f]"),
    ],
)
def test_validation_image_of_another_size_or_digest_is_set_aside(
    tiny_campaign: Workspace, changes: dict[str, Any], reason: str
) -> None:
    table = files.read_table(tiny_campaign.val, ANNOTATED)
    first, *rest = table.to_pylist()
    files.write_table(tiny_campaign.val, pa.Table.from_pylist([first | changes, *rest], schema=table.schema))
    _, quarantine = run(tiny_campaign)
    [found] = quarantine.values()
    assert re.search(reason, found)
    assert len(usable_val(tiny_campaign)) == len(rest)


def test_no_usable_validation_image_is_an_error(tiny_campaign: Workspace) -> None:
    for row in val_rows(tiny_campaign):
        (tiny_campaign.root / row["uri"]).unlink()
    with pytest.raises(UserError, match=r"val\.parquet: usable images are 0 of 3.*missing.*dvc checkout"):
        run(tiny_campaign)


def test_an_image_is_decoded_again_only_when_its_file_changed(
    tiny_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def count(path: Path, *, max_pixels: int) -> ImageMetadata:
        decoded.append(path.name)
        return inspect_image(path, max_pixels=max_pixels)

    monkeypatch.setattr(image_metadata_cache, "inspect_image", count)
    first, broken, *_ = rows(tiny_campaign)
    (tiny_campaign.root / broken["uri"]).write_bytes(b"no picture")
    before = run(tiny_campaign)
    assert len(decoded) == 12
    assert run(tiny_campaign) == before
    assert len(decoded) == 12  # nor is the broken one tried again
    tiny_campaign.root.rename(tiny_campaign.root.with_name("moved"))
    moved = Workspace(tiny_campaign.root.with_name("moved"))
    path = moved.root / first["uri"]
    path.write_bytes(path.read_bytes() + b"more")
    _, quarantine = run(moved)
    assert decoded[12:] == [path.name]
    assert "SHA-256" in quarantine[first["image_id"]]
    path.unlink()
    assert "missing" in run(moved)[1][first["image_id"]]


@pytest.mark.parametrize("uri", ["../outside.png", "/etc/hostname"])
def test_uri_that_leads_elsewhere_is_set_aside(tiny_campaign: Workspace, uri: str) -> None:
    first, *rest = rows(tiny_campaign)
    (tiny_campaign.root.parent / "outside.png").write_bytes((tiny_campaign.root / first["uri"]).read_bytes())
    rewrite(tiny_campaign, [first | {"uri": uri}, *rest])
    pool, quarantine = run(tiny_campaign)
    assert list(quarantine) == [first["image_id"]]
    assert len(pool) == len(rest)


def test_image_ids_that_are_listed_twice_or_not_of_their_image(tiny_campaign: Workspace) -> None:
    first, second, *rest = rows(tiny_campaign)
    rewrite(tiny_campaign, [first, first, second | {"image_id": "0" * 16}, *rest])
    pool, quarantine = run(tiny_campaign)
    assert len(pool) == len(rest)
    assert "listed 2 times" in quarantine[first["image_id"]]
    assert second["image_id"] in quarantine["0" * 16]


def test_nothing_usable_is_an_error(tiny_campaign: Workspace) -> None:
    with pytest.raises(UserError, match=r"index\.parquet: usable images are 0 of 9.*dvc checkout"):
        run(tiny_campaign, PrepareParams(min_image_side_px=1000, max_pixels=100_000))
    rewrite(tiny_campaign, [])
    with pytest.raises(UserError, match="images in the pool are 0"):
        run(tiny_campaign)
    tiny_campaign.index.write_bytes(b"no table")
    with pytest.raises(UserError, match="unreadable"):
        run(tiny_campaign)
    tiny_campaign.index.unlink()
    with pytest.raises(UserError, match="missing"):
        run(tiny_campaign)


def test_command_says_what_is_wrong_in_one_line(tiny_campaign: Workspace) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tasks.prepare"]

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tiny_campaign.root, env=environment, capture_output=True, text=True)

    done = call()
    assert done.returncode == 0, done.stderr
    assert "9 images, 0 set aside" in done.stdout
    tiny_campaign.index.unlink()
    failed = call()
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "index.parquet: the file is missing" in failed.stderr
