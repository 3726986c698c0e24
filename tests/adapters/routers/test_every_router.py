"""What holds for every router: caches, changes of its bank, and numbers written unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router, router_names
from crossroads.core.errors import InputError, MissingExtraError, UsageError
from tests.adapters import toys

AXES = torch.eye(4)
SPECS = {
    "best-single": "best-single:expert=e1",
    "flylora": "flylora:k=2:ranks=0",
    "mogu": "mogu:width=4",
    "poly": "poly:tasks=3",
    "task-moe": "task-moe:tasks=3",
}
FOLLOWS = ("dynmole", "flylora", "lora-mixer", "lorahub", "mogu", "poly", "task-moe", "x-lora")


def experts(names: str = "0123", *, rank: int = 2, seed: int = 1000) -> list[Expert]:
    names_E, kinds = [f"e{name}" for name in names], ("gate", "activation")
    found = toys.experts(toys.tiny_llama(), names_E, rank=rank, kinds=kinds, seed=seed)
    return [
        replace(expert, embedding_G=axis, examples_JG=axis[None])
        for expert, axis in zip(found, AXES, strict=False)
    ]


def rank_for(name: str) -> int:
    return 1 if name == "flylora" else 2


def inserted(name: str) -> tuple[RoutedModel, Router]:
    """Return a tiny model with four experts and a router that looks as if it was trained."""
    names = "0" if name == "multitask" else "0123"  # one adapter for all tasks
    bank = AdapterBank(experts(names, rank=rank_for(name)))
    router = build_router(SPECS.get(name, name))
    try:
        routed = RoutedModel(toys.tiny_llama(), bank, router)
    except MissingExtraError as error:
        pytest.skip(str(error))
    for number, values in enumerate(router.state_dict().values()):
        values.copy_(torch.randn(values.shape, generator=toys.rng(number)))
    return routed, router


@contextmanager
def told() -> Iterator[None]:
    """Say everything about a batch of three that any router may ask for."""
    facts = {"task_ids": torch.tensor([0, 2, 1]), "labels": torch.tensor([3, 0, 2])}
    with torch.no_grad(), calling(embedding=AXES[:3], experts=["e2", None, "e0"], **facts):
        yield


def logits(routed: RoutedModel) -> Tensor:
    with told():
        found: Tensor = routed.model(toys.ids()).logits
    return found


@pytest.mark.parametrize("name", router_names())
def test_reading_step_by_step_with_the_cache_equals_reading_at_once(name: str) -> None:
    routed, router = inserted(name)
    x_BT = toys.ids()
    whole, cache, steps = logits(routed), None, []
    with told(), routed.disabled():
        assert (routed.model(x_BT).logits - whole).abs().max() > 1e-2  # experts do something
    with told():
        for chunk_BT in x_BT.split([3, 1, 1, 2], 1):  # a prompt, steps, and tokens to check
            if router.looks_ahead and cache is not None:
                with pytest.raises(InputError, match="cannot go on from a cache"):
                    routed.model(chunk_BT, past_key_values=cache, use_cache=True)
                return
            out = routed.model(chunk_BT, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*FOLLOWS, "best-single"])
def test_two_experts_may_swap_their_names_between_passes(name: str) -> None:
    routed, _ = inserted(name)
    before = logits(routed)
    for old, new in (("e0", "other"), ("e1", "e0"), ("other", "e1")):
        routed.bank.rename(old, new)
    assert torch.equal(logits(routed), before)
    assert routed.bank.names == ("e1", "e0", "e2", "e3")


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_stranger_under_the_name_of_a_removed_expert_inherits_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)  # they warn of experts that are new
    (stranger,) = experts("7", rank=rank_for(name), seed=5)
    found = []
    for called in ("e3", "new"):
        routed, _ = inserted(name)
        logits(routed)
        routed.bank.remove("e3")
        routed.bank.add(replace(stranger, name=called))
        found.append(logits(routed))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["arrow", "best-single", "phatgoose", "ties"])
@pytest.mark.parametrize("of", ["experts", "base"])
def test_writes_no_version_tells_of_are_seen_once_the_bank_is_told(name: str, of: str) -> None:
    routed, _ = inserted(name)
    logits(routed)
    for layer, module in routed.bank.layers.items():
        base = routed.model.get_submodule(layer)
        # Of one expert alone: directions of all of them stay where only sizes change.
        written = module.b_EOR.data[1] if of == "experts" else base.weight.data
        written += torch.randn(written.shape, generator=toys.rng(3))
    routed.bank.rewritten()
    after = logits(routed)
    bank = routed.bank.subset(routed.bank.names)
    fresh = RoutedModel(routed.unwrap(), bank, build_router(SPECS.get(name, name)))
    assert torch.equal(logits(fresh), after)


def test_the_best_single_expert_is_not_its_names_next_owner() -> None:
    routed, router = inserted("best-single")
    bank = routed.bank
    bank.rename("e1", "code")
    logits(routed)
    assert router.settings() == {"expert": "code"}
    bank.remove("code")
    bank.add(replace(experts("7", seed=5)[0], name="code"))
    with pytest.raises(UsageError, match="'code' was removed, and another one has its name"):
        router.prepare(bank)
    router.expert = "code"
    router.prepare(bank)
    assert router.settings() == {"expert": "code"}
