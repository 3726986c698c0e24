"""CPU per request and added latency of the gateway, beside LiteLLM's proxy and a bare pass-through.

One run measures all of them against the same stub upstream on this machine: the servers take turns
round by round, each pinned to one core, the stub and the load to the other. Every write then wakes
a process on another core, which costs a fast server as much as a slow one and weighs on its share;
where a scenario says "one core", stub and load are pinned to the server's. CPU is that of the
server's processes, user and system. All are started ``--starts`` times, since what a process costs
differs from start to start by a tenth. A stream's events come in one write, or ``--gap`` seconds
apart. Writes ``benchmarks/results/gateway-speed.json`` and a plot beside it.

python benchmarks/gateway/compare.py [--litellm PROGRAM] [--quick] [--out FILE]

LiteLLM is measured where its program is found: ``pip install 'litellm[proxy]'`` in an environment
of its own, then ``--litellm ENVIRONMENT/bin/litellm``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gateway import load, servers
from benchmarks.gateway.plot import speed_plot
from crossroads.core.provenance import machine
from crossroads.prompts.pool import Pool, read_pool

KEY = "sk-benchmark-0123456789abcdef"
GOVERNANCE = {
    "keys": [
        {
            "name": "bench",
            "secret": KEY,
            "limits": {"requests_per_minute": 10**8, "tokens_per_minute": 10**9, "parallel": 1000},
            "budgets": [{"usd": 1e6, "per": "month"}],
        }
    ]
}
RESULTS = Path(__file__).parents[1] / "results"
_LIBRARIES = ("crossroads", "uvicorn", "uvloop", "httptools", "aiohttp", "orjson", "numpy")
SERVER_CORE, OTHER_CORE = 0, 1
MODEL = servers.LITELLM_MODEL


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    connections: int
    requests: int
    stream: bool = False
    one_core: bool = False  # server, stub and load share the server's


@dataclass
class Subject:
    """A server under measurement, and the model it is asked for."""

    name: str
    server: servers.Server
    model: str
    share: float = 1.0  # of the requests: slow servers get fewer
    num_asked: int = 0
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)


@dataclass
class Found:
    """What was measured of a subject over all starts."""

    ready_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, subject: Subject) -> None:
        self.ready_s.append(subject.server.ready_s)
        self.rss_mib.append(subject.server.rss_mib())
        for scenario, rounds in subject.rounds.items():
            self.rounds.setdefault(scenario, []).extend(rounds)


def scenarios(quick: bool) -> list[Scenario]:
    scale = 4 if quick else 1
    return [
        Scenario("json c=1", 1, 2000 // scale),
        Scenario("json c=32", 32, 10_000 // scale),
        Scenario("json c=32, one core", 32, 10_000 // scale, one_core=True),
        Scenario("stream c=8", 8, 2000 // scale, stream=True),
    ]


def configurations(folder: Path, upstream: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the gateway's configurations by name, with the model each is asked for."""
    url = f"http://127.0.0.1:{upstream}/v1"
    shipped = read_pool("mmlu-pro:served")
    cards = tuple(card.model_copy(update={"endpoint": url}) for card in shipped)
    pool = Pool(name="stub", models=cards)
    path = folder / "pool.json"
    path.write_text(pool.model_dump_json(exclude_defaults=True))
    first, second, third, fourth = pool.names[:4]
    rules = {
        "kind": "rules",
        "rules": [
            {"when": {"min_tokens": 4000}, "use": fourth},
            {"when": {"tools": True}, "use": third},
            {"when": {"tags": ["code"]}, "use": second},
        ],
        "otherwise": first,
    }
    base = {"pool": str(path), "policies": {"rules": rules}, "admin": None}
    router = str(fit_router(folder, pool))

    def at(name: str, **fields: Any) -> dict[str, Any]:
        ledger = {"url": f"sqlite:{folder / f'{name}.db'}"}
        return {**base, "ledger": ledger, "telemetry": {"logs": None}, **fields}

    logs = {"logs": {"file": str(folder / "calls.log")}}
    return {
        "direct": (first, at("direct")),
        "direct, no ledger": (first, at("bare", ledger=None)),
        "rules": ("rules", at("rules")),
        "rules, logs": ("rules", at("logs", telemetry=logs)),
        "rules, uvicorn front": ("rules", at("uvicorn", http="standard")),
        "rules, keys and limits": ("rules", at("keys", governance=GOVERNANCE)),
        "learned": ("auto", at("learned", router=router)),
        "learned, seen before": ("auto", at("seen", router=router)),
    }


def fit_router(folder: Path, pool: Pool) -> Path:
    """Fit ``auto`` on the replayed outcomes of eleven models."""
    from crossroads.prompts import fit_router as fit
    from crossroads.prompts import read_outcomes, save_router

    out = folder / "router"
    save_router(fit("auto", read_outcomes("mmlu-pro:served"), pool=pool), out)
    return out


