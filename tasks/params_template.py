"""A campaign's own ``params.yaml``, made from the repository's: comments stay, the demo's section goes."""

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

from tasks.errors import UserError
from tasks.params import check_params

# Cut out as text, with its comments and the blank line after it; ruamel would keep parts of both.
_DEMO_SECTION = re.compile(r"^draw:.*\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)
_OVERRIDES = "--set"
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*(?: [\w./-]+)*", re.ASCII)


def make_params(template_text: str, *, classes: Sequence[str], overrides: Sequence[str]) -> str:
    """Fill in the template.

    Args:
        template_text: the repository's ``params.yaml``.
        classes: class names of the campaign, in the order of their indices.
        overrides: ``section.key=value`` each, value in YAML.

    Returns:
        The new file's text; ``load_params`` accepts it.

    Raises:
        UserError: an override without ``=``, of an unknown parameter, or with a value that is not allowed.
    """
    round_trip = _round_trip()
    document: CommentedMap = round_trip.load(_DEMO_SECTION.sub("", template_text))
    document["classes"][:] = [_safe_scalar(name) for name in classes]  # in place: the blank line after it hangs on it
    for override in overrides:
        _apply(document, override)
    stream = io.StringIO()
    round_trip.dump(document, stream)
    text = stream.getvalue()
    check_params(yaml.safe_load(text), _OVERRIDES if overrides else "params.yaml")
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


def _apply(document: CommentedMap, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(_OVERRIDES, f"the override is {override!r}, expected section.key=value")
    if key == "classes":
        raise UserError(_OVERRIDES, "classes comes from the annotations, expected another parameter here")
    node, last = _find(document, key)
    if isinstance(node[last], dict):
        raise UserError(_OVERRIDES, f"{key} is a section, expected one of its parameters: {', '.join(node[last])}")
    node[last] = _parse(key, text)


def _find(document: CommentedMap, key: str) -> tuple[dict[str, Any], str]:
    """The map that holds the parameter, and the parameter's name in it."""
    node: Any = document
    *path, last = key.split(".")
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        close = difflib.get_close_matches(key, _keys(document), n=1)
        raise UserError(_OVERRIDES, f"{key} is an unknown parameter, expected one of params.yaml", _hint(close))
    return node, last


def _hint(close: list[str]) -> str:
    return f"Did you mean {close[0]}?" if close else ""


def _keys(document: CommentedMap) -> list[str]:
    return [
        f"{section}.{key}" if isinstance(content, dict) else section
        for section, content in document.items()
        for key in (content if isinstance(content, dict) else ("",))
    ]


def _parse(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(_OVERRIDES, f"{key} is {text!r}, expected a value in YAML") from None
    return _plain(value)


def _plain(value: Any) -> Any:
    """What the user meant: numbers like 1e-3, which YAML 1.1 reads as text, and lists on one line."""
    if isinstance(value, list):
        return _flow([_plain(item) for item in value])
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return _safe_scalar(value)


def _safe_scalar(text: str) -> str:
    """Plain where it is plainly a text; quoted where a YAML reader may take it for more: no, 12:30, a: b."""
    plain = _PLAIN.fullmatch(text) is not None and yaml.safe_load(text) == text
    return text if plain else DoubleQuotedScalarString(text)


def _flow(items: list[Any]) -> CommentedSeq:
    sequence = CommentedSeq(items)
    sequence.fa.set_flow_style()
    return sequence
