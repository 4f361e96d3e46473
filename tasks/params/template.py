"""A campaign's own ``params.yaml``, made from the repository's with its comments."""

import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tasks.params import validate_params
from tasks.runtime.errors import UserError
from tasks.storage import files

_OVERRIDES_SOURCE = "--set"
_PLAIN_SCALAR = re.compile(r"[A-Za-z_][\w./-]*(?: [\w./-]+)*", re.ASCII)


def render_params(template_text: str, *, classes: Sequence[str], overrides: Sequence[str]) -> str:
    """Fill in the template.

    Args:
        template_text: the repository's ``params.yaml``.
        classes: class names of the campaign, in the order of their indices.
        overrides: ``section.key=value`` each, value in YAML; of two for one parameter the later one holds.

    Returns:
        The new file's text; ``load_params`` accepts it.

    Raises:
        UserError: an override without ``=``, of an unknown parameter, or with a value that is not allowed.
    """
    round_trip = _round_trip()
    document: CommentedMap = round_trip.load(template_text)
    document["classes"][:] = [
        _quote_if_ambiguous(name) for name in classes
    ]  # in place: the blank line after it hangs on it
    for override in overrides:
        _apply_override(document, override)
    stream = io.StringIO()
    round_trip.dump(document, stream)
    text = stream.getvalue()
    validate_params(files.parse_yaml(text), _OVERRIDES_SOURCE if overrides else "params.yaml")
    return text


def _round_trip() -> YAML:
    round_trip = YAML()
    round_trip.width = 4096  # no line of the template is folded
    round_trip.Representer = _Representer
    return round_trip


class _Representer(RoundTripRepresenter):
    """Writes small floats as ``1.0e-05``: the stages' YAML reader takes ``1e-05`` for a text."""


def _represent_float(representer: RoundTripRepresenter, value: float) -> Any:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(float, _represent_float)


def _apply_override(document: CommentedMap, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(_OVERRIDES_SOURCE, f"the override is {override!r}, expected section.key=value")
    if key == "classes":
        raise UserError(_OVERRIDES_SOURCE, "classes comes from the annotations, expected another parameter here")
    node, last = _find_key(document, key)
    value = _parse_value(key, text)
    is_parameter = "." in key and isinstance(value, dict)  # a parameter that is a map, as select.objectives is
    if isinstance(node[last], dict) and not is_parameter:
        raise UserError(
            _OVERRIDES_SOURCE, f"{key} is a section, expected one of its parameters: {', '.join(node[last])}"
        )
    node[last] = value


def _find_key(document: CommentedMap, key: str) -> tuple[dict[str, Any], str]:
    """Return the map that holds the parameter, and the parameter's name in it."""
    node: Any = document
    *path, last = key.split(".")
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        close = difflib.get_close_matches(key, _parameter_names(document), n=1)
        raise UserError(
            _OVERRIDES_SOURCE, f"{key} is an unknown parameter, expected one of params.yaml", _suggestion(close)
        )
    return node, last


def _suggestion(close: list[str]) -> str:
    return f"Did you mean {close[0]}?" if close else ""


def _parameter_names(document: CommentedMap) -> list[str]:
    return [
        f"{section}.{key}" if isinstance(content, dict) else section
        for section, content in document.items()
        for key in (content if isinstance(content, dict) else ("",))
    ]


def _parse_value(key: str, text: str) -> Any:
    try:
        value = files.parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(_OVERRIDES_SOURCE, f"{key} is {text!r}, expected a value in YAML") from None
    return _normalize_value(value)


def _normalize_value(value: Any) -> Any:
    """Return numbers such as 1e-3, which YAML 1.1 reads as text, as numbers, and lists and maps on one line."""
    if isinstance(value, list):
        return _flow_sequence([_normalize_value(item) for item in value])
    if isinstance(value, dict):
        mapping = CommentedMap({key: _normalize_value(item) for key, item in value.items()})
        mapping.fa.set_flow_style()
        return mapping
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return _quote_if_ambiguous(value)


def _quote_if_ambiguous(text: str) -> str:
    """Quote a text that a YAML reader may take for something else: no, 12:30, a: b."""
    is_unambiguous = _PLAIN_SCALAR.fullmatch(text) is not None and files.parse_yaml(text) == text
    return text if is_unambiguous else DoubleQuotedScalarString(text)


def _flow_sequence(items: list[Any]) -> CommentedSeq:
    sequence = CommentedSeq(items)
    sequence.fa.set_flow_style()
    return sequence
