"""A study file: arms x paired seeds x rounds on data whose labels are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from tasks.data.seed_draw import BoxesPerClass, ImagePercent, SeedSize
from tasks.params import Params, format_validation_error, validate_params
from tasks.params.base import NonNegativeInt, PositiveInt, Section
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files

RANDOM, EQUAL = "random", "equal"
_REQUIRED_ARMS: dict[str, list[str]] = {
    RANDOM: ["select.strategy=random", "dwa.class_weight_max=1.0"],
    EQUAL: ["dwa.mode=equal", "dwa.class_weight_max=1.0"],
}
"""docs/method.md#claims: a gain is claimed only against these, in the same study; with class weights of 1."""
_PLACEHOLDER_CLASSES = ("object",)

ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")]
Settings = list[str]
"""``section.key=value`` each, as in ``gleaner init --set``."""


class StudySource(Section):
    """Where the images and their true boxes come from; paths are relative to the study file, or to ``--data``."""

    kind: Literal["demo", "coco", "voc"]
    images: str | None = None
    annotations: str | None = None
    val: str | None = None
    """The fixed validation set, as in ``gleaner init --val``; None: drawn anew for every seed."""
    val_images: str | None = None
    """Folder of the validation images where they are not in ``images``."""
    val_frac: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        provided = [name for name in ("images", "annotations", "val", "val_images") if getattr(self, name) is not None]
        if self.kind == "demo" and provided:
            raise ValueError(f"{provided[0]} is given, expected none with kind demo")
        if self.kind != "demo" and not {"images", "annotations"} <= set(provided):
            raise ValueError(f"paths given are {provided}, expected images and annotations with kind {self.kind}")
        return self


class SeedRule(Section):
    """How many seed labels, where it is no number of images: one of the two."""

    per_class: PositiveInt | None = None
    """Whole images until every class has at least so many boxes: few-shot learning (``{per_class: 5}``)."""
    percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """Share of the annotated images that are neither validation nor calibration (``{percent: 2}``)."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.per_class is None) == (self.percent is None):
            raise ValueError(f"per_class is {self.per_class} and percent is {self.percent}, expected one of them")
        return self


class StudyConfig(Section):
    """The whole file. ``random`` and ``equal`` are arms of every study of selections, named in the file or not."""

    name: ArmName
    source: StudySource
    question: Literal["selection", "ranking"] = "selection"
    """``selection``: what is gained by choosing images, for which ``random`` and ``equal`` are obligatory. ``ranking``:
    how well each rule ranks the pool by the teacher's mistakes, which one arm with random labels answers; it makes no
    comparison of mAP."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    """Each draws its own seed labels, calibration and, if need be, validation images, the same for all arms."""
    rounds: NonNegativeInt
    """Label batches asked for after the seed labels; 0: arms differ only in how they learn from those."""
    model: Literal["best", "teacher", "student"] = "best"
    """Whose mAP on the validation set a round counts: the better of teacher and student, or always the same one."""
    trainings_per_point: PositiveInt = 1
    """Trainings of a round on the same labels, with seeds of their own; their mean mAP counts. Only the first selects
    images, so that more of them make a point surer and change nothing else."""
    seed_labels: PositiveInt | SeedRule
    """Images of the seed batch, the same for all arms of a seed: their number, or a rule."""
    calibration_images: NonNegativeInt
    settings: Settings = Field(default_factory=list)
    """Of all arms; an arm's own come after them."""
    arms: dict[ArmName, Settings]
    baselines: list[ArmName] = Field(default_factory=list)
    """Arms that all others are compared with, besides ``random`` and ``equal``."""
    wrong_classes: dict[ArmName, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Arms in whose seed labels a share of the boxes has another class, and that share: what a learner makes of wrong
    labels. Arms of one seed and one share have the same wrong boxes. Validation images stay as they are."""
    full: Settings | None = None
    """Train once per seed on all labels, with these settings besides the common ones; None: do not."""
    added: list[ArmName] = Field(default_factory=list)
    """Filled in here, never in a file: obligatory arms that the file left out."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}, expected no seed twice")
        for name in self.baselines:
            if name not in self.arms and name not in _REQUIRED_ARMS:
                raise ValueError(f"baselines names {name!r}, expected one of the arms {list(self.arms)}")
        for name in self.wrong_classes:
            if name not in self.arms and name not in _REQUIRED_ARMS:
                raise ValueError(f"wrong_classes names {name!r}, expected one of the arms {list(self.arms)}")
        if self.wrong_classes and self.rounds:
            raise ValueError(
                f"rounds is {self.rounds}, expected 0 with wrong_classes: labels of later batches come from the source"
            )
        return self

    @property
    def seed_size(self) -> SeedSize:
        """What is drawn for the seed batch."""
        if isinstance(self.seed_labels, int):
            return self.seed_labels
        if self.seed_labels.per_class is not None:
            return BoxesPerClass(self.seed_labels.per_class)
        assert self.seed_labels.percent is not None
        return ImagePercent(self.seed_labels.percent)

    @property
    def all_baselines(self) -> list[str]:
        """Arms the others are held against."""
        required = list(_REQUIRED_ARMS) if self.question == "selection" else []
        return list(dict.fromkeys([*required, *self.baselines]))


