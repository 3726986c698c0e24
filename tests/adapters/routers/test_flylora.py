"""FlyLoRA: frozen sparse projections, ranks that fire, and what balances them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput, Routing
from crossroads.adapters.fly import (
    delta_average,
    factor_average,
    fly_bank,
    sparse_projection,
    union,
)
from crossroads.adapters.fly_files import load_fly, save_fly
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank, load_router, save_bank
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.core.errors import InputError, UsageError
from tests.adapters.by_hand import mix

LAYER, INPUTS, OUTPUTS = "layers.0.proj", 48, 12
SIZES = {LAYER: (INPUTS, OUTPUTS)}
Tensor = torch.Tensor


def trained(seed: int = 0, ranks: int = 8, name: str = "fly") -> AdapterBank:
    """Return an adapter whose B is random instead of zero."""
    bank = fly_bank(SIZES, ranks=ranks, k=2, seed=seed, name=name)
    b_EOR = bank.layers[LAYER].b_EOR
    b_EOR.data = torch.randn(b_EOR.shape, generator=torch.Generator().manual_seed(seed + 50))
    return bank


def routed(bank: AdapterBank, router: FlyLoRA, x_BTI: Tensor) -> Routing:
    module = bank.layers[LAYER]
    return router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=Call()))


class Stack(nn.Module):
    """One adapted layer, called like a model; computed again in the backward pass on wish."""

    def __init__(self, inputs: int = INPUTS, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(inputs, outputs)})])
        self.again = False
        self.requires_grad_(False)

    def forward(self, x_BTI: Tensor) -> Tensor:
        layer = self.get_submodule(LAYER)
        if self.again:
            found: Tensor = checkpoint(layer, x_BTI, use_reentrant=False)
            return found
        found = layer(x_BTI)
        return found


def counted(
    bank: AdapterBank, router: FlyLoRA, *batches: Tensor, training: bool = True, **facts: Any
) -> None:
    """Run batches as one optimiser step's passes and update the biases."""
    module = bank.layers[LAYER]
    model = RoutedModel(Stack(module.inputs, module.outputs), bank, router)
    with torch.no_grad(), router.counting(model), calling(training=training, **facts):
        for x_BTI in batches:
            model.model(x_BTI)
    router.update()


def inputs(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 100), ranks=st.sampled_from([4, 16, 32]), share=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=20)
def test_every_row_has_exactly_its_nonzeros_and_comes_back_from_the_seed(
    seed: int, ranks: int, share: float
) -> None:
    nonzeros = max(1, round(share * INPUTS))
    a_RI = sparse_projection(LAYER, INPUTS, ranks=ranks, nonzeros=nonzeros, seed=seed)
    assert (a_RI != 0).sum(-1).tolist() == [nonzeros] * ranks
    again = sparse_projection(LAYER, INPUTS, ranks=ranks, nonzeros=nonzeros, seed=seed)
    assert torch.equal(a_RI, again)


def test_the_entries_have_the_standard_deviation_of_one_over_the_ranks() -> None:
    a_RI = sparse_projection(LAYER, 4000, ranks=32, nonzeros=1000, seed=3)
    assert a_RI[a_RI != 0].std().item() == pytest.approx(1 / 32, rel=0.05)


def test_projections_of_two_seeds_are_nearly_orthogonal() -> None:
    ranks, width = 32, 576
    found = [
        sparse_projection(LAYER, width, ranks=ranks, nonzeros=144, seed=seed).flatten()
        for seed in range(12)
    ]
    cosines = [
        torch.cosine_similarity(a, b, dim=0).item()
        for place, a in enumerate(found) for b in found[:place]
    ]  # fmt: skip
    assert max(map(abs, cosines)) < 4 / math.sqrt(ranks * width)
    assert torch.tensor(cosines).std().item() == pytest.approx(
        1 / math.sqrt(ranks * width), rel=0.4
    )


