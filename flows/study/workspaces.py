"""Create the campaigns of a study: one base per seed, and from it one workspace per arm, all with one DVC cache.

An arm is a campaign of its own with its own first commit, so that MLflow, ledgers and tags never mix; what DVC
has computed for one arm its run cache gives to the next.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flows.workspace import dvc, git
from flows.workspace.dvc import packaged_file
from flows.workspace.run_lock import is_workspace
from flows.workspace.scaffold import WorkspaceConfig, create_workspace
from tasks.data.annotations import read_annotated
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.paths import Workspace
from tasks.data.schemas import LabelBatch, LabeledImage
from tasks.data.seed_draw import SeedSize
from tasks.demo import DIGITS_PARAMS_FILE, generate_dataset, load_digits_params
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.study.label_noise import plant_wrong_classes
from tasks.study.plan import StudyConfig, StudySource, arm_params, render_arm_params

FULL_LABELS = "full"
_CACHE_DIR = "../../../cache"
"""From ``campaigns/<name>/.dvc``: the study's folder can be moved as a whole."""
_CREATED_AT = "2026-01-01T00:00:00+00:00"  # a fixed time: the same files and seed give the same bytes
_NOT_COPIED = {".git", ".gleaner", ".prefect", "derived", "data/images", ".dvc/tmp", ".dvc/cache"}


@dataclass(frozen=True)
class Study:
    """A study on disk."""

    plan: StudyConfig
    data: Path
    """Folder that the source's paths are relative to."""
    out: Path
    """Campaigns, the shared cache and results: can be made again from the data and the parts."""
    parts: Path
    """Folder of the parts, small files to be committed (``flows.study.parts``)."""

    def workspace(self, seed: int, name: str) -> Workspace:
        """Return the workspace of an arm, of ``base`` or of ``full``."""
        return Workspace(self.out / "campaigns" / f"seed-{seed}-{name}")

    def base_workspace(self, seed: int) -> Workspace:
        """Return the workspace that all arms of a seed start from; no round is run in it."""
        return self.workspace(seed, "base")

    @property
    def cache_lock(self) -> Path:
        """Held while images go into the shared DVC cache: seeds begin together, and with the same images.

        DVC does not bear two that put the same file there. For the first file of a transfer it tries a reflink: it
        truncates the target, and removes it where the file system has none, whoever has put it there in between.
        """
        return self.out / "locks" / "cache"

    @property
    def results(self) -> Path:
        """Return the folder of results for readers."""
        return self.out / "results"


def create_base_workspace(study: Study, seed: int) -> Workspace:
    """The seed's base; one that is there is kept if it is of the same plan.

    Raises:
        UserError: the source is unusable, or the base there has other numbers of images.
    """
    base = study.base_workspace(seed)
    if is_workspace(base.root):
        _require_same_sizes(base, study.plan)
        return base
    plan = study.plan
    with _open_source(plan.source, study.data) as source:
        config = WorkspaceConfig(
            source=source,
            seed_labels=plan.seed_size,
            calibration_images=plan.calibration_images,
            val_frac=plan.source.val_frac,
            oracle=True,
            overrides=(*plan.settings, f"seed={seed}"),
            imported_at=_CREATED_AT,
        )
        with FileLock(study.cache_lock):
            create_workspace(base.root, config, _CACHE_DIR)
    return base


def create_arm_workspace(study: Study, seed: int, arm: str) -> Workspace:
    """The arm's workspace; one that is there is kept if it has the same parameters.

    Raises:
        UserError: it has others.
    """
    base = study.base_workspace(seed)
    classes = load_params(base.params).classes
    text = arm_params(study.plan, arm, seed, _params_template(), classes)
    message = f"Start arm {arm} of study {study.plan.name}, seed {seed}"
    wrong_frac = study.plan.wrong_classes.get(arm)
    if wrong_frac is None:
        return _build_from_base(base, study.workspace(seed, arm), text, message)
    return _build_from_base(
        base,
        study.workspace(seed, arm),
        text,
        message,
        lambda made: _use_wrong_classes(made, classes, wrong_frac, seed),
    )


def create_full_labels_workspace(study: Study, seed: int) -> Workspace:
    """Create a workspace whose seed batch has every label."""
    base = study.base_workspace(seed)
    classes = load_params(base.params).classes
    text = render_arm_params(study.plan, study.plan.full or (), seed, _params_template(), classes, FULL_LABELS)
    message = f"Start the training on all labels of study {study.plan.name}, seed {seed}"
    return _build_from_base(
        base, study.workspace(seed, FULL_LABELS), text, message, lambda made: _use_all_labels(made, classes)
    )


