from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.caches import AnswerCache, CacheSettings, build_cache
from crossroads.gateway.call import Call, Client
from crossroads.gateway.contracts import Kept, Tally
from crossroads.prompts.experts.base import assemble, chunks_of
from tests.gateway.caches.calls import ALICE, ANN, BOB, asked, told


def cache(**settings: Any) -> AnswerCache:
    built = build_cache(CacheSettings.model_validate({"exact": True, **settings}))
    assert built is not None
    return built


def get(store: AnswerCache, call: Call) -> Kept | None:
    return asyncio.run(store.get(call))


def keep(call: Call, tally: Tally, **settings: Any) -> AnswerCache:
    store = cache(**settings)
    store.put(call, tally)
    return store


def text_of(kept: Kept | None) -> str | None:
    return None if kept is None else kept.answer["choices"][0]["message"]["content"]


# --- what is the same -----------------------------------------------------------------------------


def test_the_same_request_gets_the_answer_given_before() -> None:
    store = keep(asked(), told())
    kept = get(store, asked())
    assert kept is not None
    assert (kept.model, kept.dialect, kept.kind, kept.similarity) == ("small", "chat", "exact", 1.0)
    assert text_of(kept) == "Paris."
    assert 0 <= kept.age_s < 5


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_streams_and_whole_answers_share_what_they_mean(first: bool, second: bool) -> None:
    store = keep(asked(is_stream=first, stream_options={"include_usage": True}), told())
    kept = get(store, asked(is_stream=second))
    assert text_of(kept) == "Paris."


def test_a_hit_replays_as_the_stream_it_would_have_been() -> None:
    kept = get(keep(asked(), told("Paris, on the Seine.")), asked(is_stream=True))
    assert kept is not None
    chunks = list(chunks_of(kept.answer, include_usage=True))
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert assemble(chunks, model="small")["choices"] == kept.answer["choices"]
    assert chunks[-1]["usage"] == kept.answer["usage"]


OTHER = [
    {"text": "What is the capital of Spain?"},
    {"model": "small"},
    {"max_tokens": 5},
    {"seed": 1},
    {"top_p": 0.5},
    {"n": 2},
    {"stop": ["."]},
    {"logit_bias": {"1": 1}},
    {"response_format": {"type": "json_object"}},
    {"metadata": {"tier": "gold"}},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]},
    {"headers": {b"x-crossroads-tags": b"internal"}},
    {"headers": {b"x-crossroads-policy": b"cheap"}},
    {"headers": {b"x-crossroads-residency": b"eu"}},
    {"routing_preferences": [{"name": "code"}]},
    {"crossroads": {"policy": "cheap"}},
    {"a_field_of_tomorrow": True},
]


@pytest.mark.parametrize("change", OTHER, ids=lambda change: next(iter(change)))
def test_whatever_can_change_the_answer_makes_another_request(change: dict[str, Any]) -> None:
    assert get(keep(asked(), told()), asked(**change)) is None


@pytest.mark.parametrize("change", [{"user": "u1"}, {"stream_options": {}}, {"crossroads": {}}])
def test_what_cannot_change_the_answer_does_not(change: dict[str, Any]) -> None:
    if "crossroads" in change:
        assert get(keep(asked(crossroads={}), told()), asked(**change)) is not None
    else:
        assert get(keep(asked(), told()), asked(**change)) is not None


def test_headers_that_rules_go_by_can_be_named() -> None:
    gold, silver = {b"x-tier": b"gold"}, {b"x-tier": b"silver"}
    assert get(keep(asked(headers=gold), told()), asked(headers=silver)) is not None
    store = keep(asked(headers=gold), told(), headers=["X-Tier"])
    assert get(store, asked(headers=silver)) is None
    assert get(store, asked(headers=gold)) is not None


@given(st.permutations(["model", "messages", "max_tokens", "seed", "stop"]))
def test_the_order_of_fields_does_not_matter(order: list[str]) -> None:
    call = asked(max_tokens=5, seed=1, stop=["."])
    shuffled = Call(
        dialect="chat", model="auto", client=ALICE, body={name: call.body[name] for name in order}
    )
    assert get(keep(call, told()), shuffled) is not None


