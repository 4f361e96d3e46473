"""Images opened on the nodes of a cluster, on a stand-in for Ray that calls actors in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.model.engines import ray_images
from tasks.model.engines.ray_images import ImageActor, ImageJob, ImagePiece, reading_fingerprint
from tasks.params import load_params
from tasks.params.stages import InferParams, PrepareParams
from tasks.prepare import prepare
from tasks.runtime.errors import UserError
from tasks.storage import files

LIMITS = PrepareParams(min_image_side_px=16, max_pixels=100_000)
REPOSITORY = Path(__file__).parents[4]


class LostError(Exception):
    """The process of an actor is gone."""


class TaskError(Exception):
    """An actor raised ``cause``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass
class FakeRay:
    """One node with room for two actors. A call is done at once; some lose their actor."""

    num_lost: int = 0
    """The first pieces that do."""
    pieces: list[tuple[str, ...]] = field(default_factory=list)
    """Uris of the pieces that actors got."""
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayTaskError=TaskError, RayError=LostError))

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "n", "NodeManagerAddress": "n", "Alive": True, "Resources": {"CPU": 1.0}}]

    def remote(self, actor_class: type) -> Any:
        def create(*arguments: Any) -> Any:
            actor = actor_class(*arguments)
            return SimpleNamespace(
                load=SimpleNamespace(remote=lambda fingerprint: lambda: actor.load(fingerprint)),
                work=SimpleNamespace(remote=lambda piece: lambda: self._work(actor, piece)),
            )

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=create))

    def _work(self, actor: ImageActor, piece: ImagePiece) -> str:
        self.pieces.append(tuple(piece.uris))
        if len(self.pieces) <= self.num_lost:
            raise LostError("the node died")
        try:
            return actor.work(piece)
        except UserError as error:
            raise TaskError(error) from None

    def wait(self, calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Any) -> Any:
        try:
            return call()
        except UserError as error:
            raise TaskError(error) from None

    def kill(self, actor: Any) -> None:
        """Nothing is left of it."""


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()

    @contextmanager
    def connected(address: str) -> Iterator[FakeRay]:
        yield ray

    monkeypatch.setattr(ray_images, "connected", connected)
    monkeypatch.setattr(ray_images, "PIECE_IMAGES", 3)
    return ray


def engine(name: str) -> InferParams:
    return load_params(REPOSITORY / "params.yaml").infer.model_copy(update={"engine": name})


def run(workspace: Workspace, name: str) -> str:
    """Digest of the stage's files."""
    out = workspace.derived("prepare")
    prepare(
        LIMITS, index=workspace.index, val=workspace.val, root=workspace.root, out=out, engine=engine(name)
    )  # fmt: skip
    return files.sha256_tree(out)


def forget(workspace: Workspace) -> None:
    (workspace.scratch("seen") / "images.jsonl").unlink(missing_ok=True)


def uris(workspace: Workspace) -> list[str]:
    return [str(uri) for uri in files.read_table(workspace.index, INDEX)["uri"].to_pylist()]


@pytest.fixture
def spoilt(tiny_campaign: Workspace) -> Workspace:
    """A campaign in which one image is cut off, and one is missing."""
    cut, missing, *_ = uris(tiny_campaign)
    path = tiny_campaign.root / cut
    path.write_bytes(path.read_bytes()[:300])
    (tiny_campaign.root / missing).unlink()
    return tiny_campaign


def test_the_files_are_those_of_the_local_engine(spoilt: Workspace, fake_ray: FakeRay) -> None:
    expected = run(spoilt, "local")
    assert fake_ray.pieces == []
    forget(spoilt)
    fake_ray.num_lost = 2
    assert run(spoilt, "ray") == expected
    asked = {uri for piece in fake_ray.pieces for uri in piece}
    assert asked >= set(uris(spoilt)) - {uris(spoilt)[1]}
    assert uris(spoilt)[1] not in asked


def test_what_is_known_is_not_asked_for_again(spoilt: Workspace, fake_ray: FakeRay) -> None:
    expected = run(spoilt, "ray")
    fake_ray.pieces.clear()
    assert run(spoilt, "ray") == expected
    assert fake_ray.pieces == []
    changed = spoilt.root / uris(spoilt)[2]
    changed.write_bytes((spoilt.root / uris(spoilt)[3]).read_bytes())
    run(spoilt, "ray")
    assert fake_ray.pieces == [(uris(spoilt)[2],)]


def test_an_image_that_ends_its_process_is_named(tiny_campaign: Workspace, fake_ray: FakeRay) -> None:
    fake_ray.num_lost = 1000
    with pytest.raises(UserError, match=r"the number of workers lost with the same 3 images \(.*the node died"):
        run(tiny_campaign, "ray")


def test_a_node_with_another_folder_or_other_code_is_named(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    job = ImageJob(tmp_path, 100, 1, (index, "0" * 64))
    with pytest.raises(UserError, match="missing or another one, expected the same folder on all nodes"):
        ImageActor(job).load(reading_fingerprint())
    index.write_bytes(b"index")
    job = ImageJob(tmp_path, 100, 1, (index, files.sha256_file(index)))
    with pytest.raises(UserError, match="the code or the libraries of node"):
        ImageActor(job).load("other")
    assert ImageActor(job).load(reading_fingerprint())