def _params_template() -> str:
    return packaged_file("params.yaml").read_text("utf-8")


def _build_from_base(
    base: Workspace, target: Workspace, params: str, message: str, change: Callable[[Workspace], None] | None = None
) -> Workspace:
    """Build in a hidden folder beside the target and rename it at the end, so that a kill leaves no half workspace."""
    if is_workspace(target.root):
        _require_same_params(target, params)
        return target
    staging = Workspace(target.root.with_name(f".{target.root.name}.tmp"))
    shutil.rmtree(staging.root, ignore_errors=True)
    shutil.copytree(base.root, staging.root, ignore=_ignore_not_copied(base.root))
    files.write_bytes(staging.params, params.encode())
    if change is not None:
        change(staging)
    git.init_repository(staging.root)
    dvc.run_dvc(staging.root, "checkout", "data/images.dvc")  # linked to the shared cache
    git.commit(staging, message)
    staging.root.rename(target.root)
    return target


def _ignore_not_copied(root: Path) -> Callable[[str, list[str]], list[str]]:
    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(folder) / name).relative_to(root).as_posix() in _NOT_COPIED]

    return ignored


def _use_all_labels(workspace: Workspace, classes: Sequence[str]) -> None:
    path = workspace.label_batch(0)
    seed_batch = LabelBatch.model_validate(files.read_json(path))
    oracle_labels = [
        LabeledImage(
            image_id=image.image_id,
            status="empty" if image.is_empty else "labeled",
            boxes=image.boxes,
            crowd_regions=image.crowd_regions,
            annotator="imported",
            finished_at=_CREATED_AT,
            seconds_spent=None,
            offered_batch=0,
        )
        for image in read_annotated(workspace.oracle, classes)
    ]
    images = tuple(sorted((*seed_batch.images, *oracle_labels), key=lambda image: image.image_id))
    files.write_json(path, seed_batch.model_copy(update={"images": images}).model_dump(mode="json"))


def _use_wrong_classes(workspace: Workspace, classes: Sequence[str], frac: float, seed: int) -> None:
    path = workspace.label_batch(0)
    seed_batch = LabelBatch.model_validate(files.read_json(path))
    files.write_json(path, plant_wrong_classes(seed_batch, classes, frac, seed).model_dump(mode="json"))


@contextmanager
def _open_source(source: StudySource, data: Path) -> Iterator[DatasetSource]:
    """The images on disk. A study's data are labeled to the end: listed without boxes means that nothing is there."""
    policy = ImportPolicy(unannotated="empty")
    if source.kind != "demo":
        assert source.annotations is not None
        assert source.images is not None
        val = None if source.val is None else data / source.val
        val_images = None if source.val_images is None else data / source.val_images
        annotations, images = data / source.annotations, data / source.images
        yield DatasetSource(source.kind, annotations, images, val, val_images, policy=policy)
        return
    params = load_params(packaged_file("params.yaml"))
    digits = load_digits_params(packaged_file(DIGITS_PARAMS_FILE))
    with tempfile.TemporaryDirectory(prefix="gleaner-study-") as folder:
        demo_folder = Path(folder)
        generate_dataset(demo_folder, params=digits, classes=params.classes, seed=params.seed)
        yield DatasetSource(
            "coco",
            demo_folder / "annotations.json",
            demo_folder / "images",
            demo_folder / "val.json",
            classes=tuple(params.classes),
            policy=policy,
        )


def _require_same_sizes(base: Workspace, plan: StudyConfig) -> None:
    counts = files.read_json(base.import_report)["counts"]
    for key, count, expected in (
        ("seed_labels", counts.get("seed_rule", counts["seed_images"]), _stated(plan.seed_size)),
        ("calibration_images", counts["calibration_images"], plan.calibration_images),
    ):
        if count != expected:
            raise UserError(
                base.root, f"{key} is {count}, expected {expected} as in the study file", _other_folder_hint(base)
            )


def _stated(size: SeedSize) -> int | str:
    """The size as the report of an import states it."""
    return size if isinstance(size, int) else str(size)


def _require_same_params(workspace: Workspace, text: str) -> None:
    if workspace.params.read_text("utf-8") != text:
        problem = "the parameters are others than the study file now says, expected the same"
        raise UserError(workspace.params, problem, _other_folder_hint(workspace))


def _other_folder_hint(workspace: Workspace) -> str:
    return f"Name another folder with --out, or remove {workspace.root.name} to run it anew."
