"""Campaigns whose images are objects of a real S3 server, and pools that follow what arrives there."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.pool_sync import sync_pool
from flows.workspace import dvc, git
from flows.workspace.run_lock import run_lock
from flows.workspace.scaffold import create_workspace, pool_source_override
from tasks import prepare
from tasks.data import image_metadata_cache
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, INDEX, POOL
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files, image_cache
from tasks.storage.s3 import (
    ObjectMetadata,
    ObjectStoreUnavailable,
    delete_object,
    list_objects,
    split_uri,
    write_object,
)
from tests.flows.copies import copy_as_own
from tests.flows.small_campaign import POOL as POOL_IMAGES
from tests.flows.small_campaign import VAL, fake_heavy_stages, make_source, run_gleaner, workspace_config
from tests.services import S3Server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def s3_template(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, isolated_git_config: None
) -> Iterator[Workspace]:
    """The tiny campaign with its images in a bucket; nobody touches it, but all share the bucket's ``pool/``."""
    folder = tmp_path_factory.mktemp("s3_template")
    source = make_source(folder / "source")
    prefix = f"s3://{s3_server.new_bucket()}/pool"
    with pytest.MonkeyPatch.context() as patch:
        s3_server.set_environment(patch)
        assert isinstance(source.images, Path)
        for path in source.images.iterdir():
            write_object(f"{prefix}/{path.name}", path.read_bytes())
        write_object(f"{prefix}/notes.txt", b"no image")
        write_object(f"{prefix}/broken.jpg", b"no image either")
        campaign = replace(workspace_config(source, pool_source_override(prefix)), bucket=prefix)
        workspace = Workspace(folder / "tiny")
        create_workspace(workspace.root, campaign)
        fake_heavy_stages(workspace)
        yield workspace


