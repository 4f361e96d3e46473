"""Every image once per pass, in batches of one shape, whatever the numbers are."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.data import BatchOrder, match_shapes, shape_class


@pytest.mark.parametrize(
    ("width_px", "height_px", "expected"),
    [(640, 640, 0), (640, 480, 1), (720, 480, 1), (1920, 1080, 2), (480, 640, -1), (300, 100, 2), (10, 1000, -2)],
)
def test_shape_classes(width_px: int, height_px: int, expected: int) -> None:
    assert shape_class(width_px, height_px) == expected


def first_passes(order: BatchOrder, num_passes: int) -> list[list[int]]:
    num_items = num_passes * order.pass_length
    items = [item for number in range(-(-num_items // order.batch_size)) for item in order.batch(number)]
    return [items[first : first + order.pass_length] for first in range(0, num_items, order.pass_length)]


classes = st.lists(st.integers(-2, 2), min_size=1, max_size=40)


@given(classes, st.integers(1, 9), st.integers(0, 5))
def test_every_item_comes_once_per_pass(shape_classes: list[int], batch_size: int, seed: int) -> None:
    order = BatchOrder(shape_classes, batch_size, seed, stream=0)
    for one in first_passes(order, 4):
        assert sorted(one) == list(range(len(shape_classes)))


@given(classes, st.integers(1, 9))
def test_few_batches_mix_shapes(shape_classes: list[int], batch_size: int) -> None:
    """Of a pass that begins with a batch: one less than one for every class, for its rest."""
    order = BatchOrder(shape_classes, batch_size, seed=1, stream=0)
    full = [order.batch(number) for number in range(len(shape_classes) // batch_size)]
    mixed = [batch for batch in full if len({shape_classes[item] for item in batch}) > 1]
    assert len(mixed) < len(set(shape_classes))


def test_passes_and_streams_have_orders_of_their_own() -> None:
    order, other = BatchOrder([0] * 10, 3, seed=1, stream=0), BatchOrder([0] * 10, 3, seed=1, stream=1)
    one, two = first_passes(order, 2)
    assert one != two
    assert one != first_passes(other, 1)[0]


@pytest.mark.parametrize("shape_classes", [[0, 0, 0, 0], [0, 1, -1, 1]])
def test_draws_are_in_proportion_to_the_weights(shape_classes: list[int]) -> None:
    order = BatchOrder(shape_classes, 2, seed=1, stream=0, weights=np.array([0.0, 1.0, 3.0, 4.0]))
    drawn = np.array([item for number in range(4000) for item in order.batch(number)])
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    assert frequencies[0] == 0
    np.testing.assert_allclose(frequencies, [0, 1 / 8, 3 / 8, 4 / 8], atol=0.02)  # 3.6 standard errors
    batches = drawn.reshape(-1, 2)
    if len(set(shape_classes)) == 1:
        assert np.mean((batches == 3).all(axis=1)) == pytest.approx(1 / 4, abs=0.025)  # independent of each other
    else:
        mixed = np.mean([shape_classes[one] != shape_classes[two] for one, two in batches])
        assert mixed <= 1 / 64  # one batch of a pass at most


def test_an_order_is_a_function_of_the_position() -> None:
    shape_classes = np.random.default_rng(0).integers(-1, 2, 50).tolist()
    order = BatchOrder(shape_classes, 4, seed=3, stream=0)
    forward = [order.batch(number) for number in range(400)]  # more passes than are kept
    late = BatchOrder(shape_classes, 4, seed=3, stream=0)
    assert [late.batch(number) for number in reversed(range(400))] == forward[::-1]
    assert pickle.loads(pickle.dumps(order)).batch(7) == forward[7]


@given(classes, st.integers(1, 4), st.integers(0, 3))
def test_exchanged_batches_come_once_in_their_pass(shape_classes: list[int], batch_size: int, seed: int) -> None:
    order = BatchOrder(shape_classes, batch_size, seed, stream=1)
    numbers = range(3 * len(shape_classes))
    used = [match_shapes(order, number, lambda slot: slot % 3 - 1) for number in numbers]
    for number, other in zip(numbers, used, strict=True):
        assert order.whole_batches(number) == order.whole_batches(other)
    num_passes = 3 * batch_size  # a whole number of batches
    counts = Counter(item for number in used[: 3 * len(shape_classes)] for item in order.batch(number))
    assert set(counts.values()) == {num_passes}


def test_as_many_batches_as_can_have_the_wanted_shape() -> None:
    order = BatchOrder([-1] * 60 + [1] * 60, 2, seed=0, stream=1)
    wanted = [1] * 20 + [-1] * 40
    shapes = [order.shape_class_of(match_shapes(order, number, wanted.__getitem__)) for number in range(60)]
    assert shapes == [1] * 20 + [-1] * 30 + [1] * 10
