from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.models.attention import Visibility
from crossroads.models.dit import DiT, DiTConfig, drop_labels, grid_positions, sinusoids
from crossroads.models.inputs import from_patches, to_patches
from tests.models.routed_toy import ToyMixture, toy_mixtures

SMALL = DiTConfig(width=16, num_layers=2, num_heads=2, hidden=32)


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_an_untrained_model_is_the_identity_in_every_block_and_answers_zero() -> None:
    model = DiT(SMALL)
    answer = model(images(), torch.rand(3) * 1000, torch.tensor([0, 10, 4]))
    assert answer.out.shape == (3, 1, 8, 8)
    assert answer.out.abs().max() == 0
    stream = model.patches(to_patches(images(), 2)) + model.positions
    normed = nn.functional.layer_norm(stream, (16,), eps=1e-6)
    assert answer.hidden_BTD is not None
    torch.testing.assert_close(answer.hidden_BTD, normed)


def test_the_start_follows_the_published_rules() -> None:
    torch.manual_seed(0)
    model = DiT(DiTConfig())
    zero = {"head", "modulation"}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.bias.abs().max() == 0, name
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            largest = float(module.weight.detach().abs().max())
            if name.split(".")[-1] in zero:
                assert largest == 0, name
            else:
                assert 0.8 * bound < largest <= bound, name
    assert float(model.labels.weight.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert model.labels.weight.shape == (11, 64)


def test_a_block_is_the_published_equation_of_time_and_label() -> None:
    torch.manual_seed(0)
    model = DiT(SMALL)
    for module in (model.modulation, *(block.modulation for block in model.blocks), model.head):
        nn.init.normal_(module.weight, std=0.3)
    time, label = torch.tensor([3.0, 700.0, 20.0]), torch.tensor([0, 10, 4])
    c_BD = model.time(sinusoids(time, SMALL.num_frequencies)) + model.labels(label)
    x = model.patches(to_patches(images(), 2)) + model.positions

    def normed(value: Tensor) -> Tensor:
        return nn.functional.layer_norm(value, (16,), eps=1e-6)

    for block in model.blocks:
        parts = block.modulation(nn.functional.silu(c_BD)).unsqueeze(1).chunk(6, -1)
        scale, shift, gate, scale_2, shift_2, gate_2 = parts
        seen = block.attention(normed(x) * (1 + scale) + shift, Visibility()).out_BTD
        x = x + gate * seen
        up, down = block.ffn.ffn.up, block.ffn.ffn.down
        hidden = up(normed(x) * (1 + scale_2) + shift_2)
        x = x + gate_2 * down(nn.functional.gelu(hidden, approximate="tanh"))
    scale, shift = model.modulation(nn.functional.silu(c_BD)).unsqueeze(1).chunk(2, -1)
    wanted = from_patches(model.head(normed(x) * (1 + scale) + shift), 1, 2)
    torch.testing.assert_close(model(images(), time, label).out, wanted, atol=1e-5, rtol=1e-4)


def test_routers_learn_the_label_after_dropout_and_get_modulated_tokens() -> None:
    norms: list[nn.Module | None] = []
    contexts: list[RouteContext] = []
    tokens: list[Tensor] = []

    def factory(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        norms.append(norm)
        toy = toy_mixtures()(layer, width, norm)

        def note(module: nn.Module, given: tuple[Tensor, RouteContext]) -> None:
            tokens.append(given[0])
            contexts.append(given[1])

        toy.register_forward_pre_hook(note)
        return toy

    model = DiT(SMALL, factory)
    label_B, time_B = torch.tensor([0, 10, 4]), torch.tensor([0.0, 500.0, 1000.0])
    model(images(), time_B, label_B)
    assert norms == [None, None]
    for context in contexts:
        assert torch.equal(context.cond["label"], label_B)
        assert context.cond["null"].tolist() == [False, True, False]
        assert torch.equal(context.cond["time"], time_B)
        assert context.cond["pos"][0].tolist() == list(range(16))
        assert not context.causal
    # Modulations start at zero, so the tokens are plain normed ones.
    torch.testing.assert_close(tokens[0].mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        tokens[0].var(-1, unbiased=False), torch.ones(3, 16), atol=1e-3, rtol=0
    )


def test_a_sublayer_counts_only_through_its_gate() -> None:
    model = DiT(SMALL, toy_mixtures())
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        model.modulation.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    inputs = images(), torch.full((3,), 100.0), torch.tensor([0, 1, 2])
    closed = model(*inputs).out
    with torch.no_grad():
        model.blocks[1].modulation.bias[5 * 16 :] = 1.0  # g2 of block 1
    assert not torch.allclose(model(*inputs).out, closed)
    toy = model.blocks[1].ffn
    assert isinstance(toy, ToyMixture)
    with torch.no_grad():
        for expert in toy.experts:
            expert.weight.zero_()
            expert.bias.zero_()
    torch.testing.assert_close(model(*inputs).out, closed)


def test_patches_are_row_major_and_put_back() -> None:
    image = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    cut = to_patches(image, 2)
    assert cut[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(from_patches(cut, 2, 2), image)


def test_sinusoids_and_grid_positions_are_the_standard_ones() -> None:
    at = sinusoids(torch.tensor([0.0, 2.0]), 4)
    assert at[0].tolist() == [1, 1, 0, 0]
    by_hand = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
    assert at[1].tolist() == pytest.approx(by_hand)
    grid = grid_positions(4, 16)
    assert grid.shape == (16, 16)
    assert torch.equal(grid[1, 8:], grid[0, 8:]), "same row, same half"
    assert torch.equal(grid[4, :8], grid[0, :8]), "same column, same half"
    assert torch.cdist(grid, grid).add(torch.eye(16)).min() > 0.1, "all places differ"


def test_label_dropout_takes_its_share() -> None:
    label_B = torch.zeros(5000, dtype=torch.int64)
    draws = torch.Generator().manual_seed(0)
    assert drop_labels(label_B, 0.1, 10, draws).eq(10).float().mean().item() == pytest.approx(
        0.1, abs=0.02
    )
    assert drop_labels(label_B, 0.0, 10, draws).eq(0).all()
    with pytest.raises(UsageError, match="rate"):
        drop_labels(label_B, 1.5, 10, draws)


@pytest.mark.parametrize(
    ("image", "time", "label", "words"),
    [
        (torch.zeros(1, 1, 8, 9), torch.zeros(1), torch.tensor([0]), "image: expected shape"),
        (torch.zeros(1, 1, 8, 8).long(), torch.zeros(1), torch.tensor([0]), "floating-point"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(2), torch.tensor([0]), "time: expected shape"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([11]), r"\[0, 11\), got 11"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([0.0]), "label: expected int64"),
    ],
)
def test_bad_inputs_are_refused(image: Tensor, time: Tensor, label: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DiT(SMALL)(image, time, label)


@pytest.mark.parametrize("wrong", [{"patch": 3}, {"width": 18, "num_heads": 2},
                                   {"num_frequencies": 3}, {"num_classes": 0}])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        DiTConfig(**wrong)
