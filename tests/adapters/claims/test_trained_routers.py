"""The claims about DynMoLE, LoRA-Mixer, FlyLoRA and MoGU: their rules by hand, and their parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossroads.adapters import restricted
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.claims import dynmole, flylora, lora_mixer, mogu
from crossroads.adapters.claims.domain_bed import SmolBed, ToyBed, domain_nll
from crossroads.adapters.experts import Alone
from crossroads.adapters.fly import fly_bank
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.core.catalog import Outcome
from crossroads.core.errors import UnavailableError

Three = tuple[float, float, float]
StepBatches = Callable[[int], TextBatch]
NEAR: Three = (1.0, 1.01, 0.99)


def shifted(by: float) -> list[float]:
    return [value + by for value in NEAR]


@pytest.mark.parametrize(
    ("mine", "after", "broadcast", "verdict"),
    [
        (shifted(-0.2), [0.2, 0.2, 0.2], 0.1, "holds"),
        (shifted(-0.2), [0.2, 0.2, 0.2], 0.5, "holds in direction"),
        ([0.7, 1.0, 1.0], [0.2, 0.2, 0.2], 0.1, "holds in direction"),
        (shifted(-0.2), [0.2, 0.2, 1.0], 0.1, "null"),
        ([1.3, 1.0, 1.0], [0.2, 0.2, 0.2], 0.1, "null"),
        (shifted(0.2), [0.2, 0.2, 0.2], 0.1, "fails"),
        (shifted(-0.2), [0.99, 0.99, 0.99], 0.1, "fails"),
    ],
)
def test_rules_of_dynmole(
    mine: list[float], after: list[float], broadcast: float, verdict: Outcome
) -> None:
    found = dynmole.Figures(
        nll={"dynmole": mine, "lora": [*NEAR]},
        entropy={"before": [0.98] * 3, "after": after},
        broadcast={"before": [1.0] * 3, "after": [broadcast] * 3},
    )
    assert dynmole.judge(found) == verdict


@pytest.mark.parametrize(
    ("uniform", "plain", "verdict"),
    [
        (0.3, 0.1, "holds"),
        (0.3, 0.0, "holds in direction"),
        (0.3, -0.1, "fails"),
        (-0.1, 0.3, "fails"),
    ],
)
def test_rules_of_lora_mixer(uniform: float, plain: float, verdict: Outcome) -> None:
    wobbly = [NEAR[1] + plain, NEAR[0] + plain, NEAR[2] + plain]
    nll = {lora_mixer.MINE: [*NEAR], "uniform": shifted(uniform), lora_mixer.PLAIN: wobbly}
    assert lora_mixer.judge(lora_mixer.Figures(nll=nll, entropy={})) == verdict


@pytest.mark.parametrize(
    ("cost", "own", "verdict"),
    [
        ((0.1, 0.11, 0.1), 0.0, "holds"),
        ((0.1, 0.11, 0.1), 0.1, "holds in direction"),
        ((0.1, 0.9, 0.1), 0.0, "holds in direction"),
        ((0.1, 1.9, 0.1), 0.0, "null"),
        ((0.9, 0.91, 0.9), 0.0, "fails"),
    ],
)
def test_rules_of_flylora(cost: Three, own: float, verdict: Outcome) -> None:
    mine = shifted(own)
    found = flylora.Figures(
        own={flylora.FLY: mine, flylora.LORA: [*NEAR]},
        merged={
            flylora.FLY: [m + c for m, c in zip(mine, cost, strict=True)],
            flylora.LORA: shifted(0.5),
        },
    )
    assert flylora.judge(found) == verdict


GOOD = {
    "restricted refused": 0.98,
    "others refused": 0.0,
    "others answered": 1.0,
    "restricted refused, noise": 0.9,
    "restricted refused, base": 0.0,
    "safe alone refuses others": 1.0,
    "usable alone complies with restricted": 1.0,
    "changed by handing over": 0.0,
    "safe weight, restricted": 0.9,
    "safe weight, others": 0.1,
    "loss of others": 0.01,
    "loss of others, base": 0.003,
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"safe weight, restricted": 0.7}, "holds in direction"),
        ({"restricted refused": 0.85}, "holds in direction"),
        ({"loss of others": 0.2}, "holds in direction"),
        ({"changed by handing over": 0.05}, "holds in direction"),
        ({"safe alone refuses others": 0.5}, "holds in direction"),
        ({"restricted refused, noise": 0.5}, "null"),
        ({"others refused": 0.2}, "null"),
        ({"others refused": 0.6}, "fails"),
        ({"restricted refused, base": 0.99}, "fails"),
    ],
)
def test_rules_of_mogu(changes: dict[str, float], verdict: Outcome) -> None:
    found = {name: [value] * 3 for name, value in {**GOOD, **changes}.items()}
    assert mogu.judge(found) == verdict


def test_domains_of_the_toy_contradict_each_other_and_test_rows_are_others() -> None:
    bed = ToyBed()
    shift_TK = bed.tasks.shift_TK
    for one in range(4):
        assert all((shift_TK[one] != shift_TK[two]).all() for two in range(one))
    seen = {tuple(row) for step in range(5) for row in bed.training(0, 1)(step).ids_BT.tolist()}
    assert not seen & {tuple(row) for row in bed.test(1, 0)[0].ids_BT.tolist()}


def test_cosines_of_projections_stay_within_their_bound() -> None:
    banks = [fly_bank({"a": (576, 4)}, ranks=32, k=8, seed=seed) for seed in range(3)]
    assert 0 < flylora.largest_cosine(banks) < 1


@pytest.mark.slow
def test_experts_of_the_toy_beat_its_base_model_and_are_best_on_their_domain() -> None:
    bed = ToyBed()
    bed.steps = (50, 0, 0)
    bank = lora_mixer.experts(bed, 0)
    base = domain_nll(bed, 0, None, None)
    for domain, name in enumerate(bed.names):
        found = domain_nll(bed, 0, bank.subset([name]), Alone())
        assert found[domain] < base[domain] / 2
        assert found[domain] == min(found)
    assert torch.isfinite(torch.tensor(base)).all()


@pytest.mark.slow
def test_the_blend_refuses_what_is_restricted_and_answers_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restricted, "_STEPS", 200)
    for name, short in (("_VARIANT_STEPS", 60), ("_BLEND_STEPS", 120), ("_TEST_ROWS", 100)):
        monkeypatch.setattr(mogu, name, short)
    found = mogu.measure(0, blocks=2)
    assert found["restricted refused, base"] <= 0.05
    assert found["restricted refused"] >= 0.8
    assert found["others refused"] <= 0.05


@pytest.fixture(scope="module")
def smol() -> tuple[SmolBed, StepBatches, TextBatch, Tensor]:
    """SmolLM2, its training batches, a test batch, and its losses on that before anything."""
    bed = SmolBed()
    bed.rows, bed.test_rows = 4, 4
    try:
        model, test, batch_of = bed.model(0), bed.test(0, 0)[0], bed.training(0)
    except UnavailableError as missing:
        pytest.skip(str(missing))
    with torch.no_grad():
        return bed, batch_of, test, answer_nll(model, test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynmole", "lora-mixer", "flylora", "mogu"])
def test_a_step_on_the_real_model_is_finite_and_gives_it_back(
    smol: tuple[SmolBed, StepBatches, TextBatch, Tensor], name: str
) -> None:
    bed, batch_of, test, before = smol
    model = bed.model(0)
    labels_B = torch.arange(len(batch_of(0).ids_BT)) % 2
    experts = [bed.expert(0, f"e{e}", targets=["o_proj"], rank=2, draw=e) for e in range(2)]
    bank, router = AdapterBank(experts), build_router(name)
    if isinstance(router, FlyLoRA):
        sizes = {layer: (m.inputs, m.outputs) for layer, m in bank.layers.items()}
        bank = fly_bank(sizes)
    assert {int(layer.split(".")[2]) for layer in bank.layers} == set(range(24, 30))
    losses = train_jointly(
        model,
        bank,
        router,
        lambda step: replace(batch_of(step), labels_B=labels_B),
        TrainSettings(steps=2, warmup=1),
        factors="up" if isinstance(router, FlyLoRA) else "all",
    )
    assert all(math.isfinite(loss) for loss in losses)
    assert any(bool(module.b_EOR.any()) for module in bank.layers.values())
    with torch.no_grad():
        assert torch.equal(answer_nll(model, test), before)
