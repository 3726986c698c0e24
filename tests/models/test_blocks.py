from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossroads.core.errors import UsageError
from crossroads.core.routed import ModelOutput, RouteContext, SublayerFactory, SublayerOutput
from crossroads.models.attention import Attention, Visibility, rotate, rotation, visibility
from crossroads.models.blocks import MLP, SwiGLU, mean_over_real
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.models.dit import DiT, DiTConfig
from crossroads.models.encoder import EncoderClassifier, EncoderConfig
from crossroads.models.inputs import check_heads
from crossroads.models.speech_encoder import SpeechConfig, SpeechEncoder
from crossroads.models.vit import ViT, ViTConfig
from tests.models.routed_toy import ToyMixture, toy_mixtures


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(length: int = 12) -> Tensor:
    return torch.randint(256, (3, length), generator=seeded())


def build(
    name: str,
    sublayer: SublayerFactory | None = None,
    *,
    checkpoint: bool = False,
    fresh: bool = False,
) -> nn.Module:
    torch.manual_seed(0)
    small = {"width": 16, "num_layers": 3, "num_heads": 2, "hidden": 32, "checkpoint": checkpoint}
    model: nn.Module = {
        "decoder": lambda: DecoderLM(DecoderConfig(**small), sublayer),
        "vit": lambda: ViT(ViTConfig(**small), sublayer),
        "dit": lambda: DiT(DiTConfig(**small), sublayer),
        "encoder": lambda: EncoderClassifier(EncoderConfig(**small), sublayer),
        "speech": lambda: SpeechEncoder(SpeechConfig(**small), sublayer),
    }[name]()
    if name == "dit" and not fresh:  # away from adaLN-zero, where nothing reaches the output
        draws = seeded(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model


def run(name: str, model: nn.Module, context: RouteContext | None = None) -> ModelOutput:
    images = torch.rand(3, 1, 8, 8, generator=seeded())
    frames = torch.randn(3, 21, 40, generator=seeded())
    answer: ModelOutput = {
        "decoder": lambda: model(tokens(), context=context),
        "encoder": lambda: model(tokens(), context=context),
        "vit": lambda: model(images, context=context),
        "dit": lambda: model(
            images, torch.tensor([0.0, 10.0, 999.5]), torch.tensor([1, 10, 3]), context=context
        ),
        "speech": lambda: model(frames, torch.tensor([21, 13, 4]), context=context),
    }[name]()
    return answer


MODELS = ["decoder", "vit", "dit", "encoder", "speech"]
each_model = pytest.mark.parametrize("name", MODELS)


@each_model
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"attn", "attn_out"})])
def test_checkpointing_changes_no_output_record_or_gradient(
    name: str, needs: frozenset[str]
) -> None:
    context = RouteContext(training=True, seed=5)
    found = []
    for checkpoint in (False, True):
        model = build(name, toy_mixtures(needs=needs), checkpoint=checkpoint)
        answer = run(name, model, context)
        (answer.out.square().mean() + answer.aux_loss()).backward()
        found.append((answer, model))
    (plain, first), (again, second) = found
    assert torch.equal(plain.out, again.out)
    assert plain.flops == again.flops > 0
    assert [record.layer for record in again.records] == [0, 1, 2]
    for one, other in zip(plain.records, again.records, strict=True):
        assert torch.equal(one.decisions[0].expert_BT, other.decisions[0].expert_BT)
        assert torch.equal(one.aux["balance"].value, other.aux["balance"].value)
    gradients = zip(first.named_parameters(), second.named_parameters(), strict=True)
    for (label, mine), (_, theirs) in gradients:
        assert (mine.grad is None) == (theirs.grad is None), label
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-5)
    sublayers = [m for m in second.modules() if isinstance(m, ToyMixture)]
    assert [sublayer.calls for sublayer in sublayers] == [2, 2, 2], "activations were recomputed"


@each_model
def test_checkpointing_of_dense_models_changes_no_gradient(name: str) -> None:
    grads = []
    for checkpoint in (False, True):
        model = build(name, checkpoint=checkpoint)
        run(name, model).out.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-5)


def test_a_checkpointed_pass_is_freed_without_a_backward_pass() -> None:
    model = build("vit", toy_mixtures(), checkpoint=True)
    answer = run("vit", model)
    kept = weakref.ref(answer.records[0].decisions[0])
    del answer
    gc.collect()
    assert kept() is None


@each_model
def test_attention_given_out_changes_nothing_else(name: str) -> None:
    plain, explicit = (build(name, toy_mixtures(needs=needs)) for needs in (
        frozenset(), frozenset({"attn"})))  # fmt: skip
    for module in explicit.modules():
        if isinstance(module, ToyMixture):
            module.forward = _deaf(module)
    explicit.load_state_dict(plain.state_dict())
    torch.testing.assert_close(run(name, plain).out, run(name, explicit).out, atol=1e-5, rtol=1e-5)


def _deaf(module: ToyMixture) -> Callable[..., object]:
    """Return the toy's forward that asks for attention, and ignores it."""
    quiet = ToyMixture.forward

    def forward(h_BTD: Tensor, context: RouteContext, *, attn: Tensor | None, **rest: object):
        assert attn is not None
        module.needs = frozenset()
        answer = quiet(module, h_BTD, context, **rest)
        module.needs = frozenset({"attn"})
        return answer

    return forward


