"""Throughput of one worker and of two behind one port.

The load, the stub and the workers share this machine's cores, so that two workers cannot have two
cores to themselves: the figure to compare with is what the cores leave, cores / (CPU a request of
gateway, stub and load together) over what one worker reaches.

python benchmarks/gateway/workers.py [--requests N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gateway import load, servers
from benchmarks.gateway.compare import configurations
from crossroads.core.provenance import machine

RESULTS = Path(__file__).parents[1] / "results"
CONNECTIONS = 32


def measure(
    server: servers.Server, stub: servers.Server, model: str, count: int
) -> dict[str, float]:
    """Return requests per second and CPU milliseconds a request of all three sides."""
    data = [load.request_bytes(model, stream=False, number=n) for n in range(count)]
    before = (server.cpu_s(), stub.cpu_s(), time.process_time())
    outcome = load.run(server.port, data, connections=CONNECTIONS)
    after = (server.cpu_s(), stub.cpu_s(), time.process_time())
    if outcome.failures:
        raise SystemExit(f"{outcome.failures} of {count} requests failed")
    names = ("gateway_cpu_ms", "stub_cpu_ms", "load_cpu_ms")
    spent = {name: 1e3 * (b - a) / count for name, a, b in zip(names, before, after, strict=True)}
    return {"requests_per_s": count / outcome.elapsed_s, **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway-workers.json")
    given = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name, servers.stub(Path(name)) as stub:
        folder = Path(name)
        model, config = configurations(folder, stub.port)["learned"]
        for number in range(given.rounds + 1):
            for workers, rounds in found.items():
                options = ["--workers", str(workers)]
                context = servers.crossroads(folder, f"w{workers}", config, options=options)
                with context as server:
                    measure(server, stub, model, given.requests // 4)
                    figures = measure(server, stub, model, given.requests)
                if number:  # the first round only warms up
                    rounds.append(figures)
    median = {
        workers: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for workers, rounds in found.items()
    }
    one, two = median[1], median[2]
    cores = len(os.sched_getaffinity(0))
    everything = sum(value for key, value in two.items() if key.endswith("cpu_ms"))
    body = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(("crossroads", "uvloop", "httptools")),
        "connections": CONNECTIONS,
        "workers": {str(workers): figures for workers, figures in median.items()},
        "ratio": two["requests_per_s"] / one["requests_per_s"],
        "possible_ratio": 1e3 * cores / everything / one["requests_per_s"],
    }
    given.out.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
