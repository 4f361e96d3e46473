"""Whatever an answer, a review list, an archive or an export holds: it is taken or refused, and nothing is raised.

``GLEANER_EXAMPLES`` sets the number of examples of each test; the usual number keeps the suite short.
"""

import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.annotation.annotation_rules import annotation_digest, to_json_value
from flows.annotation.providers.folder_inbox import read_review_csv
from flows.annotation.providers.label_studio_tasks import config_error, labeling_config, parse_export
from flows.annotation.validation import validate_batch
from flows.workspace.owner import FolderState, folder_state, record_path
from flows.workspace.promotion_log import read_decisions
from tasks.data.errors import UnsupportedFormatError
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tests.flows.annotation.folder.test_inbox_files import VALID, read
from tests.flows.annotation.validation.factories import CLASSES, make_annotation, make_context

EXAMPLES = settings(max_examples=int(os.environ.get("GLEANER_EXAMPLES", "60")), deadline=None)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
    | st.sampled_from([10**400, 1e22, "\ud800x", "a\x1b[2Jb", "9" * 5000, "2026-01-01T00:00:00Z", "cat", float("nan")])
)  # fmt: skip
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
json_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
keys = st.sampled_from([
    "image_id", "status", "boxes", "annotator", "finished_at", "seconds_spent", "answer_id", "url", "image_sha256",
    "image_size_px", "problem",
])  # fmt: skip


@EXAMPLES
@given(changes=st.dictionaries(keys, junk, max_size=4), dropped=st.sets(keys, max_size=2))
@example(changes={"seconds_spent": 10**400, "annotator": "\ud800"}, dropped=set())
@example(changes={"problem": "\ud800x"}, dropped=set())
@example(changes={"problem": "9" * 5000}, dropped=set())
@example(changes={"problem": 10**4999}, dropped=set())
@example(changes={"problem": "a\x1b[2Jb\nc"}, dropped=set())
@example(changes={"problem": "\x1b" * 5000}, dropped=set())
@example(changes={"problem": "\ud800" * 5000}, dropped=set())
@example(changes={"image_size_px": [None, "9" * 5000]}, dropped=set())
@example(changes={"image_size_px": ["\ud800x", 10**4999]}, dropped=set())
def test_an_answer_is_taken_or_refused_beside_a_good_one(changes: dict[str, Any], dropped: set[str]) -> None:
    raw = {key: value for key, value in make_annotation(**changes).items() if key not in dropped}
    good = make_annotation(image_id="b" * 16, annotator="somebody else")
    result = validate_batch([raw, good], make_context(), {})
    assert any(label.image_id == "b" * 16 for label in result.primary)
    for rejection in result.rejections:
        json.dumps(rejection.raw_annotation, allow_nan=False).encode()
        rejection.quarantined.reason.encode()
        assert len(rejection.quarantined.reason) < 2000
        assert not any(unicodedata.category(character) == "Cc" for character in rejection.quarantined.reason)
    json.dumps(to_json_value(raw), allow_nan=False).encode()
    assert annotation_digest(3, raw) == annotation_digest(3, raw)


@EXAMPLES
@given(content=st.binary(max_size=400) | st.text(max_size=200).map(lambda text: f"image,status\n{text}".encode()))
@example(content=b"image\n" + b"x" * 200_000)
@example(content=b'image,status\n"a' + b"\x00" * 10)
def test_a_review_list_is_read_or_named(content: bytes) -> None:
    try:
        marks = read_review_csv(content, "reviewed.csv")
    except UnsupportedFormatError as error:
        assert str(error).startswith("reviewed.csv: ")  # noqa: PT017
    else:
        assert all(mark.image for mark in marks)


@EXAMPLES
@given(data=st.data())
def test_a_damaged_archive_is_read_or_named(data: st.DataObject) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/reviewed.csv", "image\n*\n")
        archive.writestr("a/x.json", '{"images": [], "annotations": [], "categories": []}')
    damaged = bytearray(stream.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    content = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    reader = read({"export.zip": content}, VALID)
    for problem in reader.problems:
        assert problem.reason


@EXAMPLES
@given(tasks=st.lists(json_junk, max_size=4))
def test_an_export_of_label_studio_is_read_whatever_it_holds(tasks: list[Any]) -> None:
    for raw in parse_export(tasks, {1: "ada@example.org"}, "http://h/projects/1"):
        validate_batch([raw], make_context(), {})


BOMB = (
    '<!DOCTYPE a [<!ENTITY e0 "ha">'
    + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 20))
    + "]><View>&e19;</View>"
)
"""Ten to the nineteenth laughs."""


@EXAMPLES
@given(config=st.text(max_size=80))
@example(config=BOMB)
def test_a_labeling_configuration_is_never_an_error(config: str) -> None:
    assert config_error(labeling_config(CLASSES), CLASSES) is None
    assert config_error(config, CLASSES)


@EXAMPLES
@given(content=json_junk, name=st.sampled_from(["owner", "promotions", "params"]))
def test_files_of_the_campaign_with_anything_in_them_end_in_one_message(
    content: Any, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("fuzz"))
    text = json.dumps(content)
    if name == "owner":
        _write(record_path(workspace), text)
        assert folder_state(workspace) is FolderState.NEW
        return
    path = workspace.promotions if name == "promotions" else workspace.params
    _write(path, text)
    with pytest.raises(UserError) as raised:
        read_decisions(workspace) if name == "promotions" else load_params(path)
    assert len(str(raised.value)) < 20_000


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
