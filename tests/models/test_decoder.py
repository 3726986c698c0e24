from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext, SublayerFactory
from crossroads.models.decoder import DecoderConfig, DecoderLM
from tests.models.routed_toy import toy_mixtures

SMALL = DecoderConfig(vocab_size=17, width=16, num_layers=2, num_heads=2, hidden=24, max_length=24)
SUBLAYERS: dict[str, SublayerFactory | None] = {
    "dense": None,
    "routed": toy_mixtures(),
    "recurrent": toy_mixtures(recurrent=True),
    "attention": toy_mixtures(needs=frozenset({"attn", "attn_out"})),
}
each_sublayer = pytest.mark.parametrize("kind", SUBLAYERS)


def model_of(kind: str = "dense", config: DecoderConfig = SMALL) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(config, SUBLAYERS[kind]).eval()


def tokens(length: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(17, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@each_sublayer
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 1, 3], [9]])
def test_decoding_in_pieces_equals_one_forward_pass(kind: str, pieces: list[int]) -> None:
    model = model_of(kind)
    tokens_BT = tokens(9)
    whole = model(tokens_BT)
    cache = model.init_cache(2)
    found = []
    for piece in tokens_BT.split(pieces, dim=1):
        answer = model(piece, cache=cache)
        cache = answer.cache
        found.append(answer.out)
    close(torch.cat(found, dim=1), whole.out)
    assert whole.cache is None


@each_sublayer
def test_no_token_sees_the_future(kind: str) -> None:
    model = model_of(kind)
    tokens_BT = tokens(9)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 6:] = (changed_BT[:, 6:] + 1) % 17
    before, after = model(tokens_BT).out, model(changed_BT).out
    close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


