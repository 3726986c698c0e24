from __future__ import annotations

import pytest
import torch

from crossroads.core.errors import UsageError
from crossroads.moe.routers.hyper import HyperRouter, scheduled
from tests.moe.routers.inputs import places, tokens, view


def test_only_the_embedding_is_trained() -> None:
    router = HyperRouter(6, 5)
    trainable = [(name, p.numel()) for name, p in router.named_parameters() if p.requires_grad]
    assert trainable == [("embedding", 6)]
    _, w_NK = places(router.decide(view(tokens(1, 20, 6), training=True)).decision)
    (w_NK * tokens(20, w_NK.shape[1], seed=1)).sum().backward()
    assert float(router.embedding.grad.abs().max()) > 0


def test_an_optimiser_step_moves_the_gate_and_not_the_hypernetwork() -> None:
    router = HyperRouter(6, 5).requires_grad_(True)  # thawing a model thaws no hypernetwork
    frozen = {name: buffer.clone() for name, buffer in router.named_buffers()}
    before, _ = router.generated()
    optimiser = torch.optim.AdamW(router.parameters(), lr=0.1, weight_decay=0.1)
    _, w_NK = places(router.decide(view(tokens(1, 20, 6), training=True)).decision)
    (w_NK * tokens(20, w_NK.shape[1], seed=1)).sum().backward()
    optimiser.step()
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in router.named_buffers())
    assert len(frozen) == 4
    assert not torch.equal(router.generated()[0], before)


@pytest.mark.parametrize(("d", "hidden"), [(12, 6), (5, 40)])
def test_the_gate_moves_in_as_many_dimensions_as_units_are_active(d: int, hidden: int) -> None:
    torch.manual_seed(0)
    router = HyperRouter(d, 4, hidden=hidden).double()

    def gate(embedding_D: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            router.embedding.copy_(embedding_D)
        hidden_H = torch.relu(router.first_weight @ embedding_D + router.first_bias)
        return router.second_weight @ hidden_H + router.second_bias

    start = torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(gate, start)
    weight_ED, bias_E = router.generated()
    torch.testing.assert_close(
        torch.cat([weight_ED, bias_E.unsqueeze(1)], 1).reshape(-1), gate(start)
    )
    active = int((router.first_weight @ start + router.first_bias > 0).sum())
    assert active > 0
    assert int(torch.linalg.matrix_rank(jacobian)) == min(d, active)
    assert min(d, active) <= min(d, hidden)


def test_k_grows_from_half_to_all_in_training_and_is_free_in_evaluation() -> None:
    router, x_BTD = HyperRouter(6, 16), tokens(1, 4, 6)
    widths = [
        places(router.decide(view(x_BTD, training=True, progress=p)).decision)[0].shape[1]
        for p in (0.0, 0.5, 1.0)
    ]
    assert widths == [8, 12, 16]
    for k in (1, 2, 4, 8, 16):
        router.k_eval = k
        idx_NK, w_NK = places(router.decide(view(x_BTD, progress=1.0)).decision)
        assert idx_NK.shape[1] == k
        torch.testing.assert_close(w_NK.sum(-1), torch.ones(4))
    with pytest.raises(UsageError, match="k_eval: expected between 1 and 16, got 17"):
        router.k_eval = 17


def test_schedules_reach_both_ends_and_round_half_to_even() -> None:
    for schedule in ("linear", "cosine", "exponential"):
        assert scheduled(8, 16, 0.0, schedule) == 8
        assert scheduled(8, 16, 1.0, schedule) == 16
    for schedule in ("linear-decrease", "cosine-decrease"):
        assert scheduled(8, 16, 0.0, schedule) == 16
        assert scheduled(8, 16, 1.0, schedule) == 8
    assert scheduled(0, 5, 0.5, "linear") == 2  # 2.5
    assert scheduled(8, 16, 0.25, "cosine") == 9  # 8 + 8 * 0.146
    assert scheduled(4, 16, 0.5, "exponential") == 8
    assert scheduled(8, 16, 1.3, "linear") == 16


def test_logits_are_linear_in_the_token_with_the_generated_gate() -> None:
    router, x_BTD = HyperRouter(6, 5).double(), tokens(2, 7, 6, dtype=torch.float64)
    weight_ED, bias_E = router.generated()
    expected = x_BTD.reshape(-1, 6) @ weight_ED.T + bias_E
    decision = router.decide(view(x_BTD)).decision
    torch.testing.assert_close(decision.logits_NE, expected)
    idx_NK, w_NK = places(decision)
    torch.testing.assert_close(w_NK, torch.softmax(expected.gather(-1, idx_NK), -1))


def test_one_expert_trains_nothing() -> None:
    router = HyperRouter(6, 5, k_min=1, k_max=1)
    _, w_NK = places(router.decide(view(tokens(1, 20, 6), training=True)).decision)
    (w_NK * tokens(20, 1, seed=1)).sum().backward()
    assert (router.embedding.grad == 0).all()


def test_layers_draw_hypernetworks_of_their_own() -> None:
    first, second = HyperRouter(6, 5), HyperRouter(6, 5)
    assert not torch.equal(first.second_weight, second.second_weight)


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="k_min and k_max"):
        HyperRouter(6, 4, k_min=3, k_max=2)
    with pytest.raises(UsageError, match="k_schedule"):
        HyperRouter(6, 4, k_schedule="sine")
    with pytest.raises(UsageError, match="hidden"):
        HyperRouter(6, 4, hidden=0)


def test_the_gate_is_written_once_and_applied_to_every_token() -> None:
    router = HyperRouter(6, 5, hidden=7)
    written = 6 * 7 + 7 * 5 * 7
    assert router.router_flops(10) == 2 * (written + 10 * 5 * 6)
    assert router.nominal_active == 2.0


def test_experts_of_evaluation_are_part_of_the_state() -> None:
    router, other = HyperRouter(6, 8), HyperRouter(6, 8)
    router.k_eval = 5
    other.load_state_dict(router.state_dict())
    assert other.k_eval == 5
    with pytest.raises(UsageError, match="k_eval: expected between 1 and 4"):
        HyperRouter(6, 4).set_extra_state(torch.tensor(5))


def test_evaluation_writes_the_gate_anew_only_when_something_it_is_made_of_changes() -> None:
    router, inp = HyperRouter(6, 5), view(tokens(1, 4, 6))
    count = 0
    write = router.generated

    def counted() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal count
        count += 1
        return write()

    def logits() -> torch.Tensor:
        found = router.decide(inp).decision.logits_NE
        weight_ED, bias_E = write()
        torch.testing.assert_close(found, inp.x_ND @ weight_ED.T + bias_E, check_dtype=False)
        return found

    router.generated = counted  # type: ignore[method-assign]
    with torch.no_grad():
        first = logits()
        assert torch.equal(first, logits())
        assert count == 1
        router.embedding.data.mul_(-1)  # behind autograd's back
        assert not torch.equal(first, logits())
        assert count == 2
        router.load_state_dict(HyperRouter(6, 5).state_dict())
        logits()
        assert count == 3
    logits()
    assert count == 4  # with gradients each pass has its own
