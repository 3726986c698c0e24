"""Token choice in four steps, with the smallest router that has all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.moe.capacity import Capacity  # noqa: E402
from crossroads.moe.contract import RouterInput, TokenChoice  # noqa: E402
from crossroads.moe.router import TokenChoiceRouter, forced, grouped  # noqa: E402

Tensor = torch.Tensor


def router(**settings: Any) -> TokenChoiceRouter:
    """A router whose logits are the token itself."""
    made = TokenChoiceRouter(3, 3, **settings)
    with torch.no_grad():
        made.gate.weight.copy_(torch.eye(3))
    return made


def tokens(*rows: list[float], **fields: Any) -> RouterInput:
    x_BTD = torch.tensor([rows])
    mask_BT = fields.pop("mask_BT", torch.ones(1, len(rows), dtype=torch.bool))
    return RouterInput(x_BTD=x_BTD, mask_BT=mask_BT, rng=torch.Generator().manual_seed(0), **fields)


def choice_of(made: TokenChoiceRouter, inp: RouterInput) -> TokenChoice:
    choice = made.decide(inp).decision.choice
    assert isinstance(choice, TokenChoice)
    return choice


def test_the_best_experts_are_chosen_in_order_and_weighed_by_their_probability() -> None:
    choice = choice_of(router(k=2), tokens([0.0, 2.0, 1.0], [1.0, 1.0, 0.0]))
    assert choice.idx_NK.tolist() == [[1, 2], [0, 1]]
    probs = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0]]).softmax(-1)
    torch.testing.assert_close(choice.w_NK, probs.gather(-1, choice.idx_NK))


def test_renormalised_weights_sum_to_one() -> None:
    choice = choice_of(router(k=2, renorm=True), tokens([0.0, 2.0, 1.0]))
    expected = torch.tensor([[2.0, 1.0]]).softmax(-1)
    torch.testing.assert_close(choice.w_NK, expected)


@pytest.mark.parametrize("n", [2, 2000])  # few, whose weights are written in another way, and many
def test_places_left_sum_to_one_with_and_without_a_gradient(n: int) -> None:
    made = router(k=2, renorm=True)
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).tolist()
    allow = torch.tensor([[[True, True, True], [False, True, False]]]).repeat(1, n // 2, 1)
    trained = choice_of(made, tokens(*rows, allow=allow))
    with torch.no_grad():
        served = choice_of(made, tokens(*rows, allow=allow))
    assert torch.equal(trained.idx_NK, served.idx_NK)
    assert served.idx_NK[1::2].tolist() == [[1, -1]] * (n // 2)
    torch.testing.assert_close(served.w_NK, trained.w_NK.detach())
    torch.testing.assert_close(served.w_NK.sum(1), torch.ones(n))


def test_one_renormalised_place_gives_the_gate_no_gradient_at_all() -> None:
    made = router(k=1, renorm=True)
    choice_of(made, tokens([0.3, 2.0, 1.0])).w_NK.sum().backward()
    grad = made.gate.weight.grad
    assert grad is None or float(grad.abs().max()) == 0.0


def test_noise_is_drawn_in_training_alone_and_from_the_given_generator() -> None:
    made = router(noise_std=1.0)
    first = made.decide(tokens([0.0, 2.0, 1.0], training=True)).decision
    again = made.decide(tokens([0.0, 2.0, 1.0], training=True)).decision
    calm = made.decide(tokens([0.0, 2.0, 1.0])).decision
    assert torch.equal(first.probs_NE, again.probs_NE)
    assert not torch.equal(first.probs_NE, calm.probs_NE)
    # Logits of the record are clean.
    assert first.logits_NE.tolist() == [[0.0, 2.0, 1.0]]


def test_noise_per_expert_is_smaller_by_their_number() -> None:
    assert router(noise_std=1.5, noise_scale="per_expert").sigma == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3)])
def test_a_logit_bias_moves_choice_and_weight(shape: tuple[int, ...]) -> None:
    bias = torch.tensor([0.0, 0.0, 5.0]).reshape(shape)
    decision = router().decide(tokens([0.0, 2.0, 1.0], logit_bias=bias)).decision
    assert decision.choice.idx_NK.tolist() == [[2]]
    torch.testing.assert_close(decision.logits_NE, torch.tensor([[0.0, 2.0, 6.0]]))


def test_forbidden_experts_lose_their_probability_and_leave_places_empty() -> None:
    allow = torch.tensor([[False, True, False]])
    decision = router(k=2).decide(tokens([3.0, 2.0, 1.0], allow=allow)).decision
    assert decision.choice.idx_NK.tolist() == [[1, -1]]
    assert decision.choice.w_NK.tolist() == [[1.0, 0.0]]
    assert decision.probs_NE.tolist() == [[0.0, 1.0, 0.0]]


def test_force_replaces_the_last_place_in_training_only() -> None:
    force = torch.tensor([[0, 1, -1]])
    rows = ([0.0, 2.0, 1.0],) * 3
    trained = choice_of(router(k=2), tokens(*rows, force_BT=force, training=True))
    assert trained.idx_NK.tolist() == [[1, 0], [1, 2], [1, 2]]
    judged = choice_of(router(k=2), tokens(*rows, force_BT=force))
    assert judged.idx_NK.tolist() == [[1, 2]] * 3


def test_padding_is_neither_chosen_for_nor_counted() -> None:
    mask = torch.tensor([[True, False]])
    inp = tokens([0.0, 2.0, 1.0], [9.0, 0.0, 0.0], mask_BT=mask, training=True)
    answer = router(z_loss=1.0).decide(inp)
    alone = router(z_loss=1.0).decide(tokens([0.0, 2.0, 1.0], training=True))
    assert answer.decision.choice.idx_NK.tolist() == [[1], [-1]]
    assert answer.decision.stats["count_E"].tolist() == [0.0, 1.0, 0.0]
    for name in ("balance", "z"):
        assert torch.equal(answer.aux[name].value, alone.aux[name].value)


def test_losses_come_with_training_and_their_coefficients() -> None:
    made = router(balance=0.02, z_loss=1e-3)
    answer = made.decide(tokens([0.0, 2.0, 1.0], training=True))
    assert {name: term.coefficient for name, term in answer.aux.items()} == {
        "balance": 0.02,
        "z": 1e-3,
    }
    assert made.decide(tokens([0.0, 2.0, 1.0])).aux == {}


def test_what_capacity_loses_keeps_its_expert_and_weight_and_counts_in_the_load() -> None:
    made = router(capacity=Capacity(factor=1.0))
    decision = made.decide(tokens([3.0, 0.0, 0.0], [5.0, 0.0, 0.0], [9.0, 0.0, 0.0])).decision
    choice = decision.choice
    assert choice.dropped_NK.tolist() == [[False], [True], [True]]
    assert choice.idx_NK.tolist() == [[0]] * 3
    assert bool((choice.w_NK > 0.9).all())
    assert decision.stats["count_E"].tolist() == [3.0, 0.0, 0.0]


def test_priority_by_gate_serves_the_surest_token() -> None:
    made = router(capacity=Capacity(factor=1.0, priority="gate"))
    choice = choice_of(made, tokens([3.0, 0.0, 0.0], [5.0, 0.0, 0.0], [9.0, 0.0, 0.0]))
    assert choice.dropped_NK.tolist() == [[True], [True], [False]]


def test_capacity_over_the_batch_counts_all_sequences_together() -> None:
    x_BTD = torch.tensor([[[3.0, 0.0, 0.0]] * 3, [[0.0, 3.0, 0.0]] * 3])
    inp = RouterInput(x_BTD=x_BTD, mask_BT=torch.ones(2, 3, dtype=torch.bool))
    per_sequence = choice_of(router(capacity=Capacity(factor=1.0)), inp)
    over_batch = choice_of(router(capacity=Capacity(factor=1.0, group="batch")), inp)
    assert int(per_sequence.dropped_NK.sum()) == 4
    assert int(over_batch.dropped_NK.sum()) == 2


def test_half_precision_tokens_are_scored_in_float32() -> None:
    inp = tokens([0.0, 2.0, 1.0])
    half = replace(inp, x_BTD=inp.x_BTD.bfloat16())
    decision = router().to(torch.bfloat16).decide(half).decision
    assert decision.logits_NE.dtype == torch.float32
    assert decision.choice.w_NK.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k: expected between 1 and 3"),
        ({"k": 4}, "k: expected between 1 and 3"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"capacity": "big"}, "capacity factor: expected a positive number, got 'big'"),
        ({"capacity": True}, "capacity factor: expected a positive number, got True"),
        ({"noise_std": math.nan}, "noise_std"),
        ({"balance": math.nan}, "balance: expected a finite number"),
        ({"balance": -0.1}, "balance: expected a finite number"),
        ({"z_loss": math.inf}, "z_loss: expected a finite number"),
        ({"f_norm": "pick"}, "f_norm: expected one of picks, tokens, got 'pick'"),
        ({"noise_scale": "per-expert"}, "noise_scale: expected one of absolute, per_expert"),
        ({"kinds": ("ffn",)}, "kinds: expected 3"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TokenChoiceRouter(3, 3, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logit_bias": torch.zeros(4)}, "logit_bias: expected shape"),
        ({"allow": torch.ones(1, 2, dtype=torch.bool)}, "allow: expected shape"),
        ({"allow": torch.ones(1, 3)}, "allow: expected bool"),
        ({"force_BT": torch.zeros(1, 5), "training": True}, "force: expected shape"),
        ({"force_BT": torch.zeros(1, 1), "training": True}, "force: expected whole numbers"),
        ({"logit_bias": torch.tensor([0.0, torch.inf, 0.0])}, "expected numbers, got infinity"),
    ],
)
def test_side_information_of_another_shape_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        router().decide(tokens([0.0, 2.0, 1.0], **wrong))


def test_a_nan_in_a_real_token_is_refused_and_one_in_padding_is_not() -> None:
    rows = ([0.0, 2.0, 1.0], [torch.nan, 0.0, 0.0])
    with pytest.raises(InputError, match="layer 4: logits hold NaN"):
        router().decide(tokens(*rows, layer=4))
    mask = torch.tensor([[True, False]])
    assert router().decide(tokens(*rows, mask_BT=mask)).decision.choice.idx_NK.tolist() == [
        [1],
        [-1],
    ]


def test_forcing_an_expert_that_is_not_there_is_refused() -> None:
    router = TokenChoiceRouter(4, 3)
    inp = RouterInput(
        x_BTD=torch.zeros(1, 2, 4),
        mask_BT=torch.ones(1, 2, dtype=torch.bool),
        training=True,
        force_BT=torch.tensor([[3, -1]]),
    )
    with pytest.raises(InputError, match="force: expected experts below 3"):
        router.decide(inp)


def test_force_neither_opens_padding_nor_a_forbidden_expert() -> None:
    rows = ([0.0, 2.0, 1.0],) * 3
    given = {
        "force_BT": torch.tensor([[0, 0, 0]]),
        "mask_BT": torch.tensor([[True, False, True]]),
        "allow": torch.tensor([[[True] * 3, [True] * 3, [False, True, True]]]),
    }
    choice = choice_of(router(k=2), tokens(*rows, training=True, **given))
    assert choice.idx_NK.tolist() == [[1, 0], [-1, -1], [1, -1]]


class Averaging(TokenChoiceRouter):
    """Every token takes the mean probabilities of its sequence."""

    def mix(self, probs_NE: Tensor, inp: RouterInput) -> Tensor:
        return (
            grouped(probs_NE, inp)
            .mean(1, keepdim=True)
            .expand(*inp.mask_BT.shape, -1)
            .flatten(0, 1)
        )


def test_mixed_probabilities_select_as_well_as_weigh() -> None:
    made = Averaging(3, 3)
    with torch.no_grad():
        made.gate.weight.copy_(torch.eye(3))
    rows = ([4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 4.0, 0.0])
    choice = choice_of(made, tokens(*rows))
    assert choice.idx_NK.tolist() == [[1]] * 3
    mean_E = torch.tensor(rows).softmax(-1).mean(0)
    torch.testing.assert_close(choice.w_NK, mean_E[1].expand(3, 1))
    allow = torch.tensor([[[True, False, True], [True] * 3, [True] * 3]])
    assert choice_of(made, tokens(*rows, allow=allow)).idx_NK.tolist() == [[0], [1], [1]]


def test_the_z_loss_is_of_clean_logits() -> None:
    inp = tokens([0.0, 2.0, 1.0], [1.0, 1.0, 0.0], training=True)
    noisy = router(z_loss=1.0, noise_std=5.0).decide(inp)
    calm = router(z_loss=1.0).decide(inp)
    assert not torch.equal(noisy.decision.probs_NE, calm.decision.probs_NE)
    assert torch.equal(noisy.aux["z"].value, calm.aux["z"].value)


def test_linear_scores_of_normed_tokens_start_with_standard_deviation_one() -> None:
    torch.manual_seed(0)
    weight = TokenChoiceRouter(400, 50).gate.weight
    assert float(weight.detach().std()) == pytest.approx(400**-0.5, rel=0.03)


def test_a_logit_bias_of_nan_is_refused() -> None:
    with pytest.raises(InputError, match="logit_bias: expected numbers, got NaN"):
        router().decide(tokens([0.0, 2.0, 1.0], logit_bias=torch.tensor([0.0, torch.nan, 0.0])))


def test_finite_logits_whose_sum_overflows_are_no_error() -> None:
    huge = tokens([3e38, 0.0, 0.0], [3e38, 3e38, 0.0])
    assert choice_of(router(k=1), huge).idx_NK.tolist() == [[0], [0]]


def test_force_replaces_the_last_place_that_is_taken() -> None:
    idx_NK = torch.tensor([[1, -1], [1, 2], [-1, -1]])
    inp = tokens(*[[0.0] * 3] * 3, force_BT=torch.tensor([[0, 0, 0]]), training=True)
    assert forced(idx_NK, inp, 3).tolist() == [[0, -1], [1, 0], [0, -1]]


@pytest.mark.parametrize(
    "capacity",
    [
        1.0,
        Capacity(factor=1.0, eval_factor=math.inf, priority="gate"),
        Capacity(factor=1.0, eval_factor=math.inf, group="batch"),
    ],
)
def test_a_capacity_that_later_tokens_share_is_refused_in_a_decoder(capacity: Any) -> None:
    made = router(capacity=capacity)
    assert not made.causal_safe
    assert not made.per_token
    inp = tokens([0.0, 2.0, 1.0], causal=True)
    with pytest.raises(UsageError, match=r"serve a decoder; leave capacity out, or .*math.inf"):
        made.decide(inp)
    late = router()
    late.capacity = made.capacity  # not known when the router was built
    with pytest.raises(UsageError, match="serve a decoder; leave capacity out"):
        late.decide(inp)
    assert choice_of(made, replace(inp, causal=False)).dropped_NK is not None


def test_places_after_the_first_wait_for_everybodys_first_and_are_refused_in_a_decoder() -> None:
    in_order = Capacity(factor=1.0, eval_factor=math.inf)
    assert router(capacity=in_order).causal_safe
    assert not router(k=2, capacity=in_order).causal_safe


class _Closing(TokenChoiceRouter):
    """Closes the first token by its noise."""

    def noisy(self, clean_NE: Tensor, inp: RouterInput) -> Tensor:
        closed_NE = clean_NE.clone()
        closed_NE[0] = -torch.inf
        return closed_NE


class _Masking(TokenChoiceRouter):
    """Closes it where scores become probabilities."""

    def normalise(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        closed_NE = logits_NE.clone()
        closed_NE[0] = -torch.inf
        return super().normalise(closed_NE, inp)


@pytest.mark.parametrize("kind", [_Closing, _Masking])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_token_that_a_router_closes_has_no_weight(
    kind: type[TokenChoiceRouter], has_gradient: bool
) -> None:
    with torch.set_grad_enabled(has_gradient):
        choice = choice_of(kind(3, 3), tokens([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], is_full=True))
    assert choice.w_NK[0].tolist() == [0.0]
    assert 0 < float(choice.w_NK[1].detach()) < 1


def test_hooks_of_one_router_alone_are_asked() -> None:
    made = router(k=2)
    made.select = lambda probs_NE, logits_NE, inp: torch.tensor([[1, -1]])  # type: ignore[method-assign]
    made.normalise = lambda logits_NE, inp: torch.full_like(logits_NE, 0.5)  # type: ignore[method-assign]
    with torch.no_grad():
        choice = choice_of(made, tokens([0.0, 2.0, 1.0], is_full=True))
    assert choice.idx_NK.tolist() == [[1, -1]]
    assert choice.w_NK.tolist() == [[0.5, 0.0]]