def test_with_every_rank_firing_it_is_lora_with_a_frozen_projection() -> None:
    bank, router = trained(), FlyLoRA(k=8)
    router.prepare(bank)
    x_BTI = inputs(1, 2, 5, INPUTS)
    module = bank.layers[LAYER]
    routing = routed(bank, router, x_BTI)
    found = mix(x_BTI, module, routing.dense(8))
    a_RI, b_OR = module.a_ERI[:, 0], module.b_EOR[:, :, 0].T
    torch.testing.assert_close(found, 2.0 * x_BTI @ a_RI.T @ b_OR.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("select", ["abs_biased", "magnitude", "signed"])
def test_the_largest_by_the_rule_fire_and_the_bias_never_enters_the_sum(select: str) -> None:
    bank, router = trained(), FlyLoRA(k=3, select=select)
    router.prepare(bank)
    bias_E = inputs(9, 8) * 0.05
    router.bias_LE[0] = bias_E
    x_BTI = inputs(2, 1, 6, INPUTS)
    z_TE = (x_BTI @ bank.layers[LAYER].a_ERI[:, 0].T)[0]
    score = {"abs_biased": (z_TE + bias_E).abs(), "magnitude": z_TE.abs() + bias_E,
             "signed": z_TE + bias_E}[select]  # fmt: skip
    weights_TE = routed(bank, router, x_BTI).weights[0, :, 0]
    assert set(weights_TE.unique().tolist()) == {0.0, 1.0}
    for t in range(6):
        assert set(weights_TE[t].nonzero().flatten().tolist()) == set(
            score[t].topk(3).indices.tolist()
        )


def test_only_the_columns_of_ranks_that_fired_get_gradient() -> None:
    bank, router = trained(), FlyLoRA(k=2)
    router.prepare(bank)
    module = bank.layers[LAYER]
    module.b_EOR.requires_grad_(True)
    x_BTI = inputs(3, 1, 1, INPUTS)
    routing = routed(bank, router, x_BTI)
    mix(x_BTI, module, routing.dense(8)).square().sum().backward()
    assert module.b_EOR.grad is not None
    assert (module.b_EOR.grad.abs().sum((1, 2)) > 0).tolist() == (
        routing.weights[0, 0, 0] > 0
    ).tolist()
    assert module.a_ERI.grad is None
    assert not router.bias_LE.requires_grad


def coefficient_of_variation(select: str, rate: float, shift: float, seed: int) -> float:
    """Return the spread of how often ranks fire after 200 updates on the same inputs."""
    bank = fly_bank({LAYER: (576, 4)}, ranks=32, k=8, seed=seed)
    router = FlyLoRA(k=8, select=select, rate=rate)
    router.prepare(bank)
    draw = torch.Generator().manual_seed(seed)
    x_BTI = torch.randn(1, 512, 576, generator=draw) + shift * torch.randn(576, generator=draw)
    model = RoutedModel(Stack(576, 4), bank, router)
    with torch.no_grad(), router.counting(model), calling(training=True):
        for _ in range(200):
            model.model(x_BTI)
            router.update()
    count_E = routed(bank, router, x_BTI).weights.sum((0, 1, 2))
    return (count_E.std(unbiased=False) / count_E.mean()).item()


@pytest.mark.parametrize(
    "seed",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)],
)
def test_selection_by_magnitude_is_balanced_by_its_bias_where_inputs_have_a_mean(seed: int) -> None:
    plain = coefficient_of_variation("magnitude", 0.0, 1.0, seed)
    assert coefficient_of_variation("magnitude", 1e-2, 1.0, seed) <= 0.25 * plain
    # The printed rule, |z + d|, makes it worse: a falling d that is negative raises |z + d|.
    assert coefficient_of_variation("abs_biased", 1e-2, 1.0, seed) > plain


