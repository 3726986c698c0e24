"""Top-2, hash, position, frozen random, sigmoid and loss-free routing, and Switch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.moe.contract import RouterInput, RouterOutput  # noqa: E402
from crossroads.moe.routers import build_router  # noqa: E402
from crossroads.moe.routers.hash import Hash  # noqa: E402
from crossroads.moe.routers.loss_free import LossFree  # noqa: E402
from crossroads.moe.routers.position import Position  # noqa: E402
from crossroads.moe.routers.random import Random  # noqa: E402
from crossroads.moe.routers.sigmoid import Sigmoid  # noqa: E402
from crossroads.moe.routers.switch import Switch  # noqa: E402
from crossroads.moe.routers.top2 import Top2  # noqa: E402

Tensor = torch.Tensor


def reading(made: Any) -> Any:
    """Make the logits of a router the token itself."""
    with torch.no_grad():
        made.gate.weight.copy_(torch.eye(made.n_experts))
    return made


def tokens(x_TD: Tensor, seed: int = 0, **fields: Any) -> RouterInput:
    mask_BT = fields.pop("mask_BT", torch.ones(1, len(x_TD), dtype=torch.bool))
    generator = torch.Generator().manual_seed(seed)
    return RouterInput(x_BTD=x_TD.unsqueeze(0), mask_BT=mask_BT, rng=generator, **fields)


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def weights(answer: RouterOutput) -> Tensor:
    return answer.decision.choice.w_NK


def experts(answer: RouterOutput) -> list[list[int]]:
    return answer.decision.choice.idx_NK.tolist()


# ---------------------------------------------------------------------------- Switch and top-2


def test_switch_takes_the_best_expert_with_its_probability_and_the_published_balance() -> None:
    x_TD = normal(5, 3)
    answer = reading(Switch(3, 3)).decide(tokens(x_TD, training=True))
    best = x_TD.softmax(-1).max(-1)
    assert experts(answer) == best.indices.unsqueeze(1).tolist()
    torch.testing.assert_close(weights(answer)[:, 0], best.values)
    assert answer.aux["balance"].coefficient == 0.01


def test_top2_weights_are_the_two_best_divided_by_their_sum() -> None:
    x_TD = normal(6, 4)
    answer = reading(Top2(4, 4)).decide(tokens(x_TD))
    best = x_TD.softmax(-1).sort(-1, descending=True).values[:, :2]
    torch.testing.assert_close(weights(answer), best / best.sum(-1, keepdim=True))


def test_a_random_second_place_survives_with_probability_weight_over_threshold() -> None:
    # p = (.9, .1): the second place has weight .1 and stays with probability .1 / .2 = 1/2.
    x_TD = torch.log(torch.tensor([[0.9, 0.1]])).expand(4000, 2)
    made = reading(Top2(2, 2, later="random"))
    answer = made.decide(tokens(x_TD, training=True))
    kept_N = answer.decision.choice.idx_NK[:, 1] >= 0
    # Standard error of the share: sqrt(.25 / 4000) = .008.
    assert float(kept_N.float().mean()) == pytest.approx(0.5, abs=0.04)
    # Weights are not renormalised after the draw.
    torch.testing.assert_close(weights(answer)[:, 0], torch.full((4000,), 0.9))
    torch.testing.assert_close(weights(answer)[kept_N, 1], torch.full((int(kept_N.sum()),), 0.1))
    assert bool((weights(answer)[~kept_N, 1] == 0).all())


def test_a_second_place_above_the_threshold_is_certain_and_evaluation_keeps_all() -> None:
    sure = torch.log(torch.tensor([[0.75, 0.25]])).expand(500, 2)
    made = reading(Top2(2, 2, later="random"))
    assert bool((made.decide(tokens(sure, training=True)).decision.choice.idx_NK >= 0).all())
    rare = torch.log(torch.tensor([[0.99, 0.01]])).expand(500, 2)
    assert bool((made.decide(tokens(rare)).decision.choice.idx_NK >= 0).all())
    drawing = reading(Top2(2, 2, later="random", draw_in_eval=True))
    with torch.no_grad():
        drawn = drawing.decide(tokens(rare, is_full=True))
    gone_NK = drawn.decision.choice.idx_NK < 0
    assert bool(gone_NK.any()) and bool((weights(drawn)[gone_NK] == 0).all())


def test_places_of_a_token_stay_packed_after_the_draw() -> None:
    made = reading(Top2(4, 4, k=4, later="random"))
    idx_NK = made.decide(tokens(3 * normal(300, 4), training=True)).decision.choice.idx_NK
    gone_NK = idx_NK < 0
    assert bool(gone_NK.any())
    assert bool((gone_NK[:, 1:] >= gone_NK[:, :-1]).all())
    assert not bool(gone_NK[:, 0].any())


def test_the_best_expert_is_never_lost_to_the_draw() -> None:
    made = reading(Top2(4, 4, k=4, later="random", threshold=1.0))  # kept at one in four
    idx_NK = made.decide(tokens(torch.zeros(400, 4), training=True)).decision.choice.idx_NK
    assert bool((idx_NK[:, 0] == 0).all())
    assert 0.2 < float((idx_NK[:, 1:] >= 0).sum()) / 1200 < 0.3


def test_a_forced_expert_takes_a_place_the_draw_has_freed() -> None:
    rare = torch.log(torch.tensor([[0.9, 0.09, 0.01]])).expand(400, 3)
    force_BT = torch.full((1, 400), 2)
    force_BT[0, :5] = -1
    made = reading(Top2(3, 3, later="random"))
    free = made.decide(tokens(rare, training=True)).decision.choice.idx_NK
    idx_NK = made.decide(tokens(rare, training=True, force_BT=force_BT)).decision.choice.idx_NK
    assert 0 < int((free[:, 1] < 0).sum()) < 400
    assert bool((idx_NK[:, 0] == 0).all())  # the best expert stays
    assert bool((idx_NK[5:, 1] == 2).all())
    assert torch.equal(idx_NK[:5], free[:5])


@pytest.mark.parametrize(("counted", "share"), [("first", [1.0, 0.0]), ("all", [0.5, 0.5])])
def test_the_balance_loss_of_top2_counts_first_choices_unless_told(
    counted: str, share: list[float]
) -> None:
    x_TD = torch.log(torch.tensor([[0.9, 0.1], [0.6, 0.4]]))
    made = reading(Top2(2, 2, counted=counted))
    value = made.decide(tokens(x_TD, training=True)).aux["balance"].value
    assert float(value.detach()) == pytest.approx(2 * (share[0] * 0.75 + share[1] * 0.25))


# ---------------------------------------------------------------------------- fixed functions


def test_hash_takes_the_token_id_modulo_the_experts() -> None:
    ids = torch.tensor([[0, 5, 9, 5]])
    answer = Hash(3, 4).decide(tokens(normal(4, 3), cond={"token_id": ids}))
    assert experts(answer) == [[0], [1], [1], [1]]
    assert weights(answer).tolist() == [[1.0]] * 4
    assert answer.decision.logits_NE is None


def test_hash_sums_the_raw_values_of_a_patch_where_there_are_no_ids() -> None:
    patch = torch.tensor([[[1.0, 2.0, 4.0, 0.0], [16.0, 0.0, 0.0, 1.0]]])
    assert experts(Hash(3, 4).decide(tokens(normal(2, 3), cond={"patch": patch}))) == [[3], [1]]


def test_several_hashed_places_are_neighbours_of_equal_weight() -> None:
    ids = torch.tensor([[3]])
    answer = Hash(3, 4, k=2).decide(tokens(normal(1, 3), cond={"token_id": ids}))
    assert experts(answer) == [[3, 0]]
    assert weights(answer).tolist() == [[0.5, 0.5]]


def test_hash_without_anything_to_hash_says_what_it_wants() -> None:
    with pytest.raises(InputError, match=r"cond\['token_id'\]"):
        Hash(3, 4).decide(tokens(normal(2, 3)))
    with pytest.raises(InputError, match=r"keys of shape \(1, 2\), got \(1, 3\)"):
        Hash(3, 4).decide(tokens(normal(2, 3), cond={"token_id": torch.zeros(1, 3)}))


def test_position_takes_the_true_position_where_it_is_given() -> None:
    made = Position(3, 2)
    assert experts(made.decide(tokens(normal(3, 3)))) == [[0], [1], [0]]
    pos = torch.tensor([[5, 6, 7]])
    assert experts(made.decide(tokens(normal(3, 3), cond={"pos": pos}))) == [[1], [0], [1]]


def test_fixed_functions_have_nothing_to_learn() -> None:
    for made in (Hash(3, 4), Position(3, 4)):
        assert list(made.parameters()) == []


def test_the_random_gate_is_not_trained_and_its_experts_grow_with_progress() -> None:
    made = Random(3, 4, k=2, k_end=4)
    assert not any(p.requires_grad for p in made.parameters())
    counts = [
        len(experts(made.decide(tokens(normal(1, 3), training=True, progress=progress)))[0])
        for progress in (0.0, 0.5, 1.0)
    ]
    assert counts == [2, 3, 4]
    assert len(experts(made.decide(tokens(normal(1, 3))))[0]) == 4
    assert len(experts(Random(3, 4, k=2, k_end=4, k_eval=1).decide(tokens(normal(1, 3))))[0]) == 1


# ---------------------------------------------------------------------------- sigmoid, loss-free


def test_one_sigmoid_place_weighs_its_own_score_and_more_are_normalised() -> None:
    x_TD = normal(5, 3)
    scores = x_TD.sigmoid().sort(-1, descending=True).values
    one = reading(Sigmoid(3, 3)).decide(tokens(x_TD))
    torch.testing.assert_close(weights(one), scores[:, :1])
    two = reading(Sigmoid(3, 3, k=2)).decide(tokens(x_TD))
    torch.testing.assert_close(weights(two), scores[:, :2] / scores[:, :2].sum(-1, keepdim=True))


def test_losses_and_record_of_sigmoid_gates_use_shares() -> None:
    x_TD = normal(5, 3)
    decision = reading(Sigmoid(3, 3)).decide(tokens(x_TD)).decision
    expected = x_TD.sigmoid() / x_TD.sigmoid().sum(-1, keepdim=True)
    torch.testing.assert_close(decision.probs_NE, expected)
    # Equal scores: P is uniform, so the loss is exactly 1 whatever was chosen.
    equal = reading(Sigmoid(3, 3)).decide(tokens(torch.zeros(4, 3), training=True))
    assert float(equal.aux["balance"].value.detach()) == pytest.approx(1.0)


def test_the_bias_selects_and_never_weighs() -> None:
    made = reading(LossFree(3, 3))
    x_TD = torch.tensor([[2.0, 1.0, 0.0]])
    made.bias_E.copy_(torch.tensor([0.0, 0.0, 1.0]))
    answer = made.decide(tokens(x_TD))
    assert experts(answer) == [[2]]
    assert weights(answer).tolist() == [[0.5]]


def test_a_commit_without_counts_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stats: expected 'count_E'.* got none"):
        LossFree(3, 3).commit({}, {})


def test_dense_is_no_router_to_build() -> None:
    with pytest.raises(UsageError, match=r"'dense' stands for no router .* MoESpec"):
        build_router("dense", 8, 4)


def test_the_bias_moves_once_per_commit_towards_the_mean_load() -> None:
    made = reading(LossFree(3, 3, rate=0.1))
    x_TD = torch.tensor([[2.0, 0.0, 0.0]] * 2 + [[0.0, 2.0, 0.0]])
    answer = made.decide(tokens(x_TD, training=True))
    assert made.bias_E.tolist() == [0.0] * 3
    # Two micro-batches: counts (4, 2, 0) around a mean of 2.
    made.commit({"count_E": 2 * answer.decision.stats["count_E"]}, {})
    torch.testing.assert_close(made.bias_E, torch.tensor([-0.1, 0.0, 0.1]))


@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half])
def test_the_bias_of_a_half_precision_model_still_takes_small_steps(cast: Any) -> None:
    half, whole = cast(LossFree(3, 4)), LossFree(3, 4)
    for _ in range(300):
        for made in (half, whole):
            made.commit({"count_E": torch.tensor([4.0, 0.0, 0.0, 0.0])}, {})
    assert half.gate.weight.dtype != torch.float32
    assert torch.equal(half.bias_E, whole.bias_E)
    assert LossFree(3, 4).double().bias_E.dtype == torch.float64


def test_the_bias_evens_out_loads_without_a_loss() -> None:
    made = reading(LossFree(4, 4, rate=0.02))
    x_TD = normal(400, 4) + torch.tensor([1.5, 0.5, 0.0, -1.0])
    loads = []
    for _ in range(100):
        answer = made.decide(tokens(x_TD, training=True))
        assert answer.aux == {}
        loads.append(answer.decision.stats["count_E"].max() / 100)
        made.commit(answer.decision.stats, answer.new_state)
    assert float(loads[0]) > 2.0
    assert float(loads[-1]) < 1.3


def test_a_forbidden_expert_is_not_lifted_by_its_bias() -> None:
    made = reading(LossFree(3, 3))
    made.bias_E.copy_(torch.tensor([9.0, 0.0, 0.0]))
    allow = torch.tensor([[False, True, True]])
    assert experts(made.decide(tokens(torch.tensor([[0.0, 1.0, 2.0]]), allow=allow))) == [[2]]


def test_sequence_balance_is_optional() -> None:
    inp = tokens(normal(6, 3), training=True)
    assert LossFree(3, 3).decide(inp).aux == {}
    term = LossFree(3, 3, sequence_balance=1e-4).decide(inp).aux["sequence_balance"]
    assert term.coefficient == 1e-4
    assert float(term.value.detach()) > 0


def test_softmax_scores_may_take_the_place_of_sigmoids() -> None:
    x_TD = normal(5, 3)
    answer = reading(LossFree(3, 3, scores="softmax")).decide(tokens(x_TD))
    torch.testing.assert_close(weights(answer)[:, 0], x_TD.softmax(-1).amax(-1))


def test_softmax_scores_are_shares_already_and_not_divided_again() -> None:
    x_TD = normal(5, 3)
    best = x_TD.softmax(-1).sort(-1, descending=True).values[:, :2]
    two = reading(LossFree(3, 3, k=2, scores="softmax")).decide(tokens(x_TD))
    torch.testing.assert_close(weights(two), best)
    asked = reading(LossFree(3, 3, k=2, scores="softmax", renorm=True)).decide(tokens(x_TD))
    torch.testing.assert_close(weights(asked), best / best.sum(-1, keepdim=True))


# ---------------------------------------------------------------------------- names and settings


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("top2:k=1:k=2", "k is set twice"),
        ("top2:later=some", "later: expected 'all' or 'random'"),
        ("top2:threshold=0", "threshold"),
        ("top2:counted=none", "counted: expected 'first' or 'all'"),
        ("random:k_end=9", "k_end: expected between 1 and 4"),
        ("random:k_eval=0", "k_eval: expected between 1 and 4"),
        ("loss-free:scores=relu", "scores: expected"),
        ("loss-free:rate=-1", "rate"),
        ("loss-free:rate=nan", "rate"),
        ("loss-free:sequence_balance=-1", "sequence_balance"),
        ("softmax-tc:load=nan", "load"),
        ("softmax-ec:z_loss=nan", "z_loss"),
        ("softmax-ec:noise_std=nan", "noise_std"),
        ("soft:scale_init=nan", "scale_init"),
        ("top-p:entropy=nan", "entropy"),
        ("top-p:p_step=-1", "p_step"),
        ("vqmoe:beta=nan", "beta"),
        ("vqmoe:commit=-1", "commit"),
        ("promoe:tau=nan", "tau"),
        ("promoe:rcl=-1", "rcl"),
        ("attention:v_gain=nan", "v_gain"),
        ("hash:k=5", "k: expected between 1 and 4"),
        ("top2:treshold=1", "did you mean 'threshold'"),
        ("hash:balance=1", "unknown setting"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_router(spec, 3, 4)


@pytest.mark.parametrize(("d", "n_experts"), [(0, 4), (4, 0), (4.0, 4), (4, 4.0)])
def test_sizes_that_are_no_positive_whole_numbers_are_refused(d: Any, n_experts: Any) -> None:
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        build_router("switch", d, n_experts)


class Fixed(Switch):
    """Fixes a setting of its base, and hands the others on."""

    name = "fixed"

    def __init__(self, d: int, n_experts: int, **settings: Any) -> None:
        super().__init__(d, n_experts, k=2, **settings)


def test_a_setting_that_a_class_has_fixed_is_refused_by_name() -> None:
    spec = f"{__name__}.Fixed"
    assert build_router(spec, 4, 4).k == 2
    with pytest.raises(UsageError, match=r"Fixed'.*multiple values for keyword argument 'k'"):
        build_router(f"{spec}:k=1", 4, 4)


def test_settings_of_the_base_are_reached_through_the_name() -> None:
    made = build_router("top2:k=1:z_loss=0.001:capacity=1.25", 3, 4)
    assert isinstance(made, Top2)
    assert made.z_loss == 0.001
    assert made.capacity is not None
    assert made.capacity.factor == 1.25