@pytest.mark.parametrize("kind", ["dense", "routed", "attention"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_token(kind: str, side: str) -> None:
    model = model_of(kind)
    tokens_BT = tokens(6)
    pad_BT = torch.zeros(2, 3, dtype=torch.int64)
    mask_BT = torch.ones(2, 9, dtype=torch.bool)
    if side == "left":
        padded_BT, mask_BT[:, :3], real = torch.cat((pad_BT, tokens_BT), 1), False, slice(3, 9)
    else:
        padded_BT, mask_BT[:, 6:], real = torch.cat((tokens_BT, pad_BT), 1), False, slice(0, 6)
    close(
        model(padded_BT, context=RouteContext(mask_BT=mask_BT)).out[:, real],
        model(tokens_BT).out,
    )


@given(st.integers(1, 6), st.integers(1, 6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_packed_documents_equal_separate_ones(first: int, second: int, attention: bool) -> None:
    model = model_of("attention" if attention else "routed")
    tokens_BT = tokens(first + second)
    doc_BT = (torch.arange(first + second) >= first).long().expand(2, -1)
    packed = model(tokens_BT, context=RouteContext(cond={"doc_id": doc_BT})).out
    close(packed[:, :first], model(tokens_BT[:, :first]).out)
    close(packed[:, first:], model(tokens_BT[:, first:]).out)


def test_a_cache_goes_on_with_the_last_document() -> None:
    model = model_of()
    tokens_BT = tokens(8)
    doc_BT = (torch.arange(8) >= 3).long().expand(2, -1)
    whole = model(tokens_BT, context=RouteContext(cond={"doc_id": doc_BT})).out
    start = model(
        tokens_BT[:, :5],
        context=RouteContext(cond={"doc_id": doc_BT[:, :5]}),
        cache=model.init_cache(2),
    )
    close(model(tokens_BT[:, 5:], cache=start.cache).out, whole[:, 5:])


def test_the_context_tells_routers_ids_positions_and_direction() -> None:
    seen: list[RouteContext] = []

    def spy(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        toy = toy_mixtures()(layer, width, norm)
        toy.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
        return toy

    model = DecoderLM(SMALL, spy)
    tokens_BT = tokens(4)
    mask_BT = torch.tensor([[False, True, True, True], [True] * 4])
    label_B = torch.tensor([1, 2])
    model(tokens_BT, context=RouteContext(mask_BT=mask_BT, cond={"label": label_B}))
    for context in seen:
        assert context.causal
        assert torch.equal(context.cond["token_id"], tokens_BT)
        assert context.cond["pos"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]
        assert torch.equal(context.cond["label"], label_B)
    assert len(seen) == 2


@each_sublayer
def test_greedy_generation_takes_the_best_token_of_the_whole_prefix(kind: str) -> None:
    model = model_of(kind)
    prompt_BT = tokens(5)
    found_BT = model.generate(prompt_BT, 6)
    for _ in range(6):
        best_B = model(prompt_BT).out[:, -1].argmax(-1, keepdim=True)
        prompt_BT = torch.cat((prompt_BT, best_B), dim=1)
    assert torch.equal(found_BT, prompt_BT[:, 5:])


def test_generation_from_left_padded_prompts_equals_generation_one_by_one() -> None:
    model = model_of("routed")
    short, long = tokens(3, 1, seed=1), tokens(6, 1, seed=2)
    both = torch.cat((torch.cat((torch.zeros(1, 3, dtype=torch.int64), short), 1), long))
    mask_BT = torch.tensor([[False] * 3 + [True] * 3, [True] * 6])
    found = model.generate(both, 5, context=RouteContext(mask_BT=mask_BT))
    assert torch.equal(found, torch.cat((model.generate(short, 5), model.generate(long, 5))))


def test_what_a_context_says_of_the_prompt_s_last_token_holds_for_the_new_ones() -> None:
    seen: list[RouteContext] = []

    def spy(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        toy = toy_mixtures()(layer, width, norm)
        toy.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
        return toy

    context = RouteContext(
        cond={
            "task": torch.tensor([1, 2]),
            "domain": torch.tensor([[0, 1, 1], [2, 3, 3]]),
            "doc_id": torch.tensor([[0, 0, 1], [0, 0, 0]]),
        },
        allow=torch.ones(2, 3, 4, dtype=torch.bool),
        logit_bias=torch.zeros(4),
    )
    DecoderLM(SMALL, spy).generate(tokens(3), 3, context=context)
    last = seen[-1]
    assert last.cond["task"].tolist() == [1, 2]
    assert last.cond["domain"].tolist() == [[1], [3]]
    assert last.cond["doc_id"].tolist() == [[1], [0]]
    assert last.cond["pos"].tolist() == [[2], [4]], "the first row's last document began late"
    assert last.allow is not None
    assert last.allow.shape == (2, 1, 4)
    assert last.logit_bias is context.logit_bias


def test_sampling_is_a_function_of_the_generator() -> None:
    model = model_of()
    draws = [
        model.generate(
            tokens(3, 8), 10, temperature=1.0, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_embeddings_are_tied() -> None:
    model = model_of()
    answer = model(tokens(4))
    close(answer.out, answer.hidden_BTD @ model.embedding.weight.T)
    assert sum(weights.shape == (17, 16) for weights in model.parameters()) == 1


def test_a_small_model_learns_a_cycle_by_heart() -> None:
    torch.manual_seed(0)
    model = DecoderLM(SMALL)
    tokens_BT = (torch.arange(20)[None] + torch.arange(4)[:, None]) % 5
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(
            model(tokens_BT[:, :-1]).out.flatten(0, 1), tokens_BT[:, 1:].flatten()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.generate(torch.tensor([[2, 3]]), 4).tolist() == [[4, 0, 1, 2]]


@pytest.mark.parametrize(
    ("tokens_BT", "words"),
    [
        (torch.tensor([[0, 17]]), r"\[0, 17\), got 17"),
        (torch.tensor([[0, -2]]), "got -2"),
        (torch.zeros(1, 25, dtype=torch.int64), "at most 24 positions, got 25"),
        (torch.zeros(3, dtype=torch.int64), r"shape \(B, T\)"),
        (torch.zeros(1, 3), "int64"),
    ],
)
def test_bad_tokens_are_refused(tokens_BT: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model_of()(tokens_BT)


@pytest.mark.parametrize("progress", [2, -0.1, float("nan")])
def test_progress_is_a_share_of_the_run(progress: float) -> None:
    with pytest.raises(UsageError, match="progress: expected a share"):
        RouteContext(progress=progress)


def test_bad_companions_of_tokens_are_refused() -> None:
    model = model_of()
    used = model(tokens(3), cache=model.init_cache(2)).cache
    with pytest.raises(InputError, match="cache: holds 2 sequences"):
        model(tokens(1, batch=3), cache=used)
    with pytest.raises(InputError, match="at most 24 positions, got 25"):
        model(tokens(22), cache=used)
    doc_BT = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="doc_id: given now"):
        model(tokens(1), cache=used, context=RouteContext(cond={"doc_id": doc_BT}))
    with pytest.raises(InputError, match="doc_id: expected"):
        model(tokens(3), context=RouteContext(cond={"doc_id": doc_BT}))
    with pytest.raises(InputError, match="mask: expected bool"):
        model(tokens(3), context=RouteContext(mask_BT=torch.ones(2, 3)))


def test_bad_generation_settings_are_refused() -> None:
    model = model_of()
    with pytest.raises(UsageError, match="temperature: expected 0"):
        model.generate(tokens(3), 2, temperature=1.0)
    with pytest.raises(UsageError, match="num_new: expected 0 or more tokens, got -1"):
        model.generate(tokens(3), -1)
    with pytest.raises(UsageError, match="decisions: cannot be given"):
        model.generate(tokens(3), 2, context=RouteContext(decisions={0: None}))
    with pytest.raises(InputError, match="prompt: expected a real last token"):
        model.generate(tokens(0), 2)
    right = torch.tensor([[True, True, False], [True, True, True]])
    with pytest.raises(InputError, match="pad on the left"):
        model.generate(tokens(3), 2, context=RouteContext(mask_BT=right))
    with pytest.raises(InputError, match="at most 24 positions"):
        model.generate(tokens(20), 6)


@pytest.mark.parametrize(
    "wrong", [{"width": 15}, {"num_heads": 3}, {"vocab_size": 0}, {"width": 6, "num_heads": 2}]
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        DecoderConfig(**wrong)


def test_a_cache_is_a_value_and_may_be_continued_twice() -> None:
    model = model_of("recurrent")
    start = model(tokens(4), cache=model.init_cache(2)).cache
    one, other, again = (model(tokens(3, seed=seed), cache=start).out for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_context_routers_learn_the_mode_of_the_model(training: bool) -> None:
    seen: list[RouteContext] = []

    def spy(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        toy = toy_mixtures()(layer, width, norm)
        toy.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
        return toy

    DecoderLM(SMALL, spy).train(training)(tokens(3))
    assert {context.training for context in seen} == {training}


@pytest.mark.slow
def test_the_decoder_is_a_llama() -> None:
    transformers = pytest.importorskip("transformers")
    model = model_of()
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=17,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    ).eval()
    weights = {"model.embed_tokens.weight": model.embedding.weight,
               "model.norm.weight": model.norm.weight}  # fmt: skip
    for layer, block in enumerate(model.blocks):
        mine = {
            "input_layernorm": block.norm.weight,
            "self_attn.o_proj": block.attention.out.weight,
            "post_attention_layernorm": block.ffn.norm.weight,
            "mlp.gate_proj": block.ffn.ffn.gate.weight,
            "mlp.up_proj": block.ffn.ffn.up.weight,
            "mlp.down_proj": block.ffn.ffn.down.weight,
        }
        for part, rows in zip("qkv", block.attention.qkv.weight.chunk(3), strict=True):
            mine[f"self_attn.{part}_proj"] = rows
        weights |= {f"model.layers.{layer}.{name}.weight": value for name, value in mine.items()}
    missing = llama.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    assert not missing.unexpected_keys
    with torch.no_grad():
        close(model(tokens(9)).out, llama(tokens(9)).logits)
