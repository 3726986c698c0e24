"""Experts in a bank are what they were outside, and come and go without touching each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.core.errors import InputError, UsageError

SIZES = {"q": (6, 4), "up": (6, 8), "down": (8, 6)}
# What an expert adapts, with which rank; 0 = not at all.
RANKS = st.tuples(*(st.integers(0, 4) for _ in SIZES)).filter(any)


def expert(name: str, ranks: tuple[int, ...], seed: int, *, gates: bool = True) -> Expert:
    draw = torch.Generator().manual_seed(seed)
    modules, artifacts = {}, {}
    for (layer, (inputs, outputs)), rank in zip(SIZES.items(), ranks, strict=True):
        if rank:
            modules[layer] = LoRA(
                a_RI=torch.randn(rank, inputs, generator=draw),
                b_OR=torch.randn(outputs, rank, generator=draw),
                scale=float(torch.rand(1, generator=draw)),
            )
            artifacts[layer] = torch.randn(inputs, generator=draw)
    return Expert(name=name, modules=modules, artifacts={"gate": artifacts} if gates else {})


def assert_same(one: Expert, other: Expert) -> None:
    assert set(one.modules) == set(other.modules)
    for layer, lora in one.modules.items():
        there = other.modules[layer]
        assert torch.equal(lora.a_RI, there.a_RI)
        assert torch.equal(lora.b_OR, there.b_OR)
        assert lora.scale == there.scale
    assert {k: set(v) for k, v in one.artifacts.items()} == {
        k: set(v) for k, v in other.artifacts.items()
    }
    for kind, rows in one.artifacts.items():
        assert all(torch.equal(values, other.artifacts[kind][layer])
                   for layer, values in rows.items())  # fmt: skip


def state(bank: AdapterBank) -> dict[str, Tensor]:
    found = {}
    for layer, module in bank.layers.items():
        found |= {f"{layer}.{name}": values for name, values in module.state_dict().items()}
    return found


def assert_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(
            values, other[name], rtol=0, atol=0, equal_nan=True, msg=f"{name} differs"
        )


@settings(max_examples=25)
@given(all_ranks=st.lists(RANKS, min_size=1, max_size=5))
def test_an_expert_comes_out_as_it_went_in(all_ranks: list[tuple[int, ...]]) -> None:
    experts = [expert(str(n), ranks, n) for n, ranks in enumerate(all_ranks)]
    bank = AdapterBank(experts)
    assert bank.names == tuple(str(n) for n in range(len(experts)))
    for one in experts:
        assert_same(bank.expert(one.name), one)
    for place, one in enumerate(experts):
        for layer, module in bank.layers.items():
            assert bool(module.alive_E[place]) == (layer in one.modules)
            if layer not in one.modules:
                assert module.lora(place) is None


@settings(max_examples=25)
@given(all_ranks=st.lists(RANKS, min_size=2, max_size=5), data=st.data())
def test_adding_and_removing_leaves_the_others_bit_by_bit(
    all_ranks: list[tuple[int, ...]], data: Any
) -> None:
    *experts, extra = [expert(str(n), ranks, n) for n, ranks in enumerate(all_ranks)]
    bank = AdapterBank(experts)
    before = {name: values.clone() for name, values in state(bank).items()}
    bank.add(extra)
    assert_bits(state(bank), state(AdapterBank([*experts, extra])))
    gone = data.draw(st.sampled_from([e.name for e in experts]))
    assert_same(bank.remove(gone), experts[int(gone)])
    for one in [*experts, extra]:
        if one.name != gone:
            assert_same(bank.expert(one.name), one)
    bank.add(experts[int(gone)])
    assert set(bank.names) == {e.name for e in [*experts, extra]}
    bank = AdapterBank(experts)
    bank.add(extra)
    bank.remove(extra.name)
    assert_bits(state(bank), before)


def test_padding_of_lower_ranks_adds_nothing() -> None:
    bank = AdapterBank([expert("low", (1, 0, 0), 0), expert("high", (4, 0, 0), 1)])
    module = bank.layers["q"]
    assert (module.rank, module.rank_E.tolist()) == (4, [1, 4])
    delta_OI = module.scale_E[0] * module.b_EOR[0] @ module.a_ERI[0]
    torch.testing.assert_close(delta_OI, bank.expert("low").modules["q"].delta_OI())


def test_a_layer_nobody_adapts_any_more_is_gone() -> None:
    bank = AdapterBank([expert("a", (2, 0, 0), 0), expert("b", (2, 3, 0), 1)])
    bank.remove("b")
    assert list(bank.layers) == ["q"]
    assert bank.layers["q"].rank == 2


def test_an_error_changes_nothing() -> None:
    bank = AdapterBank([expert("a", (2, 2, 2), 0)])
    before, version = state(bank), bank.version
    wrong = LoRA(a_RI=torch.ones(2, 7), b_OR=torch.ones(4, 2), scale=1.0)
    stranger = Expert(name="b", modules={**expert("b", (0, 3, 3), 1).modules, "q": wrong})
    with pytest.raises(InputError, match=r"size of q: \(6, 4\) and \(7, 4\)"):
        bank.add(stranger)
    short = replace(expert("b", (2, 0, 0), 1), artifacts={"gate": {"q": torch.ones(5)}})
    with pytest.raises(InputError, match=r"'gate' of q has shape \(5,\), expected \(6,\)"):
        bank.add(short)
    with pytest.raises(InputError, match="two experts are called 'a'"):
        bank.add(expert("a", (1, 0, 0), 2))
    assert bank.names == ("a",)
    assert bank.version == version
    assert_bits(state(bank), before)


def test_names_change_and_are_unique() -> None:
    bank = AdapterBank([expert("a", (1, 1, 1), 0), expert("b", (1, 1, 1), 1)])
    before = state(bank)
    bank.rename("a", "z")
    assert bank.names == ("z", "b")
    assert bank.position("b") == 1
    assert_bits(state(bank), before)
    with pytest.raises(InputError, match="'b' already"):
        bank.rename("z", "b")
    with pytest.raises(UsageError, match="unknown expert 'a'"):
        bank.rename("a", "c")
    bank.rename("b", "b")
    assert bank.names == ("z", "b")


def test_the_last_expert_stays() -> None:
    bank = AdapterBank([expert("a", (1, 0, 0), 0)])
    with pytest.raises(InputError, match="its last expert"):
        bank.remove("a")
    with pytest.raises(InputError, match="no experts"):
        AdapterBank([])


def test_every_change_of_the_set_is_counted() -> None:
    bank = AdapterBank([expert("a", (1, 0, 0), 0)])
    seen = [bank.version]
    for change in (
        lambda: bank.add(expert("b", (1, 0, 0), 1)),
        lambda: bank.rename("b", "c"),
        lambda: bank.describe("c", description="new"),
        lambda: bank.set_artifact("c", "gate", {"q": torch.ones(6)}),
        lambda: bank.remove("c"),
    ):
        change()
        seen.append(bank.version)
    assert seen == sorted(set(seen))


def test_what_is_trained_stays_trained_and_other_kinds_stay_frozen() -> None:
    bank = AdapterBank([expert("a", (1, 1, 0), 0)])
    assert not any(p.requires_grad for p in bank.parameters())
    bank.layers["q"].a_ERI.requires_grad_(True)
    bank.add(expert("b", (1, 1, 0), 1))
    trained = {name for name, p in bank.layers["q"].named_parameters() if p.requires_grad}
    assert trained == {"a_ERI"}
    assert not bank.layers["up"].a_ERI.requires_grad


def half(one: Expert) -> Expert:
    modules = {
        layer: replace(lora, a_RI=lora.a_RI.half(), b_OR=lora.b_OR.half())
        for layer, lora in one.modules.items()
    }
    return replace(one, modules=modules)


def test_the_widest_type_is_taken_and_kept() -> None:
    one, other = expert("a", (1, 1, 0), 0), expert("b", (2, 1, 1), 1)
    assert AdapterBank([half(one), other]).layers["q"].a_ERI.dtype == torch.float32
    assert AdapterBank([half(one)]).layers["q"].a_ERI.dtype == torch.float16
    bank = AdapterBank([half(one)])
    bank.add(other)
    assert bank.layers["q"].a_ERI.dtype == torch.float16
    bank = AdapterBank([one])
    bank.add(half(other))
    assert bank.layers["q"].a_ERI.dtype == torch.float32


def test_scales_and_side_data_are_not_rounded() -> None:
    bank = AdapterBank([expert("a", (1, 1, 0), 0)])
    scale, gate = bank.layers["q"].scale_E.clone(), bank.layers["q"].artifact("gate").clone()
    bank.to(torch.bfloat16)
    assert bank.layers["q"].a_ERI.dtype == torch.bfloat16
    assert torch.equal(bank.layers["q"].scale_E, scale)
    assert torch.equal(bank.layers["q"].artifact("gate"), gate)


def test_side_data_is_per_expert_and_missing_where_nobody_gave_it() -> None:
    bank = AdapterBank([expert("a", (1, 1, 0), 0), expert("b", (1, 0, 1), 1, gates=False)])
    assert bank.layers["up"].artifact("gate").shape == (2, 6)  # the dead expert needs none
    with pytest.raises(InputError, match="no 'gate' for q"):
        bank.layers["q"].artifact("gate")
    bank.set_artifact("b", "gate", {"q": torch.arange(6.0), "down": torch.ones(8)})
    assert torch.equal(bank.layers["q"].artifact("gate")[1], torch.arange(6.0))
    with pytest.raises(InputError, match="no expert adapts elsewhere"):
        bank.set_artifact("b", "gate", {"elsewhere": torch.ones(3)})
    with pytest.raises(InputError, match=r"expected shape \(2, 6\), got \(1, 6\)"):
        bank.layers["q"].set_artifact("gate", torch.ones(1, 6))


def test_side_data_of_experts_that_left_is_gone() -> None:
    bank = AdapterBank([expert("a", (1, 0, 0), 0, gates=False), expert("b", (1, 0, 0), 1)])
    bank.remove("b")
    assert bank.expert("a").artifacts == {}
    assert dict(bank.layers["q"].artifacts.named_buffers()) == {}


def test_a_subset_is_in_the_order_asked_for_and_a_copy() -> None:
    bank = AdapterBank([expert(name, (1, 2, 3), n) for n, name in enumerate("abc")])
    part = bank.subset(["c", "a"])
    assert part.names == ("c", "a")
    part.layers["q"].a_ERI.data.zero_()
    assert bank.layers["q"].a_ERI.any()


def test_what_is_handed_out_is_a_copy() -> None:
    bank = AdapterBank([expert("a", (1, 0, 0), 0)])
    bank.expert("a").modules["q"].a_RI.zero_()
    assert bank.layers["q"].a_ERI.any()


def test_embeddings_are_stacked_or_missed_by_name() -> None:
    bank = AdapterBank([replace(expert("a", (1, 0, 0), 0), embedding_G=torch.ones(3)),
                        expert("b", (1, 0, 0), 1)])  # fmt: skip
    with pytest.raises(InputError, match="'b' has no embedding"):
        bank.embeddings_EG()
    bank.describe("b", embedding_G=torch.zeros(3))
    assert bank.embeddings_EG().tolist() == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(("heads", "is_legal"), [(1, True), (2, True), (3, False), (0, False)])
def test_heads_divide_inputs_and_outputs(heads: int, is_legal: bool) -> None:
    loras = [LoRA(a_RI=torch.ones(1, 6), b_OR=torch.ones(4, 1), scale=1.0)]
    if is_legal:
        assert ModuleBank("q", loras, heads=heads).heads == heads
    else:
        with pytest.raises(InputError, match=f"{heads} does not divide .* of q; legal are 1, 2"):
            ModuleBank("q", loras, heads=heads)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 4)), ((2,), (3, 2)), ((2, 3), (3, 2, 1))])
def test_factors_that_do_not_fit_each_other_are_refused(shapes: Any) -> None:
    with pytest.raises(InputError, match="LoRA factors: expected A"):
        LoRA(a_RI=torch.ones(shapes[0]), b_OR=torch.ones(shapes[1]), scale=1.0)


def test_layers_that_come_later_have_the_banks_type() -> None:
    bank = AdapterBank([half(expert("a", (1, 0, 0), 0))])
    bank.add(expert("b", (1, 1, 0), 1))
    assert bank.layers["up"].a_ERI.dtype == torch.float16


def test_experts_are_known_again_through_renames() -> None:
    bank = AdapterBank([expert(name, (1, 0, 0), n) for n, name in enumerate("abc")])
    before = bank.keys_by_name
    assert bank.is_as_in(before)
    bank.rename("a", "y")
    between = bank.keys_by_name
    bank.rename("y", "z")
    assert bank.is_as_in(before) and bank.is_as_in(between)
    bank.remove("b")
    bank.add(expert("d", (1, 0, 0), 3))
    assert bank.names == ("z", "c", "d")
    assert bank.places_in(before) == bank.places_in(between) == [0, 2, None]
    bank.add(expert("a", (1, 0, 0), 4), expert("b", (1, 0, 0), 5))  # others of the old names
    assert bank.places_in(before) == [0, 2, None, None, None]
    assert not bank.is_as_in(before)


@given(
    st.lists(st.tuples(st.sampled_from(["rename", "remove", "add", "again"]), st.integers(0, 5)))
)
@settings(deadline=None)
def test_an_expert_is_known_by_itself_whatever_became_of_the_names(
    steps: list[tuple[str, int]],
) -> None:
    bank = AdapterBank([expert(name, (1, 0, 0), n) for n, name in enumerate("abc")])
    before = bank.keys_by_name
    who: list[int | None] = [0, 1, 2]  # who stands where, None = a stranger
    gone: list[tuple[Expert, int | None]] = []
    for number, (step, at) in enumerate(steps):
        place = at % len(who)
        free = next(name for name in "abcdefghijklmnop"[at:] if name not in bank.names)
        if step == "rename":
            bank.rename(bank.names[place], free)
        elif step == "add" and len(who) < 6:
            bank.add(expert(free, (1, 0, 0), number))
            who.append(None)
        elif step == "remove" and len(who) > 1:
            gone.append((bank.remove(bank.names[place]), who.pop(place)))
        elif step == "again" and gone and len(who) < 6:
            back, number_of_it = gone.pop()
            bank.add(replace(back, name=free))
            who.append(number_of_it)
    assert bank.places_in(before) == who


def test_copies_are_others_and_a_bank_of_the_same_experts_knows_them() -> None:
    bank = AdapterBank([expert(name, (1, 0, 0), n) for n, name in enumerate("abc")])
    before = bank.keys_by_name
    bank.add(replace(bank.expert("a"), name="copy"))
    assert bank.places_in(before) == [0, 1, 2, None]
    part = bank.subset(["c", "a"])
    part.rename("c", "z")
    assert part.places_in(before) == [2, 0]
    read_again = AdapterBank([expert(name, (1, 0, 0), n) for n, name in enumerate("cxa")])
    assert read_again.places_in(before) == [2, None, 0]


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef")), st.sampled_from([0, 1, -1]))
def test_what_was_learnt_of_experts_is_carried_to_where_they_stand_now(
    now: list[str], known: set[str], axis: int
) -> None:
    names = sorted(known)
    bank = AdapterBank([expert(name, (1, 0, 0), n) for n, name in enumerate(now)])
    before = torch.arange(len(names) * 2.0).view(-1, 2).movedim(0, axis)
    fresh = -torch.ones(len(now), 2).movedim(0, axis)
    former = {name: f"of {name}" for name in names}  # experts of another bank
    found = bank.carried(former, before, fresh, axis=axis).movedim(axis, 0)
    for row, name in zip(found.tolist(), now, strict=True):
        place = names.index(name) if name in names else None
        assert row == ([-1.0, -1.0] if place is None else [2.0 * place, 2.0 * place + 1])
    assert (fresh == -1).all()


def test_a_bank_can_be_read_with_its_layers_in_another_order() -> None:
    bank = AdapterBank([expert("a", (1, 1, 1), 0), expert("b", (1, 0, 1), 1)])
    other = bank.arranged(["down", "q", "up"])
    assert list(other.layers) == ["down", "q", "up"] and list(bank.layers) == ["q", "up", "down"]
    assert all(other.layers[layer] is bank.layers[layer] for layer in bank.layers)
    assert other.names == bank.names


def test_layers_that_share_a_decision_have_the_experts_of_any_of_them() -> None:
    bank = AdapterBank([expert("a", (1, 1, 1), 0), expert("b", (1, 0, 0), 1)])
    by_layer = {key: alive.tolist() for key, alive in bank.alive_by_owner("module").items()}
    assert by_layer == {"q": [True, True], "up": [True, False], "down": [True, False]}
    assert {k: v.tolist() for k, v in bank.alive_by_owner("model").items()} == {"": [True, True]}
    assert bank.layers["up"].alive_E.tolist() == [True, False]


def test_a_subset_knows_who_was_ever_in_the_bank() -> None:
    bank = AdapterBank([expert("a", (1, 0, 0), 0), expert("b", (1, 0, 0), 1)])
    former = bank.keys_by_name
    bank.remove("a")
    part = bank.subset(["b"])
    part.add(expert("a", (1, 0, 0), 2))  # another one under the old name
    assert part.places_in(former) == [1, None]
    whole = bank.subset(["b"])
    whole.add(expert("c", (1, 0, 0), 3))
    bank.add(expert("c", (1, 0, 0), 4))
    assert bank.places_in(whole.keys_by_name) == [0, 1]  # what the subset meets is its own affair
