"""Match the names that annotations, lists and tools use for images with the images' paths.

Order of the attempts: the exact path; the same last part with its ending; the same last part without; and then without
what tools add (Label Studio's ``ab12cd34-``, Roboflow's ``_jpg.rf.<hash>``, a UUID). Separators, letter case, Unicode
normal form and percent-encoding make no difference, and among several images of one last part the one with most folders
in common is meant. If several remain, the name is ambiguous: nothing is matched, and the candidates are named.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote

_ENDINGS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "heic", "heif", "avif", "ppm", "pgm"}
)
_SHEET_ENDINGS = frozenset({"xml", "txt", "json"})
_FAMILY = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif", "heif": "heic"}
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://|^/data/local-files/\?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PREFIX = re.compile(rf"^(?:{_UUID}[-_]|[0-9a-f]{{8}}-)(?=.)", re.IGNORECASE)
_ROBOFLOW = re.compile(r"^(?P<stem>.+?)(?:[_.](?P<ending>[A-Za-z]{3,4}))?\.rf\.[0-9A-Za-z]{6,}$")
_MAX_CANDIDATES = 5
_MAX_PARTS = 8
"""Last parts of a path that are compared."""
_MAX_NARROWED = 1000
"""Images of one last part that are compared by ending and spelling."""


class MatchKind(IntEnum):
    """How a name was matched; smaller is surer."""

    EXACT = 0
    LAST_PARTS = 1
    """Up to separators, letter case, normal form, percent-encoding and folders."""
    OTHER_ENDING = 2
    TOOL_NAME = 3
    """After a tool's prefix or suffix was removed."""
    NONE = 4


@dataclass(frozen=True, slots=True)
class Match:
    """The image that a name means, or why there is none."""

    name: str
    """As it was asked for."""
    found: str | None
    """Path of the image."""
    kind: MatchKind
    candidates: tuple[str, ...] = ()
    """Of an ambiguous name, the first few; of a name whose image another name means, that image."""
    num_shared: int = 0
    """Last parts of the path in common."""
    taken_by: str | None = None
    """The surer name that means the same image."""

    @property
    def problem(self) -> str | None:
        """Why nothing was found: ``<what> is <value>, expected <allowed>``; None: it was."""
        if self.found is not None:
            return None
        name = printable(self.name)[:200]
        if self.taken_by is not None:
            taken = f"{printable(self.candidates[0])}, which {printable(self.taken_by)[:200]!r} means as well"
            return f"the image {name!r} is missing; the nearest name is {taken}, expected an image of its own"
        if self.candidates:
            listed = ", ".join(printable(candidate) for candidate in self.candidates)
            return f"the image name {name!r} fits several images ({listed}), expected one"
        return f"the image {name!r} is missing, expected an image file"


