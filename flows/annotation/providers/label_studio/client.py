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

from flows.annotation.providers.label_studio.errors import NOT_FOUND, invalid_response, translate_errors

_TIMEOUT = httpx.Timeout(60, connect=10)
"""Seconds; an import of 100 tasks takes 0.2, on a busy machine some."""
_PAGE_SIZE = 200


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
    num_annotations: int
    """Annotations, skips among them."""
    overlap: int
    """Annotators it is shown to; 0 when it was taken back."""
    has_draft: bool
    """Somebody has begun."""


class LabelStudioClient:
    """A Label Studio, and one user's access to it."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        """``transport`` replaces the network; for tests.

        Raises:
            ProviderError: the token has expired.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._http_client = httpx.Client(timeout=_TIMEOUT, follow_redirects=True, transport=transport)
        with self._translate("logging in"):
            # No retries: an import that was answered badly may have happened all the same.
            self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
                base_url=self.url, api_key=token, httpx_client=self._http_client, max_retries=0
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http_client.close()

    def __repr__(self) -> str:
        """Without the token."""
        return f"LabelStudioClient({self.url!r})"

    def user_email(self) -> str:
        """E-mail address of the token's user."""
        with self._translate("asking who the token belongs to"):
            return str(self._sdk.users.whoami().email)

    def user_emails(self) -> Mapping[int, str]:
        """E-mail addresses of all users, by their number."""
        with self._translate("listing its users"):
            return {user.id: user.email for user in self._sdk.users.list()}

    def list_projects(self) -> list[Project]:
        """Every project the user sees."""
        with self._translate("listing its projects"):
            found: Any = self._sdk.projects.list(page_size=_PAGE_SIZE)
            return [self._project(project) for project in _all_pages(found)]

    def create_project(self, title: str, description: str, labeling_config: str) -> Project:
        """Make a project whose annotators see pre-drawn boxes and may say that there is nothing."""
        with self._translate("making the project"):
            created = self._sdk.projects.create(
                title=title,
                description=description,
                label_config=labeling_config,
                show_collab_predictions=True,
                enable_empty_annotation=True,
                show_skip_button=True,
                maximum_annotations=1,
            )
            return self._project(created)

    def list_tasks(self, project: Project, delivery_key: str) -> list[OpenTask]:
        """Tasks of one delivery, oldest first."""
        delivery_filter = {"filter": "filter:tasks:data.delivery", "operator": "equal", "type": "String"}
        query = {"filters": {"conjunction": "and", "items": [{**delivery_filter, "value": delivery_key}]}}
        columns = "id,data,overlap,total_annotations,cancelled_annotations,draft_exists"
        with self._translate("listing the tasks of a batch"):
            found: Any = self._sdk.tasks.list(
                project=project.number, query=json.dumps(query), include=columns, page_size=_PAGE_SIZE
            )
            return sorted(map(_to_open_task, _all_pages(found)), key=lambda task: task.number)

    def import_tasks(self, project: Project, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Add tasks; Label Studio never asks whether it has them already."""
        with self._translate("importing tasks"):
            self._sdk.projects.import_tasks(id=project.number, request=list(tasks))  # type: ignore[arg-type]

    def set_overlap(self, task: OpenTask, overlap: int) -> None:
        """Show a task to this many annotators; once so many have answered, it leaves the label stream."""
        with self._translate(f"changing task {task.number}"):
            self._sdk.tasks.update(id=str(task.number), overlap=overlap, is_labeled=task.num_annotations >= overlap)

    def delete_task(self, task: OpenTask) -> None:
        """Delete a task; gone already is as good."""
        with self._translate(f"deleting task {task.number}"):
            try:
                self._sdk.tasks.delete(id=str(task.number))
            except ApiError as error:
                if error.status_code != NOT_FOUND:
                    raise

    def export_tasks(self, project: Project, tasks: Sequence[OpenTask]) -> list[Any]:
        """The tasks with all their annotations, as the JSON export gives them."""
        exported: list[Any] = []
        for start in range(0, len(tasks), _PAGE_SIZE):  # their numbers go into an address, which has a longest length
            exported += self._export_chunk([str(task.number) for task in tasks[start : start + _PAGE_SIZE]], project)
        return exported

    def _export_chunk(self, numbers: list[str], project: Project) -> list[Any]:
        action = "exporting annotations"
        with self._translate(action):
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
            raise invalid_response(self.url, action) from None
        if not isinstance(exported, list):
            raise invalid_response(self.url, action)
        return exported

    def list_local_folders(self, project: Project) -> list[str]:
        """Folders whose files the project may show."""
        with self._translate("listing the folders of the project"):
            return [str(storage.path) for storage in self._sdk.import_storage.local.list(project=project.number)]

    def add_local_storage(self, project: Project, folder: str) -> None:
        """Let the project show a folder's files; nothing is imported from there."""
        with self._translate(f"allowing the folder {folder}"):
            self._sdk.import_storage.local.create(
                project=project.number, path=folder, use_blob_urls=True, title="images of the campaign"
            )

    def list_buckets(self, project: Project) -> list[str]:
        """Buckets whose objects the project may show."""
        with self._translate("listing the buckets of the project"):
            return [str(storage.bucket) for storage in self._sdk.import_storage.s3.list(project=project.number)]

    def add_s3_storage(self, project: Project, bucket: str) -> None:
        """Let the project show a bucket's objects, through Label Studio: no address that expires leaves it.

        It uses the AWS_* variables of its own environment; credentials are not handed on, and an endpoint that is, it
        refuses where that is in a private network.
        """
        with self._translate(f"allowing the bucket {bucket}"):
            self._sdk.import_storage.s3.create(
                project=project.number,
                bucket=bucket,
                region_name=os.environ.get("AWS_DEFAULT_REGION"),
                presign=False,
                use_blob_urls=True,
                title="images of the campaign",
            )

    def fetch_file(self, address: str) -> bytes | None:
        """What a browser gets at an address of this server; None where there is nothing."""
        with self._translate(f"fetching {address}"):
            headers = self._sdk._client_wrapper.get_headers()  # the SDK has no call for files
            response = self._http_client.get(self.url + address, headers=headers)
            if response.status_code == NOT_FOUND:
                return None
            response.raise_for_status()
            return response.content

    def _project(self, project: Any) -> Project:
        return Project(
            number=int(project.id),
            url=f"{self.url}/projects/{int(project.id)}",
            title=str(project.title or ""),
            description=str(project.description or ""),
            labeling_config=str(project.label_config or ""),
        )

    def _translate(self, action: str) -> AbstractContextManager[None]:
        return translate_errors(self.url, action, self._token)


def _all_pages(pager: Any) -> Iterator[Any]:
    """Everything on all pages. What is no page at all must not be taken for an empty one.

    Raises:
        TypeError: the server answered something else.
    """
    if not isinstance(pager.items, list):
        raise TypeError
    yield from pager


def _to_open_task(task: Any) -> OpenTask:
    """Anybody who may change a project may have changed its tasks."""
    data = task.data if isinstance(task.data, dict) else {}
    return OpenTask(
        number=int(task.id),
        image_id=str(data.get("image_id")),
        num_annotations=(task.total_annotations or 0) + (task.cancelled_annotations or 0),
        overlap=task.overlap or 0,
        has_draft=bool(task.draft_exists),
    )
