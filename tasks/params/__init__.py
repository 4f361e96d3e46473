"""``params.yaml`` as one frozen typed object: the only input besides data (DVC could not see a default).

Load only what a stage declares: ``load(path, "seed", "model", "train")``.
"""

import reprlib
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from tasks.params.annotation import AnnotatorModelParams, LabelValidationParams, ProviderParams
from tasks.params.autolabel import AutolabelParams
from tasks.params.base import ClassName, Section
from tasks.params.clip import ClipParams
from tasks.params.promotion import AuditParams, ExportParams, PromotionParams
from tasks.params.stages import (
    AssembleParams,
    BudgetParams,
    DwaParams,
    EvaluateParams,
    InferParams,
    NightlyParams,
    PoolParams,
    PreannotationParams,
    PrepareParams,
    ReportParams,
    ScoringParams,
    SelectParams,
    StoppingParams,
)
from tasks.params.training import AugmentationParams, ModelParams, SslParams, TrainParams
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import ValueNotAllowedError


class Params(Section):
    """All sections of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Seed of every random draw of a round."""
    classes: Annotated[list[ClassName], Field(min_length=1)]
    """Names of the foreground classes, in the order of their indices; each once."""
    model: ModelParams
    pool: PoolParams
    prepare: PrepareParams
    assemble: AssembleParams
    train: TrainParams
    augmentation: AugmentationParams
    ssl: SslParams
    evaluate: EvaluateParams
    infer: InferParams
    scoring: ScoringParams
    dwa: DwaParams
    budget: BudgetParams
    select: SelectParams
    preannotation: PreannotationParams
    report: ReportParams
    label_validation: LabelValidationParams
    stopping: StoppingParams
    nightly: NightlyParams
    provider: ProviderParams
    annotator_model: AnnotatorModelParams
    promotion: PromotionParams
    autolabel: AutolabelParams
    audit: AuditParams
    export: ExportParams
    clip: ClipParams

    @model_validator(mode="after")
    def _check_unique_classes(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes is {self.classes}, expected no name twice")
        return self

    @model_validator(mode="after")
    def _check_unlabeled(self) -> Self:
        if self.train.unlabeled_batch_size == 0:
            self.ssl.require_no_unlabeled("train.unlabeled_batch_size is 0", "ssl.")
        if self.ssl.noise_aware_loss != "none" and not (self.train.unlabeled_batch_size or self.ssl.noise_aware_labels):
            raise ValueError(
                f"ssl.noise_aware_loss is {self.ssl.noise_aware_loss}, expected none where train.unlabeled_batch_size"
                " is 0 and ssl.noise_aware_labels false: no image would be trained with it"
            )
        if self.ssl.source_kl_weight > 0 and self.train.init_from != "previous_round":
            raise ValueError(
                f"ssl.source_kl_weight is {self.ssl.source_kl_weight:g}, expected 0 where train.init_from is"
                f" {self.train.init_from}: no teacher is given that the student could be held near"
            )
        return self

    @model_validator(mode="after")
    def _check_pretraining(self) -> Self:
        is_timm = self.model.architecture == "timm_fpn"
        if self.train.pretrain_iterations and is_timm and self.model.trainable_stages == 0:
            raise ValueError(
                f"train.pretrain_iterations is {self.train.pretrain_iterations}, expected 0 where"
                " model.trainable_stages is 0: a frozen backbone learns nothing"
            )
        return self

    @model_validator(mode="after")
    def _check_committee(self) -> Self:
        if self.select.uses("committee") and self.infer.committee == "none":
            raise ValueError(
                "infer.committee is 'none', expected 'student' or 'previous_teacher' where select wants committee"
            )
        return self

    @model_validator(mode="after")
    def _check_objectness_entropy(self) -> Self:
        is_used = self.select.uses("objectness_entropy") or "objectness_entropy" in self.dwa.weighed_metrics
        if is_used and self.infer.objectness_entropy_frac == 0:
            raise ValueError(
                "infer.objectness_entropy_frac is 0, expected more where select or dwa wants objectness_entropy"
            )
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.infer.backend != "torch" and self.model.architecture != "timm_fpn":
            raise ValueError(
                f"infer.backend is {self.infer.backend}, expected torch where model.architecture is"
                f" {self.model.architecture}: only the graph of timm_fpn has been compared with torch's detections"
            )
        return self


class StageParams:
    """The sections that one stage declared; access to any other raises, so that DVC knows every dependency."""

    def __init__(self, params: Params, names: tuple[str, ...]) -> None:
        self._params = params
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by pickle, before the object has any attribute
            raise AttributeError(name)
        if name not in self._names:
            raise AttributeError(f"params section {name!r} is not declared, only {self._names}")
        return getattr(self._params, name)


def load_params(path: Path) -> Params:
    """Read and check the whole file.

    Raises:
        UserError: missing, not YAML, unknown key, wrong type or a value out of range; names each one.
    """
    return validate_params(read_params_file(path), path)


_MAX_PROBLEMS = 40
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 300
_SHORT.maxlist = _SHORT.maxdict = 20


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias, expected the value itself", mark)
        return super().compose_node(parent, index)


def read_params_file(path: Path) -> object:
    """Parse a file of parameters as YAML.

    Raises:
        UserError: missing, not YAML, or with aliases, by which a few lines can mean gigabytes.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        raise UserError(
            path,
            "the file is missing, expected a parameter file",
            "Run gleaner init, or change to a workspace.",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(path, f"the content is not YAML ({' '.join(str(error).split())}), expected YAML") from None


def validate_params(content: object, source: object) -> Params:
    """Check parsed YAML against the classes of the sections.

    Raises:
        UserError: unknown key, wrong type or a value out of range; names each one.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        texts = [format_validation_error(problem) for problem in problems[:_MAX_PROBLEMS]]
        raise UserError(source, "; ".join([*texts, *more])) from None


def load_stage_params(path: Path, *names: str) -> StageParams:
    """Check the whole file and return the named sections only."""
    return StageParams(load_params(path), names)


def format_validation_error(error: Any) -> str:
    """Format one pydantic error as ``<key> is <value>, expected <allowed>``."""
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{key} is an unknown parameter, expected none of that name"
    if error["type"] == "missing":
        return f"{key} is missing, expected a value"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error.get("ctx", {}).get("error"), ValueNotAllowedError):
        return f"{key} is {_SHORT.repr(error['input'])}, expected {message}"
    if error["type"] == "value_error":
        return f"{key}: {message}"
    expected = message.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} is {_SHORT.repr(error['input'])}, expected {expected}"
