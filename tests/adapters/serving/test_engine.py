from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from crossroads.adapters import choice
from crossroads.adapters.generating import Sampling, generate
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.serving.engine import Engine, Piece
from crossroads.adapters.serving.wishes import Kind, RefusedError, Wish
from crossroads.core.errors import InputError, UsageError
from tests.adapters.saved import bank, base_model
from tests.adapters.serving.held import Held

PROMPT = "a b c"


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(base_model(), bank(), build_router("phatgoose"), name="mine", max_waiting=2)
    yield made
    made.close()


def wish(model: str = "mine", *, kind: Kind = "text", most: int = 5, prompt: str = PROMPT) -> Wish:
    return Wish(
        kind=kind, model=model, messages=({"role": "user", "content": prompt},), most=most,
        sampling=Sampling(),
    )  # fmt: skip


def answered(engine: Engine, asked: Wish) -> tuple[str, Piece]:
    async def run() -> list[Piece]:
        return [piece async for piece in engine.answer(asked)]

    pieces = asyncio.run(run())
    return "".join(piece.text for piece in pieces), pieces[-1]


def expected(spec: str | None, most: int = 5, expert: str | None = None) -> str:
    base = base_model()
    router = build_router(spec or "uniform")
    if spec is not None:
        RoutedModel(base.model, bank(), router)
    facts = {"experts": [expert]} if expert else {}
    ids = base.tokenizer.encode(PROMPT).ids
    said: str = base.tokenizer.decode(list(generate(base, router, ids, most=most, facts=facts)))
    return said


def test_the_routed_model_answers_and_tells_where_the_prompt_went(engine: Engine) -> None:
    text, last = answered(engine, wish())
    assert text == expected("phatgoose")
    assert (last.finish, last.prompt_tokens, last.answer_tokens) == ("length", 3, 5)
    assert set(last.experts) <= {"letters", "words", "lines"}
    assert sum(last.experts.values()) == pytest.approx(1, abs=1e-5)
    assert [*last.experts.values()] == sorted(last.experts.values(), reverse=True)


def test_the_base_model_and_single_experts_have_names_of_their_own(engine: Engine) -> None:
    assert engine.models == ["mine", "mine:base", "mine:letters", "mine:words", "mine:lines"]
    text, last = answered(engine, wish("mine:base"))
    assert text == expected(None) and last.experts == {}
    text, last = answered(engine, wish("mine:words"))
    assert text == expected("named", expert="words") and last.experts == {"words": 1.0}
    assert answered(engine, wish())[0] == expected("phatgoose")  # and nothing of it stays


def test_a_chat_is_put_into_the_models_form_unless_plain() -> None:
    base = replace(base_model(), chat=lambda messages: "a b c")
    for plain, prompt_tokens in ((False, 3), (True, 1)):
        engine = Engine(base, bank(), build_router("arrow"), name="mine", plain=plain)
        _, last = answered(engine, wish(kind="chat", prompt="z"))
        assert last.prompt_tokens == prompt_tokens
        engine.close()


def test_an_answer_ends_before_a_stop(engine: Engine) -> None:
    whole, _ = answered(engine, wish(most=8))
    words = whole.split()
    stop = next(word for word in words if word != words[0])
    text, last = answered(engine, replace(wish(most=8), stops=(stop,)))
    assert text == whole[: whole.index(stop)] and last.finish == "stop"


def test_wrong_models_and_long_prompts_are_refused(engine: Engine) -> None:
    with pytest.raises(RefusedError, match="'other' does not exist; there is: mine, mine:base"):
        answered(engine, wish("other"))
    with pytest.raises(RefusedError, match="70 tokens, the model reads 64") as found:
        answered(engine, wish(prompt="a " * 70))
    assert found.value.code == "context_length_exceeded"
    assert answered(engine, wish())[1].finish == "length"


def test_a_line_that_is_full_refuses_and_empties(engine: Engine) -> None:
    async def run() -> None:
        streams = [engine.answer(wish(most=40)) for _ in range(3)]  # one is answered, two wait
        firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await firsts[0]
        with pytest.raises(
            RefusedError, match="the line is full: at most 2 requests wait; try again"
        ) as found:
            engine.check(wish())
        assert found.value.status == 503
        for stream, first in zip(streams, firsts, strict=True):
            await first
            await stream.aclose()
        engine.check(wish())

    asyncio.run(run())


def test_without_a_line_one_request_is_answered_and_the_next_refused() -> None:
    engine = Engine(base_model(), bank(), build_router("arrow"), name="mine", max_waiting=0)

    async def run() -> None:
        stream = engine.answer(wish(most=40))
        await anext(stream)
        with pytest.raises(RefusedError, match="at most 0 requests wait"):
            engine.check(wish())
        await stream.aclose()
        engine.check(wish())

    asyncio.run(run())
    engine.close()


def test_an_answer_that_is_given_up_stops_writing(engine: Engine) -> None:
    held = Held(engine.base.tokenizer)
    object.__setattr__(engine.base, "tokenizer", held)

    async def run() -> None:
        stream = engine.answer(wish(most=50))
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    held.go_on.set()
    engine._thread.submit(lambda: None).result()  # the line is empty again
    assert held.decoded <= 3


def test_a_router_that_must_be_told_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="router oracle: does not choose"):
        Engine(base_model(), bank(), build_router("oracle"), name="mine")


def test_a_router_that_cannot_run_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "embed", lambda texts, encoder: torch.ones(len(texts), 3))
    made = bank()
    for name in made.names:
        made.describe(name, embedding_G=torch.ones(4))
    with pytest.raises(InputError, match="embed both with the same encoder"):
        Engine(base_model(), made, build_router("retrieval"), name="mine")


def test_routers_that_merge_otherwise_serve_no_single_experts() -> None:
    engine = Engine(base_model(), bank(), build_router("ties"), name="mine")
    assert engine.models == ["mine", "mine:base"]
    text, last = answered(engine, wish())
    assert text == expected("ties") and last.experts == {}
    engine.close()
