"""Write the measured blocks of docs/moe/speed.md, and copy its plot, from committed results.

Results are made by ``python benchmarks/moe/layer.py`` and ``python benchmarks/moe/routers.py``.
Blocks stand between ``<!-- measured: NAME -->`` and ``<!-- end -->``; until there is a result, a
line that says how to make one.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LAYER, ROUTERS = "moe-layer.json", "moe-routers.json"
FLOAT32 = "moe-layer-float32.json"  # of a machine without bfloat16, in place of what LAYER has
PAGE = ROOT / "docs" / "moe" / "speed.md"
BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS, BANK, PEER = "crossroads", "crossroads, bank alone", "transformers Mixtral, grouped_mm"
FLAT = 1.5  # times as long with 32 times the experts, at most
DTYPES = {"float32": "f32", "bfloat16": "bf16"}
MODES = {"forward": "fwd", "forward and backward": "fwd+bwd"}
# The least ratio to the limit that the layer is held to, by part, type and mode.
GOALS = {
    ("one thread", "float32", "forward"): 0.90,
    ("one thread", "float32", "forward and backward"): 0.88,
    ("one thread", "bfloat16", "forward"): 0.74,
    ("one thread", "bfloat16", "forward and backward"): 0.70,
    ("two threads", "float32", "forward"): 0.85,
    ("two threads", "float32", "forward and backward"): 0.82,
    ("two threads", "bfloat16", "forward"): 0.58,
    ("two threads", "bfloat16", "forward and backward"): 0.60,
}
PEER_GOALS = {"float32": 1.08, "bfloat16": 3.0}
Rows = list[list[str]]


def compared(part: dict[str, Any]) -> str:
    """Return a table of methods by case: median milliseconds and the ratio to the limit."""
    methods = dict.fromkeys(name for case in part.values() for name in case["methods"])
    rows = [["method", *map(_short, part)]]
    for name in methods:
        cells = (case["methods"].get(name) for case in part.values())
        rows.append([name, *(_figure(cell) for cell in cells)])
    return _table(rows)


def goals(body: dict[str, Any]) -> str:
    """Return each goal beside what the committed run found, of the parts it has."""
    rows = [["goal", "at least", "small", "big"]]
    for (part, dtype, mode), least in GOALS.items():
        if part not in body:
            continue
        found = [_ours(body, part, size, dtype, mode)["ratio"] for size in ("small", "big")]
        ours = _measured(body, part, dtype, mode)
        name = f"limit / {ours}, {part}, {DTYPES[dtype]} {MODES[mode]}"
        rows.append([name, f"{least:.2f}", *(_held(value, least) for value in found)])
    for part in dict.fromkeys(part for part, *_ in GOALS if part in body):
        for dtype, least in PEER_GOALS.items():
            for mode, short in MODES.items():
                found = [_peer_ratio(body, part, size, dtype, mode) for size in ("small", "big")]
                ours = _measured(body, part, dtype, mode)
                name = f"transformers grouped_mm / {ours}, {part}, {DTYPES[dtype]} {short}"
                rows.append([name, f"{least:.2f}", *(_held(value, least) for value in found)])
    return _table(rows)


_MS = "median_ms"


def _ours(body: dict[str, Any], part: str, size: str, dtype: str, mode: str) -> dict[str, Any]:
    methods = body[part][f"{size}, {dtype}, {mode}"]["methods"]
    found: dict[str, Any] = methods.get(OURS) or methods[BANK]
    return found


def _measured(body: dict[str, Any], part: str, dtype: str, mode: str) -> str:
    """Say whether a case has the layer, or the bank alone, as runs before 2026-11-23."""
    methods = body[part][f"small, {dtype}, {mode}"]["methods"]
    return "our layer" if OURS in methods else "our bank alone"


def _peer_ratio(body: dict[str, Any], part: str, size: str, dtype: str, mode: str) -> float:
    methods = body[part][f"{size}, {dtype}, {mode}"]["methods"]
    return float(methods[PEER][_MS]) / float(_ours(body, part, size, dtype, mode)[_MS])


def _held(value: float, least: float) -> str:
    return f"{value:.2f}" if value >= least else f"**{value:.2f}** (missed)"


def first_batches(part: dict[str, dict[str, dict[str, float]]]) -> str:
    methods = dict.fromkeys(name for case in part.values() for name in case)
    rows = [["method", *map(_short, part)]]
    for name in methods:
        rows.append([name, *(f"{case[name]['mean_ms']:.1f}" for case in part.values())])
    return _table(rows)


def decode(part: dict[str, Any]) -> str:
    methods = dict.fromkeys(name for case in part.values() for name in case["methods"])
    rows = [["method", *map(_short, part)]]
    for name in methods:
        cells = (case["methods"].get(name) for case in part.values())
        rows.append([name, *("-" if cell is None else f"{cell[_MS]:.2f}" for cell in cells)])
    return _table(rows)


def skew(part: dict[str, Any]) -> str:
    rows = [["", *map(_short, part)]]
    rows.append(["skewed / even", *(f"{case['skewed_over_even']:.2f}" for case in part.values())])
    return _table(rows)


def memory(part: dict[str, dict[str, float]]) -> str:
    methods = dict.fromkeys(name for case in part.values() for name in case)
    rows = [["method", *map(_short, part)]]
    for name in methods:
        title = "bound for ours" if name == "bound" else name
        cells = (case.get(name) for case in part.values())
        rows.append([title, *("-" if cell is None else f"{cell:.1f}" for cell in cells)])
    return _table(rows)


def scaling(part: dict[str, dict[str, float]]) -> str:
    lines = []
    for axis, last in (("tokens", "times the tokens"), ("experts", "times the experts")):
        for dtype, short in DTYPES.items():
            line = part[f"{axis}, {dtype}"]
            low, high = (line[key] for key in (min(line, key=int), max(line, key=int)))
            times = max(map(int, line)) / min(map(int, line))
            missed = axis == "experts" and high / low > FLAT
            mark = f" (missed: flat, at most {FLAT})" if missed else ""
            lines.append(f"- {short}: {times:.0f} {last} take {high / low:.2f} times as long{mark}")
    return "\n".join(lines) + "\n\n![Time by tokens and by experts](moe-layer.svg)\n"


def routers(body: dict[str, Any]) -> str:
    rows = [["router", "experts a token", "router ms", "layer ms", "share", "share in training"]]
    for name, row in body["routers"].items():
        shares = [f"{row['share']:.1%}", f"{row['training_share']:.1%}"]
        figures = [f"{row['router_ms']:.2f}", f"{row['layer_ms']:.1f}", *shares]
        rows.append([f"`{name}`", f"{row['experts_per_token']:.1f}", *figures])
    left = [f"{name} ({reason})" for name, reason in body["left_out"].items()]
    return _table(rows) + (f"\nLeft out: {'; '.join(left)}.\n" if left else "")


def overlaid(results: Path) -> dict[str, Any] | None:
    """Return the result of ``layer.py``, its float32 cases those of the newer file if there is one.

    ``about`` then lists both runs. Scaling is drawn, and stays that of one run.
    """
    if not (results / LAYER).is_file():
        return None
    body: dict[str, Any] = json.loads((results / LAYER).read_text("utf-8"))
    body["runs"] = [("All", body)]
    if (results / FLOAT32).is_file():
        newer: dict[str, Any] = json.loads((results / FLOAT32).read_text("utf-8"))
        body["runs"] = [("float32", newer), ("bfloat16, on another machine,", body)]
        for part in set(body) & set(newer) - {"machine", "scaling"}:
            if isinstance(newer[part], dict):
                body[part] = newer[part] | {
                    k: v for k, v in body[part].items() if k not in newer[part]
                }
    return body


def about(body: dict[str, Any]) -> str:
    return "\n".join(_run(what, run) for what, run in body["runs"])


def _run(what: str, body: dict[str, Any]) -> str:
    machine = body["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    kernels = "with" if body["compiled_kernels"] else "without"
    return (
        f"{what} measured on {body['date']}: Python {machine['python']}, {machine['cpus']} "
        f"{machine['architecture']} cores, {versions}; {kernels} compiled kernels.\n"
    )


def left_out(body: dict[str, Any]) -> str:
    found = {  # one reason of each
        f"{name} in {dtype}": reason
        for part in ("decode", "one thread")
        for case, figures in body[part].items()
        for dtype in DTYPES
        if dtype in case
        for name, reason in figures["left_out"].items()
    }
    return "".join(f"- {name}: {reason}\n" for name, reason in found.items()) or "- nothing\n"


def _short(case: str) -> str:
    for long, short in (*reversed(MODES.items()), *DTYPES.items()):
        case = case.replace(long, short)
    return case.replace(",", "")


def _figure(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell[_MS]:.1f} ({cell['ratio']:.2f})"


def _table(rows: Rows) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


# Each block: its result, the parts that result must have, and what makes it.
BLOCKS: dict[str, tuple[str, tuple[str, ...], Callable[[dict[str, Any]], str]]] = {
    "about": (LAYER, (), about),
    "goals": (LAYER, ("one thread",), goals),
    "one-thread": (LAYER, ("one thread",), lambda body: compared(body["one thread"])),
    "two-threads": (LAYER, ("two threads",), lambda body: compared(body["two threads"])),
    "first-batches": (LAYER, ("first batches",), lambda body: first_batches(body["first batches"])),
    "decode": (LAYER, ("decode",), lambda body: decode(body["decode"])),
    "skew": (LAYER, ("skew",), lambda body: skew(body["skew"])),
    "memory": (LAYER, ("memory",), lambda body: memory(body["memory"])),
    "scaling": (LAYER, ("scaling",), lambda body: scaling(body["scaling"])),
    "left-out": (LAYER, ("one thread", "decode"), left_out),
    "routers": (ROUTERS, (), routers),
}


def rebuilt(page: str, results: Path = RESULTS) -> str:
    """Return the page's text with its measured blocks made anew."""

    def block(found: re.Match[str]) -> str:
        source, parts, make = BLOCKS[found[2]]
        path = results / source
        if source == LAYER:
            body = overlaid(results)
        else:
            body = json.loads(path.read_text("utf-8")) if path.is_file() else None
        if body is not None and set(parts) <= set(body):
            return found[1] + make(body) + found[3]
        script = f"benchmarks/moe/{source.removeprefix('moe-').removesuffix('.json')}.py"
        made = f"`python {script}`, then `python scripts/build_moe_table.py`, writes this.\n"
        return found[1] + made + found[3]

    return BLOCK.sub(block, page)


def main() -> None:
    PAGE.write_text(rebuilt(PAGE.read_text("utf-8")), "utf-8")
    plot = (RESULTS / LAYER).with_suffix(".svg")
    if plot.is_file():
        shutil.copyfile(plot, PAGE.with_name(plot.name))


if __name__ == "__main__":
    sys.exit(main())
