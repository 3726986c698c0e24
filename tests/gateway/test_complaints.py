"""What users of other routers and gateways complain about, through the whole of this one.

One test or a few for each row of the survey; the docstring names the peer's issue. The growth of
memory over 100,000 requests is measured by ``benchmarks/gateway/soak.py``; its bounded version is
here.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway import compare, servers
from crossroads.core.errors import CrossroadsError
from crossroads.gateway import build as building
from crossroads.gateway.build import load_router
from crossroads.prompts.fitted import FittedRouter
from tests.gateway.chaos.asking import DONE, Reply, ask, ask_all, asked, send
from tests.gateway.chaos.configured import (
    HELLO,
    KEY,
    card,
    fit_small_router,
    record_of,
    records,
    run_python,
    runtime_of,
    serving_config,
    until,
    write,
)
from tests.gateway.chaos.raw_upstream import RawUpstream, answer_of, plain, stream_of
from tests.gateway.fake_upstream import TEXT, USAGE, FakeUpstream
from tests.gateway.serving import serving_runtime

NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A router over three models, fitted and saved."""
    return fit_small_router(tmp_path_factory.mktemp("router"), NAMES)


def over(upstream: FakeUpstream, *names: str) -> list[dict[str, Any]]:
    return [card(name, upstream.url, "usage") for name in names]


def learned(router: str, **fields: Any) -> dict[str, Any]:
    return {"auto": {"kind": "learned", "router": router, **fields}}


# --- a stream that is cut -------------------------------------------------------------------------

ENDS = {  # what the end of a whole stream looks like
    "/v1/chat/completions": b"[DONE]",
    "/v1/responses": b"response.completed",
    "/v1/messages": b"message_stop",
}


@pytest.mark.parametrize("path", ENDS)
def test_a_stream_cut_mid_answer_never_ends_like_a_complete_one(
    upstream: FakeUpstream, tmp_path: Path, path: str
) -> None:
    """Portkey #1797, and Bifrost's release notes."""
    models = [card(f"cut-{k}", upstream.url, f"cut-{k}") for k in (1, 3, 6)]
    asks = {"/v1/responses": {"input": "hello"}, "/v1/messages": {"max_tokens": 9}}
    with serving_config(write(tmp_path, [*models, *over(upstream, "whole")])) as url:
        given = {"messages": HELLO, "stream": True} | asks.get(path, {})
        whole = send(url, "POST", path, {**given, "model": "whole"})
        broken = [send(url, "POST", path, {**given, "model": m["name"]}) for m in models]
    assert ENDS[path] in whole.body
    assert all(reply.status == 200 for reply in broken)
    assert not any(ENDS[path] in reply.body for reply in broken)
    assert all(b"error" in reply.body.rsplit(b"data: ", 1)[1] for reply in broken)
    rows = until(lambda: records(tmp_path), lambda rows: len(rows) == 4)
    assert Counter(row.is_complete for row in rows) == {True: 1, False: 3}


# --- fallbacks once a stream began ----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut-0", "stall-0", "malformed-0", "cut-5", "stall-5"])
@pytest.mark.parametrize("chain", ["of the policy", "of the model"])
def test_a_fallback_is_tried_once_streaming_began_and_found_under_the_right_name(
    upstream: FakeUpstream, tmp_path: Path, fault: str, chain: str
) -> None:
    """LiteLLM #40404, #35578, #25843."""
    models = [card("first", upstream.url, fault), card("second", upstream.url, prefill=True)]
    policy: dict[str, Any] = {"kind": "split", "weights": {"first": 1}}
    if chain == "of the policy":
        policy["fallbacks"] = ["second"]
    path = write(
        tmp_path,
        models,
        policies={"auto": policy},
        fallbacks={"first": ["second"]} if chain == "of the model" else {},
        failures={"retries": 0},
        timeouts={"first_byte": 0.2, "idle": 0.2},
    )
    with serving_config(path) as url:
        reply = ask(url, "auto", stream=True)
        row = record_of(tmp_path, reply.decision_id)
    assert reply.looks_whole
    assert reply.text == TEXT
    assert [model for model, *_ in row.attempts] == ["first", "second"]
    assert reply.model == ("first" if fault.endswith("5") else "second")  # what was told stands
    assert (row.chosen, row.model, row.is_complete) == ("first", "second", True)
    assert row.labels.get("continued") == ("first, second" if fault.endswith("5") else None)


# --- budgets --------------------------------------------------------------------------------------

PATHS = {
    "/v1/chat/completions": {"messages": HELLO},
    "/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/v1/embeddings": {"input": "hello"},
}


