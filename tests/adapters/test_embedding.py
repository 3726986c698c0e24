"""Embeddings of prompts and experts by one encoder."""

from __future__ import annotations

import logging

import pytest
import torch

from crossroads.adapters import embedding
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.embedding import default_encoder, embed, embed_experts, unit
from crossroads.core.errors import InputError, MissingExtraError
from crossroads.models.encoders import get_encoder
from tests.adapters import toys

EXAMPLES = {
    "e0": ["Translate: der Hund", "Translate: die Katze"],
    "e1": ["What is 3 + 4?", "What is 8 - 5?"],
}
ENCODER = "static"


def bank() -> AdapterBank:
    return AdapterBank(toys.strangers(toys.tiny_llama(), 2))


def test_rows_have_length_one_and_empty_texts_are_zero() -> None:
    found_NG = embed(["a dog", ""], ENCODER)
    assert found_NG.dtype == torch.float32
    torch.testing.assert_close(found_NG.norm(dim=-1), torch.tensor([1.0, 0.0]))


def test_experts_get_their_examples_and_the_mean_of_them() -> None:
    found = bank()
    before = found.version
    embed_experts(found, EXAMPLES, encoder=ENCODER)
    assert found.version > before  # routers prepare themselves again
    for card in found.cards:
        wanted_JG = embed(EXAMPLES[card.name], ENCODER)
        torch.testing.assert_close(card.examples_JG, wanted_JG)
        torch.testing.assert_close(card.embedding_G, unit(wanted_JG.mean(0)))
    nearest = found.embeddings_EG() @ embed(["Translate: das Haus"], ENCODER)[0]
    assert int(nearest.argmax()) == 0


def test_instructions_take_the_place_of_the_mean() -> None:
    found = bank()
    told = {"e0": "Translate German.", "e1": "Add and subtract."}
    embed_experts(found, EXAMPLES, instructions=told, encoder=ENCODER)
    assert [card.description for card in found.cards] == [*told.values()]
    torch.testing.assert_close(found.embeddings_EG(), embed([*told.values()], ENCODER))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="'e1': has no example prompts"):
        embed_experts(bank(), {"e0": ["x"]}, encoder=ENCODER)
    with pytest.raises(InputError, match="'e1': has no instruction"):
        embed_experts(bank(), EXAMPLES, instructions={"e0": "Translate."}, encoder=ENCODER)


def test_the_static_encoder_stands_in_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find(name: str) -> object:
        if name == "minilm":
            raise MissingExtraError("encoder 'minilm': onnxruntime", extra="minilm")
        return get_encoder(name)

    monkeypatch.setattr(embedding, "get_encoder", find)
    default_encoder.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert embed(["a dog"]).shape == (1, get_encoder("static").dim)
    assert "'static' instead" in caplog.text
    default_encoder.cache_clear()
