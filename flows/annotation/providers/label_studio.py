"""The label provider of kind ``label_studio``: one project per campaign, one task per selected image.

Label Studio imports a task twice if asked twice, so every import is followed by a check for duplicates. A withdrawn
task leaves the label stream but is not deleted, so that an annotation in progress is saved and collected.
"""

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import httpx

from flows.annotation.batches import offered_tasks
from flows.annotation.providers.base import (
    AnnotationBatch,
    LabelingProgress,
    ProviderError,
    RawAnnotation,
    own_folder,
    require_provider_owner,
)
from flows.annotation.providers.label_studio_client import TOKEN, LabelStudioClient, OpenTask, Project
from flows.annotation.providers.label_studio_tasks import (
    TaskImages,
    changing_data,
    config_error,
    labeling_config,
    parse_export,
    short_digest,
    to_prediction,
    to_task,
)
from flows.annotation.providers.projects import (
    deleted_images,
    offer_again,
    owner_line,
    project_marker,
    project_name,
    stated_owner,
    take_over_project,
    tasks_to_offer,
    unfinished_images,
)
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params.annotation import ProviderParams
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count

_IMPORT_CHUNK_SIZE = 100
_SINGLE_OVERLAP, _DOUBLE_OVERLAP = 1, 2
_VIEW_TITLE, _VIEW_ORDER = "by priority", "tasks:data.priority"
_log = logging.getLogger(__name__)


