"""Call Label Studio through its SDK. Every failure becomes a ProviderError without the token; no call is repeated."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core import ApiError, ParsingError

from flows.annotation.providers.base import ProviderError

TOKEN = "LABEL_STUDIO_API_KEY"
"""Environment variable with the access token."""

_TIMEOUT = httpx.Timeout(60, connect=10)
"""Seconds; an import of 100 tasks takes 0.2 on an idle machine."""
_PAGE_SIZE = 200
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_DETAIL_LENGTH = 200
_REDACTED = "***"
_CHECK_VERSION = "Open the address in a browser and check that it is Label Studio 1.23."


@dataclass(frozen=True)
class Project:
    """The project of a campaign."""

    number: int
    url: str
    title: str
    description: str
    labeling_config: str


@dataclass(frozen=True)
class OpenTask:
    """The state of one task of a delivery."""

    number: int
    image_id: str
    num_annotations: int
    """Including skipped ones."""
    overlap: int
    """Number of annotators it is shown to; 0 after it was withdrawn."""
    has_draft: bool
    """Whether an annotator has started."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the task was imported with; users may have changed them."""

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has begun with it."""
        return not self.num_annotations and not self.has_draft


class LabelStudioClient:
    """The API of one Label Studio server, with the access of one user."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        """Open a client; ``transport`` replaces the network in tests.

        Raises:
            ProviderError: the token has expired.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._http_client = httpx.Client(timeout=_TIMEOUT, follow_redirects=True, transport=transport)
        with self._translate("logging in"):
            # No retries: an import that returned an error may have succeeded.
            self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
                base_url=self.url, api_key=token, httpx_client=self._http_client, max_retries=0
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http_client.close()

    def __repr__(self) -> str:
        """Name the server, without the token."""
        return f"LabelStudioClient({self.url!r})"

    def user_email(self) -> str:
        """Return the e-mail address of the token's user."""
        with self._translate("looking up the user of the token"):
            return str(self._sdk.users.whoami().email)

    def user_emails(self) -> Mapping[int, str]:
        """Return the e-mail addresses of all users, by number."""
        with self._translate("listing its users"):
            return {user.id: user.email for user in self._sdk.users.list()}

    def list_projects(self) -> list[Project]:
        """List the projects that the user can see."""
        with self._translate("listing its projects"):
            found: Any = self._sdk.projects.list(page_size=_PAGE_SIZE)
            return [self._project(project) for project in _all_pages(found)]

    def create_project(self, title: str, description: str, labeling_config: str) -> Project:
        """Create a project with predictions shown, empty annotations allowed and a skip button."""
        with self._translate("creating the project"):
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

    def set_description(self, project: Project, description: str) -> None:
        """Replace the description of a project."""
        with self._translate("changing the project's description"):
            self._sdk.projects.update(id=project.number, description=description)

    def list_tasks(self, project: Project, delivery_key: str) -> list[OpenTask]:
        """List the tasks of one delivery, oldest first."""
        delivery_filter = {"filter": "filter:tasks:data.delivery", "operator": "equal", "type": "String"}
        query = {"filters": {"conjunction": "and", "items": [{**delivery_filter, "value": delivery_key}]}}
        columns = "id,data,overlap,total_annotations,cancelled_annotations,draft_exists"
        with self._translate("listing the tasks of a batch"):
            found: Any = self._sdk.tasks.list(
                project=project.number, query=json.dumps(query), include=columns, page_size=_PAGE_SIZE
            )
            return sorted(map(_to_open_task, _all_pages(found)), key=lambda task: task.number)

    def import_tasks(self, project: Project, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Add tasks; Label Studio does not check whether it has them already."""
        with self._translate("importing tasks"):
            self._sdk.projects.import_tasks(id=project.number, request=list(tasks))  # type: ignore[arg-type]

    def set_overlap(self, task: OpenTask, overlap: int) -> None:
        """Set the number of annotators of a task; it leaves the label stream when that many have annotated it."""
        with self._translate(f"changing task {task.number}"):
            self._sdk.tasks.update(id=str(task.number), overlap=overlap, is_labeled=task.num_annotations >= overlap)

    def replace_predictions(self, project: Project, task: OpenTask, prediction: Mapping[str, Any] | None) -> None:
        """Delete the predictions of a task and give it another one, or none.

        In this order: a task that is opened in between starts without boxes, not with those of two teachers.
        """
        with self._translate(f"changing the predictions of task {task.number}"):
            for old in self._sdk.predictions.list(project=project.number, task=task.number):
                self._sdk.predictions.delete(id=int(old.id))
            if prediction is not None:
                self._sdk.predictions.create(task=task.number, project=project.number, **prediction)

    def update_data(self, task: OpenTask, changes: Mapping[str, Any]) -> None:
        """Change fields of a task's data; the others stay."""
        with self._translate(f"changing the data of task {task.number}"):
            self._sdk.tasks.update(id=str(task.number), data={**task.data, **changes})

    def ensure_view(self, project: Project, title: str, ordering: str) -> None:
        """Add a tab to the Data Manager that sorts by a field, unless the project has one of that title."""
        with self._translate("listing the views of the project"):
            views = self._sdk.views.list(project=project.number)
            if any(isinstance(view.data, dict) and view.data.get("title") == title for view in views):
                return
            content: Any = {"title": title, "type": "list", "ordering": [ordering]}
            self._sdk.views.create(project=project.number, data=content)

    def delete_task(self, task: OpenTask) -> None:
        """Delete a task, unless it is deleted already."""
        with self._translate(f"deleting task {task.number}"):
            try:
                self._sdk.tasks.delete(id=str(task.number))
            except ApiError as error:
                if error.status_code != _NOT_FOUND:
                    raise

    def export_tasks(self, project: Project, tasks: Sequence[OpenTask]) -> list[Any]:
        """Return the tasks with all their annotations, as in the JSON export."""
        exported: list[Any] = []
        for start in range(0, len(tasks), _PAGE_SIZE):  # their numbers go into the URL, whose length is limited
            exported += self._export_chunk([str(task.number) for task in tasks[start : start + _PAGE_SIZE]], project)
        return exported

    def _export_chunk(self, numbers: list[str], project: Project) -> list[Any]:
        action = "exporting annotations"
        with self._translate(action):
            parts = self._sdk.projects.exports.download_sync(
                project.number,
                export_type="JSON",
                download_all_tasks=False,
                # The SDK's own parameter `ids` has no effect.
                request_options={"additional_query_parameters": {"ids[]": numbers}},
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
        """List the folders whose files the project may show."""
        with self._translate("listing the folders of the project"):
            return [str(storage.path) for storage in self._sdk.import_storage.local.list(project=project.number)]

    def add_local_storage(self, project: Project, folder: str) -> None:
        """Allow the project to show the files of a folder; nothing is imported from it."""
        with self._translate(f"allowing the folder {folder}"):
            self._sdk.import_storage.local.create(
                project=project.number, path=folder, use_blob_urls=True, title="images of the campaign"
            )

    def list_buckets(self, project: Project) -> list[str]:
        """List the buckets whose objects the project may show."""
        with self._translate("listing the buckets of the project"):
            return [str(storage.bucket) for storage in self._sdk.import_storage.s3.list(project=project.number)]

    def add_s3_storage(self, project: Project, bucket: str) -> None:
        """Allow the project to show the objects of a bucket through Label Studio, without presigned URLs that expire.

        Label Studio uses the AWS_* variables of its own environment. Credentials are not passed on; an endpoint is not
        either, since Label Studio refuses one in a private network.
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
        """Download what a browser gets from an address of this server; None for status 404."""
        with self._translate(f"fetching {address}"):
            headers = self._sdk._client_wrapper.get_headers()  # the SDK has no call for files
            response = self._http_client.get(self.url + address, headers=headers)
            if response.status_code == _NOT_FOUND:
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
    """Yield the items of all pages.

    Raises:
        TypeError: the response is no page; it must not be taken for an empty one.
    """
    if not isinstance(pager.items, list):
        raise TypeError
    yield from pager


def _to_open_task(task: Any) -> OpenTask:
    """Convert a task of the SDK; users with access to the project may have changed its data."""
    data = task.data if isinstance(task.data, dict) else {}
    return OpenTask(
        number=int(task.id),
        image_id=str(data.get("image_id")),
        num_annotations=(task.total_annotations or 0) + (task.cancelled_annotations or 0),
        overlap=task.overlap or 0,
        has_draft=bool(task.draft_exists),
        data=data,
    )


@contextmanager
def translate_errors(url: str, action: str, token: str) -> Iterator[None]:
    """Convert the failures of calls to Label Studio.

    Args:
        url: of the server.
        action: of the calls, for messages, such as ``listing its projects``.
        token: redacted in the server's messages.

    Raises:
        ProviderError: a call failed; ``transient`` where the same call may work in a while.
    """
    where = f"Label Studio at {url}"
    try:
        yield
    except ApiError as error:
        raise _http_error(where, action, error.status_code, _detail(error.body).replace(token, _REDACTED)) from None
    except httpx.HTTPStatusError as error:
        raise _http_error(where, action, error.response.status_code, "") from None
    except httpx.TimeoutException:
        problem = f"the server did not respond in time when {action}"
        raise ProviderError(where, problem, "Check whether the server is overloaded.", transient=True) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        problem = f"the address does not work when {action} ({_redact(error, token)}), expected that of a Label Studio"
        raise ProviderError(where, problem, "Correct provider.url in params.yaml.") from None
    except httpx.HTTPError as error:
        problem = f"the connection failed when {action} ({_redact(error, token)})"
        fix = "Start it, or correct provider.url in params.yaml. No label is lost: the next run collects again."
        raise ProviderError(where, problem, fix, transient=True) from None
    except (ParsingError, AttributeError, LookupError, TypeError, ValueError):  # the SDK builds its models unchecked
        raise invalid_response(url, action) from None


def invalid_response(url: str, action: str) -> ProviderError:
    """Build the error for a response that is not Label Studio's."""
    problem = f"the response when {action} is not that of Label Studio"
    return ProviderError(f"Label Studio at {url}", problem, _CHECK_VERSION)


def _http_error(where: str, action: str, status: int | None, detail: str) -> ProviderError:
    summary = f"status {status}" + (f", {detail}" if detail else "")
    if status == _UNAUTHORIZED:
        fix = f"Set the environment variable {TOKEN} to a valid access token (Account & Settings in Label Studio)."
        return ProviderError(where, f"the token was refused when {action} ({summary}), expected a valid one", fix)
    if status == _FORBIDDEN:
        fix = f"Allow the user of the token in {TOKEN} to manage projects."
        return ProviderError(where, f"access was denied when {action} ({summary})", fix)
    if status == _NOT_FOUND:
        fix = "It may have been deleted just now; the next run tries again."
        return ProviderError(where, f"an object was not found when {action} ({summary})", fix)
    if status is not None and 200 <= status < 300:
        return ProviderError(where, f"the response when {action} is no JSON", _CHECK_VERSION)
    transient = status in _TRANSIENT_STATUS
    fix = "Read the server's log." if transient else _CHECK_VERSION
    return ProviderError(where, f"the server returned an error when {action} ({summary})", fix, transient=transient)


def _detail(body: Any) -> str:
    """The server's own error message, shortened."""
    if not isinstance(body, dict):
        return ""
    message = body.get("validation_errors") or body.get("detail") or ""
    return " ".join(str(message).split())[:_MAX_DETAIL_LENGTH]


def _redact(error: Exception, token: str) -> str:
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return first_line.replace(token, _REDACTED)[:_MAX_DETAIL_LENGTH]
