from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets import digits
from crossroads.datasets.batches import batch_indices
from crossroads.datasets.digits_classifier import digits_classifier


def test_the_split_is_stratified_and_always_the_same() -> None:
    whole, again = digits.load(), digits.load()
    assert whole.train.pixels.shape == (1257, 1, 8, 8)
    assert whole.test.pixels.shape == (540, 1, 8, 8)
    assert np.array_equal(whole.test.pixels, again.test.pixels)
    shares = [np.bincount(part.label) / len(part.label) for part in (whole.train, whole.test)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.002)


def test_pixels_are_sixteenths() -> None:
    pixels = digits.load().train.pixels
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert np.array_equal(pixels * 16, np.rint(pixels * 16))


def test_patch_sums_add_the_raw_counts_of_each_patch() -> None:
    raw = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert digits.patch_sums(raw / 16).tolist() == [[10, 18, 42, 50]]
    sums = digits.patch_sums(digits.load().test.pixels)
    assert sums.shape == (540, 16)
    assert sums.max() <= 64
    with pytest.raises(InputError, match="divisor of 4 and 4, got 3"):
        digits.patch_sums(raw, patch=3)
    with pytest.raises(InputError, match=r"pixels: expected \(N, C, height, width\), got \(1, 4"):
        digits.patch_sums(raw[0])


def test_signed_pixels_go_back() -> None:
    pixels = digits.load().test.pixels
    assert digits.to_signed(pixels).min() == -1
    np.testing.assert_allclose(digits.from_signed(digits.to_signed(pixels)), pixels, atol=1e-7)
    assert digits.from_signed(np.array([-3.0, 3.0], dtype=np.float32)).tolist() == [0.0, 1.0]


def test_the_classifier_is_the_same_each_time_and_reads_digits() -> None:
    test = digits.load().test
    classifier = digits_classifier()
    again = digits_classifier.__wrapped__()
    for one, other in zip(classifier.weights, again.weights, strict=True):
        assert np.array_equal(one, other)
    assert classifier.accuracy(test.pixels, test.label) > 0.9
    noise = np.random.default_rng(0).random((500, 1, 8, 8))
    assert classifier.accuracy(noise, np.arange(500) % 10) < 0.3


def test_features_are_the_layer_below_the_scores() -> None:
    test = digits.load().test
    classifier = digits_classifier()
    features = classifier.features(test.pixels)
    assert features.shape == (540, 32)
    assert features.min() == 0
    scores = features @ classifier.weights[-1] + classifier.biases[-1]
    assert np.array_equal(scores.argmax(1), classifier.predict(test.pixels))
    with pytest.raises(InputError, match=r"\(N, 1, 8, 8\)"):
        classifier.features(test.pixels[:, 0])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_an_epoch_sees_every_item_at_most_once(
    num_items: int, batch_size: int, epoch: int, seed: int
) -> None:
    batch_size = min(batch_size, num_items)
    per_epoch = num_items // batch_size
    seen = np.concatenate([
        batch_indices(num_items, batch_size, step=epoch * per_epoch + n, seed=seed)
        for n in range(per_epoch)
    ])  # fmt: skip
    assert len(seen) == per_epoch * batch_size == len(set(seen.tolist()))
    assert set(seen.tolist()) <= set(range(num_items))


def test_batches_are_a_function_of_seed_and_step() -> None:
    def draw(step: int, seed: int) -> list[int]:
        return batch_indices(100, 20, step=step, seed=seed).tolist()

    assert draw(7, 1) == draw(7, 1)
    assert draw(7, 1) != draw(7, 2)
    assert draw(2, 1) != draw(7, 1), "the next epoch has another order"
    with pytest.raises(UsageError, match=r"\[1, 100\]"):
        batch_indices(100, 101, step=0, seed=0)
    with pytest.raises(UsageError, match="step: expected 0 or more, got -1"):
        batch_indices(100, 10, step=-1, seed=0)
