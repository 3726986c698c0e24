"""Write the measured table of docs/gateway/compared.md, and copy its plot, from committed results.

The result is made by ``python benchmarks/gateway/compare.py``. The table stands between
``<!-- measured: gateway-speed -->`` and ``<!-- end -->``; until there is a result, a line that says
how to make one.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gateway-speed.json"
PAGE = ROOT / "docs" / "gateway" / "compared.md"
BLOCK = re.compile(r"(<!-- measured: gateway-speed -->\n).*?(<!-- end -->)", re.DOTALL)
PEER, FLOOR = "LiteLLM proxy", "stub, direct"
UNMEASURED = (
    "`python benchmarks/gateway/compare.py`, then `python scripts/build_gateway_table.py`, measure "
    "it on your machine and write the table here.\n"
)


def table(body: dict[str, Any]) -> str:
    """Return CPU per request with the ratio to the peer, rates, latencies and memory."""
    names = [scenario["name"] for scenario in body["scenarios"]]
    servers = body["servers"]
    busiest = max(body["scenarios"], key=lambda scenario: scenario["connections"])["name"]
    first, floor = names[0], servers.get(FLOOR)
    titles = ["server", *(f"{name}: CPU ms" for name in names), f"{busiest}: requests/s"]
    titles += [f"{first}: added p50 / p99 ms", "RSS MiB", "ready after s"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for server, row in servers.items():
        if server == FLOOR:
            continue
        cells = [_cpu(servers, server, name) for name in names]
        cells.append(f"{row[busiest]['requests_per_s']:,.0f}")
        cells.append(" / ".join(_added(row, floor, first, name) for name in ("p50_ms", "p99_ms")))
        cells += [f"{row['rss_mib']:.0f}", f"{row['ready_s']:.1f}"]
        lines.append(f"| {server} | {' | '.join(cells)} |")
    machine = body["machine"]
    lines += [
        "",
        f"Median of {body['rounds']} rounds after each of {body['starts']} starts on "
        f"{body['date']}, Python {machine['python']}, {machine['cpus']} {machine['architecture']} "
        f"cores: servers on one, stub and load on the other, or all on one where it says so. "
        f"Latency is what a server adds to the stub's own. {_about_peer(servers)}",
    ]
    return "\n".join(lines) + "\n"


def _about_peer(servers: dict[str, Any]) -> str:
    if PEER in servers:
        return f"In brackets: CPU as a share of {PEER}'s."
    return "LiteLLM's proxy was not measured in this run."


def _cpu(servers: dict[str, Any], server: str, name: str) -> str:
    spent = servers[server][name]["cpu_ms"]
    peer = servers.get(PEER)
    if peer is None or server == PEER or not spent:
        return f"{spent:.3f}"
    return f"{spent:.3f} (1/{peer[name]['cpu_ms'] / spent:.0f})"


def _added(row: dict[str, Any], floor: dict[str, Any] | None, name: str, figure: str) -> str:
    below = 0.0 if floor is None else floor[name][figure]
    return f"{row[name][figure] - below:.2f}"


def rebuilt(page: str, result: Path = RESULT) -> str:
    """Return the page's text with its measured block made anew."""
    made = UNMEASURED
    if result.is_file():
        made = table(json.loads(result.read_text("utf-8")))
        if result.with_suffix(".svg").is_file():
            made += f"\n![CPU per request by server]({result.stem}.svg)\n"
    return BLOCK.sub(lambda found: found[1] + made + found[2], page)


def main() -> None:
    PAGE.write_text(rebuilt(PAGE.read_text("utf-8")), "utf-8")
    plot = RESULT.with_suffix(".svg")
    if plot.is_file():
        shutil.copyfile(plot, PAGE.with_name(plot.name))


if __name__ == "__main__":
    sys.exit(main())
