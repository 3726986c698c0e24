"""A tokenizer of 31 words, and tasks that it can write."""

from __future__ import annotations

from functools import cache
from typing import Any

from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.tasks import Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def tokenizer() -> Any:
    """One token a letter; spaces part tokens and are none themselves."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "?": 2, **{letter: n for n, letter in enumerate(LETTERS, 3)}}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def successor_rows(shift: int) -> tuple[Row, ...]:
    """Return rows whose answer is the letter ``shift`` places on, among three."""
    return tuple(
        Row(
            prompt=f"{letter} {letter} q",
            answer=f" {LETTERS[(place + shift) % 26]}",
            options=tuple(f" {LETTERS[(place + other) % 26]}" for other in range(1, 4)),
        )
        for place, letter in enumerate(LETTERS)
    )


def easy_rows(answer: str) -> tuple[Row, ...]:
    """Return rows with one answer."""
    return tuple(Row(prompt=f"{letter} q", answer=f" {answer}") for letter in LETTERS)


def task(
    name: str, rows: tuple[Row, ...] | None = None, *, length: int = 6, batch: int = 4
) -> Task:
    rows = rows or successor_rows(1)
    return Task(
        name=name,
        frame="letters",
        about="letters",
        rows={"train": rows, "validation": rows[:3], "test": rows},
        held_in=True,
        length=length,
        batch=batch,
    )
