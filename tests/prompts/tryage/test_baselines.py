from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.experts.base import Chunk, Completion, Request, completion
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.tryage.asked import NO_ANSWER, choose_by_asking
from crossroads.prompts.tryage.cards import choose_by_card

POOL = Pool(
    models=(
        ModelCard(name="cook", description="recipes, cooking, baking bread and cakes"),
        ModelCard(name="lawyer", description="contracts, courts, statutes and legal liability"),
    )
)


class Scripted:
    """An expert that gives the answers it was made with, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []
        self.is_open = False

    async def start(self) -> None:
        self.is_open = True

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        return completion(self.answers[len(self.asked) - 1], model=self.name)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise AssertionError(request)
        yield {}

    async def close(self) -> None:
        self.is_open = False


def test_a_prompt_goes_to_the_card_it_resembles() -> None:
    texts = ["how long to bake a sourdough bread", "is the contract void in court"]
    np.testing.assert_array_equal(choose_by_card(POOL, texts), [0, 1])
    assert choose_by_card(POOL, []).shape == (0,)


def test_a_card_without_a_description_cannot_be_chosen_by_it() -> None:
    with pytest.raises(InputError, match="no description of a, b; add the field 'description'"):
        choose_by_card(Pool.of(["a", "b"]), ["hi"])


def test_letters_and_names_are_read_and_all_else_is_no_answer() -> None:
    expert = Scripted("B", "A.", "the cook", "I cannot say", "Z")
    choice = choose_by_asking(expert, POOL, ["text"] * 5)
    np.testing.assert_array_equal(choice, [1, 0, 0, NO_ANSWER, NO_ANSWER])
    assert not expert.is_open


def test_the_cards_and_the_text_are_shown() -> None:
    expert = Scripted("A")
    seen: list[tuple[int, int]] = []
    choose_by_asking(expert, POOL, ["knead the dough"], lambda done, of: seen.append((done, of)))
    shown = expert.asked[0]["messages"][1]["content"]
    for part in ("A. cook: recipes", "B. lawyer: contracts", "knead the dough"):
        assert part in shown
    assert seen == [(1, 1)]


def test_there_are_twenty_six_letters() -> None:
    with pytest.raises(InputError, match="up to 26 experts, the pool has 27"):
        choose_by_asking(Scripted(), Pool.of([f"m{n}" for n in range(27)]), ["hi"])
