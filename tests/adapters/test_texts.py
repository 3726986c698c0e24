"""Batches of prompts with answers, and losses on the answers alone."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from crossroads.adapters.texts import answer_nll, answer_nll_B, text_batch
from crossroads.core.errors import InputError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = {word: place for place, word in enumerate(["?", *"abcdefgh"])}
    found = Tokenizer(models.WordLevel(words, unk_token="?"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_prompts_are_cut_from_the_left_and_answers_never(tokenizer: Tokenizer) -> None:
    batch = text_batch(tokenizer, ["a b c d", "a"], ["e f", "g"], length=4)
    assert batch.ids_BT.tolist() == [[3, 4, 5, 6], [1, 7, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.answer_BT.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert batch.n_answer_tokens == 3


def test_a_fixed_length_pads_every_batch_to_it(tokenizer: Tokenizer) -> None:
    assert text_batch(tokenizer, ["a"], ["b"], length=6, fixed=True).ids_BT.shape == (1, 6)


@pytest.mark.parametrize(("prompt", "answer"), [("a", "b c d"), ("", "a b c d"), ("a", "")])
def test_an_answer_that_does_not_fit_is_refused(
    tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    with pytest.raises(InputError, match=r"answer .* length is 3"):
        text_batch(tokenizer, [prompt], [answer], length=3)


def test_the_loss_is_that_of_the_whole_model_at_the_answers(
    tokenizer: Tokenizer, model: LlamaForCausalLM
) -> None:
    batch = text_batch(tokenizer, ["a b c", "d"], ["e f", "g h a"], length=8)
    with torch.no_grad():
        logits_BTV = model(batch.ids_BT, attention_mask=batch.mask_BT.long()).logits
        wanted = []
        for row, start, end in [(0, 3, 5), (1, 1, 4)]:
            logprobs = logits_BTV[row].log_softmax(-1)
            wanted += [-logprobs[t - 1, batch.ids_BT[row, t]] for t in range(start, end)]
        torch.testing.assert_close(answer_nll(model, batch), torch.stack(wanted))
        sums = torch.stack([sum(wanted[:2]), sum(wanted[2:])])  # type: ignore[list-item, arg-type]
        torch.testing.assert_close(answer_nll_B(model, batch), sums)


def test_padding_changes_no_loss(tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    alone = text_batch(tokenizer, ["a b"], ["c d"], length=8)
    padded = text_batch(tokenizer, ["a b"], ["c d"], length=8, fixed=True)
    with torch.no_grad():
        torch.testing.assert_close(answer_nll(model, alone), answer_nll(model, padded))
