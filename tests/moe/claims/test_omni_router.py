from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import UnavailableError
from crossroads.datasets import spoken_digits
from crossroads.moe.beds.speech import SpeechBed
from crossroads.moe.claims import omni_router
from crossroads.moe.claims.omni_router import below, is_one, judge, run_length
from tests.moe.claims.small import made_up, shorten

GOOD: dict[str, dict[str, Any]] = {
    "omni": {"wer": 0.8, "ctc": 1.0, "agreement": 0.5, "coherence": 2.0, "one_router": 1.0},
    "switch": {"wer": 0.9, "ctc": 1.1, "agreement": 0.2, "coherence": 1.5},
    "dense": {"wer": 1.0, "ctc": 1.2},
}


def judged(**changes: Any) -> str:
    return judge(made_up({**GOOD, "omni": {**GOOD["omni"], **changes}}))


def test_agreement_coherence_and_both_figures_hold() -> None:
    assert judged() == "holds"
    assert below(made_up(GOOD), "dense") == pytest.approx(0.2)


def test_a_smaller_gain_leaves_the_direction() -> None:
    assert judged(wer=0.88) == "holds in direction"


@pytest.mark.parametrize("change", [{"agreement": (0.5, 0.1, 0.5)}, {"ctc": (0.9, 1.0, 1.6)}])
def test_a_mixed_mechanism_or_noisy_loss_is_null(change: dict[str, Any]) -> None:
    assert judged(**{"wer": 0.88, **change}) == "null"


@pytest.mark.parametrize(
    "change", [{"one_router": (1.0, 1.0, 0.0)}, {"coherence": 1.2}, {"ctc": (1.3, 1.31, 1.29)}]
)
def test_two_routers_less_coherence_or_clearly_worse_fails(change: dict[str, Any]) -> None:
    assert judged(**change) == "fails"


def test_runs_end_with_expert_row_and_padding() -> None:
    expert_BT = torch.tensor([[0, 0, 1, 1], [1, 1, -1, -1]])
    plain, chance = run_length(expert_BT)
    assert plain == 2.0
    assert chance == pytest.approx(6 / (2 + 4 * (1 - (1 / 3) ** 2 - (2 / 3) ** 2)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_independent_draws_run_as_long_as_chance_says(seed: int, n_experts: int) -> None:
    made = torch.Generator().manual_seed(seed)
    plain, chance = run_length(torch.randint(n_experts, (8, 400), generator=made))
    assert plain == pytest.approx(chance, rel=0.1)


def test_one_expert_for_all_is_no_coherence() -> None:
    plain, chance = run_length(torch.zeros(3, 7, dtype=torch.int64))
    assert plain == chance == 7.0


def test_only_the_shared_router_is_one_tensor() -> None:
    bed = SpeechBed(num_layers=3, width=16)
    assert is_one(bed.build(bed.spec("omni")))
    assert not is_one(bed.build(bed.spec("switch")))


@pytest.mark.slow
def test_verify_reports_every_arm_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        spoken_digits.load()
    except UnavailableError as absent:
        pytest.skip(str(absent))
    shorten(monkeypatch, omni_router, SpeechBed)
    found = omni_router.verify(full=False)
    assert found.measured["one_router"]
    assert set(found.measured["arms"]["dense"]) == {"wer", "ctc", "mflops"}
