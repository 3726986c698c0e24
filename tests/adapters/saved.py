"""A tiny base model and a bank of it as folders, as commands read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel, as_text, load_base
from crossroads.adapters.contract import Router
from crossroads.adapters.layout import save_bank
from tests.adapters.collection.toys import tokenizer
from tests.adapters.toys import experts, tiny_llama

EXPERTS = ("letters", "words", "lines")


def save_base(folder: Path, *, template: str | None = None, **changes: Any) -> Path:
    """Write a model of 29 words with its tokenizer; ``template`` is its chat form."""
    from transformers import PreTrainedTokenizerFast

    tiny_llama(**changes).save_pretrained(folder)
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), unk_token="?")
    words.chat_template = template
    words.save_pretrained(folder)
    return folder


def base_model(**changes: Any) -> BaseModel:
    """Return the same model without a folder."""
    return BaseModel(
        name="tiny",
        model=tiny_llama(**changes),
        tokenizer=tokenizer(),
        chat=as_text,
        ends=frozenset(),
        context=64,
    )


def bank(names: Sequence[str] = EXPERTS) -> AdapterBank:
    return AdapterBank(experts(tiny_llama(), names))


def save_adapters(
    folder: Path, names: Sequence[str] = EXPERTS, router: Router | None = None
) -> Path:
    """Write a bank whose experts have gates."""
    made = bank(names)
    if router is not None:
        router.prepare(made)
    save_bank(folder, made, router)
    return folder


def loaded(folder: Path) -> BaseModel:
    return load_base(save_base(folder))
