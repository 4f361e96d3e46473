"""A campaign of six drawn images, and the fake CVAT that its annotators use."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flows.annotation.providers import cvat_client
from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.providers.cvat import CvatProvider
from flows.annotation.providers.cvat_client import TOKEN, Network
from flows.workspace import git
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import AnnotationTask, LabelBatch, Prediction
from tasks.params import load_params
from tasks.storage import files
from tests.flows.annotation.cvat import fake_server
from tests.flows.annotation.cvat.fake_server import FakeCvat, running_cvat
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES, HEIGHT, WIDTH, make_image
from tests.flows.small_campaign import REPOSITORY


@dataclass
class Team:
    """A campaign and its CVAT."""

    workspace: Workspace
    fake: FakeCvat
    network: Network | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def provider(self) -> CvatProvider:
        """A new provider each time, as in each run."""
        changed = {"kind": "cvat", "url": self.fake.url, "images_per_job": 2, **self.settings}
        params = load_params(REPOSITORY / "params.yaml").provider.model_copy(update=changed)
        return CvatProvider(self.workspace, CLASSES, params, self.network)

    def make_batch(self, batch: int, images: Sequence[int], teacher: str = "a" * 64) -> AnnotationBatch:
        """Prepare a delivery of some of the drawn images."""
        tasks = self.tasks(images, teacher)
        folder = self.workspace.delivery(batch)
        files.write_bytes(folder / "manifest.jsonl", "".join(f"{t.model_dump_json()}\n" for t in tasks).encode())
        ids = tuple(task.image_id for task in tasks)
        key = files.sha256_json([git.campaign_id(self.workspace.root), batch, ids])
        return AnnotationBatch(batch, key, folder, ids, "2026-03-01T00:00:00+00:00", "prepared", None)

    def tasks(self, images: Sequence[int], teacher: str = "a" * 64, box: int = 0) -> list[AnnotationTask]:
        """Tasks whose first box is that of the first or the second object, by rank."""
        return [self._task(number, rank, teacher, box) for rank, number in enumerate(images, start=1)]

    def _task(self, number: int, rank: int, teacher: str, box: int) -> AnnotationTask:
        uri = f"data/images/{number}.png"
        corners = BOXES if box == 0 else BOXES[::-1]
        return AnnotationTask(
            image_id=image_id_from_sha256(files.sha256_file(self.workspace.root / uri)),
            uri=uri,
            width_px=WIDTH,
            height_px=HEIGHT,
            rank=rank,
            reason="uncertainty 0.93, mostly by entropy",
            uncertainty=0.93,
            predictions=tuple(
                Prediction(category=name, xyxy_px=found, score=score, doubt=doubt)
                for name, found, score, doubt in zip(CLASSES, corners, (0.9, 0.4), (0.1, 0.6), strict=True)
            ),
            model_digest=teacher,
        )

    def deliver(self, delivery: AnnotationBatch) -> AnnotationBatch:
        """Deliver it and record the receipt, as a run does."""
        return replace(delivery, state="delivered", receipt=self.provider.deliver(delivery))


@pytest.fixture
def new_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Team]]:
    """Make campaigns with six images, all with one CVAT of this test."""
    monkeypatch.setenv(TOKEN, fake_server.TOKEN)
    monkeypatch.setattr(cvat_client, "_POLL_S", 0.01)
    with running_cvat() as fake:
        made: list[Team] = []

        def make() -> Team:
            workspace = Workspace(tmp_path / f"table-{len(made)}")
            for number in range(6):
                make_image(workspace.images / f"{number}.png", number)
            files.write_bytes(workspace.root / ".gitignore", b"data/\ndeliveries/\n.gleaner/\n")
            seed = LabelBatch(batch=0, provider="import", collected_at="2026-03-01T00:00:00+00:00", images=())
            files.write_json(workspace.label_batch(0), seed.model_dump(mode="json"))
            git.init_repository(workspace.root)
            git.run_git(workspace.root, "add", "--all")
            git.run_git(workspace.root, "commit", "--quiet", "-m", f"A campaign in {workspace.root}")
            made.append(Team(workspace, fake))
            return made[-1]

        yield make


@pytest.fixture
def team(new_team: Callable[[], Team]) -> Team:
    """A campaign that CVAT does not know yet."""
    return new_team()
