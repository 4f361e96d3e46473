"""Give Label Studio access to the images of a campaign, by addresses that do not expire."""

import hashlib
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.label_studio.client import LabelStudioClient, Project
from tasks.data.paths import Workspace, resolve_uri
from tasks.data.schemas import AnnotationTask
from tasks.runtime.errors import UserError
from tasks.storage import files

_LOCAL_FILES_URL = "/data/local-files/?d="


class TaskImages:
    """The images of one workspace, as a Label Studio on the same file system serves them."""

    def __init__(self, workspace: Workspace, local_files_root: str) -> None:
        """Resolve ``local_files_root``, the folder that Label Studio serves; absolute, or relative to the workspace."""
        self._root = workspace.root.resolve()
        self._document_root = (self._root / local_files_root).resolve()
        self._images_folder = workspace.images.resolve()

    def check(self) -> None:
        """Refuse a workspace whose images Label Studio cannot serve.

        Raises:
            UserError: they are not below the served folder.
        """
        if not self._root.is_relative_to(self._document_root):
            problem = f"provider.local_files_root is {self._document_root}, expected a folder above {self._root}"
            raise UserError("params.yaml", problem, "Set it to the folder that Label Studio serves, such as '..'.")

    def url(self, task: AnnotationTask) -> str:
        """Return ``image`` of the task: the s3 uri, or a path that Label Studio serves."""
        if _is_s3(task):
            return task.uri
        return _LOCAL_FILES_URL + quote((self._root / task.uri).relative_to(self._document_root).as_posix())

    def sha256(self, task: AnnotationTask) -> str | None:
        """Return the digest of the image's bytes; None for images in an object store, which are not read.

        Raises:
            UserError: the file cannot be read.
        """
        if _is_s3(task):
            return None
        path = resolve_uri(self._root, task.uri)
        try:
            return files.sha256_file(path)
        except OSError as error:
            raise UserError(path, f"the image cannot be read ({error.strerror})", "Run: dvc checkout") from None

    def grant_access(self, client: LabelStudioClient, project: Project, tasks: Iterable[AnnotationTask]) -> None:
        """Allow the project to show the images, and verify that one of them is served.

        Raises:
            UserError: as ``check``, or the image cannot be read.
            ProviderError: Label Studio does not serve the image, or serves another file of that name.
        """
        tasks = list(tasks)
        buckets = {urlsplit(task.uri).netloc for task in tasks if _is_s3(task)}
        for bucket in sorted(buckets - set(client.list_buckets(project)) if buckets else ()):
            client.add_s3_storage(project, bucket)
        if local_tasks := [task for task in tasks if not _is_s3(task)]:
            self.check()
            if str(self._images_folder) not in client.list_local_folders(project):
                self._create_storage(client, project)
            self._verify(local_tasks[0], client)

    def _create_storage(self, client: LabelStudioClient, project: Project) -> None:
        try:
            client.add_local_storage(project, str(self._images_folder))
        except ProviderError as error:
            if error.transient:
                raise
            raise ProviderError(error.where, error.problem, self._help_text()) from None

    def _verify(self, task: AnnotationTask, client: LabelStudioClient) -> None:
        expected = self.sha256(task)
        content = client.fetch_file(self.url(task))
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            found = "not served" if content is None else "another file there"
            problem = f"the image {task.uri} is {found}, expected the one of this workspace"
            raise ProviderError(f"Label Studio at {client.url}", problem, self._help_text())

    def _help_text(self) -> str:
        return (
            "Start Label Studio on this machine with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={self._document_root}, or set provider.local_files_root in "
            "params.yaml."
        )


def _is_s3(task: AnnotationTask) -> bool:
    return task.uri.startswith("s3://")
