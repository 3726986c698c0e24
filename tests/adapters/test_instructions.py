"""Sentences about tasks: the question, the clean-up, the memory; the model itself once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.adapters.instructions import (
    SHOWN,
    Example,
    SmolLM2Instructions,
    chat_prompt,
    first_sentence,
)
from crossroads.core.errors import InputError, UnavailableError
from crossroads.models.smollm2 import smollm2_path
from crossroads.models.smollm2_torch import smollm2_tokenizer

EXAMPLES = [Example(prompt=f"German: Wort {n}\nEnglish:", answer=f" word {n}") for n in range(5)]


def needs_smollm2() -> None:
    try:
        smollm2_path()
    except UnavailableError as missing:
        pytest.skip(str(missing))


class Writer:
    """Stands for the model: writes the same text whatever it is asked, and counts."""

    def __init__(self, text: str) -> None:
        self.text, self.calls = text, 0

    def generate(self, ids_BT: Tensor, **settings: Any) -> Tensor:
        self.calls += 1
        assert settings["do_sample"] is False
        written = smollm2_tokenizer().encode(self.text, add_special_tokens=False).ids
        return torch.cat([ids_BT, torch.tensor([written])], 1)


def test_three_examples_are_shown_and_cut() -> None:
    question = chat_prompt([*EXAMPLES[:4], Example(prompt="x" * 999, answer="y")])
    assert question.count("Input:") == SHOWN
    assert "Wort 2" in question
    assert "Wort 3" not in question
    assert len(chat_prompt([Example(prompt="x" * 9999, answer="y" * 9999)])) < 1000


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (" translate a word. Then more.", "The task is to translate a word."),
        ("sort\nand so on", "The task is to sort."),
        ("name e.g. a city", "The task is to name e.g. a city."),
    ],
)
def test_one_sentence_is_kept(written: str, sentence: str) -> None:
    assert first_sentence(written) == sentence


def test_nothing_written_is_an_error() -> None:
    with pytest.raises(InputError, match="wrote nothing"):
        first_sentence(" . ")


@pytest.mark.slow
def test_a_question_is_asked_once(tmp_path: Path) -> None:
    needs_smollm2()
    writer = Writer(" translate German. It is easy.")
    for _ in range(2):
        found = SmolLM2Instructions(model=writer, folder=tmp_path)(EXAMPLES)
        assert found == "The task is to translate German."
    assert writer.calls == 1
    SmolLM2Instructions(model=writer, folder=tmp_path)(EXAMPLES[1:])
    assert writer.calls == 2


@pytest.mark.slow
def test_smollm2_writes_a_sentence(tmp_path: Path) -> None:
    needs_smollm2()
    found = SmolLM2Instructions(folder=tmp_path)(EXAMPLES)
    assert found.startswith("The task is to ")
    assert found.endswith(".")
    assert len(found.split()) > 4  # more than its beginning