@each_model
def test_the_backbone_of_a_seed_is_the_same_whatever_its_sublayers_draw(name: str) -> None:
    dense, routed = (
        build(name, sublayer, fresh=True).state_dict() for sublayer in (None, toy_mixtures())
    )
    backbone = [key for key in dense if ".ffn." not in key]
    assert any("attention" in key for key in backbone)
    for key in backbone:
        assert torch.equal(dense[key], routed[key]), key


@each_model
def test_carry_reaches_the_next_layer_with_its_gradient(name: str) -> None:
    model = build(name, toy_mixtures())
    answer = run(name, model)
    last = answer.records[-1].aux["balance"].value
    (gradient,) = torch.autograd.grad(last, model.blocks[0].ffn.router.weight)
    assert gradient.abs().sum() > 0


@each_model
def test_dense_flops_count_real_tokens_only(name: str) -> None:
    model = build(name)
    answer = run(name, model)
    real = {"decoder": 36, "encoder": 36, "vit": 48, "dit": 48, "speech": 6 + 4 + 1}[name]
    per_token = 6 * 16 * 32 if name == "decoder" else 4 * 16 * 32
    assert answer.flops == 3 * real * per_token


@each_model
def test_a_shared_module_is_registered_once_by_the_model(name: str) -> None:
    def factory(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        return toy_mixtures()(layer, width, norm)

    factory.shared = {"router": nn.Linear(2, 2)}
    model = build(name, factory)
    assert [key for key in model.state_dict() if "shared" in key] == [
        "shared.router.weight",
        "shared.router.bias",
    ]


def test_a_sublayer_that_pools_the_positions_is_refused_inside_a_block() -> None:
    class Pooled(ToyMixture):
        def forward(self, *given: Any, **more: Any) -> SublayerOutput:
            return SublayerOutput(delta=super().forward(*given, **more).delta.mean(1))

    model = build("vit", Pooled)
    with pytest.raises(UsageError, match="layer 0: expected a delta of shape"):
        run("vit", model)


@given(st.integers(1, 6), st.integers(0, 4), st.booleans(), st.booleans(), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_both_attention_paths_agree(
    num_new: int, num_past: int, causal: bool, packed: bool, seed: int
) -> None:
    draws = seeded(seed)
    torch.manual_seed(seed)
    attention = Attention(8, 2, bias=True)
    x_BTD = torch.randn(2, num_new, 8, generator=draws)
    past = tuple(torch.randn(2, 2, num_past, 4, generator=draws) for _ in range(2))
    real_BS = torch.rand(2, num_past + num_new, generator=draws) < 0.8
    doc_BS = torch.randint(2, real_BS.shape, generator=draws).sort().values if packed else None
    sight = visibility(real_BS, num_new, causal=causal, doc_BS=doc_BS)
    fused = attention(x_BTD, sight, past=past)
    explicit = attention(x_BTD, sight, past=past, explicit=True)
    torch.testing.assert_close(fused.out_BTD, explicit.out_BTD, atol=1e-5, rtol=1e-5)
    assert fused.probs_BHTS is None
    probs = explicit.probs_BHTS
    assert probs is not None
    real_BT = real_BS[:, num_past:]
    sums = probs.sum(-1)
    torch.testing.assert_close(sums, real_BT[:, None].expand_as(sums).float())
    hidden = probs.masked_fill(real_BS[:, None, None, :], 0.0)
    assert hidden.abs().max() == 0, "padding receives no attention"
    if causal:
        assert probs.triu(num_past + 1).abs().max() == 0


def test_causal_attention_without_masks_agrees_too() -> None:
    attention = Attention(8, 2, bias=False)
    x_BTD = torch.randn(2, 7, 8, generator=seeded())
    fused, explicit = (
        attention(x_BTD, Visibility(causal=True), explicit=flag) for flag in (False, True)
    )
    torch.testing.assert_close(fused.out_BTD, explicit.out_BTD, atol=1e-6, rtol=1e-5)
    assert explicit.probs_BHTS is not None
    assert torch.equal(explicit.probs_BHTS, explicit.probs_BHTS.tril())


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=seeded())
    scores = []
    for start in (0, 40):
        turns = [rotation(torch.tensor([[start + place]]), 8) for place in (5, 2)]
        scores.append((rotate(q, turns[0]) * rotate(k, turns[1])).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotate(q, turns[0]).norm(), q.norm())


def test_feed_forwards_compute_their_equations() -> None:
    x = torch.randn(5, 4, generator=seeded())
    mlp, gated = MLP(4, 6, "relu"), SwiGLU(4, 6)
    by_hand = (x @ mlp.up.weight.T + mlp.up.bias).clamp_min(0) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), by_hand)
    gate = x @ gated.gate.weight.T
    by_hand = (gate * gate.sigmoid() * (x @ gated.up.weight.T)) @ gated.down.weight.T
    torch.testing.assert_close(gated(x), by_hand)
    assert mlp.flops_per_token == 2 * 2 * 4 * 6
    assert gated.flops_per_token == 2 * 3 * 4 * 6


def test_the_mean_over_real_positions_ignores_padding() -> None:
    h_BTD = torch.tensor([[[1.0], [3.0], [50.0]], [[7.0], [8.0], [9.0]]])
    mask_BT = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_over_real(h_BTD, mask_BT).tolist() == [[2.0], [0.0]]
    assert mean_over_real(h_BTD, None).tolist() == [[18.0], [8.0]]


@pytest.mark.parametrize(
    ("width", "heads", "rotary", "words"),
    [(10, 3, False, "divisor of width 10"), (6, 2, True, "even width"), (8, 0, False, "num_heads")],
)
def test_heads_that_do_not_fit_are_refused(
    width: int, heads: int, rotary: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_heads(width, heads, rotary=rotary)