class LabelStudioProvider:
    """Offers tasks to the annotators of one Label Studio server and polls their annotations."""

    name = "label_studio"

    def __init__(
        self,
        workspace: Workspace,
        classes: Sequence[str],
        params: ProviderParams,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Keep the arguments; the server is not called yet.

        Args:
            workspace: of the campaign.
            classes: class names in the order of their numbers.
            params: address, share of images for two annotators, served folder of local files.
            transport: replaces the network in tests.
        """
        self._workspace = workspace
        self._classes = list(classes)
        self._params = params
        self._images = TaskImages(workspace, params.local_files_root)
        self._transport = transport

    def check(self) -> None:
        """Refuse a missing or invalid token, images that cannot be served, and another folder's project.

        Raises:
            UserError: what is missing, and how to set it up.
            ProviderError: the server does not answer or refuses.
        """
        self._images.check()
        with self._client() as client:
            client.user_email()
            self._find_project(client)

    def take_over(self) -> str | None:
        """Enter this folder as owner into the description of the campaign's project."""
        with self._client() as client:
            project = self._search_project(client)
            if project is None:
                return None
            return take_over_project(
                self._workspace.root,
                project.description,
                lambda: client.set_description(project, self._description()),
            )

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Import the tasks that are missing, create the project if necessary, and return its address."""
        tasks, double_annotated = tasks_to_offer(delivery, self._params.double_annotation_frac)
        with self._client() as client:
            project = self._find_project(client) or self._create_project(client)
            self._require_classes(project)
            self._images.grant_access(client, project, tasks)
            client.ensure_view(project, _VIEW_TITLE, _VIEW_ORDER)
            open_tasks = self._import_missing(client, project, delivery, tasks)
            for image_id in sorted(double_annotated & open_tasks.keys()):
                if open_tasks[image_id].overlap == _SINGLE_OVERLAP and not open_tasks[image_id].num_annotations:
                    client.set_overlap(open_tasks[image_id], _DOUBLE_OVERLAP)
        return project.url

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count images; one annotation makes an image finished, also where a second annotator is still to label it."""
        with self._client() as client:
            project = self._find_project(client)
            tasks = [] if project is None else client.list_tasks(project, delivery.key)
        finished = {task.image_id for task in tasks if task.num_annotations}
        offered = {task.image_id for task in tasks if task.overlap}
        return LabelingProgress(finished=len(finished), open=len(offered - finished))

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return every annotation so far; an open image gets a new task if it was deleted, its new address if it moved.

        Raises:
            ProviderError: the server does not answer or refuses, or the project was deleted and is created again.
        """
        with self._client() as client:
            project = self._find_project(client)
            if project is None:
                offer_again(f"Label Studio at {self._params.url}", self._workspace, delivery, self.deliver)
                return []
            self._require_classes(project)
            tasks = client.list_tasks(project, delivery.key)
            self._reimport_deleted(delivery, project, {task.image_id for task in tasks})
            self._repair_images(client, project, delivery, tasks)
            annotated = [task for task in tasks if task.num_annotations]
            emails = client.user_emails() if annotated else {}
            exported = client.export_tasks(project, annotated)
        return parse_export(exported, emails, project.url)

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Remove images that nobody has started from the label stream.

        Images with one annotation are not offered to a second annotator any more; those with a draft stay.
        """
        with self._client() as client:
            project = self._find_project(client)
            for task in [] if project is None else client.list_tasks(project, delivery.key):
                is_started = task.has_draft and not task.num_annotations
                if task.image_id in image_ids and task.overlap > task.num_annotations and not is_started:
                    client.set_overlap(task, task.num_annotations)

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Replace rank, reason and predictions of tasks that nobody has begun; the data of a task is changed last.

        So a task whose data names the teacher has its boxes, whoever was killed when.
        """
        newest = {task.image_id: task for task in tasks}
        with self._client() as client:
            project = self._find_project(client)
            if project is None:  # the next collection offers its images again
                return ()
            for open_task in client.list_tasks(project, delivery.key):
                task = newest.get(open_task.image_id)
                if task is None or not open_task.is_untouched or _is_drawn_by(open_task, task):
                    continue
                client.replace_predictions(project, open_task, to_prediction(task) if task.predictions else None)
                client.update_data(open_task, changing_data(task, delivery))
            listed = client.list_tasks(project, delivery.key)
        return {
            task.image_id for task in listed if task.image_id in newest and _is_drawn_by(task, newest[task.image_id])
        }

    def _client(self) -> LabelStudioClient:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            fix = f"Copy it from Account & Settings in Label Studio at {self._params.url}."
            raise UserError(TOKEN, "the environment variable is not set", fix)
        return LabelStudioClient(self._params.url, token, self._transport)

    def _find_project(self, client: LabelStudioClient) -> Project | None:
        """Find the campaign's project.

        Raises:
            ProviderError: it belongs to another folder of the campaign.
        """
        project = self._search_project(client)
        if project is not None:
            where = f"project {project.title!r} in Label Studio"
            require_provider_owner(where, *stated_owner(project.description), own_folder(self._workspace.root))
        return project

    def _search_project(self, client: LabelStudioClient) -> Project | None:
        """Find the campaign's project by the id in its description or, if that was edited, in its title."""
        campaign, marker = self._campaign_id(), project_marker(self._workspace.root)
        projects = sorted(client.list_projects(), key=lambda project: project.number)
        for project in projects:
            if campaign in project.description or project.title.endswith(marker):
                return project
        return None

    def _create_project(self, client: LabelStudioClient) -> Project:
        title = project_name(self._workspace.root)
        return client.create_project(title, self._description(), labeling_config(self._classes))

    def _description(self) -> str:
        text = f"Gleaner finds this project by the id of its campaign: {self._campaign_id()}"
        return f"{text}\n{owner_line(self._workspace.root)}".rstrip()

    def _campaign_id(self) -> str:
        return git.campaign_id(self._workspace.root)

    def _require_classes(self, project: Project) -> None:
        """Refuse a configuration without one of the classes: unlabeled objects would be trained on as background.

        Raises:
            ProviderError: what is missing.
        """
        if problem := config_error(project.labeling_config, self._classes):
            fix = (
                f"Correct it in {project.url}/settings/labeling, and review the images labeled meanwhile. "
                "Nothing is collected or offered until then."
            )
            raise ProviderError(f"project {project.title!r} in Label Studio", problem, fix)

    def _reimport_deleted(self, delivery: AnnotationBatch, project: Project, present: Collection[str]) -> None:
        if deleted := deleted_images(self._workspace, delivery, present):
            self.deliver(replace(delivery, image_ids=deleted))
            message = "Batch %d: %s deleted in %s, offered again. To exclude an image, skip it instead."
            _log.warning(message, delivery.batch, count(len(deleted), "task"), project.url)

    def _repair_images(
        self, client: LabelStudioClient, project: Project, delivery: AnnotationBatch, listed: Sequence[OpenTask]
    ) -> None:
        """Make deleted copies of open images again, and correct the address of images whose folder has moved."""
        unfinished = set(unfinished_images(self._workspace, delivery))
        if not unfinished:
            return
        tasks = {task.image_id: task for task in offered_tasks(delivery) if task.image_id in unfinished}
        self._images.restore_converted(tasks.values())
        moved = [
            open_task
            for open_task in listed
            if open_task.image_id in tasks
            and self._images.has_moved(open_task.data.get("image"), tasks[open_task.image_id])
        ]
        if moved:
            self._images.grant_access(client, project, [tasks[open_task.image_id] for open_task in moved])
        for open_task in moved:
            client.update_data(open_task, {"image": self._images.url(tasks[open_task.image_id])})

    def _import_missing(
        self, client: LabelStudioClient, project: Project, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]
    ) -> dict[str, OpenTask]:
        """Import the tasks that are missing, check that all are there, and return them by image id.

        Raises:
            ProviderError: some were not imported.
        """
        open_tasks = self._dedupe(client, project, delivery)
        missing = [task for task in tasks if task.image_id not in open_tasks]
        for start in range(0, len(missing), _IMPORT_CHUNK_SIZE):
            chunk = missing[start : start + _IMPORT_CHUNK_SIZE]
            client.import_tasks(
                project, [to_task(task, delivery, self._images.url(task), self._images.sha256(task)) for task in chunk]
            )
        if missing:
            open_tasks = self._dedupe(client, project, delivery)
        num_imported = sum(task.image_id in open_tasks for task in tasks)
        if num_imported < len(tasks):
            problem = f"the number of imported tasks of batch {delivery.batch} is {num_imported}, expected {len(tasks)}"
            raise ProviderError(project.url, problem, "The next run imports the others.", transient=True)
        return open_tasks

    def _dedupe(self, client: LabelStudioClient, project: Project, delivery: AnnotationBatch) -> dict[str, OpenTask]:
        """Return the tasks by image id, and delete untouched duplicates.

        An import whose response was lost may finish after the one that repeats it.
        """
        unique: dict[str, OpenTask] = {}
        for task in client.list_tasks(project, delivery.key):
            first = unique.setdefault(task.image_id, task)
            if first is task:
                continue
            duplicate = task if task.is_untouched else first
            if duplicate.is_untouched:
                unique[task.image_id] = first if duplicate is task else task
                client.delete_task(duplicate)
        return unique


def _is_drawn_by(open_task: OpenTask, task: AnnotationTask) -> bool:
    return open_task.data.get("teacher") == short_digest(task) and open_task.data.get("rank") == task.rank