@pytest.fixture
def s3_campaign(
    s3_template: Workspace, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """A copy of one's own, with a prefix of one's own."""
    s3_server.set_environment(monkeypatch)
    monkeypatch.setattr(image_cache, "_INITIAL_BACKOFF_S", 0.01)
    return copy_as_own(s3_template, tmp_path / "tiny")


def index_rows(workspace: Workspace) -> dict[str, dict[str, Any]]:
    return {row["file_name"]: row for row in files.read_table(workspace.index, INDEX).to_pylist()}


def random_image(seed: int) -> bytes:
    path = Path(f"/dev/shm/gleaner-test-{seed}.png") if Path("/dev/shm").is_dir() else Path(f"{seed}.png")
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def run_prepare(workspace: Workspace) -> tuple[list[str], dict[str, str]]:
    out = workspace.derived("prepare")
    prepare.prepare(
        load_params(workspace.params).prepare, index=workspace.index, val=workspace.val, root=workspace.root, out=out
    )
    pool = files.read_table(out / "pool.parquet", POOL)["file_name"].to_pylist()
    return pool, {entry["item"]: entry["reason"] for entry in files.read_json(out / "quarantine.json")}


def test_a_campaign_on_a_bucket_is_the_same_campaign_with_other_uris(
    s3_campaign: Workspace, small_campaign_template: Workspace
) -> None:
    ours, theirs = index_rows(s3_campaign), index_rows(small_campaign_template)
    assert {name: row["image_id"] for name, row in ours.items()} == {n: r["image_id"] for n, r in theirs.items()}
    prefix = load_params(s3_campaign.params).pool.images_uri
    assert all(row["uri"] == f"{prefix}/{name}" for name, row in ours.items())
    assert len(ours) == POOL_IMAGES
    val = files.read_table(s3_campaign.val, ANNOTATED)["uri"].to_pylist()
    assert len(val) == VAL
    assert all(uri.startswith(prefix) for uri in val)
    assert [path.name for path in s3_campaign.images.iterdir()] == ["README"]
    assert s3_campaign.label_batch(0).read_bytes() == small_campaign_template.label_batch(0).read_bytes()
    report = files.read_json(s3_campaign.import_report)
    assert [entry["item"] for entry in report["set_aside"]] == ["broken.jpg"]
    assert git.run_git(s3_campaign.root, "status", "--porcelain") == ""


def test_a_night_on_a_bucket_and_a_pool_that_changes_after_it(
    s3_campaign: Workspace, s3_server: S3Server, prefect_test_server: None
) -> None:
    from flows.nightly import run_rounds

    root = s3_campaign.root
    prefix = copy_prefix(s3_campaign, s3_server)
    assert [result.outcome for result in run_rounds(root, 1)] == ["completed"]
    labeled = set(read_labels(s3_campaign.labels).all_annotations)
    before = index_rows(s3_campaign)
    pool = files.read_table(s3_campaign.derived("prepare") / "pool.parquet", POOL)
    assert pool.num_rows == POOL_IMAGES
    offered = set(files.read_json(s3_campaign.delivery(1) / "delivery.json")["image_ids"])
    free = [name for name, row in before.items() if row["image_id"] not in labeled | offered]
    calibrating = set(files.read_table(s3_campaign.calibration, ANNOTATED)["image_id"].to_pylist())
    free = [name for name in free if before[name]["image_id"] not in calibrating]
    lost = next(name for name, row in before.items() if row["image_id"] in labeled)
    lost_bytes = s3_server.client().get_object(Bucket=split_uri(prefix)[0], Key=split_uri(f"{prefix}/{lost}")[1])
    kept_bytes = lost_bytes["Body"].read()
    write_object(f"{prefix}/later/new.png", random_image(1))
    write_object(f"{prefix}/{free[0]}", random_image(2))
    delete_object(f"{prefix}/{free[1]}")
    delete_object(f"{prefix}/{lost}")
    told = run_gleaner("pool", "sync", cwd=root, **s3_server.environment(), COLUMNS="200")
    assert told.returncode == 1, told.stdout + told.stderr
    assert f"{lost}: image {before[lost]['image_id']} is gone" in told.stdout
    after = index_rows(s3_campaign)
    assert set(after) == set(before) - {free[1]} | {"later/new.png"}
    assert after[free[0]]["image_id"] != before[free[0]]["image_id"]
    assert after[lost] == before[lost]
    assert git.run_git(root, "status", "--porcelain") == ""
    assert "Sync the pool: 1 added, 1 changed, 1 vanished" in git.run_git(root, "log", "-1", "--format=%s")
    write_object(f"{prefix}/{lost}", kept_bytes)
    healed = run_gleaner("pool", "sync", cwd=root, **s3_server.environment())
    assert healed.returncode == 0, healed.stdout + healed.stderr
    sources, aside = run_prepare(s3_campaign)
    assert sorted(sources) == sorted(after)
    assert aside == {}


def copy_prefix(workspace: Workspace, s3_server: S3Server) -> str:
    """Move a campaign to a copy of its bucket, so that the test may spoil it."""
    old = load_params(workspace.params).pool.images_uri
    new = f"s3://{s3_server.new_bucket()}/pool"
    client = s3_server.client()
    (bucket, key), (target, _) = split_uri(old), split_uri(new)
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]:
        client.copy_object(Bucket=target, Key=entry["Key"], CopySource={"Bucket": bucket, "Key": entry["Key"]})
    workspace.params.write_text(workspace.params.read_text().replace(old, new))
    for path, schema in ((workspace.index, INDEX), (workspace.val, ANNOTATED), (workspace.calibration, ANNOTATED)):
        table = files.read_table(path, schema)
        uris = [uri.replace(old, new) for uri in table["uri"].to_pylist()]
        moved = table.set_column(table.schema.get_field_index("uri"), "uri", [uris])
        files.write_table(path, moved.cast(table.schema).replace_schema_metadata(table.schema.metadata))
    dvc.add(workspace, workspace.index)
    git.commit(workspace, "Move the images")
    return new


