"""Draw up the accounts of an import: files, listed images and boxes, each of which must add up."""

from collections import Counter
from collections.abc import Sequence

from tasks.data.dataset_source import OpenedSource
from tasks.data.formats.base import ParsedDocument
from tasks.data.image_record import BoxFate
from tasks.data.import_report import Account
from tasks.data.import_state import ImportState


def file_account(
    opened: OpenedSource, work: ImportState, pool: int, val: int, duplicates: int, left_out: int
) -> Account:
    """Count every file of every listing: used, collapsed, set aside, left out, or passed over by its kind."""
    passed_over: Counter[str] = Counter()
    annotation_files = images = links = 0
    for position, listing in enumerate(opened.listings):
        read = opened.num_annotation_files.get(position, {})
        passed_over += Counter(listing.passed_over) - Counter(read)
        annotation_files += sum(read.values())
        images += sum(1 for _ in listing.names())
        links += len(listing.skipped_links)
    parts = {
        "pool": pool,
        "validation": val,
        "duplicates": duplicates,
        "set aside": len(work.set_aside) + links,
        "left out": left_out,
        "annotation files": annotation_files,
        "passed over": passed_over.total(),
    }
    total = images + links + annotation_files + passed_over.total()
    return Account("files", total, parts, {"passed over": dict(passed_over.most_common())})


def listed_account(documents: Sequence[ParsedDocument], work: ImportState) -> Account:
    """Count the entries of the annotations by what became of them."""
    names = ("annotated", "empty", "unlabeled", "not found", "set aside", "listed again")
    total = sum(len(document.images) + document.images_repeated for document in documents)
    return Account("listed images", total, {name: work.listed[name] for name in names})


def box_account(work: ImportState) -> Account:
    """Count the boxes that were read: kept, clipped, crowd regions, or refused and why."""
    counts: Counter[BoxFate] = Counter({BoxFate.STRAY: work.strays})
    for columns in work.columns:
        counts.update(columns.counts())
    refused = {fate.words: counts[fate] for fate in BoxFate if not fate.is_used}
    parts = {
        "kept": counts[BoxFate.KEPT],
        "clipped": counts[BoxFate.CLIPPED],
        BoxFate.CROWD.words: counts[BoxFate.CROWD],
        "refused": sum(refused.values()),
    }
    total = sum(len(columns.fate_N) for columns in work.columns) + work.strays
    return Account("boxes read", total, parts, {"refused": refused})