class ImageIndex:
    """Image paths, found by any of their spellings. Building and asking take time linear in the number of names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Index the paths, relative to their folder and with forward slashes."""
        self._paths = list(dict.fromkeys(names))
        self._exact = frozenset(self._paths)
        self._indexes: dict[MatchKind, dict[str, int | list[int]]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._exact

    def find(self, name: str, alternatives: Sequence[str] = ()) -> Match:
        """Find the image that a name means.

        Args:
            name: as a document writes it.
            alternatives: other names of the same image, asked in turn where the first finds nothing or several.
        """
        first = self._find(name)
        if first.found is not None:
            return first
        for other in alternatives:
            match = self._find(other)
            is_candidate = not first.candidates or match.found in self._find(name, everything=True).candidates
            if match.found is not None and is_candidate:
                return Match(name, match.found, match.kind, num_shared=match.num_shared)
        return first

    def candidates(self, name: str) -> tuple[str, ...]:
        """Return all images that an ambiguous name fits; none where it fits one or no image."""
        return self._find(name, everything=True).candidates

    def match_all(self, names: Iterable[tuple[str, Sequence[str]]]) -> list[Match]:
        """Find an image for each name; where two different names mean the same image, only the surer one has it.

        So a listed image that is missing does not take the place of another one of the same last part. Names that are
        equally sure keep it both: the image is listed twice, which is for the caller to judge.
        """
        matches = [self.find(name, alternatives) for name, alternatives in names]
        surest: dict[str, Match] = {}
        for match in matches:
            if match.found is not None and _surer(match, surest.get(match.found)):
                surest[match.found] = match
        return [
            Match(match.name, None, MatchKind.NONE, (match.found,), taken_by=surest[match.found].name)
            if match.found is not None and _surer(surest[match.found], match)
            else match
            for match in matches
        ]

    def _find(self, name: str, *, everything: bool = False) -> Match:
        if name in self._exact:
            return Match(name, name, MatchKind.EXACT, num_shared=len(PurePosixPath(name).parts))
        spellings = [parts for parts in dict.fromkeys(_spellings(name)) if parts]
        for kind, keys in _ATTEMPTS:
            index = self._rows(kind)
            for *folders, last in spellings:
                for key in keys(last):
                    if key in index:
                        return self._decide(name, index, [*folders, key], kind, everything)
        return Match(name, None, MatchKind.NONE)

    def _decide(
        self, name: str, index: dict[str, int | list[int]], parts: Sequence[str], kind: MatchKind, everything: bool
    ) -> Match:
        """The one image of those with the same last part: most folders in common, then ending, then spelling."""
        for shared in range(min(len(parts), _MAX_PARTS), 0, -1):
            found = index.get("/".join(parts[-shared:]))
            if found is not None:
                break
        rows = found if isinstance(found, list) else [] if found is None else [found]
        if 1 < len(rows) <= _MAX_NARROWED:
            last = _last(name)
            for narrower in (_same_family, _same_spelling):
                rows = [row for row in rows if narrower(last, _last(self._paths[row]))] or rows
        if len(rows) == 1:
            return Match(name, self._paths[rows[0]], kind, num_shared=shared)
        candidates = [self._paths[row] for row in (rows if everything else rows[:_MAX_CANDIDATES])]
        return Match(name, None, MatchKind.NONE, tuple(candidates))

    def _rows(self, kind: MatchKind) -> dict[str, int | list[int]]:
        """Rows by their last parts, from one part up; built when it is first needed."""
        if kind not in self._indexes:
            self._indexes[kind] = self._index(dict(_ATTEMPTS)[kind])
        return self._indexes[kind]

    def _index(self, keys: Callable[[str], Iterator[str]]) -> dict[str, int | list[int]]:
        index: dict[str, int | list[int]] = {}
        for row, path in enumerate(self._paths):
            *folders, last = _folded_parts(path) or [""]
            spelled = [last] if last.isascii() and "%" not in last else [last, *_repaired(_last(path))]
            for key in dict.fromkeys(key for spelling in spelled for key in keys(spelling)):
                tail = key
                _add(index, tail, row)
                for folder in reversed(folders[1 - _MAX_PARTS :]):
                    tail = f"{folder}/{tail}"
                    _add(index, tail, row)
        return index


def _add(index: dict[str, int | list[int]], key: str, row: int) -> None:
    known = index.setdefault(key, row)
    if isinstance(known, list):
        known.append(row)
    elif known != row:
        index[key] = [known, row]


def printable(name: str) -> str:
    r"""Make a name of any bytes fit for a message or a file: what is no UTF-8 is written as ``\xfc``."""
    return os_bytes(name).decode("utf-8", "backslashreplace")


def os_bytes(name: str) -> bytes:
    """Return the bytes of a file name, also of one that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape") if _is_escaped(name) else name.encode("utf-8", "backslashreplace")


def _is_escaped(name: str) -> bool:
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in name)


def _surer(one: Match, other: Match | None) -> bool:
    if other is None:
        return True
    return (one.kind, -one.num_shared) < (other.kind, -other.num_shared)


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    """Folded parts of a name: as written, as a local file of Label Studio, of a URL, and percent-decoded."""
    yield tuple(_folded_parts(name))
    text = name
    if _URL.match(name):
        path, _, query = name.partition("?")
        local = dict(parse_qsl(query)).get("d")
        if local:
            yield tuple(_folded_parts(local))
        text = path.split("#")[0]
        yield tuple(_folded_parts(text))
    if "%" in text:
        yield tuple(_folded_parts(unquote(text, errors="surrogateescape")))
    for repaired in _repaired(text):
        yield tuple(_folded_parts(repaired))


def _repaired(name: str) -> Iterator[str]:
    """Other readings of a name: percent-decoded, and bytes that are no UTF-8 as Western or zip characters."""
    if "%" in name:
        yield _fold(unquote(name, errors="surrogateescape"))
    if name.isascii():
        return
    if any("\udc80" <= c <= "\udcff" for c in name) and _is_escaped(name):
        for encoding in ("cp1252", "cp437"):
            try:
                yield _fold(os_bytes(name).decode(encoding))
            except UnicodeDecodeError:
                continue
    else:
        try:  # UTF-8 that was read as Western characters
            yield _fold(name.encode("cp1252").decode("utf-8"))
        except UnicodeError:
            return


def _fold(text: str) -> str:
    """One spelling for all letter cases and normal forms."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _folded_parts(name: str) -> list[str]:
    """Parts of a path in either kind of slashes; dots and drives, which say nothing about the image, left out."""
    parts: list[str] = []
    for part in _fold(name).replace("\\", "/").split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", "..") and not (part[-1] == ":" and _SCHEME.fullmatch(part)):
            parts.append(part)
    return parts


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _split_ending(last: str) -> tuple[str, str]:
    """Stem and ending of a last part; only endings of images and annotation files are endings."""
    stem, dot, ending = last.rpartition(".")
    if dot and stem and ending.lower() in _ENDINGS | _SHEET_ENDINGS:
        return stem, ending.lower()
    return last, ""


def _last_parts(last: str) -> Iterator[str]:
    yield last


def _stems(last: str) -> Iterator[str]:
    stem = _split_ending(last)[0]
    yield stem
    if stem != last:
        yield last  # an annotation file may be called a.jpg.xml


def _bare_stems(last: str) -> Iterator[str]:
    """Stems without what tools add; the whole stem too, for images that carry it where the name does not."""
    stem = _split_ending(last)[0]
    found = [stem]
    roboflow = _ROBOFLOW.match(stem)
    if roboflow:
        found.append(_split_ending(roboflow["stem"])[0])
    found += [bare for text in list(found) if (bare := _PREFIX.sub("", text)) != text]
    yield from dict.fromkeys(reversed(found))


def _same_family(one: str, other: str) -> bool:
    first, second = _split_ending(one)[1], _split_ending(other)[1]
    return _FAMILY.get(first, first) == _FAMILY.get(second, second)


def _same_spelling(one: str, other: str) -> bool:
    return one == other


_ATTEMPTS = (
    (MatchKind.LAST_PARTS, _last_parts),
    (MatchKind.OTHER_ENDING, _stems),
    (MatchKind.TOOL_NAME, _bare_stems),
)
