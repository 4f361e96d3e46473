"""Formats of a detector without torch, and the packages that they need."""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Literal

from tasks.runtime.errors import UserError

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "int8"]
RUNTIME_PACKAGES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


def needed_packages(export_format: Format, precision: Precision) -> list[str]:
    """Name the packages that write and run a format: torch writes ONNX with the first, onnxruntime rounds to int8."""
    quantized_by = ["onnxruntime"] if precision == "int8" else []
    return list(dict.fromkeys(["onnx", RUNTIME_PACKAGES[export_format], *quantized_by]))


def missing_packages(names: Sequence[str]) -> list[str]:
    """Name those that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(export_format: Format, precision: Precision, where: str = "gleaner export") -> None:
    """Check that what a format needs is installed.

    Raises:
        UserError: it is not.
    """
    for name in missing_packages(needed_packages(export_format, precision)):
        raise UserError(where, f"the package {name} is not installed", "Run: pip install 'gleaner[export]'")


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the versions of packages by name; None: not installed."""
    missing = missing_packages(names)
    return {name: None if name in missing else importlib.metadata.version(name) for name in names}
