"""Call CVAT through its SDK. Every failure becomes a ProviderError without the token; no call is repeated."""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import urllib3
from cvat_sdk.api_client import exceptions
from cvat_sdk.core.client import AccessTokenCredentials, Client
from cvat_sdk.core.exceptions import CvatSdkException
from cvat_sdk.core.helpers import get_paginated_collection
from cvat_sdk.core.uploading import DataUploader

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.cvat_annotations import Frame, Label

TOKEN = "CVAT_ACCESS_TOKEN"
"""Environment variable with the access token."""
NEW, REJECTED = "new", "rejected"
"""States of a job that nobody has begun, and of one that Gleaner has taken back."""

_TIMEOUT = urllib3.Timeout(connect=10, read=60)
"""Seconds without a byte of the response."""
_IMPORT_LIMIT_S = 600.0
"""For the server to read the images of one task."""
_POLL_S = 1.0
_PAGE_SIZE = 100
_IMAGE_QUALITY = 95
"""JPEG quality of what annotators see, in percent; CVAT's default is 70."""
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_DETAIL_LENGTH = 200
_REDACTED = "***"
_CHECK_VERSION = "Open the address in a browser and check that it is CVAT 2.80 or near."
_START_FIX = "Start it, or correct provider.url in params.yaml. No label is lost: the next run collects again."
_FILE_NAME = re.compile(r"\d+-([0-9a-f]{16})\.\w+")
"""Of an uploaded image: rank and image id."""


@dataclass(frozen=True)
class Project:
    """The project of a campaign."""

    number: int
    url: str
    name: str
    guide: int | None
    """Number of its guide for annotators."""


@dataclass(frozen=True)
class CvatTask:
    """A set of images that were uploaded together."""

    number: int
    name: str
    num_images: int
    """0 until the server has read them."""


@dataclass(frozen=True)
class Job:
    """Some images of a task, which one person labels."""

    number: int
    task: CvatTask
    url: str
    state: str
    """``new``, ``in progress``, ``completed`` or ``rejected``."""
    stage: str
    """``annotation``, ``validation`` or ``acceptance``."""
    assignee: str | None
    updated_at: str
    """ISO 8601 with time zone."""
    frames: tuple[Frame, ...]

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has begun with it."""
        return self.state == NEW and self.stage == "annotation"

    @property
    def is_finished(self) -> bool:
        """Whether its annotations are answers: completed, in whatever stage, or handed to acceptance."""
        return self.state == "completed" or (self.stage == "acceptance" and self.state != REJECTED)


class Network(Protocol):
    """What sends the requests of the SDK."""

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Send one request and return the response, as ``urllib3.PoolManager.request``."""


class _StrictNetwork:
    """Gives every request a time limit, which the SDK does not, and repeats and redirects none."""

    def __init__(self, network: Network, where: str) -> None:
        self._network, self._where = network, where

    def request(self, method: str, url: str, **options: Any) -> Any:
        try:
            return self._network.request(method, url, **{**options, "timeout": _TIMEOUT, "retries": False})
        except urllib3.exceptions.SSLError as error:  # the SDK fails on those
            problem = (
                f"the encrypted connection failed ({_first_line(error)}), expected a certificate this machine trusts"
            )
            fix = "Correct provider.url, or name the certificate's authority in SSL_CERT_FILE."
            raise ProviderError(self._where, problem, fix) from None


