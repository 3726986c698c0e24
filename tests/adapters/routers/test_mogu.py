"""MoGU: blends of variants, their weights' targets, and what they do to the frozen layer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers.mogu import MoGU
from crossroads.core.errors import UsageError
from tests.adapters.toys import experts, ids, linear_layers, lora, tiny_llama, tiny_opt

Tensor = torch.Tensor


def variants(count: int = 2, size: float = 0.3) -> tuple[object, AdapterBank]:
    model = tiny_llama()
    return model, AdapterBank(
        experts(model, [f"v{e}" for e in range(count)], ends=("o_proj",), size=size)
    )


def constant(router: MoGU, *logits: float) -> None:
    """Make the nets say the same for every token."""
    for nets in router.nets:
        for net, logit in zip(nets, logits, strict=True):  # type: ignore[call-overload]
            net[2].weight.data.zero_()
            net[2].bias.data.fill_(logit)


def logits_of(model: object, bank: AdapterBank, router: MoGU, *shut: float) -> Tensor:
    routed = RoutedModel(model, bank, router)  # type: ignore[arg-type]
    routed.checks = True
    if shut:
        constant(router, *shut)
    try:
        with torch.no_grad():
            found: Tensor = routed.model(ids(2, 6)).logits
    finally:
        routed.unwrap()
    return found


def test_halves_of_variants_that_change_nothing_are_the_base_model_bit_by_bit() -> None:
    model, bank = variants(size=0.0)
    with torch.no_grad():
        plain = model(ids(2, 6)).logits  # type: ignore[operator]
    assert torch.equal(logits_of(model, bank, MoGU(), 0.0, 0.0), plain)


@pytest.mark.parametrize("place", [0, 1])
def test_one_weight_of_1_is_that_variant_alone(place: int) -> None:
    from crossroads.adapters.experts import Alone

    model, bank = variants()
    shut = [-60.0, -60.0]
    shut[place] = 60.0
    blended = logits_of(model, bank, MoGU(), *shut)
    routed = RoutedModel(model, bank.subset([f"v{place}"]), Alone())  # type: ignore[arg-type]
    with torch.no_grad():
        alone = routed.model(ids(2, 6)).logits
    routed.unwrap()
    torch.testing.assert_close(blended, alone, atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 100), total=st.sampled_from(["free", "one"]))
@settings(deadline=None, max_examples=15)
def test_the_output_is_the_weighted_sum_of_the_variants_outputs(seed: int, total: str) -> None:
    model, bank = variants()
    name = linear_layers(model, ("o_proj",))[1]  # type: ignore[arg-type]
    router = MoGU(seed=seed, total=total)
    routed = RoutedModel(model, bank, router)  # type: ignore[arg-type]
    x_BTI = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed))
    layer = routed.model.get_submodule(name)
    with torch.no_grad():
        found = layer(x_BTI)
        weights = torch.cat(
            [torch.sigmoid(net(x_BTI)) for net in router.nets[1]],
            -1,  # type: ignore[arg-type]
        )
        if total == "one":
            weights = weights / weights.sum(-1, keepdim=True)
        expected = torch.zeros_like(found)
        for e in range(2):
            one = bank.layers[name].lora(e)
            assert one is not None
            whole = layer.base_layer(x_BTI) + x_BTI @ one.delta_OI().T
            expected += weights[..., e, None] * whole
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    routed.unwrap()


def test_a_variant_that_does_not_adapt_a_layer_is_the_frozen_layer_there() -> None:
    model, bank = variants()
    name, other = linear_layers(model, ("o_proj",))  # type: ignore[arg-type]
    both = bank.expert("v0")
    dead = Expert(name="v1", modules={other: lora(2, 16, 16)})
    mixed = AdapterBank([both, dead])
    router = MoGU()
    router.prepare(mixed)
    constant(router, -60.0, 60.0)
    x_BTI = torch.randn(1, 3, 16)
    given_ = RouteInput(module=name, x_BTI=x_BTI, bank=mixed.layers[name], call=Call())
    routing = router.route(given_)
    assert routing.base is not None
    torch.testing.assert_close(routing.base, torch.ones(1, 3, 1))
    assert routing.weights[..., 1].max() == 0


def decided(router: MoGU, bank: AdapterBank, call: Call, seed: int = 0) -> dict[str, Routing]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: router.route(
            RouteInput(
                module=name, x_BTI=torch.randn(3, 4, 16, generator=draw), bank=module, call=call
            )
        )
        for name, module in bank.layers.items()
    }


def test_the_pull_is_the_squared_distance_over_layers_and_real_labelled_tokens() -> None:
    _, bank = variants()
    router = MoGU()
    router.prepare(bank)
    mask_BT = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    call = Call(training=True, labels_B=torch.tensor([0, 1, -1]), mask_BT=mask_BT)
    found = decided(router, bank, call)
    distances = []
    for routing in found.values():
        weights = routing.weights[:, :, 0]
        distances += [(w - torch.tensor([1.0, 0.0])).square() for w in weights[0]]
        distances += [(w - torch.tensor([0.0, 1.0])).square() for w in weights[1, :2]]
    term = router.losses(found, call)["pull"]
    torch.testing.assert_close(term.value, torch.stack(distances).mean(0).sum())
    assert term.coefficient == 2.0
    assert router.losses(found, Call()) == {}


@pytest.mark.parametrize("first", ["q_proj", "fc1"])
def test_the_pull_is_that_of_tokens_where_a_model_flattens_them(first: str) -> None:
    model = tiny_opt()
    bank = AdapterBank(experts(model, ["v0", "v1"], ends=("q_proj", "fc1"), kinds=()))
    routed = RoutedModel(model, bank, MoGU())
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad(), calling(training=True, labels=torch.tensor([0, 1])):
        routed.model(input_ids=ids(2, 5), attention_mask=mask_BT)
    seen = routed.current.seen
    assert [one.shape for one in seen.values()] == [(2, 5), (10, 1)]
    if first == "fc1":  # as in a model that flattens before its first adapted layer
        routed.current.seen = dict(reversed(seen.items()))
    real_N = mask_BT.bool().flatten()
    target_NE = torch.eye(2)[torch.tensor([0, 1]).repeat_interleave(5)][real_N]
    distances = []
    for routing in routed.last_routings.values():
        assert routing.logits is not None
        weights_NE = torch.sigmoid(routing.logits[:, :, 0]).flatten(0, 1)[real_N]
        distances.append((weights_NE - target_NE).square())
    wanted = 2.0 * torch.cat(distances).mean(0).sum()
    torch.testing.assert_close(routed.aux_loss(), wanted)
    routed.unwrap()


def test_descending_the_pull_raises_the_labels_weight() -> None:
    _, bank = variants()
    router = MoGU()
    router.prepare(bank)
    router.requires_grad_(True)
    call = Call(training=True, labels_B=torch.tensor([1, 1, 1]))
    optimiser = torch.optim.Adam(router.parameters(), lr=1e-2)
    before = [r.weights.mean((0, 1, 2)).detach() for r in decided(router, bank, call).values()]
    for _ in range(20):
        optimiser.zero_grad()
        router.losses(decided(router, bank, call), call)["pull"].weighted.backward()
        optimiser.step()
    after = [r.weights.mean((0, 1, 2)).detach() for r in decided(router, bank, call).values()]
    for old, new in zip(before, after, strict=True):
        assert new[1] > old[1]
        assert new[0] < old[0]


def test_nets_that_were_trained_stay_where_sizes_do_and_start_alike_from_a_seed() -> None:
    _, bank = variants()
    router, again = MoGU(seed=3), MoGU(seed=3)
    router.prepare(bank)
    again.prepare(bank)
    for one, other in zip(router.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    constant(router, 1.0, 2.0)
    router.prepare(bank)
    assert router.nets[0][0][2].bias.item() == 1.0  # type: ignore[index]
    _, three = variants(3)
    router.prepare(three)
    assert len(router.nets[0]) == 3  # type: ignore[arg-type]


def told(router: MoGU, bank: AdapterBank) -> dict[str, Tensor]:
    """Return the weights of every variant by name, (B, T)."""
    (routing, *_) = decided(router, bank, Call()).values()
    weights_BTE = torch.sigmoid(routing.logits[:, :, 0])  # type: ignore[index]
    return dict(zip(bank.names, weights_BTE.unbind(-1), strict=True))


def test_nets_follow_the_names_of_variants(caplog: pytest.LogCaptureFixture) -> None:
    _, bank = variants(3)
    router = MoGU()
    router.prepare(bank)
    router.requires_grad_(True)
    before = told(router, bank)
    gone = bank.remove("v0")
    bank.rename("v2", "safe")
    router.prepare(bank)
    after = told(router, bank)
    assert torch.equal(after["v1"], before["v1"])
    assert torch.equal(after["safe"], before["v2"])
    assert "variants are new" not in caplog.text
    kept = {id(parameter) for parameter in router.parameters()}
    bank.add(gone)
    router.prepare(bank)
    assert kept < {id(parameter) for parameter in router.parameters()}  # an optimiser keeps them
    assert torch.equal(told(router, bank)["safe"], before["v2"])
    assert "variants are new, and have no say yet; train it again" in caplog.text


def test_threads_may_share_it_since_it_keeps_no_weights() -> None:
    model, bank = variants()
    router = MoGU()
    routed = RoutedModel(model, bank, router)  # type: ignore[arg-type]
    before = dict(vars(router))
    with torch.no_grad(), calling(training=False):
        routed.model(ids(1, 4))
    assert {k: id(v) for k, v in vars(router).items()} == {k: id(v) for k, v in before.items()}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="total is free or one"):
        MoGU(total="two")
    with pytest.raises(UsageError, match="width at least 1"):
        MoGU(width=0)
    for pull in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="pull is a number of at least 0"):
            MoGU(pull=pull)


@pytest.mark.parametrize("is_trained", [False, True])
def test_nets_that_come_later_are_trained_where_the_others_are(is_trained: bool) -> None:
    model, bank = variants(2)
    router = MoGU()
    router.prepare(bank)
    router.requires_grad_(is_trained)
    bank.add(*experts(model, ["new"], ends=("o_proj", "q_proj"), seed=77))
    router.prepare(bank)  # another variant, and layers that had no nets
    assert {p.requires_grad for p in router.parameters()} == {is_trained}
