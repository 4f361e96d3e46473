"""The pool held against its source: every kind of change, and none twice."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.images import ImageFacts, ImageProblem
from tasks.pool_changes import Found, PoolChanges, Row, pool_changes


def digest(content: str) -> str:
    return (content * 64)[:64]


def found(name: str, content: str) -> Found:
    return Found(name, f"s3://b/{name}", ImageFacts(9, 9, ".png", 5, digest(content)))


def row(name: str, content: str) -> Row:
    image_id = digest(content)[:16]
    return {"image_id": image_id, "uri": f"s3://b/{name}", "bytes": 5, "sha256": digest(content), "source": name}


def sync(
    rows: list[Row], now: list[Found], kept: str = "", held_out: dict[str, str] | None = None
) -> tuple[PoolChanges, list[str]]:
    """``kept`` and ``held_out`` name contents."""
    ids = {digest(content)[:16] for content in kept}
    val = {digest(content)[:16]: name for content, name in (held_out or {}).items()}
    changes, after = pool_changes(rows, now, kept=ids, held_out=val)
    assert [r["image_id"] for r in after] == sorted(r["image_id"] for r in after)
    return changes, sorted(f"{r['source']}={r['sha256'][0]}" for r in after)


def test_nothing_new_changes_nothing() -> None:
    rows = [row("1", "a"), row("2", "b")]
    changes, after = sync(rows, [found("2", "b"), found("1", "a")])
    assert changes == PoolChanges()
    assert after == ["1=a", "2=b"]


def test_new_images_enter_but_copies_and_validation_images_do_not() -> None:
    now = [found("1", "a"), found("2", "b"), found("3", "a"), found("4", "c"), found("5", "b")]
    changes, after = sync([row("1", "a")], now, held_out={"c": ""})
    assert (changes.added, changes.duplicates, changes.held_out) == (["2"], 2, 1)
    assert after == ["1=a", "2=b"]


def test_a_vanished_image_leaves_unless_it_has_labels_which_is_an_alarm() -> None:
    changes, after = sync([row("1", "a"), row("2", "b"), row("3", "c")], [found("3", "c")], kept="b")
    assert changes.vanished == ["1"]
    assert [(entry.where, "is gone" in entry.reason) for entry in changes.lost] == [("2", True)]
    assert after == ["2=b", "3=c"]


def test_other_bytes_under_a_name_are_a_new_image_and_the_labeled_old_one_stays() -> None:
    rows = [row("1", "a"), row("2", "b")]
    now = [found("1", "c"), found("2", "d")]
    changes, after = sync(rows, now, kept="b")
    assert (changes.changed, changes.added, changes.vanished) == (["1", "2"], [], [])
    assert [(entry.where, "was replaced" in entry.reason) for entry in changes.lost] == [("2", True)]
    assert after == ["1=c", "2=b", "2=d"]
    again, same = sync([row("1", "c"), row("2", "b"), row("2", "d")], now, kept="b")
    assert (again.changed, again.added, same) == ([], [], after)
    assert len(again.lost) == 1  # as long as it lasts


def test_a_renamed_image_is_the_same_image() -> None:
    changes, after = sync([row("old", "a")], [found("new", "a")], kept="a")
    assert (changes.moved, changes.lost, changes.added) == (["old -> new"], [], [])
    assert after == ["new=a"]


def test_two_images_that_change_places_stay_what_they_are() -> None:
    changes, after = sync([row("1", "a"), row("2", "b")], [found("1", "b"), found("2", "a")], kept="a")
    assert changes.lost == []
    assert sorted(changes.moved) == ["1 -> 2", "2 -> 1"]
    assert after == ["1=b", "2=a"]


def test_broken_images_and_lost_validation_images_are_named() -> None:
    now = [found("1", "a"), Found("bad", "s3://b/bad", ImageProblem("the image is unreadable, expected a whole one"))]
    changes, after = sync([row("1", "a")], now, held_out={"c": "s3://b/val", "e": ""})
    assert [entry.where for entry in changes.set_aside] == ["bad"]
    assert [entry.where for entry in changes.lost] == ["s3://b/val"]
    assert after == ["1=a"]


NAMES, CONTENTS = st.sampled_from("123456"), st.sampled_from("abcdef")


@given(
    before=st.dictionaries(NAMES, CONTENTS),
    now=st.dictionaries(NAMES, CONTENTS, min_size=1),
    kept=st.sets(CONTENTS),
    val=st.sets(CONTENTS),
)
def test_a_second_sync_finds_nothing_to_do(
    before: dict[str, str], now: dict[str, str], kept: set[str], val: set[str]
) -> None:
    unique = {content: name for name, content in before.items() if content not in val}
    rows = [row(name, content) for content, name in unique.items()]
    images = [found(name, content) for name, content in now.items()]
    ids, held_out = {digest(c)[:16] for c in kept}, {digest(c)[:16]: "" for c in val}
    first, after = pool_changes(rows, images, kept=ids, held_out=held_out)
    second, same = pool_changes(after, images, kept=ids, held_out=held_out)
    assert same == after
    assert (second.added, second.changed, second.moved, second.vanished) == ([], [], [], [])
    assert second.lost == first.lost
    pool = {r["image_id"] for r in after}
    assert len(pool) == len(after)
    assert {digest(c)[:16] for c in now.values()} - set(held_out) <= pool  # whatever is there can be picked
    assert {digest(c)[:16] for c in unique if c in kept} <= pool  # whatever is labeled stays