class CvatClient:
    """The API of one CVAT server, with the access of one user."""

    def __init__(self, url: str, token: str, organization: str = "", network: Network | None = None) -> None:
        """Open a client; nothing is called yet.

        Args:
            url: of the server.
            token: access token of the user.
            organization: short name; empty: what belongs to the user.
            network: replaces the network in tests.
        """
        self.url = url.rstrip("/")
        self._token = token
        with self._translate("opening the address"):
            self._sdk = Client(self.url, logger=logging.getLogger(__name__), check_server_version=False)
            self._sdk.login(AccessTokenCredentials(token))
            self._sdk.organization_slug = organization
        rest = self._sdk.api_client.rest_client
        rest.pool_manager = _StrictNetwork(network or rest.pool_manager, self.where)

    @property
    def where(self) -> str:
        """The server, for messages."""
        return f"CVAT at {self.url}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sdk.close()

    def __repr__(self) -> str:
        """Name the server, without the token."""
        return f"CvatClient({self.url!r})"

    def user_name(self) -> str:
        """Return the name of the token's user."""
        with self._translate("looking up the user of the token"):
            return str(self._sdk.users.retrieve_current_user().username)

    def list_projects(self) -> list[Project]:
        """List the projects that the user can see, oldest first."""
        with self._translate("listing its projects"):
            found = [self._project(project) for project in self._sdk.projects.list(page_size=_PAGE_SIZE)]
        return sorted(found, key=lambda project: project.number)

    def create_project(self, name: str, labels: Sequence[Mapping[str, Any]]) -> Project:
        """Create a project with its labels."""
        with self._translate("creating the project"):
            return self._project(self._sdk.projects.create({"name": name, "labels": list(labels)}))

    def list_labels(self, project: Project) -> list[Label]:
        """List the labels of a project."""
        with self._translate("listing the labels of the project"):
            endpoint = self._sdk.api_client.labels_api.list_endpoint
            labels = get_paginated_collection(endpoint, project_id=project.number, page_size=_PAGE_SIZE)
            return [
                Label(
                    number=int(label.id),
                    name=str(label.name),
                    kind=str(label.type),
                    attributes={str(found.name): int(found.id) for found in label.attributes},
                )
                for label in labels
                if not getattr(label, "has_parent", False)
            ]

    def read_guide(self, project: Project) -> str:
        """Return the guide of a project; empty where it has none."""
        if project.guide is None:
            return ""
        with self._translate("reading the guide of the project"):
            return str(self._sdk.api_client.guides_api.retrieve(project.guide)[0].markdown)

    def write_guide(self, project: Project, markdown: str) -> None:
        """Create or replace the guide of a project."""
        with self._translate("writing the guide of the project"):
            guides = self._sdk.api_client.guides_api
            if project.guide is None:
                guides.create(annotation_guide_write_request={"project_id": project.number, "markdown": markdown})
            else:
                guides.partial_update(project.guide, patched_annotation_guide_write_request={"markdown": markdown})

    def list_tasks(self, project: Project) -> list[CvatTask]:
        """List the tasks of a project, oldest first."""
        with self._translate("listing the tasks of the project"):
            found = [_task(task) for task in self._sdk.tasks.list(project_id=project.number, page_size=_PAGE_SIZE)]
        return sorted(found, key=lambda task: task.number)

    def create_task(self, project: Project, name: str, images_per_job: int, images: Sequence[Path]) -> None:
        """Create a task, upload its images, and wait until the server has read them.

        The server appends to an image that it is sent twice. So a task whose upload was cut off must be deleted.

        Args:
            project: it belongs to.
            name: of the task.
            images_per_job: the last job may have fewer.
            images: files, in their order; their names must differ.
        """
        specification = {"name": name, "project_id": project.number, "segment_size": images_per_job, "overlap": 0}
        with self._translate("creating a task"):
            task = _task(self._sdk.tasks.create(specification))
        with self._translate("uploading images"):
            path = self._sdk.api_client.tasks_api.create_data_endpoint.path
            url = self._sdk.api_map.make_endpoint_url(path, kwsub={"id": task.number})
            response = DataUploader(self._sdk).upload_files(
                url, list(images), image_quality=_IMAGE_QUALITY, sorting_method="predefined"
            )
            request = str(json.loads(response.data)["rq_id"])
        self._wait(request, task)

    def finish_import(self, task: CvatTask) -> None:
        """Wait for the images of a task that was cut off, or delete it where none are on their way."""
        with self._translate(f"listing what the server does for task {task.number}"):
            found, _ = self._sdk.api_client.requests_api.list(task_id=task.number, page_size=_PAGE_SIZE)
            waiting = [str(one.id) for one in found.results if str(one.status.value) in ("queued", "started")]
        for request in waiting:
            self._wait(request, task)
        with self._translate(f"looking up task {task.number}"):
            if waiting or _task(self._sdk.tasks.retrieve(task.number)).num_images:
                return
        self.delete_task(task)

    def delete_task(self, task: CvatTask) -> None:
        """Delete a task, unless it is deleted already."""
        with self._translate(f"deleting task {task.number}"):
            try:
                self._sdk.api_client.tasks_api.destroy(task.number)
            except exceptions.NotFoundException:
                return

    def list_jobs(self, task: CvatTask) -> list[Job]:
        """List the jobs of a task, without those that compare annotators: ground truth and replicas."""
        if not task.num_images:
            return []
        with self._translate(f"listing the jobs of task {task.number}"):
            meta, _ = self._sdk.api_client.tasks_api.retrieve_data_meta(task.number)
            frames = _frames(meta)
            found = self._sdk.jobs.list(task_id=task.number, type="annotation", page_size=_PAGE_SIZE)
            jobs = [self._job(job, task, frames) for job in found]
        return sorted(jobs, key=lambda job: job.number)

    def read_annotations(self, job: Job) -> Mapping[str, Any]:
        """Return the annotations of a job, unchecked."""
        action = f"reading the annotations of job {job.number}"
        with self._translate(action):
            _, response = self._sdk.api_client.jobs_api.retrieve_annotations(job.number, _parse_response=False)
            with response:
                content = json.loads(response.read())
        if not isinstance(content, dict):
            raise invalid_response(self.where, action)
        return content

    def write_annotations(self, job: Job, annotations: Mapping[str, Any]) -> None:
        """Replace all annotations of a job."""
        with self._translate(f"writing the annotations of job {job.number}"):
            content = {"version": 0, "tracks": [], **annotations}
            self._sdk.api_client.jobs_api.update_annotations(job.number, labeled_data_request=content)

    def delete_frames(self, job: Job, numbers: Sequence[int]) -> None:
        """Set which images of a job the annotators do not see."""
        with self._translate(f"taking images from job {job.number}"):
            self._sdk.api_client.jobs_api.partial_update_data_meta(
                job.number, patched_job_data_meta_write_request={"deleted_frames": list(numbers)}
            )

    def set_state(self, job: Job, state: str) -> None:
        """Set the state of a job."""
        with self._translate(f"changing job {job.number}"):
            self._sdk.api_client.jobs_api.partial_update(job.number, patched_job_write_request={"state": state})

    def _wait(self, request: str, task: CvatTask) -> None:
        """Wait until the server has read the images of a task.

        Raises:
            ProviderError: it cannot read them, or takes too long.
        """
        until = time.monotonic() + _IMPORT_LIMIT_S
        while True:
            with self._translate(f"asking for the images of task {task.number}"):
                found, _ = self._sdk.api_client.requests_api.retrieve(request)
                status, message = str(found.status.value), str(getattr(found, "message", "") or "")
            if status == "finished":
                return
            if status == "failed":
                detail = " ".join(message.replace(self._token, _REDACTED).split())[-_MAX_DETAIL_LENGTH:]
                problem = f"the server cannot read the images of task {task.number} ({detail})"
                raise ProviderError(
                    self.where, problem, "Read the log of CVAT's import worker. The next run tries again."
                )
            if time.monotonic() > until:
                problem = f"the images of task {task.number} were not read within {_IMPORT_LIMIT_S:.0f} s"
                raise ProviderError(self.where, problem, "Check that CVAT's import worker runs.", transient=True)
            time.sleep(_POLL_S)

    def _project(self, project: Any) -> Project:
        guide = getattr(project, "guide_id", None)
        number = int(project.id)
        url = f"{self.url}/projects/{number}"
        return Project(number, url, str(project.name), None if guide is None else int(guide))

    def _job(self, job: Any, task: CvatTask, frames: Sequence[Frame]) -> Job:
        number, assignee = int(job.id), getattr(job, "assignee", None)
        return Job(
            number=number,
            task=task,
            url=f"{self.url}/tasks/{task.number}/jobs/{number}",
            state=str(job.state),
            stage=str(job.stage),
            assignee=None if assignee is None else str(assignee.username),
            updated_at=job.updated_date.isoformat(),
            frames=tuple(frames[int(job.start_frame) : int(job.stop_frame) + 1]),
        )

    def _translate(self, action: str) -> AbstractContextManager[None]:
        return translate_errors(self.where, action, self._token)