def test_a_budget_is_one_for_all_workers_all_paths_and_all_restarts(tmp_path: Path) -> None:
    """Bifrost #3547, #5673, #2873."""

    def script(body: dict[str, Any], number: int) -> bytes:
        if "input" in body:
            vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
            return plain(200, {"object": "list", "data": [vector], "usage": {"prompt_tokens": 3}})
        return stream_of(["fi", "ne"]) if body.get("stream") else answer_of("fine")

    budget = {"usd": 13.0, "per": "30d"}
    with RawUpstream(script) as upstream:
        free = {"price_in": 0.0, "price_out": 0.0, "price_per_call": 1.0}
        path = write(
            tmp_path,
            [{**card("m", upstream.url), **free}],
            governance={
                "keys": [{"name": "a", "secret": KEY, "budgets": [budget]}],
                "store": f"sqlite:{tmp_path / 'limits.db'}",
            },
        )

        def visit(url: str) -> list[int]:
            headers = {"authorization": f"Bearer {KEY}"}
            return [
                send(url, "POST", p, {"model": "m", **fields}, headers=headers).status
                for p, fields in PATHS.items()
            ]

        with ExitStack() as stack:
            first, second = (stack.enter_context(serving_config(path)) for _ in range(2))
            assert visit(first) == visit(second) == [200] * 6
        with serving_config(path) as url:
            replies = ask_all(url, [asked("m")] * 5, key=KEY)
    assert Counter(reply.status for reply in replies) == {200: 1, 429: 4}
    assert sum(row.cost_usd for row in records(tmp_path)) == pytest.approx(13.0)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_grows_over_3000_mixed_requests_streams_and_errors(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    """LiteLLM #12685, #15128, #27954, #38193. What grew is counted in a process of its own."""
    names = ("ok", "usage", "status-500", "cut-3", "html", "cut-0")
    path = write(
        tmp_path,
        [card(name, upstream.url, name) for name in names],
        policies={"auto": {"kind": "split", "weights": dict.fromkeys(names, 1)}},
        cache={"exact": {"max_bytes": 1 << 16}},
        failures={"backoff_s": 0.001},
        idempotency={"max_entries": 50},
        upstreams={"max_idle": 4},  # kept connections come and go, and are no growth
    )
    done = run_python("-m", "tests.gateway.chaos.growth", str(path), "3000")
    assert done.returncode == 0, done.stderr[-2000:]
    halves = json.loads(done.stdout)
    first, second = halves["halves"]
    assert second["tasks"] <= first["tasks"]
    assert second["sockets"] <= first["sockets"] + 4
    assert second["threads"] <= first["threads"]
    assert second["traced_bytes"] - first["traced_bytes"] < 100 * 1500  # a request keeps nothing


# --- no vendor's key, no hub ----------------------------------------------------------------------


def test_routing_and_local_models_need_no_vendors_key_and_no_network(
    router: str, tmp_path: Path
) -> None:
    """RouteLLM #4, #19, #24, #38, #62; vLLM-SR #1951, #1625, #438.

    The server runs in a process whose environment holds no key, and in which looking up a name or
    connecting to anything but loopback ends the process.
    """
    names = dict(zip(NAMES, ("units", "calculator", "units"), strict=True))
    models = [{"name": name, "endpoint": f"local:{expert}"} for name, expert in names.items()]
    path = write(tmp_path, models, policies=learned(router))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = run_python("-m", "tests.gateway.chaos.offline", str(path), env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["status"] == 200
    assert found["model"] in NAMES
    assert found["policy"].startswith("auto")
    assert found["guarded"] == "refused"  # the guard itself works


# --- more than two models -------------------------------------------------------------------------


def test_three_models_are_routed_to_and_a_fourth_is_added_without_retraining_or_restart(
    router: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """RouteLLM chooses between two models."""
    policies = {"learned": {"kind": "learned", "router": router}}

    def configure(*names: str, weights: dict[str, float]) -> Path:
        auto = {"kind": "split", "weights": weights, "by": "request"}
        given = {**policies, "auto": auto}
        return write(tmp_path, over(upstream, *names), policies=given, watch_s=0.05)

    bodies = [
        asked("auto", messages=[{"role": "user", "content": f"{word} number {n}"}])
        for n in range(8)
        for word in ("sum", "poem", "code")
    ]
    with serving_config(configure(*NAMES, weights={"learned": 1})) as url:
        before = {reply.model for reply in ask_all(url, bodies)}
        configure(*NAMES, "delta", weights={"learned": 1, "delta": 1})
        until(lambda: "delta" in {reply.model for reply in ask_all(url, bodies)})
        after = {reply.model for reply in ask_all(url, bodies)}
    assert before == set(NAMES)
    assert after == {*NAMES, "delta"}


# --- concurrency ----------------------------------------------------------------------------------


def test_the_same_input_gets_the_same_decision_64_at_a_time_and_the_router_is_loaded_once(
    router: str, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLMRouter #163."""
    loaded: list[str] = []

    def load(folder: str) -> FittedRouter:
        loaded.append(folder)
        return load_router(folder)

    monkeypatch.setattr(building, "load_router", load)
    texts = [f"{word} number {n}" for n in range(8) for word in ("sum", "poem", "code", "tea")]
    path = write(tmp_path, over(upstream, *NAMES), policies=learned(router, seed=7, cache=0))
    decided: dict[str, set[tuple[str, ...]]] = {text: set() for text in texts}
    with serving_config(path) as url:
        for text in texts:
            reply = ask(url, messages=[{"role": "user", "content": text}])
            decided[text].add(_decision(reply))
        bodies = [asked("auto", messages=[{"role": "user", "content": text}]) for text in texts * 2]
        for _ in range(3):
            for text, reply in zip(texts * 2, ask_all(url, bodies), strict=True):
                decided[text].add(_decision(reply))
    assert all(len(decisions) == 1 for decisions in decided.values())
    assert len(set.union(*decided.values())) > 3  # prompts do differ
    assert len(loaded) == 1


def _decision(reply: Reply) -> tuple[str, ...]:
    names = ("model", "reason", "confidence", "predicted-quality")
    assert reply.looks_whole
    return tuple(reply.headers[f"x-crossroads-{name}"] for name in names)


# --- the event loop -------------------------------------------------------------------------------


def test_a_slow_router_does_not_block_the_event_loop(
    router: str, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RouteLLM awaits nothing while it embeds a prompt.

    Deciding waits here until the event loop has ticked; one that was blocked never would.
    """
    has_ticked = threading.Event()
    is_serving = threading.Event()
    in_time: list[bool] = []

    def load(folder: str) -> FittedRouter:
        fitted = load_router(folder)
        predict = fitted.router._predict

        def slowly(queries: Any) -> Any:
            time.sleep(0.005)
            if is_serving.is_set():
                has_ticked.clear()
                in_time.append(has_ticked.wait(5))
            return predict(queries)

        monkeypatch.setattr(fitted.router, "_predict", slowly)
        return fitted

    async def tick() -> None:
        while True:
            has_ticked.set()
            await asyncio.sleep(0.001)

    monkeypatch.setattr(building, "load_router", load)
    runtime = runtime_of(write(tmp_path, over(upstream, *NAMES), policies=learned(router)))
    start = runtime.gateway.start

    async def start_ticking() -> None:
        await start()
        runtime._tasks.append(asyncio.create_task(tick()))  # ended with the others

    monkeypatch.setattr(runtime.gateway, "start", start_ticking)
    with serving_runtime(runtime) as url:
        is_serving.set()
        replies = [ask(url, messages=[{"role": "user", "content": f"n {n}"}]) for n in range(5)]
    assert all(reply.looks_whole for reply in replies)
    assert in_time == [True] * 5


# --- a router that does not load ------------------------------------------------------------------


def test_a_router_that_does_not_load_refuses_to_start_and_is_loud_at_a_reload(
    router: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """LLMRouter chooses at random where its router fails to load."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(router).iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:-40])
    models = over(upstream, *NAMES)
    with pytest.raises(CrossroadsError, match="broken"):
        runtime_of(write(tmp_path, models, policies=learned(str(broken))))
    path = write(tmp_path, models, policies=learned(router), watch_s=0.05)
    with serving_config(path) as url:
        write(tmp_path, models, policies=learned(str(broken)), watch_s=0.05)
        health = until(
            lambda: send(url, "GET", "/health/ready").json,
            lambda found: found["parts"]["configuration"] == "degraded",
        )
        reply = ask(url)
    assert health["status"] == "degraded"
    assert reply.looks_whole
    assert reply.headers["x-crossroads-policy"].startswith("auto ridge")  # the one before


@pytest.mark.parametrize("fallback", [None, "gamma"])
def test_a_router_that_fails_while_serving_is_never_replaced_by_chance(
    router: str,
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fallback: str | None,
) -> None:
    """LLMRouter chooses at random where its router fails."""
    is_serving = threading.Event()

    def load(folder: str) -> FittedRouter:
        fitted = load_router(folder)
        predict = fitted.router._predict

        def fails(queries: Any) -> Any:
            if is_serving.is_set():
                raise RuntimeError("a matrix is singular")
            return predict(queries)

        monkeypatch.setattr(fitted.router, "_predict", fails)
        return replace(fitted)

    monkeypatch.setattr(building, "load_router", load)
    path = write(tmp_path, over(upstream, *NAMES), policies=learned(router, fallback=fallback))
    with serving_config(path) as url:
        is_serving.set()
        replies = [ask(url, messages=[{"role": "user", "content": f"n {n}"}]) for n in range(9)]
        health = send(url, "GET", "/health/ready").json
    assert health["parts"]["policies"] == "degraded"
    if fallback is None:
        assert {(reply.status, reply.error_code) for reply in replies} == {(503, "router_failed")}
    else:
        assert {reply.model for reply in replies} == {fallback}
        assert all("degraded" in reply.headers["x-crossroads-labels"] for reply in replies)


# --- semantic cache and streams -------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_hit_of_the_semantic_cache_is_a_correct_stream_or_a_correct_answer(
    upstream: FakeUpstream, tmp_path: Path, first: bool, again: bool
) -> None:
    """vLLM-SR #913."""

    def say(text: str, *, stream: bool) -> Reply:
        return ask(url, "usage", stream=stream, messages=[{"role": "user", "content": text}])

    path = write(tmp_path, over(upstream, "usage"), cache={"exact": True, "semantic": True})
    with serving_config(path) as url:
        say("what is the capital city of France?", stream=first)
        until(lambda: records(tmp_path))
        worded = until(
            lambda: say("what is the capital city of France", stream=again),
            lambda reply: "x-crossroads-cache" in reply.headers,
        )
        same = say("what is the capital city of France?", stream=again)
    for hit in (worded, same):
        assert hit.looks_whole
        assert hit.text == TEXT
        assert hit.is_event_stream == again
        assert hit.body.endswith(DONE) == again
    assert worded.headers["x-crossroads-cache"] == "semantic"
    assert same.headers["x-crossroads-cache"] == "exact"
    if again:
        finishes = [c["finish_reason"] for event in worded.events for c in event["choices"]]
        assert finishes[-1] == "stop"
        assert not any(finishes[:-1])
        assert len({event["id"] for event in worded.events}) == 1
    else:
        assert worded.json["usage"] == USAGE


# --- a configuration whose first request would fail -----------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "no-such": {"policies": {"auto": {"kind": "split", "weights": {"no-such": 1}}}},
    "elsewhere": {"fallbacks": {"ok": ["elsewhere"]}},
    "weights": {"policies": {"auto": {"kind": "split", "weights": {"ok": 0}}}},
    "no-folder": {"policies": {"auto": {"kind": "learned", "router": "no-folder"}}},
    "polcies": {"polcies": {}},
    "teem": {"governance": {"keys": [{"name": "a", "secret": KEY, "team": "teem"}]}},
    "NO_SUCH_KEY": {"api_key": "${NO_SUCH_KEY}"},
}


@pytest.mark.parametrize("named", BROKEN)
def test_what_a_first_request_could_hit_is_found_before_the_start(
    upstream: FakeUpstream, tmp_path: Path, named: str
) -> None:
    """TensorZero #3643."""
    path = write(tmp_path, over(upstream, "ok"), **BROKEN[named])
    with pytest.raises(CrossroadsError, match=named):
        runtime_of(path)


def test_check_config_says_so_as_a_command_and_passes_what_serves(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    """TensorZero #3643."""

    def check(**fields: Any) -> tuple[int, str]:
        path = write(tmp_path, over(upstream, "ok"), **fields)
        done = run_python("-m", "crossroads", "check-config", str(path))
        return done.returncode, done.stdout

    assert check()[0] == 0
    code, said = check(**BROKEN["elsewhere"])
    assert code == 1
    assert "elsewhere" in said


# --- benchmarks -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_published_benchmark_is_a_command_that_measures_cpu_per_request(tmp_path: Path) -> None:
    """LiteLLM #14681. Its parts over a hundredth of its load; no figure is judged here."""
    assert "--litellm" in run_python("benchmarks/gateway/compare.py", "--help").stdout
    with servers.stub(tmp_path) as stub:
        pool = {"name": "stub", "models": [card("m", f"http://127.0.0.1:{stub.port}/v1")]}
        (tmp_path / "pool.json").write_text(json.dumps(pool))
        config = {"pool": str(tmp_path / "pool.json"), "ledger": None, "admin": None}
        with servers.crossroads(tmp_path, "gateway", config) as server:
            subject = compare.Subject("crossroads", server, "m")
            for scenario in compare.scenarios(quick=True):
                compare.measure(subject, replace(scenario, requests=100))
            measured = compare.Found()
            measured.add(subject)
            found = compare.summary(measured)
    for scenario in compare.scenarios(quick=True):
        assert found[scenario.name]["cpu_ms"] > 0
        assert found[scenario.name]["p99_ms"] >= found[scenario.name]["p50_ms"] > 0
