"""Errors of the object store that were raised in a loader process."""

import traceback

import pytest

from tasks.data.images import translate_worker_errors
from tasks.runtime.errors import UserError
from tasks.storage.image_cache import ChangedObjectError
from tasks.storage.s3 import MissingObjectError, ObjectStoreError, ObjectStoreUnavailable


def worker_error(error: Exception) -> RuntimeError:
    """Wrap an error as PyTorch's loader does: all that is left of it is text."""
    return RuntimeError("Caught an error in a worker.\n" + "".join(traceback.format_exception_only(error)))


@pytest.mark.parametrize("error_class", [ObjectStoreError, MissingObjectError, ChangedObjectError])
def test_error_of_a_worker_is_an_error_of_the_object_store_again(error_class: type[ObjectStoreError]) -> None:
    with pytest.raises(ObjectStoreError, match="the object is lost") as caught, translate_worker_errors("train"):
        raise worker_error(error_class("s3://b/a.png", "the object is lost, expected an object"))
    assert not isinstance(caught.value, ObjectStoreUnavailable)


def test_unavailable_store_is_told_apart_from_a_lost_object() -> None:
    with pytest.raises(ObjectStoreUnavailable), translate_worker_errors("train"):
        raise worker_error(ObjectStoreUnavailable("s3://b/a.png", "it is out of reach, expected an answer"))


def test_an_image_that_a_worker_cannot_read_is_named() -> None:
    error = UserError("a.png", "the image is unreadable, expected what prepare saw", "Restore it")
    words = r"train: a\.png: the image is unreadable, .+\. Restore it\.$"
    with pytest.raises(UserError, match=words) as caught, translate_worker_errors("train"):
        raise worker_error(error)
    assert type(caught.value) is UserError


def test_other_errors_of_a_worker_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="no room"), translate_worker_errors("train"):
        raise worker_error(ValueError("no room"))
