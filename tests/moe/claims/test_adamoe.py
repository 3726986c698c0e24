from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from crossroads.core.routed import RouteContext
from crossroads.moe.claims import adamoe
from crossroads.moe.claims.adamoe import by_intervals, judge, null_is_free, on_the_line, saved
from crossroads.moe.claims.courses import CourseBed
from tests.moe.claims.small import made_up, shorten

GOOD: dict[str, dict[str, Any]] = {
    "top-2": {"bpb": 3.0, "active_experts": 2.0},
    "adamoe": {"bpb": 2.9, "active_experts": 1.9, "variance": 0.3, "exact": 1.0},
    "lean": {"bpb": 2.95, "active_experts": 1.5, "variance": 0.3, "exact": 1.0},
    "top-1": {"bpb": 3.2, "active_experts": 1.0},
}


def judged(**changes: Any) -> str:
    return judge(made_up({**GOOD, "lean": {**GOOD["lean"], **changes}}))


def test_less_compute_at_no_loss_holds() -> None:
    assert judged() == "holds"


@pytest.mark.parametrize("change", [{"bpb": 3.01}, {"active_experts": 1.8}])
def test_a_figure_missed_leaves_the_direction(change: dict[str, Any]) -> None:
    assert judged(**change) == "holds in direction"


@pytest.mark.parametrize(
    "change",
    [
        {"bpb": (2.9, 3.0, 3.3)},
        {"variance": (0.3, 0.0, 0.3)},
        {"active_experts": (1.8, 2.1, 1.8)},
    ],
)
def test_worse_within_the_noise_or_equal_tokens_is_null(change: dict[str, Any]) -> None:
    assert judged(**change) == "null"


@pytest.mark.parametrize(
    "change", [{"exact": (1.0, 0.0, 1.0)}, {"active_experts": 2.2}, {"bpb": (3.2, 3.21, 3.19)}]
)
def test_null_experts_that_cost_or_clearly_worse_text_fails(change: dict[str, Any]) -> None:
    assert judged(**change) == "fails"


def test_the_second_reading_is_null_where_one_run_decides() -> None:
    arms = made_up({**GOOD, "lean": {**GOOD["lean"], "bpb": (3.1, 2.5, 3.05)}})
    assert (judge(arms), by_intervals(arms)) == ("holds", "null")
    assert by_intervals(made_up(GOOD)) == "holds"


def test_savings_and_the_line_are_those_of_the_experts_run() -> None:
    arms = made_up(GOOD)
    assert saved(arms, "lean") == pytest.approx(0.25)
    assert on_the_line(arms, "lean") == pytest.approx((3.1, 3.1, 3.1))


def test_null_experts_are_free_and_a_weight_on_one_is_noticed() -> None:
    bed = CourseBed(length=8, num_layers=2, width=16)
    model = bed.build(bed.spec("adamoe:n_null=8:k=4")).eval()
    output = model(torch.arange(16).reshape(2, 8), context=RouteContext())
    assert null_is_free(output, model) == [True, True]
    decision = output.records[0].decisions[0]
    wrong_NK = torch.full_like(decision.choice.w_NK, 0.25)
    heavy = replace(decision, choice=replace(decision.choice, w_NK=wrong_NK))
    records = (replace(output.records[0], decisions=(heavy,)), output.records[1])
    assert null_is_free(replace(output, records=records), model) == [False, True]


@pytest.mark.slow
def test_verify_reports_every_arm_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, adamoe, CourseBed)
    found = adamoe.verify(full=False)
    assert found.measured["exact"]
    assert found.measured["arms"]["top-1"]["active_experts"] == [1.0]
    assert 0 < found.measured["arms"]["lean"]["active_experts"][0] < 3
