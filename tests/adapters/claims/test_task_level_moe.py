"""The claim about task-level mixtures: its rules and its parts."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.claims import task_level_moe as claim
from crossroads.adapters.claims.skill_bed import base_model
from crossroads.adapters.claims.text_tasks import TextTasks
from tests.adapters import toys


def runs(gains: list[float], gaps: list[float], **arms: list[float]) -> list[dict[str, float]]:
    """Two stages score 0.7; the others 0.6, unless ``arms`` says otherwise."""
    return [
        {
            "few-shot ARG": gain,
            "route gap": gap,
            "two stages": 0.7,
            "one stage": arms["one_stage"][place] if "one_stage" in arms else 0.6,
            "random": arms["random"][place] if "random" in arms else 0.6,
        }
        for place, (gain, gap) in enumerate(zip(gains, gaps, strict=True))
    ]


@pytest.mark.parametrize(
    ("gains", "gaps", "outcome"),
    [
        ([0.02, 0.021, 0.019], [0.4, 0.41, 0.39], "holds"),
        ([0.02, 0.021, 0.019], [0.9, 0.1, -0.1], "holds in direction"),
        ([0.05, -0.01, 0.01], [0.4, 0.41, 0.39], "holds in direction"),
        ([0.02, 0.021, 0.019], [-0.4, -0.41, -0.39], "null"),
        ([-0.05, -0.01, 0.01], [0.4, 0.41, 0.39], "null"),
        ([-0.02, -0.021, -0.019], [0.4, 0.41, 0.39], "fails"),
    ],
)
def test_the_rules(gains: list[float], gaps: list[float], outcome: str) -> None:
    assert claim.judge(runs(gains, gaps)) == outcome


@pytest.mark.parametrize("other", ["one_stage", "random"])
@pytest.mark.parametrize(
    ("scores", "outcome"),
    [([0.8, 0.8, 0.4], "holds"), ([0.8, 0.8, 0.6], "holds in direction")],
)
def test_it_holds_where_two_stages_win_on_the_tasks_trained_on(
    other: str, scores: list[float], outcome: str
) -> None:
    gains, gaps = [0.02, 0.021, 0.019], [0.4, 0.41, 0.39]
    assert claim.judge(runs(gains, gaps, **{other: scores})) == outcome


def test_figures_have_a_value_a_seed_and_intervals() -> None:
    found = claim.figures(runs([0.01, 0.02, 0.03], [0.1, 0.2, 0.3]))
    assert found["few-shot ARG"] == [0.01, 0.02, 0.03]
    assert found["intervals"]["route gap"]["mean"] == pytest.approx(0.2)
    assert found["two stages above"] == {"one stage": 0.1, "random": 0.1}


def test_vectors_of_new_tasks_lie_nearest_those_of_their_family() -> None:
    vectors_TD = claim.task_vectors(base_model(0), 0)
    assert vectors_TD.shape == (9, 8)
    torch.testing.assert_close(vectors_TD.norm(dim=-1), torch.ones(9))
    alike_TT = vectors_TD @ vectors_TD.T
    own = [alike_TT[6 + f, 2 * f : 2 * f + 2].mean() for f in range(3)]
    other = [alike_TT[6 + f, [t for t in range(6) if t // 2 != f]].mean() for f in range(3)]
    assert min(own) > max(other)


def test_arms_have_the_same_numbers() -> None:
    model = base_model(0)
    sizes = {
        sum(p.numel() for p in claim._bank(model, experts, 0).parameters())
        for experts in (1, claim._EXPERTS)
    }
    assert len(sizes) == 1


@pytest.mark.slow
def test_arms_on_real_tasks_are_measured(texts: TextTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "FAMILIES", dict(zip(texts.names, "aab", strict=True)))
    monkeypatch.setattr(texts, "vectors", lambda: torch.randn(3, 5, generator=toys.rng(0)))
    found = claim.on_texts(texts, seeds=(0,), steps=2)
    arms = ("multi-task", "one stage", "two stages")
    assert all(9 < found[arm][0] < 13 for arm in arms)  # ln 49152 = 10.8
    assert -1 <= found["route gap"][0] <= 1
    assert found["routes"]["tasks"] == list(texts.names)
