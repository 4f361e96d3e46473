"""Label Studio as label provider: one project per campaign, one task per picked image, polled and never waited for.

Where Label Studio keeps no promise, this does: an import is followed by a second look, since it never asks whether it
has a task already; a task that is taken back leaves the label stream but is not deleted, so that an answer somebody is
just giving is saved and collected.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from flows import vcs
from flows.labels.deliveries import MANIFEST, read_manifest
from flows.labels.leases import open_images
from flows.labels.providers.base import Delivery, LabelingProgress, ProviderError, Returned
from flows.labels.providers.consensus import drawn_for_two
from flows.labels.providers.label_studio.answers import answers_in
from flows.labels.providers.label_studio.failures import TOKEN
from flows.labels.providers.label_studio.images import Images
from flows.labels.providers.label_studio.labeling_config import flaw_of, labeling_config
from flows.labels.providers.label_studio.offers import offer
from flows.labels.providers.label_studio.server import OpenTask, Project, Server
from tasks.contracts import HandoffTask
from tasks.errors import UserError
from tasks.label_store import read_labels
from tasks.paths import Workspace
from tasks.people_sections import ProviderParams

_IMPORTED_AT_ONCE = 100
_SHORT_ID, _TITLE_MAX = 8, 50
_ALONE, _TWO = 1, 2
_log = logging.getLogger(__name__)


class LabelStudioAnnotators:
    """Whoever labels in one Label Studio."""

    name = "label_studio"

    def __init__(
        self,
        workspace: Workspace,
        classes: Sequence[str],
        params: ProviderParams,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Nothing is asked of the server yet.

        Args:
            workspace: of the campaign.
            classes: class names of params.yaml.
            params: address, share of images for two annotators, folder of local files.
            transport: replaces the network; for tests.
        """
        self._workspace = workspace
        self._classes = list(classes)
        self._params = params
        self._images = Images(workspace, params.files_root)
        self._transport = transport

    def check(self) -> None:
        """Refuse a night without a token, or with one the server does not take.

        Raises:
            UserError: what is missing, and how to set it up.
            ProviderError: the server is away or refuses.
        """
        self._images.check()
        with self._server() as server:
            server.user()

    def deliver(self, delivery: Delivery) -> str:
        """Import what is not there yet; return the project's address.

        Only images that ``delivery`` names are imported, and the project is made where there is none.
        """
        manifest = read_manifest(delivery.folder / MANIFEST)
        tasks = [task for task in manifest if task.image_id in delivery.image_ids]
        everybody = [task.image_id for task in manifest]
        for_two = drawn_for_two(everybody, self._params.consensus_frac, delivery.key)
        with self._server() as server:
            project = self._found(server) or self._created(server)
            self._require_classes(project)
            self._images.make_visible(server, project, tasks)
            there = self._complete(server, project, delivery, tasks)
            for image_id in sorted(for_two & there.keys()):
                if there[image_id].wanted == _ALONE and not there[image_id].answers:
                    server.set_wanted(there[image_id], _TWO)
        return project.url

    def status(self, delivery: Delivery) -> LabelingProgress:
        """Count images; one with an answer is finished, also where a second annotator is still wanted."""
        with self._server() as server:
            project = self._found(server)
            tasks = [] if project is None else server.tasks_of(project, delivery.key)
        finished = {task.image_id for task in tasks if task.answers}
        offered = {task.image_id for task in tasks if task.wanted}
        return LabelingProgress(finished=len(finished), open=len(offered - finished))

    def collect(self, delivery: Delivery) -> Sequence[Returned]:
        """Every answer so far. Images that should be out but have no task, since somebody deleted it, get one again.

        Raises:
            ProviderError: besides the usual: the whole project was deleted. It is made anew before that is said.
        """
        with self._server() as server:
            project = self._found(server)
            if project is None:
                return self._begin_anew(delivery)
            self._require_classes(project)
            tasks = server.tasks_of(project, delivery.key)
            self._replace_deleted(delivery, project, {task.image_id for task in tasks})
            answered = [task for task in tasks if task.answers]
            emails = server.emails() if answered else {}
            exported = server.export(project, answered)
        return answers_in(
            exported,
            who=lambda by: _who(by, emails),
            link=lambda number: None if number is None else f"{project.url}/data?task={number}",
        )

    def withdraw(self, delivery: Delivery, image_ids: Collection[str]) -> None:
        """Take images that nobody has begun out of the label stream; a project that is gone has none.

        What has an answer asks for no second one any more. What somebody has a draft of is left to them.
        """
        with self._server() as server:
            project = self._found(server)
            for task in [] if project is None else server.tasks_of(project, delivery.key):
                begun = task.has_draft and not task.answers
                if task.image_id in image_ids and task.wanted > task.answers and not begun:
                    server.set_wanted(task, task.answers)

    def _server(self) -> Server:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            fix = f"Copy it from Account & Settings in Label Studio at {self._params.location}."
            raise UserError(TOKEN, "the environment variable is not set, expected an access token", fix)
        return Server(self._params.location, token, self._transport)

    def _found(self, server: Server) -> Project | None:
        """The campaign's project, by the id in its description or, where somebody rewrote that, in its title."""
        campaign = self._campaign()
        projects = sorted(server.projects(), key=lambda project: project.number)
        for project in projects:
            if campaign in project.description or project.title.endswith(_mark(campaign)):
                return project
        return None

    def _created(self, server: Server) -> Project:
        campaign = self._campaign()
        mark = _mark(campaign)
        title = self._workspace.root.resolve().name[: _TITLE_MAX - len(mark)] + mark
        description = f"Gleaner finds this project by the id of its campaign: {campaign}"
        return server.create_project(title, description, labeling_config(self._classes))

    def _campaign(self) -> str:
        return vcs.campaign_id(self._workspace.root)

    def _require_classes(self, project: Project) -> None:
        """An image labeled without one of the classes would teach that its objects are background."""
        if flaw := flaw_of(project.labeling_config, self._classes):
            fix = (
                f"Mend it in {project.url}/settings/labeling, and look again at what was labeled meanwhile. "
                "Nothing is collected or offered until then."
            )
            raise ProviderError(f"project {project.title!r} in Label Studio", flaw, fix)

    def _begin_anew(self, delivery: Delivery) -> Sequence[Returned]:
        """Offer what the label batches do not hold in a new project; nothing is left to say of a finished delivery."""
        still_out = self._still_out(delivery)
        if not still_out:
            return []
        url = self.deliver(replace(delivery, image_ids=still_out))
        problem = (
            f"the campaign's project was deleted, expected it with {len(still_out)} images of batch {delivery.batch}"
        )
        fix = f"They are offered again, in {url}. Answers that no night had collected are lost."
        raise ProviderError(f"Label Studio at {self._params.location}", problem, fix)

    def _replace_deleted(self, delivery: Delivery, project: Project, there: Collection[str]) -> None:
        if deleted := tuple(image_id for image_id in self._still_out(delivery) if image_id not in there):
            self.deliver(replace(delivery, image_ids=deleted))
            words = "Batch %d: %d tasks were deleted in %s and are offered again. Skip an image to be rid of it."
            _log.warning(words, delivery.batch, len(deleted), project.url)

    def _still_out(self, delivery: Delivery) -> tuple[str, ...]:
        return open_images(delivery, read_labels(self._workspace.labels))

    def _complete(
        self, server: Server, project: Project, delivery: Delivery, tasks: Sequence[HandoffTask]
    ) -> dict[str, OpenTask]:
        """Import what is missing, and look whether it has come."""
        there = self._one_an_image(server, project, delivery)
        missing = [task for task in tasks if task.image_id not in there]
        for start in range(0, len(missing), _IMPORTED_AT_ONCE):
            some = missing[start : start + _IMPORTED_AT_ONCE]
            server.import_tasks(
                project, [offer(task, delivery, self._images.address(task), self._images.sha256(task)) for task in some]
            )
        if missing:
            there = self._one_an_image(server, project, delivery)
        came = sum(task.image_id in there for task in tasks)
        if came < len(tasks):
            problem = f"imported tasks of batch {delivery.batch} are {came}, expected {len(tasks)}"
            raise ProviderError(project.url, problem, "The next night imports the others.", transient=True)
        return there

    def _one_an_image(self, server: Server, project: Project, delivery: Delivery) -> dict[str, OpenTask]:
        """Tasks by image. Doubles go: an import whose answer was lost may end after the one that repeats it."""
        kept: dict[str, OpenTask] = {}
        for task in server.tasks_of(project, delivery.key):
            first = kept.setdefault(task.image_id, task)
            if first is task:
                continue
            idle = task if _untouched(task) else first
            if _untouched(idle):
                kept[task.image_id] = first if idle is task else task
                server.delete(idle)
        return kept


def _mark(campaign: str) -> str:
    return f" ({campaign[:_SHORT_ID]})"


def _untouched(task: OpenTask) -> bool:
    return not task.answers and not task.has_draft


def _who(completed_by: Any, emails: Mapping[int, str]) -> str | None:
    """E-mail address, or the user's number where the user is gone; None where nobody is named."""
    number = completed_by.get("id") if isinstance(completed_by, Mapping) else completed_by
    if not isinstance(number, int):
        return None
    return emails.get(number) or f"user {number}"
