"""Where Label Studio finds the pictures of a campaign, and its leave to show them. No address expires."""

import hashlib
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from flows.labels.providers.base import ProviderError
from flows.labels.providers.label_studio.server import Project, Server
from tasks import files
from tasks.contracts import HandoffTask
from tasks.errors import UserError
from tasks.paths import Workspace, resolve_uri

_SERVED = "/data/local-files/?d="


class Images:
    """The pictures of one workspace, as a Label Studio on the same file system sees them."""

    def __init__(self, workspace: Workspace, files_root: str) -> None:
        """``files_root``: what Label Studio serves local files from; absolute, or relative to the workspace."""
        self._root = workspace.root.resolve()
        self._served = (self._root / files_root).resolve()
        self._folder = workspace.images.resolve()

    def check(self) -> None:
        """Refuse a workspace whose images Label Studio cannot reach.

        Raises:
            UserError: they are not below the served folder.
        """
        if not self._root.is_relative_to(self._served):
            problem = f"provider.files_root is {self._served}, expected a folder above {self._root}"
            raise UserError("params.yaml", problem, "Name the folder that Label Studio serves, such as '..'.")

    def address(self, task: HandoffTask) -> str:
        """The task's ``image``: an s3 uri as it stands, or a path that Label Studio serves."""
        if _is_s3(task):
            return task.uri
        return _SERVED + quote((self._root / task.uri).relative_to(self._served).as_posix())

    def sha256(self, task: HandoffTask) -> str | None:
        """Of the bytes an annotator is going to see; None for objects, which are not read for this.

        Raises:
            UserError: the file is gone.
        """
        if _is_s3(task):
            return None
        path = resolve_uri(self._root, task.uri)
        try:
            return files.sha256_file(path)
        except OSError as error:
            raise UserError(
                path, f"the image cannot be read ({error.strerror}), expected it", "Run: dvc checkout"
            ) from None

    def make_visible(self, server: Server, project: Project, tasks: Iterable[HandoffTask]) -> None:
        """Give the project leave to show the images, and look whether one of them really comes.

        Raises:
            UserError: as ``check``, or an image is gone.
            ProviderError: Label Studio does not serve it, or serves another file of that name.
        """
        tasks = list(tasks)
        buckets = {urlsplit(task.uri).netloc for task in tasks if _is_s3(task)}
        for bucket in sorted(buckets - set(server.buckets(project)) if buckets else ()):
            server.allow_bucket(project, bucket)
        if local := [task for task in tasks if not _is_s3(task)]:
            self.check()
            if str(self._folder) not in server.local_folders(project):
                self._allow(server, project)
            self._look_at(local[0], server)

    def _allow(self, server: Server, project: Project) -> None:
        try:
            server.allow_local_folder(project, str(self._folder))
        except ProviderError as error:
            if error.transient:
                raise
            raise ProviderError(error.where, error.problem, self._how_to_serve()) from None

    def _look_at(self, task: HandoffTask, server: Server) -> None:
        expected = self.sha256(task)
        content = server.file(self.address(task))
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            said = "not found" if content is None else "another file"
            problem = f"the image {task.uri} is {said} there, expected the one of this workspace"
            raise ProviderError(f"Label Studio at {server.url}", problem, self._how_to_serve())

    def _how_to_serve(self) -> str:
        return (
            f"Start it on this machine with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={self._served}, or set provider.files_root in params.yaml."
        )


def _is_s3(task: HandoffTask) -> bool:
    return task.uri.startswith("s3://")
