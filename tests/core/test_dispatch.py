"""Banks of experts: every path against a sum written out token by token, and its gradients."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from crossroads.core.dispatch import (
    ACTIVATIONS,
    PATHS,
    Activation,
    Path,
    banks,
    fused,
    mlp_bank,
    mlp_slots,
    native,
    plan_rows,
    swiglu_bank,
    swiglu_slots,
)
from crossroads.core.errors import InputError, UsageError

ACT = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda a: functional.gelu(a, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def swiglu_case(
    seed: int = 0,
    *,
    tokens: int = 23,
    places: int = 3,
    experts: int = 5,
    width: int = 6,
    hidden: int = 7,
    out: int | None = None,
    empty: float = 0.2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return x, idx, w, gate_up and down; a share of the places is empty."""
    rng = draws(seed)
    x = torch.randn(tokens, width, generator=rng, dtype=dtype)
    idx = torch.rand(tokens, max(experts, places), generator=rng).argsort(1)[:, :places] % experts
    idx = idx.masked_fill(torch.rand(tokens, places, generator=rng) < empty, -1)
    w = torch.randn(tokens, places, generator=rng, dtype=dtype)
    gate_up = torch.randn(experts, 2 * hidden, width, generator=rng, dtype=dtype) / width**0.5
    out = width if out is None else out
    down = torch.randn(experts, out, hidden, generator=rng, dtype=dtype) / hidden**0.5
    return x, idx, w, gate_up, down


def written_out(x: Tensor, idx: Tensor, w: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for n in range(len(x)):
        y = x.new_zeros(down.shape[1])
        for k, expert in enumerate(idx[n].tolist()):
            if expert >= 0:
                gate, up = (gate_up[expert] @ x[n]).chunk(2)
                y = y + w[n, k] * (down[expert] @ (functional.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows) if rows else x.new_zeros(0, down.shape[1])


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True))


