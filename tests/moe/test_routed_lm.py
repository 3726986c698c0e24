"""Every router in a small language model (or, where it may not serve a decoder, a small ViT)."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.core.routed import ModelOutput, RouteContext, routed_layers  # noqa: E402
from crossroads.models.decoder import DecoderConfig, DecoderLM  # noqa: E402
from crossroads.models.vit import ViT, ViTConfig  # noqa: E402
from crossroads.moe.building import MoEFactory, MoESpec  # noqa: E402
from crossroads.moe.routers import router_class  # noqa: E402
from tests.moe.conformance import NAMES  # noqa: E402

Tensor = torch.Tensor
LAYERS = 2


def spec(name: str) -> MoESpec:
    return MoESpec(router=name, n_experts=4, dense_hidden=32, hints={"tokens": 16})


def decoder(name: str, *, is_checkpointed: bool = False) -> DecoderLM:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=32,
        width=16,
        num_layers=LAYERS,
        num_heads=2,
        max_length=16,
        checkpoint=is_checkpointed,
    )
    return DecoderLM(config, sublayer=MoEFactory(spec(name), LAYERS))


def vision(name: str, *, is_checkpointed: bool = False) -> ViT:
    torch.manual_seed(0)
    config = ViTConfig(width=16, num_layers=LAYERS, num_heads=2, checkpoint=is_checkpointed)
    return ViT(config, sublayer=MoEFactory(spec(name), LAYERS))


def condition(batch: int) -> dict[str, Tensor]:
    return {"null": torch.arange(batch) % 2 == 1, "label": torch.arange(batch)}


def model_and_batch(name: str, **settings: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Return the backbone a router may serve, a batch for it and its side information."""
    generator = torch.Generator().manual_seed(1)
    if router_class(name).causal_safe:
        batch = torch.randint(32, (4, 12), generator=generator)
        return decoder(name, **settings), batch, condition(4)
    batch = torch.rand(4, 1, 8, 8, generator=generator)
    cond = {**condition(4), "token_id": torch.arange(16).expand(4, 16)}
    return vision(name, **settings), batch, cond


def loss_of(answer: ModelOutput) -> Tensor:
    return answer.out.square().mean() + answer.aux_loss()


@pytest.mark.parametrize("name", [n for n in NAMES if router_class(n).causal_safe])
def test_decoding_token_by_token_equals_one_pass(name: str) -> None:
    model = decoder(name).eval()
    tokens_BT = torch.randint(32, (3, 10), generator=torch.Generator().manual_seed(1))
    context = RouteContext(cond=condition(3))
    with torch.no_grad():
        whole = model(tokens_BT, context=context).out
        cache = model.init_cache(3)
        for place in range(10):
            step = model(tokens_BT[:, place : place + 1], context=context, cache=cache)
            cache = step.cache
            torch.testing.assert_close(step.out[:, 0], whole[:, place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in NAMES if not router_class(n).causal_safe])
def test_a_language_model_refuses_what_would_leak_the_future(name: str) -> None:
    model = decoder(name)
    with pytest.raises((UsageError, InputError), match=name):
        model(torch.zeros(1, 4, dtype=torch.int64), context=RouteContext(cond=condition(1)))


@pytest.mark.parametrize("name", NAMES)
def test_recomputing_a_model_changes_neither_loss_nor_gradient_nor_state(name: str) -> None:
    results = []
    for is_checkpointed in (False, True):
        model, batch, cond = model_and_batch(name, is_checkpointed=is_checkpointed)
        answer = model(batch, context=RouteContext(training=True, seed=3, cond=cond))
        loss = loss_of(answer)
        loss.backward()
        for layer, record in zip(routed_layers(model), answer.records, strict=True):
            layer.commit(layer.stats(record.decisions), record.new_state)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), grads, list(model.state_dict().values())))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss_and_every_learned_gate_moves(name: str) -> None:
    model, batch, cond = model_and_batch(name)
    learned = {
        key: value.detach().clone()
        for key, value in model.named_parameters()
        if "router" in key and value.requires_grad
    }
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    task = []
    for step in range(8):
        context = RouteContext(training=True, step=step, progress=step / 8, cond=cond)
        answer = model(batch, context=context)
        optimiser.zero_grad()
        loss_of(answer).backward()
        optimiser.step()
        task.append(float(answer.out.detach().square().mean()))
        for layer, record in zip(routed_layers(model), answer.records, strict=True):
            layer.commit(layer.stats(record.decisions), record.new_state)
    assert task[-1] < 0.8 * task[0]
    after = dict(model.named_parameters())
    for key, value in learned.items():
        assert not torch.equal(value, after[key].detach()), key
