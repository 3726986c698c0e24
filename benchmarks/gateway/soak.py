"""Does the gateway's memory grow? 100,000 mixed requests, once it has settled.

The mixture: JSON and streams through a learned router with ever new prompts, all three chat APIs,
hits of the exact cache, repeated idempotency keys, upstreams that answer 500, cut or stall a
stream (with and without a fallback), unknown models, bodies that are no JSON, and clients that
leave in mid-stream. Whatever is bounded by design (caches, remembered prompts, stored responses)
meets its bound, and the allocator its final shape, in ``--settle`` requests before; the growth of
resident memory a request is measured over those that follow. The whole curve is in
``benchmarks/results/gateway-soak.json``.

    python benchmarks/gateway/soak.py [--requests N] [--settle N] [--router DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gateway import load, servers
from benchmarks.gateway.compare import fit_router
from crossroads.core.provenance import machine
from crossroads.core.statistics import Summary, summarise
from crossroads.prompts.pool import ModelCard, Pool, read_pool

RESULTS = Path(__file__).parents[1] / "results"
Asked = tuple[bytes, bool]  # a request, and whether its status is 200
CHAT = "/v1/chat/completions"
NUM_SAMPLES = 75
CONNECTIONS = 32
_LIBRARIES = ("crossroads", "uvicorn", "uvloop", "httptools", "orjson", "numpy")
_FAULTS = {"cut": "cut-after:5", "stall": "stall-after:3", "broken": "status:500"}
_STREAMED = 8  # bytes of a stream that a client reads before it leaves


def configuration(folder: Path, ports: dict[str, int], router: Path | None) -> dict[str, Any]:
    """Return a configuration over the upstreams: all models of the router, and faulty ones."""
    shipped = read_pool("mmlu-pro:served")

    def at(name: str) -> str:
        return f"http://127.0.0.1:{ports[name]}/v1"

    good = tuple(card.model_copy(update={"endpoint": at("good")}) for card in shipped)
    faulty = tuple(
        ModelCard(name=name, endpoint=at(fault))
        for fault in _FAULTS
        for name in (fault, f"{fault}-covered")
    )
    pool = Pool(name="soak", models=(*good, *faulty))
    (folder / "pool.json").write_text(pool.model_dump_json(exclude_defaults=True))
    router = router or fit_router(folder, Pool(name="soak", models=good))
    return {
        "pool": str(folder / "pool.json"),
        "policies": {"auto": {"kind": "learned", "router": str(router), "cache": 1024}},
        "fallbacks": {f"{fault}-covered": [good[0].name] for fault in _FAULTS},
        "failures": {"retries": 0, "breaker": {"open_s": 0.01, "open_max_s": 0.01}},
        "timeouts": {"idle": 1.0},
        "cache": {"exact": {"max_bytes": 1 << 20}},
        "idempotency": {"max_entries": 200},
        "responses": {"max_mib": 1},
        "ledger": {"url": f"sqlite:{folder / 'soak.db'}"},
        "telemetry": {"logs": {"file": str(folder / "calls.log")}},
        "admin": None,
    }


def raw(path: str, body: bytes, *headers: str) -> bytes:
    """Return one request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def prompt(number: int) -> str:
    """Return a prompt that no other number has, of a hundred words out of a thousand."""
    drawn = random.Random(number)
    return " ".join(f"{load.WORDS.split()[k % 14]}{k}" for k in drawn.choices(range(1000), k=100))


def _chat(path: str, number: int, *, stream: bool, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": prompt(number)}]
    body = {"model": "auto", "messages": messages, "stream": stream, **fields}
    return raw(path, json.dumps(body).encode())


def _plain(number: int) -> Asked:
    return _chat(CHAT, number, stream=False), True


def _streamed(number: int) -> Asked:
    return _chat(CHAT, number, stream=True), True


def _repeated(number: int) -> Asked:
    return _chat(CHAT, 0, stream=number % 3 == 0, temperature=0), True


def _messages(number: int) -> Asked:
    return _chat("/v1/messages", number, stream=number % 2 == 0, max_tokens=50), True


def _responses(number: int) -> Asked:
    body = {"model": "auto", "input": prompt(number), "stream": number % 2 == 0}
    return raw("/v1/responses", json.dumps(body).encode()), True


def _idempotent(number: int) -> Asked:
    """Every key twice, the second time with another prompt: a 422."""
    data = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt(number)}]})
    return raw(CHAT, data.encode(), f"idempotency-key: {number // 80}"), number % 80 < 40