def floats(*tensors: Tensor) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("path", PATHS)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(0, 12),
    places=st.integers(1, 4),
    experts=st.integers(1, 6),
    empty=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_every_path_is_the_weighted_sum_of_its_experts(  # noqa: PLR0917
    path: Path, seed: int, tokens: int, places: int, experts: int, empty: float
) -> None:
    case = swiglu_case(
        seed, tokens=tokens, places=places, experts=experts, width=4, hidden=4, empty=empty,
        dtype=torch.float32 if path == "grouped_mm" else torch.float64,
    )  # fmt: skip
    inputs = floats(case[0], *case[2:])
    found, wanted = swiglu_bank(*case, path=path), written_out(*case)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    if (case[1] >= 0).any():
        for ours, reference in zip(
            gradients(found, inputs), gradients(wanted, inputs), strict=True
        ):
            wanted_ = torch.zeros_like(ours) if reference is None else reference
            torch.testing.assert_close(ours, wanted_, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", ["fused", "grouped_mm"])
@pytest.mark.parametrize("tokens", [0, 5])
def test_without_pairs_the_gradients_are_zero(path: Path, tokens: int) -> None:
    x, idx, w, gate_up, down = swiglu_case(
        tokens=tokens, width=4, hidden=4, empty=1, dtype=torch.float32
    )
    inputs = floats(x, w, gate_up, down)
    for given_idx, given_w in ((idx, w), (idx[:, :0], w[:, :0])):
        y = swiglu_bank(x, given_idx, given_w, gate_up, down, path=path)
        assert y.shape == (tokens, 4) and y.eq(0).all()
        found = torch.autograd.grad(y.sum(), [x, gate_up, down])
        assert all(grad.eq(0).all() for grad in found)
    y = swiglu_bank(x, idx, w, gate_up, down, path=path)
    assert all(grad.eq(0).all() for grad in torch.autograd.grad(y.sum(), inputs))


@pytest.mark.parametrize("places", [1, 3])
def test_the_gradients_of_a_swiglu_bank_are_the_differences(places: int) -> None:
    x, idx, w, gate_up, down = swiglu_case(tokens=6, places=places, experts=3, width=4, hidden=3)
    inputs = tuple(floats(x, w, gate_up, down))
    assert torch.autograd.gradcheck(lambda x, w, a, b: swiglu_bank(x, idx, w, a, b), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_the_gradients_of_an_mlp_bank_are_the_differences(
    activation: Activation, biased: bool
) -> None:
    x, idx, w, _, down = swiglu_case(tokens=6, experts=3, width=4, hidden=3)
    rng = draws(1)
    up = torch.randn(3, 3, 4, generator=rng, dtype=torch.float64)
    up_bias = torch.randn(3, 3, generator=rng, dtype=torch.float64) if biased else None
    down_bias = torch.randn(3, 4, generator=rng, dtype=torch.float64) if biased else None
    given_ = [t for t in (x, w, up, up_bias, down, down_bias) if t is not None]

    def bank(*tensors: Tensor) -> Tensor:
        x, w, up, *rest = tensors
        a, down, b = rest if biased else (None, rest[0], None)
        return mlp_bank(x, idx, w, up, a, down, b, activation=activation)

    assert torch.autograd.gradcheck(bank, tuple(floats(*given_)))
    by_loop = mlp_bank(x, idx, w, up, up_bias, down, down_bias, activation=activation, path="loop")
    torch.testing.assert_close(bank(*given_), by_loop)


def test_a_popular_expert_is_run_in_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    x, idx, w, up, down = swiglu_case(tokens=40, places=2, experts=2, empty=0.1)
    up = up[:, : down.shape[2]].contiguous()
    up_bias, down_bias = up[:, :, 0].clone(), down[:, :, 0].clone()
    inputs = floats(x, w, up, up_bias, down, down_bias)
    whole = mlp_bank(x, idx, w, up, up_bias, down, down_bias)
    wanted = gradients(whole, inputs)
    monkeypatch.setattr(fused, "_ROWS", 6)
    monkeypatch.setattr(fused, "_MOST_ROWS", 9)
    cut = mlp_bank(x, idx, w, up, up_bias, down, down_bias)
    torch.testing.assert_close(cut, whole)
    for ours, reference in zip(gradients(cut, inputs), wanted, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("path", ["fused", "grouped_mm"])
def test_an_mlp_bank_adds_its_biases_once_per_place(path: Path) -> None:
    x = torch.zeros(2, 4)
    idx, w = torch.tensor([[0, 1], [1, -1]]), torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    up, down = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    bias = torch.tensor([[1.0] * 4, [10.0] * 4])
    y = mlp_bank(x, idx, w, up, torch.zeros(2, 4), down, bias, activation="relu", path=path)
    assert y[:, 0].tolist() == [32.0, 50.0]


def test_what_needs_no_gradient_gets_none() -> None:
    x, idx, w, gate_up, down = swiglu_case()
    whole = floats(x, w, gate_up, down)
    wanted = gradients(swiglu_bank(x, idx, w, gate_up, down), whole)
    for chosen in range(len(whole)):
        frozen = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(whole)]
        x, w, gate_up, down = frozen
        y = swiglu_bank(x, idx, w, gate_up, down)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
        assert [t.grad is None for t in frozen] == [i != chosen for i in range(4)]
        torch.testing.assert_close(frozen[chosen].grad, wanted[chosen])


@pytest.mark.parametrize(
    ("chosen", "products"), [("x", 2), ("w", 0), ("gate_up", 2), ("down", 1), ("all", 4)]
)
def test_backward_computes_only_what_is_asked_for(chosen: str, products: int) -> None:
    x, idx, w, gate_up, down = swiglu_case(empty=0)
    named = {"x": x, "w": w, "gate_up": gate_up, "down": down}
    floats(*(tensor for name, tensor in named.items() if chosen in (name, "all")))
    y = swiglu_bank(x, idx, w, gate_up, down)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        y.backward(torch.ones_like(y))
    counted = sum(event.count for event in seen.key_averages() if event.key == "aten::mm")
    assert counted == products * len(idx.unique())


def test_one_expert_may_take_everything() -> None:
    x, _, w, gate_up, down = swiglu_case(tokens=300, places=2)
    idx = torch.full((300, 2), 3)
    torch.testing.assert_close(
        swiglu_bank(x, idx, w, gate_up, down), written_out(x, idx, w, gate_up, down)
    )


def test_many_rows_without_a_gradient_are_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    case = swiglu_case(tokens=250, out=4)  # more than the forward of few rows takes
    wanted = written_out(*case)
    torch.testing.assert_close(swiglu_bank(*case), wanted)
    monkeypatch.setattr(fused, "_ROWS", 40)
    monkeypatch.setattr(fused, "_MOST_ROWS", 60)
    torch.testing.assert_close(swiglu_bank(*case), wanted)


def test_inference_holds_one_block_and_the_outputs_at_a_time() -> None:
    from torch.profiler import ProfilerActivity, profile

    x, idx, w, gate_up, down = swiglu_case(
        tokens=400, places=2, experts=4, width=32, hidden=64, empty=0, dtype=torch.float32
    )
    plan = plan_rows(idx, 4)
    rows = plan.n_rows + 400  # sorted outputs and the answer
    indices = 12 * idx.numel() * 8  # what the plan is made with
    bound = 4 * (rows * 32 + plan.largest_block * (32 + 3 * 64)) + indices
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        swiglu_bank(x, idx, w, gate_up, down)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    all_rows = 4 * plan.n_rows * (2 * 32 + 3 * 64)  # what holding every expert's block would take
    assert 0 < max(held) <= bound < all_rows


def test_inputs_need_not_be_contiguous() -> None:
    x, idx, w, gate_up, down = swiglu_case()
    strided = [
        x.t().contiguous().t(),
        idx.t().contiguous().t(),
        w.t().contiguous().t(),
        gate_up.transpose(1, 2).contiguous().transpose(1, 2),
        down.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    torch.testing.assert_close(swiglu_bank(*strided), swiglu_bank(x, idx, w, gate_up, down))
    inputs = floats(*(strided[i] for i in (0, 2, 3, 4)))
    expanded = torch.autograd.grad(swiglu_bank(*strided).sum(), inputs)  # an expanded gradient
    wanted = torch.autograd.grad(written_out(*strided).sum(), inputs)
    for ours, reference in zip(expanded, wanted, strict=True):
        torch.testing.assert_close(ours, reference)


def test_what_is_not_finite_stays_with_its_tokens_and_experts() -> None:
    x, idx, w, gate_up, down = swiglu_case(dtype=torch.bfloat16, experts=3, places=1, empty=0)
    idx[:, 0] = torch.arange(len(idx)) % 2
    idx[0], x[0], w[0] = -1, float("nan"), float("nan")
    idx[1], x[1] = 2, float("inf")
    inputs = floats(x, gate_up, down)
    y = swiglu_bank(x, idx, w, gate_up, down)
    y.sum().backward()
    assert torch.equal(y[0], torch.zeros_like(y[0])) and y[2:].isfinite().all()
    for weights in inputs[1:]:
        assert weights.grad[:2].isfinite().all()
    assert inputs[0].grad[0].eq(0).all() and inputs[0].grad[2:].isfinite().all()


@pytest.mark.parametrize(("compiles", "rows"), [(True, 16), (False, 1)])
def test_blocks_are_padded_only_where_every_count_is_compiled(
    monkeypatch: pytest.MonkeyPatch, compiles: bool, rows: int
) -> None:
    case = swiglu_case(dtype=torch.bfloat16, tokens=1, places=1, empty=0)
    monkeypatch.setattr(banks, "compiles_per_count", lambda dtype: compiles)
    seen: list[int] = []

    def planned(*arguments: object, multiple: int) -> object:
        seen.append(multiple)
        return plan_rows(*arguments, multiple=multiple)

    monkeypatch.setattr(banks, "plan_rows", planned)
    with native.torch_only():
        swiglu_bank(*case)
        swiglu_bank(*(t.float() if t.is_floating_point() else t for t in case))
    assert seen == [rows, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_reduced_precision_stays_near_double(dtype: torch.dtype) -> None:
    case = swiglu_case(tokens=90, width=32, hidden=48)
    x, idx, w, gate_up, down = (t.to(dtype) if t.is_floating_point() else t for t in case)
    inputs, exact = floats(x, w, gate_up, down), floats(*(t for t in case if t.is_floating_point()))
    ours = swiglu_bank(x, idx, w, gate_up, down)
    wanted = swiglu_bank(*case)
    limit = {torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    pairs = [(ours, wanted), *zip(gradients(ours, inputs), gradients(wanted, exact), strict=True)]
    for found, reference in pairs:
        assert (found.double() - reference).norm() < limit * reference.norm()


def test_weights_may_be_float32_beside_bfloat16_rows() -> None:
    x, idx, w, gate_up, down = swiglu_case(dtype=torch.bfloat16, tokens=40)
    w32 = w.float().requires_grad_()
    y = swiglu_bank(x, idx, w32, gate_up, down)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and w32.grad.dtype == torch.float32


def test_checkpointing_changes_nothing() -> None:
    from torch.utils.checkpoint import checkpoint

    x, idx, w, gate_up, down = swiglu_case()
    inputs = floats(x, w, gate_up, down)
    wanted = gradients(swiglu_bank(x, idx, w, gate_up, down), inputs)
    for reentrant in (False, True):
        y = checkpoint(swiglu_bank, x, idx, w, gate_up, down, use_reentrant=reentrant)
        for ours, reference in zip(gradients_of(y, inputs), wanted, strict=True):
            assert torch.equal(ours, reference)


def gradients_of(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """As ``gradients``, by ``backward``: reentrant checkpoints know no other way."""
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    found = [tensor.grad for tensor in inputs]
    for tensor in inputs:
        tensor.grad = None
    return found


def test_autocast_runs_in_its_type_and_returns_gradients_in_theirs() -> None:
    x, idx, w, gate_up, down = swiglu_case(dtype=torch.float32, tokens=60, width=16, hidden=16)
    inputs = floats(x, w, gate_up, down)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = swiglu_bank(x, idx, w, gate_up, down)
    assert y.dtype == torch.bfloat16
    wanted = swiglu_bank(x, idx, w, gate_up, down)
    assert (y.float() - wanted).norm() < 2e-2 * wanted.norm()
    found = torch.autograd.grad(y.float().sum(), inputs)
    assert all(grad.dtype == torch.float32 for grad in found)


@pytest.mark.slow
def test_compiled_code_gives_the_same() -> None:
    x, idx, w, gate_up, down = swiglu_case(dtype=torch.float32)

    def layer(x: Tensor) -> Tensor:
        return swiglu_bank(2 * x, idx, w, gate_up, down) + x

    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1, 9, 40]),  # few pairs are planned without tensors
    multiple=st.integers(1, 9),
    experts=st.integers(1, 6),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=30, deadline=None)
def test_a_plan_holds_every_pair_once_in_stable_order(
    seed: int, tokens: int, multiple: int, experts: int, empty: float
) -> None:
    _, idx, *_ = swiglu_case(seed, tokens=tokens, places=2, experts=experts, empty=empty)
    plan = plan_rows(idx, experts, multiple=multiple)
    assert plan.n_empty == int((idx < 0).sum())
    assert plan.counts_E.tolist() == [int((idx == e).sum()) for e in range(experts)]
    for expert, (first, last) in enumerate(pairwise(plan.offsets)):
        count = int(plan.counts_E[expert])
        assert last - first == -(-count // multiple) * multiple
        rows = torch.where(idx == expert)[0].tolist()
        assert plan.rows_S[first:last].tolist() == rows + rows[:1] * (last - first - count)
    for n, k in torch.cartesian_prod(torch.arange(tokens), torch.arange(2)).tolist():
        row = int(plan.inverse_NK[n, k])
        if idx[n, k] < 0:
            assert row == plan.n_rows
        else:
            assert plan.offsets[idx[n, k]] <= row < plan.offsets[idx[n, k] + 1]
            assert int(plan.rows_S[row]) == n


def test_slots_are_each_expert_on_its_own_buffer() -> None:
    _, _, _, gate_up, down = swiglu_case()
    x = torch.randn(5, 4, 6, generator=draws(2), dtype=torch.float64)
    up, bias = gate_up[:, :7], torch.randn(5, 7, generator=draws(3), dtype=torch.float64)
    swiglu, mlp = swiglu_slots(x, gate_up, down), mlp_slots(x, up, bias, down, None)
    for expert in range(5):
        gate, lifted = (x[expert] @ gate_up[expert].t()).chunk(2, dim=1)
        wanted = (functional.silu(gate) * lifted) @ down[expert].t()
        torch.testing.assert_close(swiglu[expert], wanted)
        wanted = functional.gelu(x[expert] @ up[expert].t() + bias[expert]) @ down[expert].t()
        torch.testing.assert_close(mlp[expert], wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"idx": torch.zeros(23, 3)}, "int64"),
        ({"idx": torch.zeros(22, 3, dtype=torch.int64)}, "idx and w must both be"),
        ({"idx": torch.full((23, 3), 5)}, r"idx must lie in \[-1, 5\)"),
        ({"idx": torch.full((23, 3), -2)}, r"idx must lie in \[-1, 5\)"),
        ({"w": torch.ones(23, 2)}, "idx and w must both be"),
        ({"x": torch.ones(23, 5, dtype=torch.float64)}, "first projection must be"),
        ({"down": torch.ones(5, 6, 6, dtype=torch.float64)}, "second projection must be"),
        ({"gate_up": torch.ones(5, 13, 6, dtype=torch.float64)}, "odd number of rows, 13"),
        ({"w": torch.ones(23, 3, device="meta")}, "w is on meta and x on cpu"),
        ({"down": torch.ones(5, 6, 7, device="meta")}, "second projection is on meta"),
        ({"x": torch.ones(23, 6)}, "use autocast"),
        ({"x": torch.ones(23)}, "x must be"),
    ],
)
def test_a_wrong_input_is_named(change: dict[str, Tensor], says: str) -> None:
    case = dict(zip(("x", "idx", "w", "gate_up", "down"), swiglu_case(), strict=True))
    with pytest.raises(InputError, match=says):
        swiglu_bank(*(case | change).values())


@pytest.mark.parametrize("path", ["fused", "grouped_mm", "loop"])
@pytest.mark.parametrize("wrong", [5, -2])
def test_no_path_drops_experts_that_are_not_there(path: Path, wrong: int) -> None:
    x, idx, w, gate_up, down = swiglu_case()
    idx[3, 1] = wrong
    with pytest.raises(InputError, match=r"idx must lie in \[-1, 5\)"):
        swiglu_bank(x, idx, w, gate_up, down, path=path)


def test_a_wrong_name_is_answered_with_the_known_ones() -> None:
    x, idx, w, _, down = swiglu_case()
    with pytest.raises(UsageError, match="fused"):
        swiglu_bank(*swiglu_case(), path="fuse")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gelu"):
        mlp_bank(x, idx, w, down, None, down, None, activation="glue")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiple of 16 bytes"):
        swiglu_bank(*swiglu_case(hidden=7), path="grouped_mm")
    with pytest.raises(InputError, match="one buffer per expert"):
        swiglu_slots(x, down, down)


def test_arrays_of_numpy_are_refused() -> None:
    case = swiglu_case()
    with pytest.raises(InputError, match=r"x must be a tensor of torch, .* got <class 'numpy"):
        swiglu_bank(*(tensor.numpy() for tensor in case))