def file_name(rank: int, image_id: str, suffix: str) -> str:
    """Return the name of an uploaded image: annotators see it, and it tells which image it is."""
    return f"{rank:04d}-{image_id}{suffix}"


def _task(task: Any) -> CvatTask:
    return CvatTask(int(task.id), str(task.name), int(getattr(task, "size", 0) or 0))


def _frames(meta: Any) -> list[Frame]:
    """Return the images of a task; one that Gleaner did not upload has an empty image id."""
    deleted = set(meta.deleted_frames)
    frames = []
    for number, frame in enumerate(meta.frames or ()):
        match = _FILE_NAME.fullmatch(Path(str(frame.name)).name)
        size = (getattr(frame, "width", None), getattr(frame, "height", None))
        frames.append(Frame(number, match[1] if match else "", *size, is_deleted=number in deleted))
    return frames


@contextmanager
def translate_errors(where: str, action: str, token: str) -> Iterator[None]:
    """Convert the failures of calls to CVAT.

    Args:
        where: the server.
        action: of the calls, for messages, such as ``listing its projects``.
        token: redacted in the server's messages.

    Raises:
        ProviderError: a call failed; ``transient`` where the same call may work in a while.
    """
    try:
        yield
    except ProviderError:
        raise
    except urllib3.exceptions.LocationParseError:
        problem = f"the address does not work when {action}, expected that of a CVAT"
        raise ProviderError(where, problem, "Correct provider.url in params.yaml.") from None
    except urllib3.exceptions.TimeoutError as error:
        if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
            raise _connection_error(where, action, error, token) from None
        problem = f"the server did not respond in time when {action}"
        raise ProviderError(where, problem, "Check whether the server is overloaded.", transient=True) from None
    except urllib3.exceptions.HTTPError as error:
        raise _connection_error(where, action, error, token) from None
    except (
        exceptions.OpenApiException,
        CvatSdkException,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # the SDK checks types on the way, and fails on the body of an error that is no UTF-8
        http_error = error if isinstance(error, exceptions.ApiException) else error.__context__
        if isinstance(http_error, exceptions.ApiException):
            detail = _detail(http_error.body).replace(token, _REDACTED)
            raise _http_error(where, action, http_error.status, detail) from None
        raise invalid_response(where, action) from None


def invalid_response(where: str, action: str) -> ProviderError:
    """Build the error for a response that is not CVAT's."""
    return ProviderError(where, f"the response when {action} is not that of CVAT", _CHECK_VERSION)


def _connection_error(where: str, action: str, error: Exception, token: str) -> ProviderError:
    problem = f"the connection failed when {action} ({_first_line(error).replace(token, _REDACTED)})"
    return ProviderError(where, problem, _START_FIX, transient=True)


def _http_error(where: str, action: str, status: int | None, detail: str) -> ProviderError:
    summary = f"status {status}" + (f", {detail}" if detail else "")
    if status == _UNAUTHORIZED:
        fix = f"Set the environment variable {TOKEN} to a valid access token (your name > Profile > Security in CVAT)."
        return ProviderError(where, f"the token was refused when {action} ({summary}), expected a valid one", fix)
    if status == _FORBIDDEN:
        fix = f"Allow the user of the token in {TOKEN} to manage projects; a hosted CVAT may have a limit of its plan."
        return ProviderError(where, f"access was denied when {action} ({summary})", fix)
    if status == _NOT_FOUND:
        fix = "It may have been deleted just now; the next run tries again."
        return ProviderError(where, f"an object was not found when {action} ({summary})", fix)
    if status is not None and 300 <= status < 400:
        problem = f"the server points elsewhere when {action} ({summary}), expected its own address"
        return ProviderError(where, problem, "Correct provider.url in params.yaml, https:// included.")
    transient = status in _TRANSIENT_STATUS
    fix = "Read the server's log." if transient else _CHECK_VERSION
    return ProviderError(where, f"the server returned an error when {action} ({summary})", fix, transient=transient)


def _detail(body: Any) -> str:
    """Return the server's own error message, shortened; nothing of a page of HTML."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        content = json.loads(text)
    except ValueError:
        return ""
    found = content.get("detail", content) if isinstance(content, dict) else content
    return " ".join(str(found).split())[:_MAX_DETAIL_LENGTH]


def _first_line(error: Exception) -> str:
    return ((str(error).splitlines() or [""])[0] or type(error).__name__)[:_MAX_DETAIL_LENGTH]