def test_prepare_sets_missing_and_changed_objects_aside_and_keeps_an_outage_apart(
    s3_campaign: Workspace, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = copy_prefix(s3_campaign, s3_server)
    known = index_rows(s3_campaign)
    gone, changed, cut, *rest = sorted(known)
    delete_object(f"{prefix}/{gone}")
    write_object(f"{prefix}/{changed}", random_image(3))
    write_object(f"{prefix}/{cut}", random_image(4)[:200])
    pool, aside = run_prepare(s3_campaign)
    assert sorted(pool) == rest
    assert "missing" in aside[known[gone]["image_id"]]
    assert "SHA-256" in aside[known[changed]["image_id"]]
    assert "unreadable" in aside[known[cut]["image_id"]]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(ObjectStoreUnavailable):
        run_prepare(s3_campaign)


def test_an_unchanged_pool_is_listed_and_not_fetched_again(
    s3_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_prepare(s3_campaign)
    first = files.sha256_tree(s3_campaign.derived("prepare"))
    shutil.rmtree(s3_campaign.scratch("images"))
    lists: list[str] = []

    def counted(prefix: str) -> Iterator[ObjectMetadata]:
        lists.append(prefix)
        return list_objects(prefix)

    monkeypatch.setattr(image_metadata_cache, "list_objects", counted)
    monkeypatch.setattr(image_cache, "fetch_object", lambda uri, into: pytest.fail(f"fetched {uri}"))
    run_prepare(s3_campaign)
    assert files.sha256_tree(s3_campaign.derived("prepare")) == first
    assert len(lists) == 1
    changes = sync_pool(s3_campaign)
    assert (changes.added, changes.changed, changes.removed, changes.missing) == ([], [], [], [])


def test_a_cache_too_small_for_the_pool_gives_the_same_result(s3_campaign: Workspace) -> None:
    run_prepare(s3_campaign)
    whole = files.sha256_tree(s3_campaign.derived("prepare"))
    shutil.rmtree(s3_campaign.scratch("images"))
    shutil.rmtree(s3_campaign.scratch("seen"))
    text = s3_campaign.params.read_text().replace("cache_gib: 20.0", "cache_gib: 0.00001")  # four images
    one_at_a_time = re.sub(
        "num_download_workers: .*", "num_download_workers: 1", text
    )  # what is under way comes on top
    s3_campaign.params.write_text(one_at_a_time)
    run_prepare(s3_campaign)
    assert files.sha256_tree(s3_campaign.derived("prepare")) == whole
    held = [path for path in s3_campaign.scratch("images").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(held) < POOL_IMAGES


def test_a_directory_is_followed_too(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    assert isinstance(source.images, Path)
    workspace = Workspace(tmp_path / "tiny")
    create_workspace(workspace.root, workspace_config(source, pool_source_override(str(source.images))))
    before = index_rows(workspace)
    labeled = set(read_labels(workspace.labels).all_annotations)
    calibration = set(files.read_table(workspace.calibration, ANNOTATED)["image_id"].to_pylist())
    free = sorted(name for name, row in before.items() if row["image_id"] not in labeled | calibration)
    lost = next(name for name, row in before.items() if row["image_id"] in labeled)
    (source.images / "new").mkdir()
    (source.images / "new" / "a.png").write_bytes(random_image(5))
    (source.images / "broken.png").write_bytes(b"no image")
    (source.images / free[0]).unlink()
    (source.images / free[1]).rename(source.images / "renamed.png")
    (source.images / lost).unlink()
    changes = sync_pool(workspace)
    assert (changes.added, changes.removed, changes.moved) == (["new/a.png"], [free[0]], [f"{free[1]} -> renamed.png"])
    assert [entry.item for entry in changes.missing] == [lost]
    assert [entry.item for entry in changes.rejected] == ["broken.png"]
    after = index_rows(workspace)
    added = workspace.root / after["new/a.png"]["uri"]
    assert files.sha256_file(added) == after["new/a.png"]["sha256"]
    assert after["renamed.png"]["image_id"] == before[free[1]]["image_id"]
    assert git.run_git(workspace.root, "status", "--porcelain") == ""
    again = sync_pool(workspace)
    assert (again.added, again.removed, again.moved) == ([], [], [])
    with run_lock(workspace), pytest.raises(UserError, match="another run is active"):
        sync_pool(workspace)
    shutil.rmtree(source.images)
    source.images.mkdir()
    with pytest.raises(UserError, match=r"images in pool\.images_uri are 0.*Nothing was changed"):
        sync_pool(workspace)
    assert index_rows(workspace) == after


def test_a_campaign_without_a_source_is_told_where_to_put_it(small_campaign: Workspace) -> None:
    with pytest.raises(UserError, match=r"pool\.images_uri is empty"):
        sync_pool(small_campaign)