def test_the_bias_moves_once_an_update_in_training_alone() -> None:
    bank, router = trained(), FlyLoRA(k=2, rate=0.5)
    router.prepare(bank)
    counted(bank, router, inputs(4, 1, 7, INPUTS), training=False)
    assert not router.bias_LE.any()
    micro = [inputs(seed, 1, 7, INPUTS) for seed in range(2)]  # one optimiser step of two batches
    counts = sum(routed(bank, router, x).weights.sum((0, 1, 2)) for x in micro)
    assert isinstance(counts, Tensor)
    counted(bank, router, *micro)
    assert torch.equal(router.bias_LE[0], 0.5 * torch.sign(counts.mean() - counts))


def test_a_block_that_is_computed_again_in_the_backward_pass_counts_once() -> None:
    bank, x_BTI = trained(), inputs(4, 1, 7, INPUTS)
    found = []
    for again in (False, True):
        router = FlyLoRA(k=2)
        base = Stack()
        base.again = again
        model = RoutedModel(base, bank, router)
        bank.layers[LAYER].b_EOR.requires_grad_(True)
        with router.counting(model), calling(training=True):
            model.model(x_BTI).square().sum().backward()
        found.append(router._counts[LAYER])
        model.unwrap()
    assert torch.equal(*found)
    assert found[0].sum() == 2 * 7


def test_padding_is_not_counted() -> None:
    bank, router = trained(), FlyLoRA(k=2, rate=0.5)
    router.prepare(bank)
    x_BTI = inputs(5, 1, 6, INPUTS)
    mask_BT = torch.tensor([[True, True, True, False, False, False]])
    fires_TE = routed(bank, router, x_BTI).weights[0, :, 0]
    assert not torch.equal(fires_TE[:3].sum(0), fires_TE.sum(0))
    model = RoutedModel(Stack(), bank, router)
    with torch.no_grad(), router.counting(model), calling(training=True, mask=mask_BT):
        model.model(x_BTI)
    assert torch.equal(router._counts[LAYER], fires_TE[:3].sum(0))
    router.update()
    padded = router.bias_LE.clone()
    router.bias_LE.zero_()
    model.unwrap()
    counted(bank, router, x_BTI[:, :3])
    assert torch.equal(router.bias_LE, padded)


@given(seed=st.integers(0, 50), factor=st.floats(-2.0, 2.0))
@settings(deadline=None, max_examples=10)
def test_the_output_is_linear_in_b(seed: int, factor: float) -> None:
    first, second, both = trained(seed), trained(seed), trained(seed)
    b_EOR = second.layers[LAYER].b_EOR
    b_EOR.data = torch.randn(b_EOR.shape, generator=torch.Generator().manual_seed(seed + 900))
    both.layers[LAYER].b_EOR.data += factor * b_EOR
    x_BTI, router = inputs(seed, 1, 4, INPUTS), FlyLoRA(k=3)
    router.prepare(first)
    weights = routed(first, router, x_BTI).dense(8)
    one, other, sum_of = (mix(x_BTI, bank.layers[LAYER], weights) for bank in (first, second, both))
    torch.testing.assert_close(sum_of, one + factor * other, atol=1e-4, rtol=1e-4)


def test_a_file_holds_b_and_the_seed_and_is_about_half_of_a_loras(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bank = fly_bank({LAYER: (256, 256)}, ranks=32, k=8, seed=7, alpha=16.0, name="mine")
    module = bank.layers[LAYER]
    module.b_EOR.data.normal_()
    router = FlyLoRA(k=8)
    router.prepare(bank)
    router.bias_LE.normal_()
    save_fly(tmp_path / "fly.safetensors", bank, router)
    again, biases = load_fly(tmp_path / "fly.safetensors")
    for name, values in bank.state_dict().items():
        assert torch.equal(again.state_dict()[name], values), name
    assert again.names == bank.names
    assert torch.equal(biases[LAYER], router.bias_LE[0])
    save_file({"a": module.a_ERI[:, 0].detach().contiguous(),
               "b": module.b_EOR[:, :, 0].T.detach().contiguous()},
              tmp_path / "lora.safetensors")  # fmt: skip
    fly, whole = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("fly", "lora"))
    assert fly < 0.55 * whole


