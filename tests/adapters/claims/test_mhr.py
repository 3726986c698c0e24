"""The claim about multi-head routing: its rules, and its measurements on a small scale."""

from __future__ import annotations

import pytest

from crossroads.adapters.claims import mhr
from crossroads.adapters.claims.skill_bed import base_model
from crossroads.adapters.claims.text_tasks import TextTasks
from crossroads.adapters.routers.poly import Poly
from crossroads.adapters.skills import new_skills


def runs(gaps: list[float], mean: float) -> list[dict[str, float]]:
    """Return runs in which MHR's loss is above Poly's by ``gaps``."""
    return [
        {
            "poly full": 0.1,
            "mhr full": 0.1 + gap,
            "mhr untrained": 2.0,
            "mhr mu": 2.0 - mean * (1.9 - gap),
            "mhr z": 0.5,
        }
        for gap in gaps
    ]


@pytest.mark.parametrize(
    ("gaps", "mean", "outcome"),
    [
        ([-0.02, -0.021, -0.019], 0.99, "holds"),
        ([-0.02, -0.021, -0.019], 0.85, "holds in direction"),
        ([-0.05, -0.001, 0.001], 0.99, "holds in direction"),
        ([-0.02, -0.021, -0.019], 0.7, "null"),
        ([0.05, -0.001, -0.001], 0.99, "null"),
        ([0.02, 0.021, 0.019], 0.99, "fails"),
    ],
)
def test_the_rules(gaps: list[float], mean: float, outcome: str) -> None:
    assert mhr.judge(runs(gaps, mean)) == outcome


def test_figures_are_plain_and_have_a_value_a_seed() -> None:
    found = mhr.figures(runs([-0.02, -0.03, -0.01], 0.9))
    assert found["mhr full"] == [0.08, 0.07, 0.09]
    assert found["mhr - poly, new tasks"]["mean"] == pytest.approx(-0.02)
    assert found["share of the gain"]["mu"] == [0.9, 0.9, 0.9]


def test_every_bank_has_the_same_numbers() -> None:
    model = base_model(0)
    sizes = {
        sum(
            p.numel()
            for p in new_skills(
                model, targets=mhr.TARGETS, skills=skills, rank=8 // skills, heads=heads
            ).parameters()
        )
        for skills, heads in mhr._ARMS.values()
    }
    assert len(sizes) == 1


def test_gradients_of_one_task_agree_fully(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model(0)
    bank = new_skills(model, targets=mhr.TARGETS, skills=2, rank=1)
    for module in bank.layers.values():
        module.b_EOR.data.normal_()
    router = Poly(tasks=len(mhr.SEEN))
    router.prepare(bank)
    assert -1 <= mhr.agreement(model, bank, router, 0) < 1
    same = mhr.ShiftTasks.of_skills([[0]] * 2)
    monkeypatch.setattr(same.__class__, "only", lambda self, place: self)
    monkeypatch.setattr(mhr, "SEEN", same)
    for z in router.logits:
        z.data[1] = z.data[0]
    assert mhr.agreement(model, bank, router, 0) == pytest.approx(1, abs=1e-5)


def test_real_tasks_take_turns_and_say_which_they_are(texts: TextTasks) -> None:
    batch_of = texts.training(0)
    for step in (0, 1, 5):
        batch = batch_of(step)
        assert batch.task_ids_B is not None
        assert (batch.task_ids_B == step % 3).all()
        assert batch.n_answer_tokens > 0


@pytest.mark.slow
def test_arms_on_real_tasks_are_measured_and_the_model_given_back(texts: TextTasks) -> None:
    before = dict(texts.model.named_modules())
    found = mhr.on_texts(texts, seeds=(0,), steps=2)
    assert set(found) == {
        "steps", "shared", "poly", "mhr", "poly entropy of routing", "mhr entropy of routing"
    }  # fmt: skip
    assert all(9 < found[arm][0] < 13 for arm in ("shared", "poly", "mhr"))  # ln 49152 = 10.8
    assert dict(texts.model.named_modules()) == before
