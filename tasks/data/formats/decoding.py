"""Decode what tools write: text in any encoding, JSON, XML, and numbers written as text."""

import io
import json
import re
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from charset_normalizer import from_bytes
from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring, iterparse  # type: ignore[import-untyped]

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError

_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_NATIONAL = ["cp1252", "cp1250", "cp1251", "cp932", "gb18030", "big5", "cp949", "cp1253", "cp1254"]
_SAMPLE_BYTES = 1 << 15
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel = 3


def shown(value: Any) -> str:
    """Format a value from outside for a message, shortened, with everything unprintable escaped."""
    text = _repr.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def decode_text(content: bytes) -> tuple[str, str | None]:
    """Decode UTF-8, UTF-16 or a national encoding.

    Returns:
        The text without byte order mark, and the encoding where it had to be guessed.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return content.decode(encoding, "replace").removeprefix("\ufeff"), None
    head = content[:400]
    if len(head) >= 4 and head[1::2].count(0) > len(head) // 4:
        return content.decode("utf-16-le", "replace"), "utf-16-le"
    if len(head) >= 4 and head[0::2].count(0) > len(head) // 4:
        return content.decode("utf-16-be", "replace"), "utf-16-be"
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError:
        encoding = _guess_encoding(content)
        return content.decode(encoding, "replace"), encoding


def _guess_encoding(content: bytes) -> str:
    """The encoding of the lines that are not ASCII; those alone are looked at, whatever the file's size."""
    sample = bytearray()
    for line in re.finditer(rb"[^\r\n]*[\x80-\xff][^\r\n]*", content):
        sample += line.group()[:2000] + b"\n"
        if len(sample) > _SAMPLE_BYTES:
            break
    best = from_bytes(bytes(sample), cp_isolation=_NATIONAL).best()
    encoding = best.encoding if best is not None else "cp1252"
    return encoding.replace("_", "-") if encoding in _NATIONAL else "latin-1"


def parse_json(content: bytes, where: str, expected: str) -> tuple[Any, str | None]:
    """Parse JSON in any encoding.

    Returns:
        The value, and the encoding where it had to be guessed.

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no JSON.
    """
    text, guessed = decode_text(content)
    try:
        return json.loads(text), guessed
    except json.JSONDecodeError as error:
        end = len(text.rstrip())
        if error.pos >= end or error.msg.startswith("Unterminated string") or text[end - 1] not in "}]":
            raise TruncatedFileError(
                where, "the end of the JSON is missing, expected a whole file", "Copy it again."
            ) from None
        raise _unreadable(where, "JSON", error.msg, expected) from None
    except RecursionError:
        raise _unreadable(where, "JSON", "nested too deeply", expected) from None
    except ValueError:  # an integer of more digits than Python converts
        raise _unreadable(where, "JSON", "a number is too long", expected) from None


def parse_xml(content: bytes, where: str, expected: str) -> ET.Element:
    """Parse a small XML document; a DOCTYPE and entities are refused.

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no XML, or declares a DOCTYPE.
    """
    try:
        return _fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        if isinstance(error, DefusedXmlException):
            raise _forbidden(where, error, expected) from None
        first = error
    try:
        return _fromstring(_without_declaration(content))
    except (ET.ParseError, ValueError, LookupError):
        raise _xml_error(content, where, first, expected) from None


def iterate_xml(content: bytes, where: str, expected: str) -> Iterator[tuple[str, ET.Element]]:
    """Parse a large XML document element by element, as ``iterparse`` does; same errors as ``parse_xml``.

    A document in another encoding than it declares is converted before the first element is yielded.
    """
    if not _is_well_encoded(content):
        content = _without_declaration(content)
    try:
        yield from iterparse(io.BytesIO(content), events=("start", "end"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise _forbidden(where, error, expected) from None
    except (ET.ParseError, ValueError, LookupError) as error:
        raise _xml_error(content, where, error, expected) from None


def _fromstring(content: bytes) -> ET.Element:
    root: ET.Element = fromstring(content, forbid_dtd=True)
    return root


def _is_well_encoded(content: bytes) -> bool:
    """Whether the bytes are text in the encoding that the XML declares and expat knows."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)""", content[:200])
    encoding = declared.group(1).decode() if declared else "utf-8"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    if encoding.lower() not in ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"):
        return False
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _without_declaration(content: bytes) -> bytes:
    """The document as UTF-8, by its declared encoding if that fits, else by a guess."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)""", content[:200])
    text = None
    if declared:
        try:
            text = content.decode(declared.group(1).decode())
        except (UnicodeDecodeError, LookupError, ValueError):
            text = None
    if text is None:
        text = decode_text(content)[0]
    return _XML_DECLARATION.sub("", text, count=1).encode("utf-8", "replace")


def _xml_error(content: bytes, where: str, error: Exception, expected: str) -> Exception:
    text = str(error)
    end = content.rstrip(b"\x00 \t\r\n")
    if not end.endswith(b">") or "no element found" in text or "unclosed token" in text:
        return TruncatedFileError(where, "the end of the XML is missing, expected a whole file", "Copy it again.")
    return _unreadable(where, "XML", text, expected)


def _forbidden(where: str, error: Exception, expected: str) -> UnsupportedFormatError:
    return _unreadable(where, "XML", f"{type(error).__name__}: a DOCTYPE or entity", expected)


def _unreadable(where: str, kind: str, reason: str, expected: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(where, f"the content is no readable {kind} ({reason}), expected {expected}")


def to_float(value: Any) -> float | None:
    """Convert a number, or a number written as text; None: it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, str) and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def to_id(value: Any) -> int | str | None:
    """Normalize an id so that ``1``, ``1.0`` and ``"1"`` are one; None: it is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and (text := value.strip()):
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    return None


def to_flag(value: Any) -> bool | None:
    """Convert 0, 1, false, true, blank and null, also as text; None: it is none of these."""
    if value is None or value == "":
        return False
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}.get(
            value.strip().lower()
        )
    number = to_float(int(value) if isinstance(value, bool) else value)
    return None if number not in (0.0, 1.0) else bool(number)


def to_size(width: Any, height: Any) -> tuple[int | None, int | None, str | None]:
    """Convert a stated image size; blanks and zeros, which tools write that do not know it, are nothing.

    Returns:
        Width, height and, where they are no size, the problem.
    """
    sides: list[int | None] = []
    for value in (width, height):
        if value is None or (isinstance(value, str) and not value.strip()):
            sides.append(None)
            continue
        number = to_float(value)
        if number is None or not 0 <= number < 1 << 31 or number != int(number):
            problem = f"the stated image size is {shown(width)} x {shown(height)}, expected whole pixels"
            return None, None, problem
        sides.append(int(number) or None)
    if None in sides:
        return None, None, None
    return sides[0], sides[1], None
