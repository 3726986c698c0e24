"""A sentence that says what a task asks for, written by a small language model from examples.

GLIDER compares such sentences of the experts' tasks and of the task at hand. Anything that maps
examples to a sentence will do; ``SmolLM2Instructions`` asks SmolLM2-135M-Instruct and remembers
what it wrote. Source: Glider (2024), section 3; the authors ask a GPT model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.models.embedding_cache import cache_folder
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

SHOWN = 3  # examples in the prompt, as the authors show
_LONGEST = 300  # characters of a prompt or an answer that are shown
_MOST_TOKENS = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An input of a task and the output it asks for."""

    prompt: str
    answer: str


Instruction = Callable[[Sequence[Example]], str]


class SmolLM2Instructions:
    """Writes one sentence about a task from its first three examples, greedily.

    Parameters
    ----------
    model : a loaded SmolLM2 to use; loaded when first needed otherwise (seconds, 540 MB)
    folder : where sentences are remembered, by the text of the question; None = the user's cache
    """

    def __init__(self, *, model: Any = None, folder: Path | None = None) -> None:
        self._model = model
        self._folder = folder or cache_folder() / "instructions"

    def __call__(self, examples: Sequence[Example]) -> str:
        """Return the sentence. Raises UnavailableError where the model is not installed."""
        question = chat_prompt(examples)
        key = hashlib.blake2b(question.encode(), digest_size=16).hexdigest()
        path = self._folder / f"smollm2-{key}.json"
        if path.is_file():
            kept: str = json.loads(path.read_text("utf-8"))["instruction"]
            return kept
        instruction = first_sentence(self._write(question))
        write_atomically(path, json.dumps({"instruction": instruction}))
        return instruction

    def _write(self, question: str) -> str:
        if self._model is None:
            self._model = load_smollm2()
        tokenizer = smollm2_tokenizer()
        ids = tokenizer.encode(question, add_special_tokens=False).ids
        with torch.no_grad():
            out_BT = self._model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=_MOST_TOKENS,
                do_sample=False,
            )
        text: str = tokenizer.decode(out_BT[0, len(ids) :].tolist(), skip_special_tokens=True)
        return text


def chat_prompt(examples: Sequence[Example]) -> str:
    """Return the question in SmolLM2's chat form, ending where the model goes on."""
    shown = "\n\n".join(
        f"Input: {one.prompt[:_LONGEST]}\nOutput: {one.answer[:_LONGEST]}"
        for one in examples[:SHOWN]
    )
    return (
        "<|im_start|>system\nYou describe tasks.<|im_end|>\n"
        "<|im_start|>user\nHere are inputs and outputs of one task.\n\n"
        f"{shown}\n\nWhat does the task ask for? Answer with one sentence.<|im_end|>\n"
        "<|im_start|>assistant\nThe task is to"
    )


def first_sentence(text: str) -> str:
    """Return what the model wrote up to the end of its first sentence or line, made whole.

    Raises InputError where it wrote nothing.
    """
    line = text.strip().partition("\n")[0]
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", line)[0].rstrip(".!? ")
    if not sentence:
        raise InputError("instruction: the model wrote nothing; write the sentence yourself")
    return f"The task is to {sentence}."
