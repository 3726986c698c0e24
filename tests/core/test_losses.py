from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crossroads.core import losses  # noqa: E402

Tensor = torch.Tensor
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_real(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


# ---------------------------------------------------------------------------- balance


def test_the_balance_loss_can_fall_below_one() -> None:
    """f = (.6, .4) against P = (.45, .55): 2 * (.27 + .22) = .98."""
    idx = torch.tensor([[0]] * 3 + [[1]] * 2)
    probs = torch.tensor([[0.45, 0.55]]).expand(5, 2)
    assert float(losses.switch_balance(probs, idx, all_real(5))) == pytest.approx(0.98)


@few
@given(seed=seeds, n_experts=st.integers(1, 6))
def test_the_balance_loss_is_one_where_loads_or_probabilities_are_uniform(
    seed: int, n_experts: int
) -> None:
    n = 3 * n_experts
    probs = drawn(seed, n, n_experts).softmax(-1)
    cycled = (torch.arange(n) % n_experts).unsqueeze(1)
    assert float(losses.switch_balance(probs, cycled, all_real(n))) == pytest.approx(1.0)
    one_taken = torch.zeros(n, 1, dtype=torch.int64)
    uniform = torch.full((n, n_experts), 1 / n_experts)
    assert float(losses.switch_balance(uniform, one_taken, all_real(n))) == pytest.approx(1.0)


def test_counts_over_tokens_give_k_at_uniform() -> None:
    idx = torch.tensor([[0, 1], [1, 0]])
    probs = torch.full((2, 2), 0.5)
    value = losses.switch_balance(probs, idx, all_real(2), f_norm="tokens")
    assert float(value) == pytest.approx(2.0)


def test_the_shares_carry_no_gradient_and_padding_counts_nowhere() -> None:
    probs = torch.tensor([[0.6, 0.4], [0.3, 0.7], [torch.nan, torch.nan]], requires_grad=True)
    idx, mask = torch.tensor([[0], [1], [-1]]), torch.tensor([True, True, False])
    value = losses.switch_balance(probs, idx, mask)
    value.backward()
    assert float(value.detach()) == pytest.approx(1.0)
    # d/dP of E * sum f_e mean_n p = E * f_e / n = 2 * .5 / 2 for real rows.
    assert probs.grad[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert probs.grad[2].tolist() == [0.0, 0.0]


def test_empty_places_are_no_picks() -> None:
    idx = torch.tensor([[2, -1], [0, 2]])
    assert losses.pick_counts(idx, 4).tolist() == [1.0, 0.0, 2.0, 0.0]


# ---------------------------------------------------------------------------- the others


def test_the_z_loss_is_the_mean_squared_logsumexp_of_real_rows() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0], [99.0, 99.0]])
    mask = torch.tensor([True, True, False])
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert float(losses.z_loss(logits, mask)) == pytest.approx(expected)


def test_importance_is_averaged_over_groups() -> None:
    probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    # First group: sums (2, 0), CV^2 = 1; second: (.5, .5), CV^2 = 0.
    assert float(losses.importance(probs, mask)) == pytest.approx(0.5)


def test_load_is_the_written_out_chance_of_being_among_the_best() -> None:
    logits, noise, sigma, k = drawn(0, 1, 6, 4), drawn(1, 1, 6, 4), 0.25, 2
    noisy = logits + sigma * noise
    mask = torch.tensor([[True] * 5 + [False]])
    chance = torch.zeros(4).double()
    for token in range(5):
        threshold = sorted(noisy[0, token].tolist(), reverse=True)[k - 1]
        for expert in range(4):
            distance = (float(logits[0, token, expert]) - threshold) / sigma
            chance[expert] += 0.5 * (1 + math.erf(distance / math.sqrt(2))) / 5
    expected = float(chance.var(unbiased=False) / chance.mean() ** 2)
    assert float(losses.load(logits, noisy, mask, k, sigma)) == pytest.approx(expected)


def test_the_gradient_of_load_passes_the_threshold_too() -> None:
    logits, noise = drawn(0, 1, 3, 3), drawn(1, 1, 3, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    z = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.load(z, z + 0.5 * noise, mask, 1, 0.5), z, eps=1e-6
    )


def test_entropies_of_tokens_and_of_their_mean() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    mask = torch.tensor([True, True, False])
    assert float(losses.token_entropy(probs, mask)) == pytest.approx(0.0)
    assert float(losses.batch_entropy(probs, mask)) == pytest.approx(math.log(2))


@few
@given(seed=seeds, k=st.integers(1, 3))
def test_sequence_balance_is_the_mean_over_sequences_of_f_times_p(seed: int, k: int) -> None:
    scores = drawn(seed, 2, 5, 3).sigmoid()
    idx = torch.stack(
        [torch.randperm(3, generator=torch.Generator().manual_seed(seed + i)) for i in range(10)]
    ).reshape(2, 5, 3)[..., :k]
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    idx = torch.where(mask.unsqueeze(-1), idx, -1)
    total = 0.0
    for row, length in enumerate((5, 3)):
        share = scores[row, :length] / scores[row, :length].sum(-1, keepdim=True)
        for expert in range(3):
            count = int((idx[row, :length] == expert).sum())
            f = 3 / (k * length) * count
            total += f * float(share[:, expert].mean()) / 2
    assert float(losses.sequence_balance(scores, idx, mask)) == pytest.approx(total)


@few
@given(seed=seeds, extra=st.integers(1, 4))
def test_padding_changes_no_loss(seed: int, extra: int) -> None:
    logits = drawn(seed, 6, 3)
    idx = logits.argmax(-1, keepdim=True)
    padded = torch.cat([logits, 7 * drawn(seed + 1, extra, 3)])
    padded_idx = torch.cat([idx, torch.full((extra, 1), -1)])
    mask = torch.arange(6 + extra) < 6
    for short, long in (
        (
            losses.switch_balance(logits.softmax(-1), idx, all_real(6)),
            losses.switch_balance(padded.softmax(-1), padded_idx, mask),
        ),
        (losses.z_loss(logits, all_real(6)), losses.z_loss(padded, mask)),
        (
            losses.token_entropy(logits.softmax(-1), all_real(6)),
            losses.token_entropy(padded.softmax(-1), mask),
        ),
        (
            losses.importance(logits.softmax(-1)[None], all_real(6)[None]),
            losses.importance(padded.softmax(-1)[None], mask[None]),
        ),
    ):
        torch.testing.assert_close(short, long)