def test_what_is_no_flylora_adapter_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    both = union([trained(1, name="a"), trained(2, name="b")])
    with pytest.raises(InputError, match="one adapter as fly_bank makes it"):
        save_fly(tmp_path / "x.safetensors", both)
    changed = trained()
    changed.layers[LAYER].a_ERI.data += 1.0
    with pytest.raises(InputError, match="not the one of its seed"):
        save_fly(tmp_path / "x.safetensors", changed)
    with pytest.raises(InputError, match="cannot be read"):
        load_fly(tmp_path / "x.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(InputError, match="is no FlyLoRA adapter"):
        load_fly(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter": None}, "adapter: expected a JSON object, found 'nothing'"),
        ({"adapter": "{"}, "adapter: expected a JSON object, found '{'"),
        ({"adapter": "{}"}, "adapter: expected seed, ranks, k, density, alpha, name, found "),
        ({"adapter": {"k": "x"}}, "adapter: k: expected int, found 'x'"),
        ({"adapter": {"k": 0}}, "adapter: flylora: k is 0, expected between 1 and 8"),
        ({"adapter": {"alpha": None}}, "adapter: alpha: expected float, found None"),
        ({"inputs": "[1]"}, r"inputs: expected a JSON object, found '\[1\]'"),
        ({"inputs": "{}"}, "inputs: expected the inputs of one layer or more"),
        ({"inputs": '{"layers.0.proj": "x"}'}, "inputs: layers.0.proj: expected a whole number"),
        ({"inputs": '{"elsewhere": 4}'}, r"elsewhere\.b: expected a shape .*, 8\), found none"),
        ({"b": torch.ones(12, 7)}, r"layers\.0\.proj\.b: expected .*, 8\), found \(12, 7\)"),
        ({"d": torch.ones(3)}, r"layers\.0\.proj\.d: expected a shape of \(8,\), found \(3,\)"),
    ],
)
def test_a_file_of_a_stranger_is_refused_by_its_field(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_fly(tmp_path / "good", trained())
    with safe_open(tmp_path / "good", framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for field, value in changes.items():
        if isinstance(value, Tensor):
            tensors[f"{LAYER}.{field}"] = value
        elif value is None:
            del metadata[field]
        elif isinstance(value, dict):
            metadata[field] = json.dumps({**json.loads(metadata[field]), **value})
        else:
            metadata[field] = value
    save_file(tensors, tmp_path / "bad", metadata=metadata)
    with pytest.raises(InputError, match=f"bad: {told}"):
        load_fly(tmp_path / "bad")


@pytest.mark.parametrize("info", [3, {"ranks": 8}, {"seed": "x"}])
def test_facts_of_a_stranger_are_not_saved_as_an_adapters(tmp_path: Path, info: Any) -> None:
    bank = trained()
    facts = {**bank.cards[0].info["flylora"], **info} if "seed" in str(info) else info
    bank.describe(bank.names[0], info={"flylora": facts})
    with pytest.raises(
        InputError, match=r"flylora: (expected one adapter|info of expert 'fly-0': )"
    ):
        save_fly(tmp_path / "x.safetensors", bank)


def test_a_union_lets_every_adapter_fire_its_own_ranks() -> None:
    first, second = trained(1, name="a"), trained(2, name="b")
    both, x_BTI = union([first, second]), inputs(6, 2, 3, INPUTS)
    router = FlyLoRA(k=2, ranks=8)
    router.prepare(both)
    whole = mix(x_BTI, both.layers[LAYER], routed(both, router, x_BTI).dense(16))
    apart = torch.zeros_like(whole)
    for bank in (first, second):
        alone = FlyLoRA(k=2)
        alone.prepare(bank)
        apart += mix(x_BTI, bank.layers[LAYER], routed(bank, alone, x_BTI).dense(8))
    torch.testing.assert_close(whole, apart, atol=1e-5, rtol=1e-5)


def test_shares_average_the_adapters_of_a_union() -> None:
    both, x_BTI = union([trained(1, name="a"), trained(2, name="b")]), inputs(6, 2, 3, INPUTS)
    router, half = FlyLoRA(k=2, ranks=8), FlyLoRA(k=2, ranks=8, share=0.5)
    router.prepare(both)
    half.prepare(both)
    whole = routed(both, router, x_BTI).weights
    torch.testing.assert_close(2 * routed(both, half, x_BTI).weights, whole)


def test_merges_are_the_average_of_deltas_and_the_average_of_factors() -> None:
    banks = [trained(1), trained(2)]

    def delta(bank: AdapterBank) -> Tensor:
        experts = [bank.layers[LAYER].lora(e) for e in range(8)]
        return sum((one.delta_OI() for one in experts if one), torch.zeros(OUTPUTS, INPUTS))

    merged = delta_average(banks).modules[LAYER].delta_OI()
    torch.testing.assert_close(merged, (delta(banks[0]) + delta(banks[1])) / 2)
    crossed = delta(factor_average(banks))
    assert (crossed - merged).abs().max() > 0.1 * merged.abs().max()
    torch.testing.assert_close(delta(factor_average([banks[0]] * 2)), delta(banks[0]))


@pytest.mark.parametrize("average", [delta_average, factor_average])
def test_adapters_of_other_layers_or_sizes_are_not_averaged(average: Any) -> None:
    one = fly_bank(SIZES, ranks=4, k=2)
    two = fly_bank({**SIZES, "layers.1.proj": (4, 5)}, ranks=4, k=2)
    for banks, told in (
        ([one, two], "at layers.1.proj the first has nothing, number 2 4 inputs and 5 outputs"),
        ([two, one], "at layers.1.proj the first has 4 inputs and 5 outputs, number 2 nothing"),
        ([one, fly_bank({LAYER: (8, OUTPUTS)}, ranks=4, k=2)], "has 48 inputs .* 2 8 inputs"),
    ):
        with pytest.raises(InputError, match=f"expected adapters of the same layers, .*{told}"):
            average(banks)
    wide = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(OUTPUTS, 2), scale=1.0)
    with pytest.raises(InputError, match="has experts of rank 2, expected rank one"):
        average([AdapterBank([Expert(name="x", modules={LAYER: wide})])])
    with pytest.raises(InputError, match="no adapters to average"):
        average([])


def test_a_bank_of_plain_adapters_is_refused_with_what_makes_another() -> None:
    wide = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(OUTPUTS, 2), scale=1.0)
    plain = AdapterBank([Expert(name="x", modules={LAYER: wide})])  # fewer than k besides
    with pytest.raises(InputError, match="rank one for all; crossroads adapters teach makes such"):
        FlyLoRA().prepare(plain)


