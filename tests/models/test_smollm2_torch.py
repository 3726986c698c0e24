from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UnavailableError
from crossroads.models.smollm2 import smollm2_path
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

CHAT = (
    "<|im_start|>user\nWhat is the capital of France? Answer in one word.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module", autouse=True)
def _model_file() -> None:
    try:
        smollm2_path()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_weights_answer_like_the_model_they_are() -> None:
    import torch

    model, tokenizer = load_smollm2(), smollm2_tokenizer()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = tokenizer.encode(CHAT, add_special_tokens=False).ids
    with torch.inference_mode():
        best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(5).indices.tolist()
    assert "Paris" in [tokenizer.decode([token]) for token in best]


@pytest.mark.slow
def test_texts_survive_the_tokenizer_and_control_words_are_one_token() -> None:
    tokenizer = smollm2_tokenizer()
    text = 'It\'s 1234 caf\u00e9s,\n\n  \u4f60\u597d {"route":"a_b"}'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    pieces = tokenizer.encode(CHAT, add_special_tokens=False).tokens
    assert pieces[0] == "<|im_start|>"
    assert pieces.count("<|im_end|>") == 1


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"broken\.gguf: not a readable GGUF file"):
        load_smollm2(path)
