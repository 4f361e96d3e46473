"""Give Label Studio access to the images of a campaign, by addresses that do not expire.

What a browser does not show as the model sees it (TIFF, HEIC, CMYK, animations, a PNG turned by EXIF, ...) is converted
to PNG. The copies have the same size in pixels, so boxes fit; they are made again where they were deleted.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.label_studio.client import LabelStudioClient, Project
from tasks.data.image_source import ImageSource
from tasks.data.images import ImageProblem, encode_png, is_shown_by_browsers
from tasks.data.paths import Workspace, resolve_uri
from tasks.data.schemas import AnnotationTask
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.s3 import is_object_uri

_LOCAL_FILES_URL = "/data/local-files/?d="
_NOT_SHOWN_ENDINGS = frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"})
"""Objects of a store are fetched only where their ending says that browsers may not show them."""


class TaskImages:
    """The images of one workspace, as a Label Studio on the same file system serves them."""

    def __init__(self, workspace: Workspace, local_files_root: str) -> None:
        """Resolve ``local_files_root``, the folder that Label Studio serves; absolute, or relative to the workspace."""
        self._root = workspace.root.resolve()
        self._document_root = (self._root / local_files_root).resolve()
        self._images_folder = workspace.images.resolve()
        self._converted_folder = self._root / workspace.scratch("label_studio").relative_to(workspace.root)
        self._source = ImageSource(self._root)
        self._served_files: dict[str, Path | None] = {}

    def check(self) -> None:
        """Refuse a workspace whose images Label Studio cannot serve.

        Raises:
            UserError: they are not below the served folder.
        """
        if not self._root.is_relative_to(self._document_root):
            problem = f"provider.local_files_root is {self._document_root}, expected a folder above {self._root}"
            raise UserError("params.yaml", problem, "Set it to the folder that Label Studio serves, such as '..'.")

    def url(self, task: AnnotationTask) -> str:
        """Return ``image`` of the task: the s3 uri, or a path that Label Studio serves.

        Raises:
            UserError: the image cannot be read.
        """
        served = self.served_file(task)
        if served is None:
            return task.uri
        return _LOCAL_FILES_URL + quote(served.relative_to(self._document_root).as_posix())

    def served_file(self, task: AnnotationTask) -> Path | None:
        """Return the local file that annotators see, converted where browsers need that; None: an object as it is.

        Raises:
            UserError: the image cannot be read.
        """
        if task.image_id not in self._served_files:
            self._served_files[task.image_id] = self._prepare_file(task)
        return self._served_files[task.image_id]

    def restore_converted(self, tasks: Iterable[AnnotationTask]) -> None:
        """Make the converted copies again that open tasks refer to and that were deleted.

        Raises:
            UserError: an image cannot be read.
        """
        for task in tasks:
            self.served_file(task)

    def sha256(self, task: AnnotationTask) -> str | None:
        """Return the digest of the image's own bytes; None for images in an object store, which are not read.

        Raises:
            UserError: the file cannot be read.
        """
        if is_object_uri(task.uri):
            return None
        return self._digest(resolve_uri(self._root, task.uri))

    def grant_access(self, client: LabelStudioClient, project: Project, tasks: Iterable[AnnotationTask]) -> None:
        """Allow the project to show the images, and verify that one of each folder is served.

        Raises:
            UserError: as ``check``, or an image cannot be read.
            ProviderError: Label Studio does not serve an image, or serves another file of that name.
        """
        served = [(task, self.served_file(task)) for task in tasks]
        buckets = {urlsplit(task.uri).netloc for task, path in served if path is None}
        for bucket in sorted(buckets - set(client.list_buckets(project)) if buckets else ()):
            client.add_s3_storage(project, bucket)
        first_in: dict[Path, tuple[AnnotationTask, Path]] = {}
        for task, path in served:
            if path is not None:
                first_in.setdefault(self._folder(path), (task, path))
        if not first_in:
            return
        self.check()
        allowed = client.list_local_folders(project)
        for folder, (task, path) in first_in.items():
            if str(folder) not in allowed:
                self._create_storage(client, project, folder)
            self._verify(task, path, client)

    def _prepare_file(self, task: AnnotationTask) -> Path | None:
        is_object = is_object_uri(task.uri)
        if is_object and PurePosixPath(urlsplit(task.uri).path).suffix.lower() not in _NOT_SHOWN_ENDINGS:
            return None
        converted = self._converted_folder / f"{task.image_id}.png"
        if converted.is_file():  # written at once, and the name is the digest
            return converted
        try:
            if self._source.open(task.uri, task.image_id, is_shown_by_browsers):
                return None if is_object else resolve_uri(self._root, task.uri)
            files.write_bytes(converted, self._source.open(task.uri, task.image_id, encode_png))
        except ImageProblem as problem:
            raise UserError(task.uri, str(problem), "Run: dvc repro prepare") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(task.uri, f"the image cannot be read ({reason})", "Run: dvc checkout") from None
        return converted

    def _folder(self, path: Path) -> Path:
        return self._converted_folder if path.is_relative_to(self._converted_folder) else self._images_folder

    def _digest(self, path: Path) -> str:
        try:
            return files.sha256_file(path)
        except OSError as error:
            raise UserError(path, f"the image cannot be read ({error.strerror})", "Run: dvc checkout") from None

    def _create_storage(self, client: LabelStudioClient, project: Project, folder: Path) -> None:
        try:
            client.add_local_storage(project, str(folder))
        except ProviderError as error:
            if error.transient:
                raise
            raise ProviderError(error.where, error.problem, self._help_text()) from None

    def _verify(self, task: AnnotationTask, path: Path, client: LabelStudioClient) -> None:
        expected = self._digest(path)
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