def test_ranks_are_not_cut_where_factors_are_averaged() -> None:
    small, large = fly_bank(SIZES, ranks=4, k=2), fly_bank(SIZES, ranks=8, k=2)
    for banks in ([small, large], [large, small]):
        with pytest.raises(InputError, match=r"as many ranks as the first, \d, got \d; average th"):
            factor_average(banks)
    assert delta_average([small, large]).modules[LAYER].rank == 12


def numbered(bank: AdapterBank, **settings: Any) -> FlyLoRA:
    """Return a router whose d tells ranks and layers apart: place on axis E, and layer / 10."""
    router = FlyLoRA(k=2, **settings)
    router.prepare(bank)
    for place, layer in enumerate(bank.layers):
        router.bias_of(layer).copy_(torch.arange(bank.n_experts) + place / 10)
    return router


def test_biases_follow_the_names_of_ranks_that_are_removed_added_and_renamed() -> None:
    bank = trained()
    router = numbered(bank)
    gone = bank.remove("fly-2")
    bank.rename("fly-5", "other")
    router.prepare(bank)
    assert router.bias_of(LAYER).tolist() == [0, 1, 3, 4, 5, 6, 7]
    bank.add(gone)
    router.prepare(bank)
    assert router.bias_of(LAYER).tolist() == [0, 1, 3, 4, 5, 6, 7, 0]  # a newcomer starts at 0


