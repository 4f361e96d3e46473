"""A network that fails, or a run that is killed, at any call: nothing is offered twice, nothing is lost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import urllib3

from flows.annotation.providers.base import ProviderError
from tests.flows.annotation.cvat.conftest import Team
from tests.flows.annotation.cvat.fake_server import FakeCvat
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES


class Killed(BaseException):
    """The process is gone."""


class FaultyNetwork:
    """The network, which fails at one call, before the request or before the response is delivered."""

    def __init__(
        self, at: int | None = None, *, is_delivered: bool = False, error: BaseException | None = None
    ) -> None:
        self.at, self.is_delivered = at, is_delivered
        self.error = error or urllib3.exceptions.ProtocolError("the connection was cut")
        self.methods: list[str] = []
        self._network = urllib3.PoolManager()

    def request(self, method: str, url: str, **options: Any) -> Any:
        self.methods.append(method)
        if len(self.methods) - 1 != self.at:
            return self._network.request(method, url, **options)
        if self.is_delivered:
            self._network.request(method, url, **{**options, "preload_content": True})
        raise self.error


def fail_at_every_call(make: Callable[[], Team], call: Callable[[Team], object], check: Callable[[Team], None]) -> int:
    """Fail at every call, each time in a new campaign that a repeated attempt must bring to the same end.

    A GET fails once, other requests both before and after they are delivered; the second time the process is killed.
    Returns the number of calls.
    """
    whole = FaultyNetwork()
    call(replace(make(), network=whole))
    for at, method in enumerate(whole.methods):
        for is_delivered in (False, True) if method != "GET" else (False,):
            team = make()
            with pytest.raises(ProviderError, match="the connection was cut") as raised:
                call(replace(team, network=FaultyNetwork(at, is_delivered=is_delivered)))
            assert raised.value.transient
            call(team)
            check(team)
        if method != "GET":
            team = make()
            with pytest.raises(Killed):
                call(replace(team, network=FaultyNetwork(at, is_delivered=True, error=Killed())))
            call(team)
            check(team)
    return len(whole.methods)


def empty_server(team: Team) -> Callable[[], Team]:
    """The same campaign, each time with a server that knows nothing."""

    def make() -> Team:
        fresh = FakeCvat()
        fresh.url = team.fake.url
        team.fake.__dict__.update(fresh.__dict__)
        return team

    return make


def test_a_delivery_that_fails_at_any_call_is_complete_when_repeated(team: Team) -> None:
    """Creating the project, its guide, both tasks, uploads and boxes fail too."""
    team.settings["double_annotation_frac"] = 0.3
    delivery = team.make_batch(1, range(3))

    def check(after: Team) -> None:
        fake = after.fake
        assert len(fake.projects) == len(fake.guides) == 1
        assert sorted(len(task.frames) for task in fake.tasks.values()) == [1, 3]
        for image_id in delivery.image_ids:
            assert [shape["points"] for shape in fake.shapes(image_id)] == [list(BOXES[1]), list(BOXES[0])]
        assert all(len(job.annotations["tags"]) == job.stop - job.start + 1 for job in fake.jobs.values())
        assert not (after.workspace.root / ".gleaner" / "cvat").exists()

    def deliver(of: Team) -> None:
        of.provider.deliver(delivery)

    assert fail_at_every_call(empty_server(team), deliver, check) > 25


def test_what_changes_a_batch_is_complete_when_it_failed_at_any_call(team: Team) -> None:
    delivery = team.make_batch(1, range(4))
    make_empty = empty_server(team)
    newest = team.tasks([2, 3], teacher="b" * 64, box=1)

    def make() -> Team:
        fresh = make_empty()
        fresh.deliver(delivery)
        return fresh

    def refresh(of: Team) -> None:
        assert of.provider.refresh(delivery, newest) == set(delivery.image_ids[2:])

    def check_refreshed(after: Team) -> None:
        for image_id, first in zip(delivery.image_ids, (1, 1, 0, 0), strict=True):
            assert after.fake.shapes(image_id)[0]["points"] == list(BOXES[first])

    def withdraw(of: Team) -> None:
        of.provider.withdraw(delivery, delivery.image_ids[1:])

    def check_withdrawn(after: Team) -> None:
        (task,) = after.fake.tasks.values()
        assert task.deleted == {1, 2, 3}
        assert [job.state for job in after.fake.jobs.values()] == ["new", "rejected"]

    assert fail_at_every_call(make, refresh, check_refreshed) >= 8
    assert fail_at_every_call(make, withdraw, check_withdrawn) >= 7


def test_a_collection_that_fails_at_any_call_is_equal_when_repeated(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(3)))
    team.fake.draw(delivery.image_ids[0], (CLASSES[0], BOXES[0]))
    for image_id in (delivery.image_ids[0], delivery.image_ids[2]):
        team.fake.finish(image_id)
    whole = team.provider.collect(delivery)
    assert len(whole) == 3

    def collect(of: Team) -> None:
        assert of.provider.collect(delivery) == whole

    assert fail_at_every_call(lambda: team, collect, lambda _: None) >= 7


def test_the_images_of_a_run_that_was_killed_may_still_be_on_their_way(team: Team) -> None:
    """The import is finished later by the server: its images are not sent again."""
    delivery = team.make_batch(1, range(2))
    whole = FaultyNetwork()
    replace(empty_server(team)(), network=whole).provider.deliver(delivery)
    # POSTs create the project, its guide and the task, then start, fill and finish the upload.
    finish = [at for at, method in enumerate(whole.methods) if method == "POST"][5]
    again = empty_server(team)()
    again.fake.import_takes_calls = 9
    with pytest.raises(Killed):
        replace(again, network=FaultyNetwork(finish, is_delivered=True, error=Killed())).provider.deliver(delivery)
    assert [request.status for request in again.fake.requests.values()] == ["queued"]
    again.provider.deliver(delivery)
    assert [len(task.frames) for task in again.fake.tasks.values()] == [2]
    assert sum(call == "POST /api/tasks" for call in again.fake.calls) == 1