def load_study(path: Path, template_text: str, *, own_data_settings: Sequence[str]) -> StudyConfig:
    """Read and check the file, and every arm's parameters with it.

    Args:
        path: the study file.
        template_text: the repository's params.yaml.
        own_data_settings: what ``gleaner init`` sets for data other than the demo's.

    Raises:
        UserError: missing, not YAML, or a value that is not allowed; names each one.
    """
    config = _validate(_read(path), path)
    if config.source.kind != "demo":
        config = config.model_copy(update={"settings": [*own_data_settings, *config.settings]})
    required = list(_REQUIRED_ARMS) if config.question == "selection" else []
    added = [name for name in required if name not in config.arms]
    arms = {name: _REQUIRED_ARMS[name] for name in added} | config.arms
    config = config.model_copy(update={"arms": arms, "added": added})
    for name in arms:
        _check_arm(config, name, template_text, path)
    if config.full is not None:
        render_arm_params(config, config.full, config.seeds[0], template_text, _PLACEHOLDER_CLASSES, f"{path}: full")
    return config


def arm_params(config: StudyConfig, arm: str, seed: int, template_text: str, classes: Sequence[str]) -> str:
    """``params.yaml`` of one arm."""
    return render_arm_params(config, config.arms[arm], seed, template_text, classes, f"arms.{arm}")


def render_arm_params(
    config: StudyConfig, arm_settings: Sequence[str], seed: int, template_text: str, classes: Sequence[str], where: str
) -> str:
    """``params.yaml`` with the common settings and some of one's own.

    Raises:
        UserError: a setting is unknown or its value not allowed; ``where`` says in which arm.
    """
    overrides = [*config.settings, *arm_settings, f"seed={seed}"]
    try:
        return render_params(template_text, classes=classes, overrides=overrides)
    except UserError as error:
        raise UserError(where, error.problem, error.fix) from None


def _read(path: Path) -> object:
    try:
        return files.parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(path, "the file is missing, expected a study file", "docs/studies holds two.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(path, f"the content is not YAML ({' '.join(str(error).split())}), expected YAML") from None


def _validate(content: object, path: Path) -> StudyConfig:
    if isinstance(content, dict) and "added" in content:
        raise UserError(path, "added is an unknown parameter, expected none of that name")
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(path, "; ".join(format_validation_error(problem) for problem in error.errors())) from None


def _check_arm(config: StudyConfig, arm: str, template_text: str, path: Path) -> None:
    where = f"{path}: arms.{arm}"
    text = render_arm_params(config, config.arms[arm], config.seeds[0], template_text, _PLACEHOLDER_CLASSES, where)
    params: Params = validate_params(files.parse_yaml(text), where)
    fix = "It is the arm that the others are compared with: give another name to what differs from it."
    if arm == RANDOM and params.select.strategy != "random":
        raise UserError(where, f"select.strategy is {params.select.strategy!r}, expected 'random'", fix)
    if arm == EQUAL and (params.dwa.mode, params.select.strategy) != ("equal", "uncertainty"):
        found = f"dwa.mode is {params.dwa.mode!r} and select.strategy is {params.select.strategy!r}"
        raise UserError(where, f"{found}, expected 'equal' and 'uncertainty'", fix)