# --- who shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "shared"),
    [("key", {"alice"}), ("team", {"alice", "ann"}), ("all", {"alice", "ann", "bob"})],
)
def test_answers_are_shared_within_their_scope_only(scope: str, shared: set[str]) -> None:
    store = keep(asked(client=ALICE), told(), scope=scope)
    found = {c.key_id for c in (ALICE, ANN, BOB) if get(store, asked(client=c)) is not None}
    assert found == shared


@pytest.mark.parametrize(
    "client",
    [
        Client(key_id="carl", models=frozenset({"auto"})),
        Client(key_id="carl", residency=frozenset({"eu"})),
        Client(key_id="carl", tags=frozenset({"internal"})),
    ],
)
def test_clients_of_other_rights_share_nothing(client: Client) -> None:
    store = keep(asked(client=Client(key_id="dora")), told(), scope="all")
    assert get(store, asked(client=client)) is None


def test_a_key_without_team_is_a_team_of_its_own() -> None:
    store = keep(asked(client=Client(key_id="one")), told(), scope="team")
    assert get(store, asked(client=Client(key_id="two"))) is None


# --- what the client forbids ----------------------------------------------------------------------


def test_no_store_neither_reads_nor_keeps() -> None:
    private = asked(headers={b"cache-control": b"No-Store"})
    assert get(keep(private, told()), asked()) is None
    assert get(keep(asked(), told()), private) is None


def test_no_cache_asks_anew_and_keeps_the_new_answer() -> None:
    store = keep(asked(), told("old"))
    fresh = asked(headers={b"cache-control": b"no-cache"})
    assert get(store, fresh) is None
    store.put(fresh, told("new"))
    assert text_of(get(store, asked())) == "new"


def test_a_request_can_do_without_the_cache() -> None:
    alone = asked(crossroads={"cache": False})
    assert get(keep(alone, told()), asked(crossroads={})) is None
    assert get(keep(asked(crossroads={}), told()), alone) is None


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tally",
    [
        told(is_complete=False),
        told(answer=None),
        told(finish="content_filter"),
        told(finish="error"),
        told(finish=None),
        told(answer={"error": {"message": "no"}}),
        told(dialect="messages"),
    ],
    ids=["cut", "without-answer", "filtered", "failed", "no-reason", "error-body", "foreign"],
)
def test_only_whole_answers_are_kept(tally: Tally) -> None:
    assert get(keep(asked(), tally), asked()) is None


