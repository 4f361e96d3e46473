"""A campaign of six drawn images, its deliveries, and annotators who use Label Studio through its API."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from label_studio_sdk import LabelStudio
from PIL import Image, ImageDraw

from flows.annotation.providers.base import AnnotationBatch, RawAnnotation
from flows.annotation.providers.label_studio import LabelStudioProvider
from flows.annotation.providers.label_studio_tasks import CONTROL, IMAGE
from flows.workspace import git
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import AnnotationTask, LabelBatch, Prediction
from tasks.params import load_params
from tasks.storage import files
from tests.flows.small_campaign import REPOSITORY

CLASSES = ("cup", "fork & <knife>")
WIDTH, HEIGHT = 320, 240
BOXES = ((40.0, 30.0, 140.0, 120.5), (180.25, 90.0, 300.0, 220.0))
"""Boxes of the objects that are drawn on every image."""


def make_image(path: Path, number: int) -> None:
    """Draw an image with two objects; the noise differs in each."""
    noise = np.random.default_rng(number).integers(90, 110, size=(HEIGHT, WIDTH, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse(BOXES[0], fill=(230, 200, 60))
    pen.rectangle(BOXES[1], fill=(60, 90, 200))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_source(images: Path, annotations: Path, num_images: int, num_annotated: int) -> None:
    """Draw images, and write a COCO file with the first of them."""
    for number in range(num_images):
        make_image(images / f"{number:03d}.png", number)
    boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in BOXES]
    content: dict[str, Any] = {
        "images": [
            {"id": n, "file_name": f"{n:03d}.png", "width": WIDTH, "height": HEIGHT} for n in range(num_annotated)
        ],
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "category_id": k, "bbox": box}
            for n in range(num_annotated)
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": k, "name": category} for k, category in enumerate(CLASSES)],
    }
    files.write_json(annotations, content)


@dataclass(frozen=True)
class Annotator:
    """One user of a Label Studio."""

    email: str
    password: str
    token: str
    url: str

    @property
    def sdk(self) -> LabelStudio:
        nothing_left_open = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
        return LabelStudio(base_url=self.url, api_key=self.token, max_retries=0, httpx_client=nothing_left_open)

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """Make a call that the SDK does not offer."""
        headers = {"Authorization": f"Token {self.token}"}
        response = httpx.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        response.raise_for_status()
        return response.json() if response.content else None

    def annotate(self, task: int, *boxes: dict[str, Any], **more: Any) -> int:
        """Submit an annotation and return its number."""
        return int(self.request("POST", f"/api/tasks/{task}/annotations/", json={"result": list(boxes), **more})["id"])

    def fetch(self, address: str) -> bytes:
        """Download what this user's browser gets."""
        headers = {"Authorization": f"Token {self.token}"}
        response = httpx.get(httpx.URL(self.url).join(address), headers=headers, timeout=60)
        return response.raise_for_status().content

    def next_task(self, project: int) -> dict[str, Any] | None:
        """Return the next task of the label stream."""
        headers = {"Authorization": f"Token {self.token}"}
        response = httpx.get(f"{self.url}/api/projects/{project}/next", headers=headers, timeout=60)
        return dict(response.json()) if response.status_code == 200 else None


def sign_up(owner: Annotator, email: str, password: str) -> Annotator:
    """Create another user by the invitation link."""
    invitation = owner.request("GET", "/api/invite")["invite_url"]
    with httpx.Client(base_url=owner.url, follow_redirects=True, timeout=60) as browser:
        page = browser.get(invitation)
        found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert found is not None
        form = {"csrfmiddlewaretoken": found[1], "email": email, "password": password, "allow_newsletters": "false"}
        browser.post(invitation, data=form, headers={"Referer": str(page.url)}).raise_for_status()
        token = browser.get("/api/current-user/token").raise_for_status().json()["token"]
    return Annotator(email, password, token, owner.url)


