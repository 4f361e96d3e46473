"""Many annotators at once with a real Label Studio, while runs collect: no answer is lost, and none counts twice.

``GLEANER_ANNOTATORS`` sets their number (a few, to keep the suite short), ``GLEANER_SECONDS_PER_IMAGE`` how long each
looks at an image (0: as fast as the server answers), ``GLEANER_LOAD_LOG`` names a file that gets the figures.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.annotation.providers.base import AnnotationBatch, ProviderError, RawAnnotation
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import (
    CLASSES,
    Annotator,
    annotation_keys,
    make_region,
    new_team,
    project_id,
    sign_up,
)

pytestmark = [pytest.mark.integration, pytest.mark.services, pytest.mark.timeout(3600)]
NUM_ANNOTATORS = int(os.environ.get("GLEANER_ANNOTATORS", "6"))
SECONDS_PER_IMAGE = float(os.environ.get("GLEANER_SECONDS_PER_IMAGE", "0"))
IMAGES_EACH = 3
FIRST_WIDTH_PX = 20.0
_MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class Submission:
    """An answer that the server has confirmed."""

    image_id: str
    annotator: str
    width_px: float
    """Unlike that of any other answer."""
    latency_s: float
    num_failures: int


def submit_all(annotator: Annotator, project: int, first_width_px: float) -> list[Submission]:
    """Label what the label stream offers until it is empty; what fails is sent again, as a person clicks again.

    Annotators begin spread over the time of an image.
    """
    time.sleep(SECONDS_PER_IMAGE * (first_width_px - FIRST_WIDTH_PX) / NUM_ANNOTATORS)
    return list(_submissions(annotator, project, first_width_px))


def _submissions(annotator: Annotator, project: int, width_px: float) -> Iterator[Submission]:
    while (found := _patiently(partial(_next_task, annotator, project)))[0] is not None:
        task, num_failures = found
        time.sleep(SECONDS_PER_IMAGE)
        box = make_region(CLASSES[0], 10, 10, 10 + width_px, 60)
        began_s = time.monotonic()
        _, more = _patiently(partial(annotator.annotate, task["id"], box, lead_time=2.0))
        latency_s = time.monotonic() - began_s
        yield Submission(task["data"]["image_id"], annotator.email, width_px, latency_s, num_failures + more)
        width_px += 0.01


def _patiently(call: Callable[[], Any]) -> tuple[Any, int]:
    """Call until it succeeds; return the result and the number of failures before."""
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return call(), attempt
        except httpx.HTTPError:
            time.sleep(0.5)
    return pytest.fail(f"{_MAX_ATTEMPTS} requests failed")


def _next_task(annotator: Annotator, project: int) -> dict[str, Any] | None:
    """Return the next task of the label stream; None where it is empty, which the server says by a 404."""
    try:
        found: dict[str, Any] = annotator.request("GET", f"/api/projects/{project}/next")
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return None
        raise
    return found


def widths(annotations: list[RawAnnotation]) -> set[tuple[str, str, float]]:
    """Return image, annotator and width of each; asserts that no annotator counts twice on an image."""
    annotation_keys(annotations)
    return {
        (raw["image_id"], raw["annotator"], round(box["xyxy_px"][2] - box["xyxy_px"][0], 2))
        for raw in annotations
        for box in raw["boxes"]
    }


def test_answers_of_many_at_once_come_in_once(
    label_studio: LabelStudioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    number = NUM_ANNOTATORS * IMAGES_EACH
    team = new_team(label_studio.files / f"crowd-{tmp_path.name}", label_studio.url, images=number)
    delivery: AnnotationBatch = team.deliver(team.make_batch(1, range(number)))
    annotators = [sign_up(label_studio.owner, f"a{n}@example.com", "a long password") for n in range(NUM_ANNOTATORS)]
    project = project_id(delivery)
    collections_s: list[float] = []
    began_s = time.monotonic()
    with ThreadPoolExecutor(NUM_ANNOTATORS) as pool:
        at_work = [
            pool.submit(submit_all, annotator, project, FIRST_WIDTH_PX + place)
            for place, annotator in enumerate(annotators)
        ]
        while not all(future.done() for future in at_work):
            collection_s = time.monotonic()
            try:
                annotation_keys(list(team.provider.collect(delivery)))
            except ProviderError as error:  # too busy: the next run collects
                if not error.transient:
                    raise
            collections_s.append(time.monotonic() - collection_s)
            time.sleep(max(1.0, SECONDS_PER_IMAGE / 4))
        submissions = [found for future in at_work for found in future.result()]
    took_s = time.monotonic() - began_s
    sent = {(one.image_id, one.annotator, round(one.width_px, 2)) for one in submissions}
    assert len(sent) == len(submissions) >= number
    assert {one.image_id for one in submissions} == set(delivery.image_ids)
    assert widths(list(team.provider.collect(delivery))) == sent
    assert team.provider.status(delivery).open == 0
    if path := os.environ.get("GLEANER_LOAD_LOG"):
        latencies_s = sorted(one.latency_s for one in submissions)
        figures = {
            "annotators": NUM_ANNOTATORS,
            "seconds_per_image": SECONDS_PER_IMAGE,
            "answers": len(submissions),
            "seconds": round(took_s, 1),
            "median_latency_s": round(statistics.median(latencies_s), 2),
            "max_latency_s": round(latencies_s[-1], 2),
            "failed_requests": sum(one.num_failures for one in submissions),
            "collections": len(collections_s),
            "max_collection_s": round(max(collections_s), 1),
        }
        Path(path).write_text(json.dumps(figures) + "\n")
