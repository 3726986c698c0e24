from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from crossroads.core.errors import InputError
from crossroads.core.routed import RouteContext
from crossroads.moe.claims import dynamic_moe
from crossroads.moe.claims.courses import CourseBed, course_of, ends
from crossroads.moe.claims.dynamic_moe import (
    by_intervals,
    correlation,
    judge,
    minimal,
    next_byte_loss,
)
from tests.moe.claims.small import made_up, shorten

GOOD: dict[str, dict[str, Any]] = {
    "top-p": {
        "bpb": 3.0,
        "active_experts": 1.5,
        "first_tenth": 2.5,
        "last_tenth": 1.6,
        "harder": (0.1, 0.2, 0.15),
        "minimal": 1.0,
    },
    "no entropy loss": {"active_experts": 1.7},
    "top-2": {"bpb": 3.0, "active_experts": 2.0},
}


def judged(**changes: Any) -> str:
    return judge(made_up({**GOOD, "top-p": {**GOOD["top-p"], **changes}}))


def test_every_rule_met_holds() -> None:
    assert judged() == "holds"


@pytest.mark.parametrize(
    "change",
    [
        {"active_experts": 1.9},
        {"last_tenth": (1.6, 1.6, 2.6)},
        {"bpb": 3.1},
        {"harder": (0.3, -0.05, 0.2)},
    ],
)
def test_one_rule_missed_leaves_the_direction(change: dict[str, Any]) -> None:
    assert judged(**change) == "holds in direction"


def test_an_ablation_without_effect_leaves_the_direction() -> None:
    assert judge(made_up({**GOOD, "no entropy loss": {"active_experts": 1.4}})) == (
        "holds in direction"
    )


@pytest.mark.parametrize("change", [{"harder": (-0.3, 0.1, 0.1)}, {"active_experts": 2.1}])
def test_no_link_with_loss_or_no_saving_is_null(change: dict[str, Any]) -> None:
    assert judged(**change) == "null"


@pytest.mark.parametrize(
    "change",
    [
        {"minimal": (1.0, 1.0, 0.0)},
        {"harder": (-0.10, -0.11, -0.12)},
        {"active_experts": 2.2, "bpb": (3.2, 3.21, 3.19)},
    ],
)
def test_a_broken_property_or_the_opposite_fails(change: dict[str, Any]) -> None:
    assert judged(**change) == "fails"


def test_the_second_reading_is_null_where_an_interval_holds_zero() -> None:
    arms = made_up({**GOOD, "top-p": {**GOOD["top-p"], "harder": (0.3, 0.01, 0.02)}})
    assert (judge(arms), by_intervals(arms)) == ("holds", "null")
    assert by_intervals(made_up(GOOD)) == "holds"


def test_correlation_of_a_constant_is_zero() -> None:
    assert correlation(np.ones(4), np.arange(4.0)) == 0.0
    assert correlation(np.arange(4.0), 2 * np.arange(4.0)) == pytest.approx(1.0)


def test_the_loss_of_a_byte_is_that_of_predicting_the_one_after_it() -> None:
    byte_BT = torch.tensor([[1, 2, 0], [0, 0, 1]])
    logits_BTV = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    loss_N, known_N = next_byte_loss(logits_BTV, byte_BT.flatten())
    assert known_N.tolist() == [True, True, False] * 2
    logs = logits_BTV.log_softmax(-1)
    assert float(loss_N[0]) == pytest.approx(-float(logs[0, 0, 2]), abs=1e-6)
    assert float(loss_N[4]) == pytest.approx(-float(logs[1, 1, 1]), abs=1e-6)


def answer_of(router: str) -> tuple[Any, torch.nn.Module]:
    bed = CourseBed(length=8, num_layers=2, width=16)
    model = bed.build(bed.spec(router)).eval()
    return model(torch.arange(16).reshape(2, 8), context=RouteContext()), model


def test_sets_of_top_p_are_minimal_and_one_expert_more_is_noticed() -> None:
    output, model = answer_of("top-p")
    assert minimal(output, model) == [True, True]
    decision = output.records[1].decisions[0]
    everyone_NK = torch.arange(8).expand(16, 8)
    more = replace(decision, choice=replace(decision.choice, idx_NK=everyone_NK))
    records = (output.records[0], replace(output.records[1], decisions=(more,)))
    assert minimal(replace(output, records=records), model) == [True, False]


def test_a_course_counts_true_experts_of_training_passes_only() -> None:
    bed = CourseBed(length=8, num_layers=2, width=16)
    model = bed.build(bed.spec("adamoe:n_null=8:k=4"))
    tokens = torch.arange(16).reshape(2, 8)
    model.train()
    output = model(tokens, context=RouteContext(training=True))
    model.eval()
    model(tokens, context=RouteContext())
    true = [
        float((r.decisions[0].choice.idx_NK < 8).sum() / r.decisions[0].mask_N.sum())
        for r in output.records
    ]
    assert course_of(model) == [pytest.approx(np.mean(true))]


def test_a_course_ends_in_its_tenths() -> None:
    assert ends([float(i) for i in range(20)]) == (0.5, 18.5)
    assert ends([4.0, 2.0]) == (4.0, 2.0)


def test_a_model_without_a_course_is_refused() -> None:
    with pytest.raises(InputError, match="CourseBed"):
        course_of(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_verify_reports_every_arm_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, dynamic_moe, CourseBed)
    found = dynamic_moe.verify(full=False)
    assert found.name == "dynamic-moe"
    assert found.measured["sets_are_minimal"]
    assert set(found.measured["arms"]) == set(dynamic_moe.ARMS)
    assert found.measured["arms"]["top-2"]["active_experts"] == [2.0]