def _unknown(number: int) -> Asked:
    return _chat(CHAT, number, stream=False, model="unknown"), False


def _no_json(number: int) -> Asked:
    return raw(CHAT, b'{"model": "auto", "messages": ['), False


def _broken(number: int) -> Asked:
    return _chat(CHAT, number, stream=False, model="broken"), False


def _covered(number: int) -> Asked:
    return _chat(CHAT, number, stream=number % 80 < 40, model="broken-covered"), True


def _cut(number: int) -> Asked:
    """The head of a stream with an error event at its end."""
    return _chat(CHAT, number, stream=True, model="cut"), True


def _stalled(number: int) -> Asked:
    """Takes a second: few do, the others are cut where a fallback does not continue."""
    fault = "stall" if number % 400 == 39 else "cut-covered"
    return _chat(CHAT, number, stream=True, model=fault), True


MIXTURE = (
    *([_plain] * 18 + [_streamed] * 6 + [_repeated] * 4 + [_messages] * 2 + [_responses] * 2),
    *(_idempotent, _unknown, _no_json, _broken, _covered, _cut, _cut, _stalled),
)


def request(number: int) -> Asked:
    """Return a request of the mixture."""
    return MIXTURE[number % len(MIXTURE)](number)


async def leave(port: int, number: int) -> None:
    """Ask for a stream and close the connection when it has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_chat(CHAT, number, stream=True))
    await reader.readexactly(_STREAMED)
    writer.transport.abort()


def turn(port: int, first: int, count: int) -> None:
    """Send so many requests of the mixture; one in forty more leaves."""
    given = [request(number) for number in range(first, first + count)]
    outcome = load.run(port, [data for data, _ in given], connections=CONNECTIONS)
    expected = sum(not is_fine for _, is_fine in given)
    if outcome.failures != expected:
        raise SystemExit(f"{outcome.failures} requests failed, and {expected} should have")

    async def all_leave() -> None:
        for number in range(first, first + count, 40):
            await leave(port, number)

    asyncio.run(all_leave())


def growth(samples: list[tuple[int, float]]) -> Summary:
    """Return the bytes that resident memory grows by a request, with its 95 % interval.

    Memory grows in steps, which stay: the changes from sample to sample are what is independent,
    not the distances from a line, whose standard error would be far too small.
    """
    pairs = itertools.pairwise(samples)
    return summarise([(after - before) * (1 << 20) / (m - n) for (n, before), (m, after) in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--settle", type=int, default=200_000, help="requests before those")
    parser.add_argument("--router", type=Path, help="fitted on mmlu-pro:served; else fits auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway-soak.json")
    given = parser.parse_args()
    began = time.time()
    each = max(40, (given.settle + given.requests) // NUM_SAMPLES)
    samples: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ports = {"good": stack.enter_context(servers.stub(folder)).port}
        for fault, option in _FAULTS.items():
            ports[fault] = stack.enter_context(servers.stub(folder, "--fault", option)).port
        config = configuration(folder, ports, given.router)
        server = stack.enter_context(servers.crossroads(folder, "soak", config))
        ready_mib = server.rss_mib()
        print(f"ready after {server.ready_s:.1f} s with {ready_mib:.1f} MiB", flush=True)
        for number in range(NUM_SAMPLES):
            turn(server.port, number * each, each)
            samples.append(((number + 1) * each, server.rss_mib()))
            if number % 5 == 4:
                print(f"  {samples[-1][0]:>7} requests: {samples[-1][1]:.2f} MiB", flush=True)
        cpu_s = server.cpu_s()
    settled = [sample for sample in samples if sample[0] > given.settle]
    grown = growth(settled)
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "requests": NUM_SAMPLES * each - given.settle,
        "left_in_mid_stream": NUM_SAMPLES * len(range(0, each, 40)),
        "settled_after": settled[0][0],
        "ready_mib": ready_mib,
        "settled_mib": settled[0][1],
        "end_mib": settled[-1][1],
        "growth_bytes_per_request": grown.to_dict(),
        "cpu_ms_per_request": 1e3 * cpu_s / (NUM_SAMPLES * each),
        "elapsed_s": time.time() - began,
        "samples": samples,
        "machine": machine(_LIBRARIES),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{ready_mib:.1f} MiB when ready, {settled[0][1]:.2f} settled, {settled[-1][1]:.2f} at the "
        f"end; {grown.mean:+.2f} bytes a request over the last {given.requests}, 95 % interval "
        f"{grown.low:+.2f} to {grown.high:+.2f}"
    )


if __name__ == "__main__":
    main()