def calling() -> Tally:
    tally = told("", finish="tool_calls")
    assert tally.answer is not None
    call = {"id": "c", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
    tally.answer["choices"][0]["message"]["tool_calls"] = [call]
    return tally


def test_answers_that_call_tools_are_kept_only_if_asked() -> None:
    assert get(keep(asked(), calling()), asked()) is None
    assert get(keep(asked(), calling(), tool_calls=True), asked()) is not None


@pytest.mark.parametrize(
    ("sampling", "temperature", "is_kept"),
    [
        ("unset", 0.7, False),
        ("unset", None, True),
        ("unset", 0, True),
        ("none", None, False),
        ("none", 0.0, True),
        ("any", 0.7, True),
    ],
)
def test_sampled_answers_are_kept_only_if_asked(
    sampling: str, temperature: float | None, is_kept: bool
) -> None:
    fields = {} if temperature is None else {"temperature": temperature}
    store = keep(asked(**fields), told(), sampling=sampling)
    assert (get(store, asked(**fields)) is not None) == is_kept


def test_answers_that_depend_on_what_is_outside_are_not_kept() -> None:
    assert get(keep(asked(web_search_options={"x": 1}), told()),
               asked(web_search_options={"x": 1})) is None  # fmt: skip


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    assert get(keep(asked(), told("x" * 2000), max_answer_bytes=1024), asked()) is None


def test_a_stream_is_not_given_an_answer_with_log_probabilities() -> None:
    store = keep(asked(logprobs=True), told())
    assert get(store, asked(logprobs=True)) is not None
    assert get(store, asked(logprobs=True, is_stream=True)) is None


def test_a_request_that_is_no_json_any_more_is_passed_by() -> None:
    broken = asked("\ud800")
    assert get(keep(broken, told()), broken) is None


# --- other dialects -------------------------------------------------------------------------------


def in_messages(**fields: Any) -> Call:
    """A request to Anthropic's API whose translation is ``asked(max_tokens=5)``."""
    call = asked(max_tokens=5)
    native = {
        "model": "auto",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": call.text}],
        **fields,
    }
    return Call(
        dialect="messages", model="auto", body=call.body, native=native, client=ALICE,
        is_stream=bool(fields.get("stream")),
    )  # fmt: skip


NATIVE = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Paris."}]}


def test_dialects_share_answers_in_chat() -> None:
    assert text_of(get(keep(asked(max_tokens=5), told()), in_messages())) == "Paris."
    assert text_of(get(keep(in_messages(), told()), asked(max_tokens=5))) == "Paris."


def test_an_answer_in_another_dialect_stays_in_it() -> None:
    native = told(dialect="messages", answer=NATIVE, finish="end_turn")
    store = keep(in_messages(), native)
    kept = get(store, in_messages())
    assert kept is not None
    assert (kept.dialect, kept.answer) == ("messages", NATIVE)
    assert get(store, asked(max_tokens=5)) is None
    assert get(store, in_messages(stream=True)) is None, "events are made from chat only"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        {"top_k": 5},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
    ],
    ids=["thinking", "top_k", "blocks"],
)
def test_what_chat_has_no_word_for_keeps_requests_apart(fields: dict[str, Any]) -> None:
    store = keep(in_messages(**fields), told())
    assert get(store, in_messages(**fields)) is not None
    assert get(store, in_messages()) is None
    assert get(store, asked(max_tokens=5)) is None


def test_a_native_answer_that_calls_tools_is_not_kept() -> None:
    answer = {"type": "message", "content": [{"type": "tool_use", "name": "pay", "input": {}}]}
    native = told(dialect="messages", answer=answer, finish="tool_calls")
    assert get(keep(in_messages(), native), in_messages()) is None


def test_embeddings_are_kept_apart_from_answers() -> None:
    body = {"model": "embed", "input": "hello"}
    call = Call(dialect="embeddings", model="embed", body=body, client=ALICE)
    tally = told(dialect="embeddings", answer={"object": "list", "data": []}, finish=None)
    kept = get(keep(call, tally), call)
    assert kept is not None
    assert kept.dialect == "embeddings"


# --- settings and state ---------------------------------------------------------------------------


def test_hits_and_misses_are_counted() -> None:
    store = keep(asked(), told())
    get(store, asked())
    get(store, asked("another"))
    get(store, asked(crossroads={"cache": False}))
    health = store.health()
    assert (health["exact"]["hits"], health["exact"]["misses"], health["bypassed"]) == (1, 1, 1)
    assert health["exact"]["state"] == "ok"


def test_without_a_cache_there_is_none() -> None:
    assert build_cache(CacheSettings()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"exact": {"ttl_s": 0}},
        {"exact": True, "scope": "world"},
        {"exact": True, "store": "mysql://x"},
        {"semantic": {"threshold": 1.5}},
        {"semantic": {"encoder": "guess"}},
        {"scope": "key"},
        {"exact": True, "ttl": 5},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        CacheSettings.model_validate(wrong)


def test_a_url_that_is_no_redis_is_named() -> None:
    settings = CacheSettings.model_validate({"exact": True, "store": "redis://h:port"})
    with pytest.raises(InputError, match="redis://h:port"):
        build_cache(settings)


def test_answers_of_other_models_and_policies_are_not_found_and_come_back_with_them() -> None:
    store = cache(semantic=True)
    before, after = store.under(b"before"), store.under(b"after")
    before.put(asked(), told())
    assert text_of(get(before, asked())) == "Paris."
    assert get(after, asked()) is None
    assert get(store, asked()) is None
    assert text_of(get(store.under(b"before"), asked())) == "Paris."
    assert get(after, asked(headers={b"cache-control": b"no-store"})) is None
    assert store.health()["bypassed"] == 1  # counts are of all
    assert store.health()["exact"]["hits"] == 2