def test_biases_follow_the_names_of_layers() -> None:
    sizes = {f"layers.{n}.proj": (INPUTS, OUTPUTS) for n in range(3)}
    router = numbered(fly_bank(sizes, ranks=4, k=2))
    fewer = fly_bank({layer: sizes[layer] for layer in reversed(list(sizes)[1:])}, ranks=4, k=2)
    router.prepare(fewer)
    assert [router.bias_of(layer)[0].item() for layer in fewer.layers] == pytest.approx([0.2, 0.1])
    with pytest.raises(UsageError, match=r"unknown layer of router flylora 'layers\.0\.proj'"):
        router.bias_of("layers.0.proj")


def test_ranks_of_two_adapters_never_compete_after_a_change() -> None:
    both = union([trained(1, name="a"), trained(2, name="b")])
    router = numbered(both, ranks=8)
    first = both.remove("a-0")
    with pytest.raises(InputError, match=r"15 experts are no multiple of 8 ranks; add and remove"):
        router.prepare(both)
    both.add(first)
    with pytest.raises(InputError, match=r"a-1 to b-0 are ranks of different adapters now; add"):
        router.prepare(both)
    for rank in range(1, 8):  # the first adapter whole at the end
        both.add(both.remove(f"a-{rank}"))
    router.prepare(both)
    assert router.bias_of(LAYER).tolist() == [*range(8, 16), *range(8)]


def test_biases_come_back_with_a_bank_whose_files_order_layers_otherwise(tmp_path: Path) -> None:
    layers = ["layers.1.proj", "layers.0.proj", "layers.10.proj"]
    bank = fly_bank(dict.fromkeys(layers, (INPUTS, OUTPUTS)), ranks=4, k=2)
    router = numbered(bank)
    save_bank(tmp_path / "bank", bank, router)
    again = load_bank(tmp_path / "bank")
    assert list(again.layers) != layers
    found = load_router(tmp_path / "bank", again)
    assert isinstance(found, FlyLoRA)
    for layer in layers:
        assert torch.equal(found.bias_of(layer), router.bias_of(layer)), layer


def test_an_adapter_is_not_saved_with_the_biases_of_another_bank(tmp_path: Path) -> None:
    router = numbered(union([trained(1, name="a"), trained(2, name="b")]), ranks=8)
    with pytest.raises(InputError, match="biases of 16 ranks, the adapter has 8; prepare a router"):
        save_fly(tmp_path / "x.safetensors", trained(1, name="a"), router)


def test_wrong_settings_and_banks_are_refused_by_name() -> None:
    with pytest.raises(
        UsageError, match="unknown selection of router flylora 'loudest'; Known: abs_biased"
    ):
        FlyLoRA(select="loudest")
    with pytest.raises(
        InputError, match="k = 9 is not between 1 and 8, the ranks of an adapter; set k so"
    ):
        FlyLoRA(k=9).prepare(trained())
    for wrong in (
        {"k": 0}, {"ranks": -1}, {"rate": math.nan}, {"rate": -1.0}, {"share": math.inf},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="router flylora: expected k of at least 1, ranks"):
            FlyLoRA(**wrong)
    with pytest.raises(UsageError, match="k is 0"):
        fly_bank(SIZES, ranks=8, k=0)
    with pytest.raises(UsageError, match="density is 0"):
        fly_bank(SIZES, ranks=8, k=2, density=0.0)
    wide = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(OUTPUTS, 2), scale=1.0)
    plain = Expert(name="x", modules={LAYER: wide})
    with pytest.raises(InputError, match="rank one"):
        FlyLoRA(k=1).prepare(AdapterBank([plain]))
