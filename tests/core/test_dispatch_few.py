"""Forwards of few rows in torch against the sum written out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.dispatch import mlp_bank, swiglu_bank
from tests.core.test_dispatch import swiglu_case, written_out


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 40),
    places=st.integers(1, 4),
    experts=st.integers(1, 9),
    empty=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_few_rows_are_the_weighted_sum_of_their_experts(
    seed: int, tokens: int, places: int, experts: int, empty: float
) -> None:
    case = swiglu_case(seed, tokens=tokens, places=places, experts=experts, empty=empty)
    torch.testing.assert_close(swiglu_bank(*case), written_out(*case))


def test_biases_of_few_rows_count_once_a_place() -> None:
    x, idx, w, _, down = swiglu_case(tokens=7)
    rng = torch.Generator().manual_seed(1)
    up = torch.randn(5, 7, 6, generator=rng, dtype=torch.float64)
    up_bias = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    down_bias = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    found = [
        mlp_bank(x, idx, w, up, up_bias, down, down_bias, path=path) for path in ("fused", "loop")
    ]
    torch.testing.assert_close(found[0], found[1])