@contextmanager
def subjects(folder: Path, upstream: int, litellm: str | None) -> Iterator[list[Subject]]:
    """Start everything that is compared."""
    with ExitStack() as stack:
        found = []

        def start(name: str, context: Any, model: str, share: float = 1.0) -> None:
            server = stack.enter_context(context)
            print(f"  {name}: ready after {server.ready_s:.1f} s", flush=True)
            found.append(Subject(name, server, model, share))

        start("bare uvicorn + aiohttp", servers.bare(folder, upstream, core=SERVER_CORE), MODEL)
        for name, (model, config) in configurations(folder, upstream).items():
            context = servers.crossroads(folder, name.replace(" ", ""), config, core=SERVER_CORE)
            start(f"crossroads {name}", context, model)
        if litellm is not None:
            context = servers.litellm(folder, upstream, litellm, core=SERVER_CORE)
            start("LiteLLM proxy", context, MODEL, 0.05)
        yield found


def measure(subject: Subject, scenario: Scenario) -> None:
    """Add one round of a scenario to a subject."""
    count = max(64, int(scenario.requests * subject.share))
    key = KEY if "keys" in subject.name else ""
    numbers = list(range(subject.num_asked, subject.num_asked + count))  # no prompt twice
    subject.num_asked += count
    if "seen" in subject.name:
        numbers = [n % 2000 for n in range(count)]
    data = [
        load.request_bytes(subject.model, stream=scenario.stream, number=n, key=key)
        for n in numbers
    ]
    before = subject.server.cpu_s()
    outcome = load.run(subject.server.port, data, connections=scenario.connections)
    spent = subject.server.cpu_s() - before
    if outcome.failures:
        raise SystemExit(f"{subject.name}: {outcome.failures} of {count} requests failed")
    subject.rounds.setdefault(scenario.name, []).append(
        {
            "cpu_ms": 1e3 * spent / count,
            "requests_per_s": count / outcome.elapsed_s,
            "p50_ms": outcome.percentile_ms(0.5),
            "p99_ms": outcome.percentile_ms(0.99),
        }
    )


def summary(found: Found) -> dict[str, Any]:
    """Return the median of each figure over the rounds of all starts, and the CPU's spread."""
    told: dict[str, Any] = {
        "ready_s": statistics.median(found.ready_s),
        "rss_mib": statistics.median(found.rss_mib),
    }
    for name, rounds in found.rounds.items():
        figures = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        spread = sorted(r["cpu_ms"] for r in rounds)
        told[name] = {**figures, "cpu_ms_low": spread[0], "cpu_ms_high": spread[-1]}
    return told


def measure_all(stub: servers.Server, everything: list[Subject], given: argparse.Namespace) -> None:
    """Let the subjects take turns, scenario by scenario and round by round."""
    for number in range(given.rounds + 1):
        for scenario in scenarios(given.quick):
            core = SERVER_CORE if scenario.one_core else OTHER_CORE
            servers.pin(core)
            servers.pin(core, stub.pid)
            for subject in everything:
                measure(subject, scenario)
        if number == 0:  # the first round only warms up
            for subject in everything:
                subject.rounds.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--litellm", default=shutil.which("litellm"), help="its program")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="after each start")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between a stream's events")
    parser.add_argument("--quick", action="store_true", help="a quarter of the load")
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway-speed.json")
    given = parser.parse_args()
    began = time.time()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with servers.stub(folder, "--gap", str(given.gap), core=OTHER_CORE) as stub:
            for _ in range(given.starts):
                servers.pin(OTHER_CORE)
                with subjects(folder, stub.port, given.litellm) as started:
                    everything = [Subject("stub, direct", stub, MODEL), *started]
                    measure_all(stub, everything, given)
                    for subject in everything:
                        found.setdefault(subject.name, Found()).add(subject)
    body = {
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "starts": given.starts,
        "rounds": given.rounds,
        "gap_s": given.gap,
        "scenarios": [vars(scenario) for scenario in scenarios(given.quick)],
        "machine": machine(_LIBRARIES),
        "servers": {name: summary(measured) for name, measured in found.items()},
    }
    given.out.write_text(json.dumps(body, indent=1) + "\n")
    given.out.with_suffix(".svg").write_text(speed_plot(body))
    report(body)


def report(body: dict[str, Any]) -> None:
    """Print a table."""
    rows = body["servers"]
    peer = rows.get("LiteLLM proxy")
    names = [scenario["name"] for scenario in body["scenarios"]]
    print(f"{'CPU ms':32}" + "".join(f"{name:>22}" for name in names) + "   p50 / p99 c=1")
    for name, row in rows.items():
        line = f"{name:32}"
        for scenario in names:
            cpu = row[scenario]["cpu_ms"]
            ratio = f" (1/{peer[scenario]['cpu_ms'] / cpu:.0f})" if peer and cpu else ""
            line += f"{cpu:>13.3f}{ratio:>9}"
        single = row[names[0]]
        print(
            f"{line}   {single['p50_ms']:.2f} / {single['p99_ms']:.2f} ms  {row['rss_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
