"""The pool held against its source: every kind of change, and none twice."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.data.image_decoding import ImageProblem
from tasks.data.images import ImageMetadata
from tasks.data.pool_diff import PoolDiff, Row, SourceImage, diff_pool


def sha256(content: str) -> str:
    return (content * 64)[:64]


def source_image(name: str, content: str) -> SourceImage:
    return SourceImage(name, f"s3://b/{name}", ImageMetadata(9, 9, ".png", 5, sha256(content)))


def index_row(name: str, content: str) -> Row:
    image_id = sha256(content)[:16]
    return {
        "image_id": image_id,
        "uri": f"s3://b/{name}",
        "size_bytes": 5,
        "sha256": sha256(content),
        "file_name": name,
    }


def run_diff(
    rows: list[Row],
    now: list[SourceImage],
    kept: str = "",
    held_out: dict[str, str] | None = None,
    set_aside: str = "",
) -> tuple[PoolDiff, list[str]]:
    """``kept``, ``held_out`` and ``set_aside`` name contents."""
    ids = {sha256(content)[:16] for content in kept}
    val = {sha256(content)[:16]: name for content, name in (held_out or {}).items()}
    aside = {sha256(content)[:16]: "a box has no area" for content in set_aside}
    changes, after = diff_pool(rows, now, protected_ids=ids, heldout_names=val, set_aside=aside)
    assert [r["image_id"] for r in after] == sorted(r["image_id"] for r in after)
    return changes, sorted(f"{r['file_name']}={r['sha256'][0]}" for r in after)


def test_nothing_new_changes_nothing() -> None:
    rows = [index_row("1", "a"), index_row("2", "b")]
    changes, after = run_diff(rows, [source_image("2", "b"), source_image("1", "a")])
    assert changes == PoolDiff()
    assert after == ["1=a", "2=b"]


def test_new_images_enter_but_copies_and_validation_images_do_not() -> None:
    now = [
        source_image("1", "a"),
        source_image("2", "b"),
        source_image("3", "a"),
        source_image("4", "c"),
        source_image("5", "b"),
    ]
    changes, after = run_diff([index_row("1", "a")], now, held_out={"c": ""})
    assert (changes.added, changes.duplicates, changes.heldout_duplicates) == (["2"], 2, 1)
    assert after == ["1=a", "2=b"]


def test_images_set_aside_when_the_campaign_was_made_stay_out_under_any_name() -> None:
    now = [source_image("1", "a"), source_image("2", "b"), source_image("copy", "b"), source_image("3", "c")]
    changes, after = run_diff([index_row("1", "a")], now, set_aside="b")
    assert (changes.added, after) == (["3"], ["1=a", "3=c"])
    assert [entry.item for entry in changes.rejected] == ["2", "copy"]
    assert "a box has no area. To have it labeled" in changes.rejected[0].reason
    assert run_diff([index_row("1", "a")], [source_image("1", "a")], set_aside="a") == (PoolDiff(), ["1=a"])


def test_a_vanished_image_leaves_unless_it_has_labels_which_is_an_alarm() -> None:
    changes, after = run_diff(
        [index_row("1", "a"), index_row("2", "b"), index_row("3", "c")], [source_image("3", "c")], kept="b"
    )
    assert changes.removed == ["1"]
    assert [(entry.item, "is gone" in entry.reason) for entry in changes.missing] == [("2", True)]
    assert after == ["2=b", "3=c"]


def test_other_bytes_under_a_name_are_a_new_image_and_the_labeled_old_one_stays() -> None:
    rows = [index_row("1", "a"), index_row("2", "b")]
    now = [source_image("1", "c"), source_image("2", "d")]
    changes, after = run_diff(rows, now, kept="b")
    assert (changes.changed, changes.added, changes.removed) == (["1", "2"], [], [])
    assert [(entry.item, "was replaced" in entry.reason) for entry in changes.missing] == [("2", True)]
    assert after == ["1=c", "2=b", "2=d"]
    again, same = run_diff([index_row("1", "c"), index_row("2", "b"), index_row("2", "d")], now, kept="b")
    assert (again.changed, again.added, same) == ([], [], after)
    assert len(again.missing) == 1  # as long as it lasts


def test_a_renamed_image_is_the_same_image() -> None:
    changes, after = run_diff([index_row("old", "a")], [source_image("new", "a")], kept="a")
    assert (changes.moved, changes.missing, changes.added) == (["old -> new"], [], [])
    assert after == ["new=a"]


def test_two_images_that_change_places_stay_what_they_are() -> None:
    changes, after = run_diff(
        [index_row("1", "a"), index_row("2", "b")], [source_image("1", "b"), source_image("2", "a")], kept="a"
    )
    assert changes.missing == []
    assert sorted(changes.moved) == ["1 -> 2", "2 -> 1"]
    assert after == ["1=b", "2=a"]


def test_broken_images_and_lost_validation_images_are_named() -> None:
    now = [
        source_image("1", "a"),
        SourceImage("bad", "s3://b/bad", ImageProblem("the image is unreadable, expected a whole one")),
    ]
    changes, after = run_diff([index_row("1", "a")], now, held_out={"c": "s3://b/val", "e": ""})
    assert [entry.item for entry in changes.rejected] == ["bad"]
    assert [entry.item for entry in changes.missing] == ["s3://b/val"]
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
    rows = [index_row(name, content) for content, name in unique.items()]
    images = [source_image(name, content) for name, content in now.items()]
    ids, held_out = {sha256(c)[:16] for c in kept}, {sha256(c)[:16]: "" for c in val}
    first, after = diff_pool(rows, images, protected_ids=ids, heldout_names=held_out, set_aside={})
    second, same = diff_pool(after, images, protected_ids=ids, heldout_names=held_out, set_aside={})
    assert same == after
    assert (second.added, second.changed, second.moved, second.removed) == ([], [], [], [])
    assert second.missing == first.missing
    pool = {r["image_id"] for r in after}
    assert len(pool) == len(after)
    assert {sha256(c)[:16] for c in now.values()} - set(held_out) <= pool  # whatever is there can be picked
    assert {sha256(c)[:16] for c in unique if c in kept} <= pool  # whatever is labeled stays
