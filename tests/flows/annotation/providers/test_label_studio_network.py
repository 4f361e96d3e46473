"""The provider with a real Label Studio and a failing network: nothing is offered twice, nothing is lost."""

from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from flows.annotation.providers.base import AnnotationBatch, ProviderError
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import (
    BOXES,
    CLASSES,
    Team,
    annotation_keys,
    make_region,
    new_team,
    project_id,
    task_ids,
)

pytestmark = [pytest.mark.integration, pytest.mark.services]


class FaultyTransport(httpx.BaseTransport):
    """The network, which fails at one call, before the request or before the response is delivered."""

    def __init__(self, at: int | None = None, *, is_delivered: bool = False) -> None:
        self.at, self.is_delivered = at, is_delivered
        self.methods: list[str] = []
        self._network = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.methods.append(request.method)
        if len(self.methods) - 1 != self.at:
            return self._network.handle_request(request)
        if self.is_delivered:
            self._network.handle_request(request).read()
        raise httpx.ReadError("the connection was cut")

    def close(self) -> None:
        self._network.close()


def fail_at_every_call(team: Team, call: Callable[[Team], object]) -> int:
    """Fail at every call; each time a repeated attempt must succeed. Return the number of calls.

    A GET fails once, other requests both before and after they are delivered.
    """
    whole = FaultyTransport()
    call(replace(team, transport=whole))
    for at, method in enumerate(whole.methods):
        for is_delivered in (False, True) if method != "GET" else (False,):
            with pytest.raises(ProviderError, match="the connection was cut") as raised:
                call(replace(team, transport=FaultyTransport(at, is_delivered=is_delivered)))
            assert raised.value.transient
            call(team)
    return len(whole.methods)


def test_a_delivery_that_fails_at_any_call_is_complete_when_repeated(
    label_studio: LabelStudioServer, team: Team
) -> None:
    """Each time with a new campaign, so that creating the project fails too."""
    campaigns = iter(range(1000))
    delivered: list[tuple[AnnotationBatch, Team]] = []
    made: dict[httpx.BaseTransport | None, Team] = {}

    def deliver(of: Team) -> None:
        if of.transport is not None:
            fresh = new_team(team.workspace.root.with_name(f"cut-{next(campaigns)}"), of.url, images=2)
            made[None] = replace(fresh, double_annotation_frac=0.5)
        current = replace(made[None], transport=of.transport)
        delivered.append((current.deliver(current.make_batch(1, range(2))), current))

    calls = fail_at_every_call(team, deliver)
    assert calls >= 9
    for delivery, _ in delivered:
        assert len(task_ids(label_studio.owner, delivery)) == 2
        overlaps = [task.overlap for task in label_studio.owner.sdk.tasks.list(project=project_id(delivery))]
        assert sorted(overlaps) == [1, 2]
    titles = [project.title for project in label_studio.owner.sdk.projects.list(page_size=500)]
    assert len([title for title in titles if title.startswith("cut-")]) == len(delivered)


def test_a_collection_that_fails_at_any_call_is_equal_when_repeated(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    for number in task_ids(label_studio.owner, delivery).values():
        label_studio.owner.annotate(number, make_region(CLASSES[0], *BOXES[0]))
    whole = team.provider.collect(delivery)
    assert len(annotation_keys(whole)) == 2

    def collect(of: Team) -> None:
        assert of.provider.collect(delivery) == whole

    assert fail_at_every_call(team, collect) >= 4


def test_duplicates_of_an_import_that_finished_late_are_deleted_at_the_next_delivery(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    first, second = task_ids(label_studio.owner, delivery).values()
    twice = [{"data": label_studio.owner.sdk.tasks.get(id=str(number)).data} for number in (first, second)]
    label_studio.owner.sdk.projects.import_tasks(id=project_id(delivery), request=twice)
    annotated = next(t.id for t in label_studio.owner.sdk.tasks.list(project=project_id(delivery)) if t.id > second)
    label_studio.owner.annotate(annotated, make_region(CLASSES[0], *BOXES[0]))
    team.provider.deliver(delivery)
    assert list(task_ids(label_studio.owner, delivery).values()) == [annotated, second]
    assert len(team.provider.collect(delivery)) == 1
