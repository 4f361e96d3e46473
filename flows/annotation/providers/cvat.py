"""The label provider of kind ``cvat``: one project per campaign, one task per batch, jobs of a few images.

CVAT creates a task twice if asked twice, and an image sent twice is broken. So a task without images is deleted before
its images are offered in another, and what is missing is found out image by image. A withdrawn image is hidden from the
annotators, not deleted, and only from jobs that nobody has begun.
"""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from flows.annotation.providers.base import (
    AnnotationBatch,
    LabelingProgress,
    ProviderError,
    RawAnnotation,
    own_folder,
    require_provider_owner,
)
from flows.annotation.providers.cvat_annotations import (
    SKIP,
    Frame,
    Label,
    is_blank,
    is_drawn_by,
    label_specs,
    labels_problem,
    parse_image,
    to_annotations,
    with_other_frames,
)
from flows.annotation.providers.cvat_client import (
    REJECTED,
    TOKEN,
    CvatClient,
    CvatTask,
    Job,
    Network,
    Project,
    file_name,
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
    without_owner_line,
)
from tasks.data.images import ImageSource, encode_png, is_shown_by_browsers, translate_image_errors
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params.annotation import ProviderParams
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count
from tasks.storage import files

ALLOW_HTTP = "CVAT_ALLOW_HTTP"
"""Environment variable that allows to send the token unencrypted to another machine."""
UNASSIGNED = "unassigned"
"""Annotator of a job that was assigned to nobody."""
_SHORT_KEY_LENGTH = 12
_SECOND_LOOK = ", second look"
_KEY = re.compile(r"\[([0-9a-f]{12})\]")
"""In the name of a task: beginning of the delivery's key."""
_SENT_AS_THEY_ARE = frozenset({".jpg", ".jpeg", ".png"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_log = logging.getLogger(__name__)


class CvatProvider:
    """Offers jobs to the annotators of one CVAT server and polls their annotations."""

    name = "cvat"

    def __init__(
        self, workspace: Workspace, classes: Sequence[str], params: ProviderParams, network: Network | None = None
    ) -> None:
        """Keep the arguments; the server is not called yet.

        Args:
            workspace: of the campaign.
            classes: class names in the order of their numbers.
            params: address, organization, images of a job, share of images for two annotators.
            network: replaces the network in tests.
        """
        self._workspace = workspace
        self._classes = list(classes)
        self._params = params
        self._network = network

    def check(self) -> None:
        """Refuse a missing or invalid token, an address that would show it to others, and another folder's project.

        Raises:
            UserError: what is missing, and how to set it up.
            ProviderError: the server does not answer or refuses.
        """
        with self._client() as client:
            client.user_name()
            self._find_project(client)

    def take_over(self) -> str | None:
        """Enter this folder as owner into the guide of the campaign's project."""
        root = self._workspace.root
        with self._client() as client:
            project = self._search_project(client)
            if project is None:
                return None
            guide = client.read_guide(project)
            renewed = f"{without_owner_line(guide)}\n\n{owner_line(root)}"
            return take_over_project(root, guide, lambda: client.write_guide(project, renewed))

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Upload the images that are missing, create the project if necessary, and return its address."""
        tasks, second_look = tasks_to_offer(delivery, self._params.double_annotation_frac)
        with self._client() as client:
            project = self._find_project(client) or self._create_project(client)
            if project.guide is None:
                client.write_guide(project, self._guide())
            labels = self._require_labels(client, project)
            for broken in (task for task in client.list_tasks(project) if _is_ours(task) and not task.num_images):
                client.finish_import(broken)
            self._upload_missing(client, project, delivery, tasks, second_look)
            self._draw_blank(client, self._jobs(client, project, delivery), delivery, tasks, labels)
        return project.url

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count images; one finished job makes an image finished, also where another person is still to label it."""
        with self._client() as client:
            project = self._find_project(client)
            jobs = [] if project is None else self._jobs(client, project, delivery)
        offered = {frame.image_id for job in jobs for frame in _shown(job)}
        finished = {frame.image_id for job in jobs if job.is_finished for frame in _shown(job)}
        return LabelingProgress(finished=len(finished), open=len(offered - finished))

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return the answers of every finished job; an open image whose task was deleted is offered again.

        Raises:
            ProviderError: the server does not answer or refuses, or the project was deleted and is created again.
        """
        with self._client() as client:
            project = self._find_project(client)
            if project is None:
                offer_again(client.where, self._workspace, delivery, self.deliver)
                return []
            labels = self._require_labels(client, project)
            jobs = self._jobs(client, project, delivery)
            self._reupload_deleted(delivery, project, {frame.image_id for job in jobs for frame in job.frames})
            annotators = self._first_annotators(delivery, jobs)
            return [
                parse_image(
                    annotations,
                    frame,
                    labels,
                    annotator=annotators.get(frame.image_id) or job.assignee or UNASSIGNED,
                    finished_at=job.updated_at,
                    answer_id=f"job {job.number}, frame {frame.number}",
                    url=f"{job.url}?frame={frame.number}",
                )
                for job in jobs
                if job.is_finished
                for annotations in [client.read_annotations(job)]
                for frame in _shown(job)
            ]

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Hide images from jobs that nobody has begun; a job left without images is not listed as new any more."""
        with self._client() as client:
            project = self._find_project(client)
            for job in [] if project is None else self._jobs(client, project, delivery):
                if not job.is_untouched:
                    continue
                hidden = {frame.number for frame in job.frames if frame.is_deleted}
                wanted = hidden | {frame.number for frame in job.frames if frame.image_id in image_ids}
                if wanted != hidden:
                    client.delete_frames(job, sorted(wanted))
                if len(wanted) == len(job.frames):
                    client.set_state(job, REJECTED)

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Replace reason and boxes of images in jobs that nobody has begun; their order in the job stays."""
        newest = {task.image_id: task for task in tasks}
        refreshed: set[str] = set()
        outdated: set[str] = set()
        with self._client() as client:
            project = self._find_project(client)
            if project is None:  # the next collection offers its images again
                return ()
            labels = self._require_labels(client, project)
            for job in self._jobs(client, project, delivery):
                wanted = {frame.number: newest[frame.image_id] for frame in _shown(job) if frame.image_id in newest}
                annotations = client.read_annotations(job) if wanted else {}
                old = {
                    number: task
                    for number, task in wanted.items()
                    if not is_drawn_by(annotations, number, task, delivery, labels)
                }
                if old and job.is_untouched:
                    new = to_annotations(old, delivery, labels)
                    client.write_annotations(job, with_other_frames(new, annotations, set(old)))
                    old = {}
                refreshed |= {task.image_id for number, task in wanted.items() if number not in old}
                outdated |= {task.image_id for task in old.values()}
        return refreshed - outdated  # two people may have found different boxes

    def _client(self) -> CvatClient:
        """Open a client.

        Raises:
            UserError: there is no token, or the address would show it to others.
        """
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            fix = f"Create one in CVAT at {self._params.url}: your name > Profile > Security > Access tokens."
            raise UserError(TOKEN, "the environment variable is not set", fix)
        address = urlsplit(self._params.url)
        is_private = address.scheme == "https" or (address.scheme == "http" and address.hostname in _LOOPBACK)
        if not is_private and not (address.scheme == "http" and os.environ.get(ALLOW_HTTP) == "1"):
            problem = f"url is {self._params.url}, expected https://, or http:// on this machine: the token can be read"
            raise UserError("params.yaml: provider", problem, f"In a network you trust, set {ALLOW_HTTP}=1.")
        return CvatClient(self._params.url, token, self._params.cvat_organization, self._network)

    def _find_project(self, client: CvatClient) -> Project | None:
        """Find the campaign's project.

        Raises:
            ProviderError: it belongs to another folder of the campaign.
        """
        project = self._search_project(client)
        if project is not None:
            where = f"project {project.name!r} in CVAT"
            require_provider_owner(where, *stated_owner(client.read_guide(project)), own_folder(self._workspace.root))
        return project

    def _search_project(self, client: CvatClient) -> Project | None:
        """Find the campaign's project by the id at the end of its name."""
        marker = project_marker(self._workspace.root)
        return next((found for found in client.list_projects() if found.name.endswith(marker)), None)

    def _create_project(self, client: CvatClient) -> Project:
        return client.create_project(project_name(self._workspace.root), label_specs(self._classes))

    def _guide(self) -> str:
        return (
            "Correct, add or delete boxes until every object has one.\n\n"
            f"An image that nobody can judge gets the tag *{SKIP}*. An image without objects stays without boxes.\n\n"
            "When all images of the job are done: *Menu > Finish the job*. Only finished jobs are collected.\n\n"
            f"{owner_line(self._workspace.root)}"
        )

    def _require_labels(self, client: CvatClient, project: Project) -> list[Label]:
        """Return the labels; refuse a project without one of them: unlabeled objects would be trained on as background.

        Raises:
            ProviderError: what is missing.
        """
        labels = client.list_labels(project)
        if problem := labels_problem(labels, self._classes):
            fix = (
                f"Add it in {project.url}, and review the images labeled meanwhile. "
                "Nothing is collected or offered until then."
            )
            raise ProviderError(f"project {project.name!r} in CVAT", problem, fix)
        return labels

    def _jobs(self, client: CvatClient, project: Project, delivery: AnnotationBatch) -> list[Job]:
        key = delivery.key[:_SHORT_KEY_LENGTH]
        tasks = [task for task in client.list_tasks(project) if f"[{key}]" in task.name]
        return [job for task in tasks for job in client.list_jobs(task)]

    def _upload_missing(
        self,
        client: CvatClient,
        project: Project,
        delivery: AnnotationBatch,
        tasks: Sequence[AnnotationTask],
        second_look: Collection[str],
    ) -> None:
        """Upload images that no task of the delivery has, and once more those that two people label."""
        jobs = self._jobs(client, project, delivery)
        for suffix in ("", _SECOND_LOOK):
            present = {frame.image_id for job in jobs if _is_second_look(job) == bool(suffix) for frame in job.frames}
            wanted = [task for task in tasks if not suffix or task.image_id in second_look]
            if missing := [task for task in wanted if task.image_id not in present]:
                name = f"Batch {delivery.batch}{suffix} [{delivery.key[:_SHORT_KEY_LENGTH]}]"
                with self._files(missing) as paths:
                    client.create_task(project, name, self._params.images_per_job, paths)

    def _draw_blank(
        self,
        client: CvatClient,
        jobs: Sequence[Job],
        delivery: AnnotationBatch,
        tasks: Sequence[AnnotationTask],
        labels: Sequence[Label],
    ) -> None:
        """Give the jobs that have no annotation at all, and that nobody has begun, their boxes."""
        by_image = {task.image_id: task for task in tasks}
        for job in jobs:
            wanted = {frame.number: by_image[frame.image_id] for frame in job.frames if frame.image_id in by_image}
            if wanted and job.is_untouched and is_blank(client.read_annotations(job)):
                client.write_annotations(job, to_annotations(wanted, delivery, labels))

    def _reupload_deleted(self, delivery: AnnotationBatch, project: Project, present: Collection[str]) -> None:
        if deleted := deleted_images(self._workspace, delivery, present):
            self.deliver(replace(delivery, image_ids=deleted))
            message = "Batch %d: the task with %s was deleted in %s; offered again. To exclude an image, tag it %r."
            _log.warning(message, delivery.batch, count(len(deleted), "image"), project.url, SKIP)

    def _first_annotators(self, delivery: AnnotationBatch, jobs: Sequence[Job]) -> Mapping[str, str]:
        """Return who answered an image of one job when it was first collected, by image id.

        A job that is handed to a reviewer changes its assignee. That makes nobody else the annotator.
        """
        store = read_labels(self._workspace.labels)
        offered = Counter(frame.image_id for job in jobs for frame in job.frames)
        first: dict[str, str] = {}
        for answers in store.all_answers.values():
            for label in answers:
                if label.offered_batch == delivery.batch and offered[label.image_id] == 1:
                    first.setdefault(label.image_id, label.annotator)
        return first

    @contextmanager
    def _files(self, tasks: Sequence[AnnotationTask]) -> Iterator[list[Path]]:
        """Lay out the images under the names that CVAT shows, as PNG where it may show another picture.

        Raises:
            UserError: an image cannot be read.
        """
        scratch = self._workspace.scratch("cvat")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
        scratch.mkdir(parents=True)
        source = ImageSource(self._workspace.root.resolve())
        try:
            yield [_lay_out(source, task, scratch) for task in tasks]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _lay_out(source: ImageSource, task: AnnotationTask, folder: Path) -> Path:
    suffix = PurePosixPath(urlsplit(task.uri).path).suffix.lower()

    def keep(path: Path) -> Path | None:
        if suffix not in _SENT_AS_THEY_ARE or not is_shown_by_browsers(path):
            return None
        target = folder / file_name(task.rank, task.image_id, suffix)
        shutil.copyfile(path, target)
        return target

    with translate_image_errors(task.uri):
        kept = source.open(task.uri, task.image_id, keep)
        if kept is None:
            kept = folder / file_name(task.rank, task.image_id, ".png")
            files.write_bytes(kept, source.open(task.uri, task.image_id, encode_png))
    return kept


def _shown(job: Job) -> list[Frame]:
    """Return the images of a job that Gleaner has uploaded and the annotators see."""
    return [frame for frame in job.frames if frame.image_id and not frame.is_deleted]


def _is_ours(task: CvatTask) -> bool:
    return _KEY.search(task.name) is not None


def _is_second_look(job: Job) -> bool:
    return _SECOND_LOOK in job.task.name
