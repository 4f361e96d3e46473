"""``examples/digits/params.yaml``: how many demo images are drawn."""

from pathlib import Path

from pydantic import ValidationError

from tasks.params import format_validation_error, read_params_file
from tasks.params.base import NonNegativeInt, PositiveInt, Section
from tasks.runtime.errors import UserError

DIGITS_PARAMS_FILE = "examples/digits/params.yaml"
"""Relative to the repository's root; a wheel brings the file along."""


class DigitsParams(Section):
    """Sizes of the demo data set."""

    pool_images: PositiveInt
    """Drawn images before seed and calibration are taken out."""
    val_images: PositiveInt
    seed_images: PositiveInt
    calibration_images: NonNegativeInt


def load_digits_params(path: Path) -> DigitsParams:
    """Read and check the file.

    Raises:
        UserError: missing, not YAML, unknown key, wrong type or a value out of range; names each one.
    """
    try:
        return DigitsParams.model_validate(read_params_file(path))
    except ValidationError as error:
        raise UserError(path, "; ".join(format_validation_error(problem) for problem in error.errors())) from None
