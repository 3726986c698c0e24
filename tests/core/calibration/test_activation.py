from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from crossroads.core.calibration.activation import (
    SOFTMAX_SIMILARITY,
    Adaptor,
    class_balanced_mean,
    sdm,
    sdm_loss,
)
from crossroads.core.errors import InputError

outputs = st.lists(st.floats(-30, 30), min_size=2, max_size=5).map(lambda row: np.array([row]))
similarities = st.integers(0, 1000)
distances = st.floats(0, 1)


@given(outputs)
def test_at_q_e_minus_two_and_d_one_it_is_the_softmax(z: np.ndarray) -> None:
    assert sdm(z, SOFTMAX_SIMILARITY, 1.0) == pytest.approx(softmax(z, axis=1))


@given(outputs, similarities)
def test_at_d_zero_it_is_uniform(z: np.ndarray, q: int) -> None:
    assert sdm(z, q, 0.0) == pytest.approx(np.full_like(z, 1 / z.shape[1]))


@given(outputs, similarities, distances)
def test_it_is_the_power_form_and_sums_to_one(z: np.ndarray, q: int, d: float) -> None:
    found = sdm(z, q, d)
    shifted = d * (z - z.max())  # the largest power is 1
    power = (2.0 + q) ** shifted
    assert found == pytest.approx(power / power.sum())
    assert found.sum() == pytest.approx(1)


@given(outputs, similarities, st.floats(0.01, 1))
def test_the_likeliest_class_is_that_of_the_largest_output(z: np.ndarray, q: int, d: float) -> None:
    found = sdm(z, q, d)[0]
    assert found[z[0].argmax()] == found.max()


@given(outputs, st.tuples(similarities, similarities), st.tuples(distances, distances))
def test_the_largest_probability_grows_with_similarity_and_distance(
    z: np.ndarray, q: tuple[int, int], d: tuple[float, float]
) -> None:
    low, high = (sdm(z, f(q), f(d)).max() for f in (min, max))
    assert high >= low - 1e-12


@given(outputs, similarities, distances)
def test_the_loss_is_the_log_loss_changed_to_base_two_plus_q(
    z: np.ndarray, q: int, d: float
) -> None:
    label = np.array([0])
    natural = -log_softmax(np.log(2 + q) * d * z, axis=1)[0, 0]
    assert sdm_loss(z, label, q, d)[0] == pytest.approx(natural / np.log(2 + q), abs=1e-9)


def test_without_similarity_and_distance_two_classes_cost_one() -> None:
    assert sdm_loss(np.array([[3.0, -1.0]]), np.array([1]), 0, 0.0) == pytest.approx([1.0])


def test_each_row_has_its_own_similarity_and_distance() -> None:
    z = np.array([[1.0, 0.0], [1.0, 0.0]])
    both = sdm(z, np.array([0, 50]), np.array([0.5, 1.0]))
    assert both[0] == pytest.approx(sdm(z[:1], 0, 0.5)[0])
    assert both[1] == pytest.approx(sdm(z[1:], 50, 1.0)[0])


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    assert class_balanced_mean(np.array([1.0, 1.0, 1.0, 5.0]), np.array([0, 0, 0, 1])) == 3.0


def test_an_adaptor_is_two_linear_maps_of_the_standardised_input() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (20, 5)).astype(np.float32)
    a = Adaptor.initial(x, 3, 7, rng)
    standard = (x - x.mean()) / x.std()
    exemplar = standard @ a.g_weight.T + a.g_bias
    assert a.exemplars(x) == pytest.approx(exemplar, abs=1e-5)
    assert a.logits(a.exemplars(x)) == pytest.approx(exemplar @ a.w_weight.T + a.w_bias, abs=1e-4)


def test_vectors_of_another_width_or_not_finite_are_refused() -> None:
    x = np.ones((4, 3), dtype=np.float32)
    adaptor = Adaptor.initial(x, 2, 2, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"\(N, 3\)"):
        adaptor.exemplars(np.ones((1, 2), dtype=np.float32))
    with pytest.raises(InputError, match="NaN"):
        adaptor.exemplars(np.full((1, 3), np.nan, dtype=np.float32))