def make_region(category: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> dict[str, Any]:
    """Build a region as Label Studio's editor submits it, from pixels."""
    value = {
        "x": 100 * x1 / WIDTH,
        "y": 100 * y1 / HEIGHT,
        "width": 100 * (x2 - x1) / WIDTH,
        "height": 100 * (y2 - y1) / HEIGHT,
        "rotation": 0,
        "rectanglelabels": [category],
    }
    return {
        "type": "rectanglelabels",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": value | more,
    }


@dataclass
class Team:
    """A campaign and its Label Studio."""

    workspace: Workspace
    url: str
    double_annotation_frac: float = 0.0
    transport: httpx.BaseTransport | None = None

    @property
    def provider(self) -> LabelStudioProvider:
        """A new provider each time, as in each run."""
        changed = {"kind": "label_studio", "url": self.url, "double_annotation_frac": self.double_annotation_frac}
        params = load_params(REPOSITORY / "params.yaml").provider.model_copy(update=changed)
        return LabelStudioProvider(self.workspace, CLASSES, params, self.transport)

    def make_batch(
        self, batch: int, images: Sequence[int], teacher: str = "a" * 64, bucket: str = ""
    ) -> AnnotationBatch:
        """Prepare a delivery of some of the drawn images, or of their copies in a bucket."""
        tasks = [self._task(number, rank, teacher) for rank, number in enumerate(images, start=1)]
        if bucket:
            tasks = [task.model_copy(update={"uri": f"s3://{bucket}/{task.uri}"}) for task in tasks]
        folder = self.workspace.delivery(batch)
        files.write_bytes(folder / "manifest.jsonl", "".join(f"{t.model_dump_json()}\n" for t in tasks).encode())
        ids = tuple(task.image_id for task in tasks)
        key = files.sha256_json([git.campaign_id(self.workspace.root), batch, ids])
        return AnnotationBatch(batch, key, folder, ids, "2026-03-01T00:00:00+00:00", "prepared", None)

    def _task(self, number: int, rank: int, teacher: str) -> AnnotationTask:
        uri = f"data/images/{number}.png"
        return AnnotationTask(
            image_id=image_id_from_sha256(files.sha256_file(self.workspace.root / uri)),
            uri=uri,
            width_px=WIDTH,
            height_px=HEIGHT,
            rank=rank,
            reason="uncertainty 0.93, mostly by entropy",
            uncertainty=0.93,
            predictions=tuple(
                Prediction(category=name, xyxy_px=box, score=score)
                for name, box, score in zip(CLASSES, BOXES, (0.9, 0.4), strict=True)
            ),
            model_digest=teacher,
        )

    def deliver(self, delivery: AnnotationBatch) -> AnnotationBatch:
        """Deliver it and record the receipt, as a run does."""
        return replace(delivery, state="delivered", receipt=self.provider.deliver(delivery))


def new_team(root: Path, url: str, images: int = 6) -> Team:
    """Create a workspace with drawn images below a folder that Label Studio serves."""
    workspace = Workspace(root)
    for number in range(images):
        make_image(workspace.images / f"{number}.png", number)
    files.write_bytes(workspace.root / ".gitignore", b"data/\ndeliveries/\n")
    seed = LabelBatch(batch=0, provider="import", collected_at="2026-03-01T00:00:00+00:00", images=())
    files.write_json(workspace.label_batch(0), seed.model_dump(mode="json"))
    git.init_repository(workspace.root)
    git.run_git(workspace.root, "add", "--all")
    git.run_git(workspace.root, "commit", "--quiet", "-m", f"A campaign in {root}")
    return Team(workspace, url)


def project_id(delivery: AnnotationBatch) -> int:
    """Return the number of the project in which it was offered."""
    assert delivery.receipt is not None
    return int(delivery.receipt.rpartition("/")[2])


def task_ids(annotator: Annotator, delivery: AnnotationBatch) -> dict[str, int]:
    """Return tasks by image id; asserts one task per image."""
    found = [t for t in annotator.sdk.tasks.list(project=project_id(delivery)) if t.data["delivery"] == delivery.key]
    task_by_image = {task.data["image_id"]: task.id for task in found}
    assert len(task_by_image) == len(found)
    return {image_id: task_by_image[image_id] for image_id in delivery.image_ids if image_id in task_by_image}


def annotation_keys(annotations: Sequence[RawAnnotation]) -> set[tuple[str, str, str]]:
    """Return image, annotator and status of each; asserts that no two are equal."""
    keys = [(raw["image_id"], raw["annotator"], raw["status"]) for raw in annotations]
    assert len(set(keys)) == len(keys)
    return set(keys)
