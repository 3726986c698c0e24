"""LoraHub: a search over one weight an expert, and the adapter its weights make."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router, lorahub
from crossroads.adapters.routers.lorahub import LoraHub, Objective
from crossroads.core.errors import InputError, MissingExtraError, UsageError
from tests.adapters import toys

WANTED = torch.tensor([0.9, -0.6, 0.0, 0.3])


def prepared(**settings: object) -> tuple[LoraHub, AdapterBank]:
    bank = AdapterBank(toys.strangers(toys.tiny_llama(), 4))
    router = LoraHub(**settings)  # type: ignore[arg-type]
    router.prepare(bank)
    return router, bank


@pytest.mark.parametrize(("search", "budget"), [("nevergrad", 60), ("evolution", 300)])
def test_the_search_finds_weights_and_keeps_the_best(search: str, budget: int) -> None:
    if search == "nevergrad":
        pytest.importorskip("nevergrad")
    router, _ = prepared(search=search, budget=budget, penalty=0.0)
    seen: list[float] = []

    def loss() -> float:
        assert float(router.weights_E.abs().max()) <= 1.5
        seen.append(float((router.weights_E - WANTED).square().sum()))
        return seen[-1]

    best = router.fit(loss)
    assert len(seen) == budget
    assert seen[0] == pytest.approx(float(WANTED.square().sum()))  # the base model comes first
    assert best == min(seen)
    torch.testing.assert_close(router.weights_E, WANTED, atol=0.1, rtol=0)


def test_the_penalty_pulls_weights_to_zero() -> None:
    strict, _ = prepared(search="evolution", budget=300, penalty=50.0)
    strict.fit(lambda: float((strict.weights_E - WANTED).square().sum()))
    assert float(strict.weights_E.abs().max()) < 0.05


def test_the_penalty_is_of_the_mean_size_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    values = []

    def once(objective: Objective, *_: object) -> None:
        values.append(objective(np.array([1.0, -0.5, 0.0, 0.5])))

    monkeypatch.setattr(lorahub, "_evolution", once)
    router, _ = prepared(search="evolution", penalty=0.05)
    assert router.fit(lambda: 3.0) == 3.0
    assert values == [pytest.approx(3.0 + 0.05 * 0.5)]


def test_the_same_seed_finds_the_same() -> None:
    found = []
    for seed in (0, 0, 1):
        router, _ = prepared(search="evolution", seed=seed)
        router.fit(lambda: float((router.weights_E - WANTED).square().sum()))  # noqa: B023
        found.append(router.weights_E)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_factors_are_averaged_so_the_effect_is_of_degree_two() -> None:
    model = toys.tiny_llama()
    bank = AdapterBank(toys.strangers(model, 1))
    router = LoraHub()
    RoutedModel(model, bank, router)
    layer, module = next(iter(bank.layers.items()))
    x = torch.randn(1, 3, module.inputs)
    linear = model.get_submodule(layer)
    plain = linear(x)
    router.weights_E = torch.tensor([1.0])
    model(toys.ids())
    once = linear(x) - plain
    router.weights_E = torch.tensor([-2.0])
    model(toys.ids())
    torch.testing.assert_close(linear(x) - plain, 4 * once, atol=1e-4, rtol=0)


def test_weights_stay_with_their_experts() -> None:
    router, bank = prepared()
    router.weights_E = WANTED.clone()
    bank.remove("e1")
    bank.add(*toys.experts(toys.tiny_llama(), ["new"]))
    router.prepare(bank)
    torch.testing.assert_close(router.weights_E, torch.tensor([0.9, 0.0, 0.3, 0.0]))


def test_unequal_ranks_are_refused() -> None:
    model = toys.tiny_llama()
    bank = AdapterBank([*toys.experts(model, ["a"], rank=1), *toys.experts(model, ["b"], rank=2)])
    router = LoraHub()
    RoutedModel(model, bank, router)
    router.weights_E = torch.ones(2)
    with pytest.raises(InputError, match="ranks differ"):
        model(toys.ids())


def test_a_missing_library_is_named_or_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    router, _ = prepared(search="nevergrad")
    with pytest.raises(MissingExtraError, match=r"pip install 'crossroads\[adapters\]'"):
        router.fit(lambda: 1.0)
    auto, _ = prepared()
    assert auto.fit(lambda: float(auto.weights_E.sum())) < 0


def test_settings_are_checked_and_kept() -> None:
    with pytest.raises(UsageError, match="search: expected one of auto, nevergrad, evolution"):
        LoraHub(search="grid")
    for wrong in ("budget=0", "limit=0", "limit=nan", "penalty=-1", "penalty=nan", "seed=-1"):
        with pytest.raises(
            UsageError, match="router lorahub: expected budget of at least 1, limit"
        ):
            build_router(f"lorahub:{wrong}")
    router = build_router("lorahub:budget=10:seed=3")
    assert build_router("lorahub", **router.settings()).settings() == router.settings()


def test_weights_stay_with_renamed_experts() -> None:
    bank = AdapterBank(toys.strangers(toys.tiny_llama(), 3))
    router = LoraHub()
    router.prepare(bank)
    router.weights_E = torch.tensor([0.5, -1.0, 0.25])
    bank.rename("e1", "new")
    bank.remove("e0")
    router.prepare(bank)
    assert router.weights_E.tolist() == [-1.0, 0.25]
