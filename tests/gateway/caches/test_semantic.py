from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from crossroads.core.progress import Progress
from crossroads.gateway.caches import AnswerCache, CacheSettings, SemanticSettings, build_cache
from crossroads.gateway.caches.answers import pack
from crossroads.gateway.caches.identity import HEADERS, semantic_key
from crossroads.gateway.caches.semantic import SemanticCache
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Kept
from crossroads.models.encoders import Float32, unit_rows
from tests.gateway.caches.calls import ALICE, BOB, asked, told

QUESTION = "What is the capital of France?"
SAME = "What's the capital of France"


def cache(**semantic: Any) -> AnswerCache:
    settings = {"semantic": {"threshold": 0.8, **semantic}}
    built = build_cache(CacheSettings.model_validate(settings))
    assert built is not None
    return built


def get(store: AnswerCache, call: Call) -> Kept | None:
    return asyncio.run(store.get(call))


def keep(call: Call, **semantic: Any) -> AnswerCache:
    store = cache(**semantic)
    store.put(call, told())
    return store


def test_another_wording_gets_the_answer() -> None:
    kept = get(keep(asked(QUESTION)), asked(SAME))
    assert kept is not None
    assert kept.kind == "semantic"
    assert 0.8 <= kept.similarity < 1.0


def test_the_same_wording_is_as_similar_as_can_be() -> None:
    kept = get(keep(asked(QUESTION), threshold=1.0), asked(QUESTION))
    assert kept is not None
    assert kept.similarity == pytest.approx(1.0)


def test_below_the_threshold_nothing_is_given() -> None:
    assert get(keep(asked(QUESTION), threshold=0.999), asked(SAME)) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 % of 250?", "What is 13 % of 250?"),
        ("Is a whale a fish?", "Is a whale not a fish?"),
        ("Which of these is the most likely cause?", "Which of these is the least likely cause?"),
        ("Why can it fly?", "Why can't it fly?"),
        ("Why can it fly?", "Why can\u2019t it fly?"),
        ("Why can it fly?", "why cant it fly"),
        ("Convert 5 degrees Celsius to Fahrenheit", "Convert -5 degrees Celsius to Fahrenheit"),
        (
            "Convert 5 degrees Celsius to Fahrenheit",
            "Convert \u22125 degrees Celsius to Fahrenheit",
        ),
        ("Explain what x<y means in Python", "Explain what x>y means in Python"),
        ("What does the operator >= do in SQL?", "What does the operator <= do in SQL?"),
        ("Is a+b the right formula?", "Is a-b the right formula?"),
        ("Is f(x) = x\u00b2 even?", "Is f(x) = x\u00b3 even?"),
        ("Is it 5 $ a month?", "Is it 5 \u20ac a month?"),
        ("Who invented C?", "Who invented C#?"),
    ],
)
def test_numbers_signs_and_negations_are_never_a_matter_of_wording(one: str, other: str) -> None:
    store = keep(asked(one), threshold=0.5)
    assert get(store, asked(one)) is not None
    assert get(store, asked(other)) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Why can't it fly?", "Why can\u2019t it fly"),
        ("What is 5 - 3?", "what is 5 \u2212 3"),
        ("Is two-factor login safe?", "is two\u2011factor login safe"),
    ],
)
def test_apostrophes_and_hyphens_are_the_same_however_they_are_typed(one: str, other: str) -> None:
    assert semantic_key(asked(one), b"") == semantic_key(asked(other), b"")


EUROS = "Convert this price from euros to dollars"
DOLLARS = "Convert this price from dollars to euros"


def test_the_same_words_in_another_order_are_another_question() -> None:
    store = keep(asked(EUROS), threshold=0.5)
    assert get(store, asked(DOLLARS)) is None
    store.put(asked(DOLLARS), told("Other"))
    for text, answer in ((EUROS, "Paris."), (DOLLARS, "Other")):  # as near as each other
        kept = get(store, asked(text))
        assert kept is not None
        assert kept.answer["choices"][0]["message"]["content"] == answer


SYSTEM = {"role": "system", "content": "Answer in French."}
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "small"},
        {"max_tokens": 5},
        {"client": BOB},
        {"messages": [SYSTEM, {"role": "user", "content": SAME}]},
        {"messages": [*EARLIER, {"role": "user", "content": SAME}]},
    ],
    ids=["model", "parameter", "key", "system", "history"],
)
def test_everything_but_the_wording_must_be_the_same(change: dict[str, Any]) -> None:
    assert get(keep(asked(QUESTION)), asked(SAME, **change)) is None


def test_the_last_message_is_compared_after_an_equal_history() -> None:
    store = keep(asked(messages=[*EARLIER, {"role": "user", "content": QUESTION}]))
    same = asked(messages=[*EARLIER, {"role": "user", "content": SAME}])
    assert get(store, same) is not None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The"}],
        [],
    ],
    ids=["parts", "prefill", "none"],
)
def test_only_a_user_s_plain_text_at_the_end_is_compared(messages: list[Any]) -> None:
    store = keep(asked(messages=messages))
    assert store.health()["semantic"]["entries"] == 0


def test_long_texts_are_never_compared() -> None:
    store = keep(asked("word " * 50), max_characters=100)
    assert store.health()["semantic"]["entries"] == 0


def test_many_entries_are_searched_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.gateway.caches.semantic._ROWS_ON_LOOP", 0)
    assert get(keep(asked(QUESTION)), asked(SAME)) is not None


class SlowEncoder:
    """Eight letters' counts, and a name for being slow."""

    name, version, dim, is_slow = "slow", "1", 8, True

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        self.threads.add(threading.current_thread().name)
        rows = [[text.lower().count(letter) for letter in "aeionrst"] for text in texts]
        return unit_rows(np.array(rows, dtype=np.float32))


def test_a_slow_encoder_never_runs_on_the_event_loop() -> None:
    encoder = SlowEncoder()
    store = SemanticCache(encoder, SemanticSettings(threshold=0.9))
    data = pack(asked(QUESTION), told(), tool_calls=False)
    assert data is not None

    async def run() -> Kept | None:
        store.put(asked(QUESTION), b"", HEADERS, data)
        while not store.health()["entries"]:
            await asyncio.sleep(0.001)
        return await store.get(asked(QUESTION), b"", HEADERS)

    assert asyncio.run(run()) is not None
    assert threading.main_thread().name not in encoder.threads


def test_the_exact_cache_is_asked_first() -> None:
    built = build_cache(CacheSettings.model_validate({"exact": True, "semantic": True}))
    assert built is not None
    built.put(asked(QUESTION, client=ALICE), told())
    kept = get(built, asked(QUESTION, client=ALICE))
    assert kept is not None
    assert kept.kind == "exact"


def test_streams_get_answers_of_whole_requests() -> None:
    kept = get(keep(asked(QUESTION)), asked(SAME, is_stream=True))
    assert kept is not None
