"""The calls to Label Studio, by its SDK. Each may fail and then says so as a ProviderError; none is tried twice."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core import ApiError

from flows.labels.providers.label_studio.failures import NOT_FOUND, garbage, told

_TIMEOUT = httpx.Timeout(60, connect=10)
"""Seconds; an import of 100 tasks takes 0.2, on a busy machine some."""
_PAGE = 200


@dataclass(frozen=True)
class Project:
    """A campaign's project."""

    number: int
    url: str
    title: str
    description: str
    labeling_config: str


@dataclass(frozen=True)
class OpenTask:
    """One task of a delivery, as far as a round trip with it needs to know."""

    number: int
    image_id: str
    answers: int
    """Annotations, skips among them."""
    wanted: int
    """Annotators it is shown to; 0 when it was taken back."""
    has_draft: bool
    """Somebody has begun."""


class Server:
    """A Label Studio, and one user's access to it."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        """``transport`` replaces the network; for tests.

        Raises:
            ProviderError: the token has expired.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._client = httpx.Client(timeout=_TIMEOUT, follow_redirects=True, transport=transport)
        with self._told("logging in"):
            # No retries: an import that was answered badly may have happened all the same.
            self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
                base_url=self.url, api_key=token, httpx_client=self._client, max_retries=0
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __repr__(self) -> str:
        """Without the token."""
        return f"Server({self.url!r})"

    def user(self) -> str:
        """E-mail address of the token's user."""
        with self._told("asking who the token belongs to"):
            return str(self._sdk.users.whoami().email)

    def emails(self) -> Mapping[int, str]:
        """E-mail addresses of all users, by their number."""
        with self._told("listing its users"):
            return {user.id: user.email for user in self._sdk.users.list()}

    def projects(self) -> list[Project]:
        """Every project the user sees."""
        with self._told("listing its projects"):
            found: Any = self._sdk.projects.list(page_size=_PAGE)
            return [self._project(project) for project in _all(found)]

    def create_project(self, title: str, description: str, labeling_config: str) -> Project:
        """Make a project whose annotators see pre-drawn boxes and may say that there is nothing."""
        with self._told("making the project"):
            made = self._sdk.projects.create(
                title=title,
                description=description,
                label_config=labeling_config,
                show_collab_predictions=True,
                enable_empty_annotation=True,
                show_skip_button=True,
                maximum_annotations=1,
            )
            return self._project(made)

    def tasks_of(self, project: Project, delivery_key: str) -> list[OpenTask]:
        """Tasks of one delivery, oldest first."""
        of_delivery = {"filter": "filter:tasks:data.delivery", "operator": "equal", "type": "String"}
        query = {"filters": {"conjunction": "and", "items": [{**of_delivery, "value": delivery_key}]}}
        columns = "id,data,overlap,total_annotations,cancelled_annotations,draft_exists"
        with self._told("listing the tasks of a batch"):
            found: Any = self._sdk.tasks.list(
                project=project.number, query=json.dumps(query), include=columns, page_size=_PAGE
            )
            return sorted(map(_open_task, _all(found)), key=lambda task: task.number)

    def import_tasks(self, project: Project, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Add tasks; Label Studio never asks whether it has them already."""
        with self._told("importing tasks"):
            self._sdk.projects.import_tasks(id=project.number, request=list(tasks))  # type: ignore[arg-type]

    def set_wanted(self, task: OpenTask, annotators: int) -> None:
        """Show a task to this many annotators; once so many have answered, it leaves the label stream."""
        with self._told(f"changing task {task.number}"):
            self._sdk.tasks.update(id=str(task.number), overlap=annotators, is_labeled=task.answers >= annotators)

    def delete(self, task: OpenTask) -> None:
        """Delete a task; gone already is as good."""
        with self._told(f"deleting task {task.number}"):
            try:
                self._sdk.tasks.delete(id=str(task.number))
            except ApiError as error:
                if error.status_code != NOT_FOUND:
                    raise

    def export(self, project: Project, tasks: Sequence[OpenTask]) -> list[Any]:
        """The tasks with all their annotations, as the JSON export gives them."""
        exported: list[Any] = []
        for start in range(0, len(tasks), _PAGE):  # their numbers go into an address, which has a longest length
            exported += self._export([str(task.number) for task in tasks[start : start + _PAGE]], project)
        return exported

    def _export(self, numbers: list[str], project: Project) -> list[Any]:
        doing = "exporting annotations"
        with self._told(doing):
            parts = self._sdk.projects.exports.download_sync(
                project.number,
                export_type="JSON",
                download_all_tasks=False,
                request_options={"additional_query_parameters": {"ids[]": numbers}},  # the SDK's own `ids` is not heard
            )
            content = b"".join(parts)
        try:
            exported = json.loads(content)
        except ValueError:
            raise garbage(self.url, doing) from None
        if not isinstance(exported, list):
            raise garbage(self.url, doing)
        return exported

    def local_folders(self, project: Project) -> list[str]:
        """Folders whose files the project may show."""
        with self._told("listing the folders of the project"):
            return [str(storage.path) for storage in self._sdk.import_storage.local.list(project=project.number)]

    def allow_local_folder(self, project: Project, folder: str) -> None:
        """Let the project show a folder's files; nothing is imported from there."""
        with self._told(f"allowing the folder {folder}"):
            self._sdk.import_storage.local.create(
                project=project.number, path=folder, use_blob_urls=True, title="images of the campaign"
            )

    def buckets(self, project: Project) -> list[str]:
        """Buckets whose objects the project may show."""
        with self._told("listing the buckets of the project"):
            return [str(storage.bucket) for storage in self._sdk.import_storage.s3.list(project=project.number)]

    def allow_bucket(self, project: Project, bucket: str) -> None:
        """Let the project show a bucket's objects, through Label Studio: no address that expires leaves it.

        It uses the AWS_* variables of its own environment; credentials are not handed on, and an endpoint that is, it
        refuses where that is in a private network.
        """
        with self._told(f"allowing the bucket {bucket}"):
            self._sdk.import_storage.s3.create(
                project=project.number,
                bucket=bucket,
                region_name=os.environ.get("AWS_DEFAULT_REGION"),
                presign=False,
                use_blob_urls=True,
                title="images of the campaign",
            )

    def file(self, address: str) -> bytes | None:
        """What a browser gets at an address of this server; None where there is nothing."""
        with self._told(f"fetching {address}"):
            headers = self._sdk._client_wrapper.get_headers()  # the SDK has no call for files
            answer = self._client.get(self.url + address, headers=headers)
            if answer.status_code == NOT_FOUND:
                return None
            answer.raise_for_status()
            return answer.content

    def _project(self, project: Any) -> Project:
        return Project(
            number=int(project.id),
            url=f"{self.url}/projects/{int(project.id)}",
            title=str(project.title or ""),
            description=str(project.description or ""),
            labeling_config=str(project.label_config or ""),
        )

    def _told(self, doing: str) -> AbstractContextManager[None]:
        return told(self.url, doing, self._token)


def _all(pager: Any) -> Iterator[Any]:
    """Everything on all pages. What is no page at all must not be taken for an empty one.

    Raises:
        TypeError: the server answered something else.
    """
    if not isinstance(pager.items, list):
        raise TypeError
    yield from pager


def _open_task(task: Any) -> OpenTask:
    """Anybody who may change a project may have changed its tasks."""
    data = task.data if isinstance(task.data, dict) else {}
    return OpenTask(
        number=int(task.id),
        image_id=str(data.get("image_id")),
        answers=(task.total_annotations or 0) + (task.cancelled_annotations or 0),
        wanted=task.overlap or 0,
        has_draft=bool(task.draft_exists),
    )
