"""Open, hash and measure images on the nodes of a Ray cluster, for stage ``prepare``.

An actor answers with the lines that the cache of this machine would have got (``tasks.data.image_metadata_cache``). The
stage then reads all from the cache: its files have the same bytes whatever the engine, and what is in the cache is not
asked for again. What an actor cannot say for sure, as of a file that its disk does not give, is left to this machine.
"""

import importlib.metadata
import logging
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tasks.data.image_decoding
import tasks.data.images
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_metadata_cache import ImageMetadataCache
from tasks.data.paths import Workspace, resolve_uri
from tasks.model.engines.ray_actors import RayActors, run_pool
from tasks.model.engines.ray_cluster import connected
from tasks.params.stages import InferParams
from tasks.runtime.concurrency import map_threads
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_user_error
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import is_object_uri

log = logging.getLogger(__name__)
PIECE_IMAGES = 512
"""Images between two answers: some ten seconds of a CPU."""
_LIBRARIES = ("pillow", "pillow-heif")


@dataclass(frozen=True)
class ImagePiece:
    """Some images, each with what changes whenever its bytes do."""

    versions: tuple[tuple[str, str], ...]
    """Uri and version."""

    @property
    def name(self) -> str:
        """Digest of the images."""
        return f"images {files.sha256_json(self.versions)[:16]}"

    @property
    def uris(self) -> Sequence[str]:
        """The images."""
        return [uri for uri, _ in self.versions]


@dataclass(frozen=True)
class ImageJob:
    """What every piece has in common."""

    root: Path
    """Folder that uris are relative to, the same on all nodes."""
    max_pixels: int
    """Images with more are refused."""
    num_threads: int
    """Images that an actor opens side by side: one processor for files; objects are waited for."""
    index: tuple[Path, str]
    """A file of the campaign and its sha256: a node that does not see it would find all images missing."""


def inspect_on_ray(
    params: InferParams,
    job: ImageJob,
    images: Sequence[tuple[str, str]],
    found: Callable[[str], None],
) -> None:
    """Inspect images on the nodes of the cluster that ``params`` names.

    Args:
        params: ``engine_*`` of section infer.
        job: what all images have in common.
        images: uri and version of each.
        found: called with the lines for the cache, piece by piece.

    Raises:
        UserError: ray or the cluster is missing, a node has other code or sees other files, or objects are out of
            reach.
        PoolStalledError: the pool got nothing done for as long as is allowed.
    """
    starts = range(0, len(images), PIECE_IMAGES)
    pieces = [ImagePiece(tuple(images[start : start + PIECE_IMAGES])) for start in starts]
    num_done = 0

    def finished(piece: ImagePiece, lines: str) -> None:
        nonlocal num_done
        num_done += 1
        found(lines)
        log.info("prepare piece %d/%d: %d images", num_done, len(pieces), len(piece.versions))

    with connected(params.engine_address) as ray:
        actors = RayActors(
            ray, ImageActor, (job,),
            fingerprint=reading_fingerprint(), uses_gpus=False, cpus_per_worker=params.engine_cpus_per_worker,
            num_threads=1,
        )  # fmt: skip
        log.info("prepare on Ray: %s, %d pieces", actors.describe(), len(pieces))
        run_pool(params, actors, pieces, finished)


def reading_fingerprint() -> str:
    """Return the digest of the software that decides what is found out about an image."""
    modules = [Path(str(module.__file__)) for module in (tasks.data.images, tasks.data.image_decoding)]
    versions = {}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return files.sha256_json([[files.sha256_file(module) for module in modules], versions])


class ImageActor:
    """The process of a worker; Ray makes it an actor."""

    def __init__(self, job: ImageJob) -> None:
        self._job = job

    def load(self, fingerprint: str) -> str:
        """Check that this node would find the same as the driver; return where it is.

        Raises:
            UserError: it has other code or sees another folder.
        """
        name, (path, sha256) = socket.gethostname(), self._job.index
        if not path.is_file() or files.sha256_file(path) != sha256:
            raise UserError(
                path,
                f"the file on node {name} is missing or another one, expected the same folder on all nodes",
                "Put the campaign on a folder that all nodes share, at the same path.",
            )
        if reading_fingerprint() != fingerprint:
            raise UserError(
                "infer.engine",
                f"the code or the libraries of node {name} are others, expected those of this machine",
                "Use the same image on all nodes.",
            )
        return name

    def work(self, piece: ImagePiece) -> str:
        """Inspect the images; return the lines for the cache, none for an image that cannot be judged here.

        Raises:
            ObjectStoreError: away or refused.
        """
        with tempfile.TemporaryDirectory(prefix="gleaner-images-") as folder:
            path = Path(folder) / "found.jsonl"
            cache = ImageMetadataCache(path, self._local_file)

            def inspect(image: tuple[str, str]) -> None:
                with suppress(ImageProblem):
                    cache.inspect(*image, max_pixels=self._job.max_pixels)

            try:
                deque(map_threads(inspect, piece.versions, num_workers=self._job.num_threads), maxlen=0)
            except Exception as error:
                user_error = as_user_error("prepare", error)
                if user_error is None or user_error is error:
                    raise
                raise user_error from None
            return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _local_file(self, uri: str) -> Path:
        if is_object_uri(uri):
            return image_cache(Workspace(self._job.root)).add(uri)[0]
        return resolve_uri(self._job.root, uri)
