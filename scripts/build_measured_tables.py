"""Write the measured tables of README.md and docs from the committed results.

The results are made by the scripts under ``benchmarks``.
Nothing is typed by hand: a table stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``.
With ``--groups``, the adapters' committed boards first get the group and the axes of every router
as the code has them now, and lose times that held more than they say; their figures stay.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crossroads.adapters import needs
from crossroads.adapters.measuring import BEST_SINGLE, axes_of
from crossroads.adapters.routers import build_router
from crossroads.core.statistics import paired_difference, summarise

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "prompts" / "routers.md",
    ROOT / "docs" / "prompts" / "measured.md",
    ROOT / "docs" / "adapters.md",
    ROOT / "docs" / "adapters" / "collection.md",
    ROOT / "docs" / "moe" / "measured.md",
)
BLOCK = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
GROUPS = {"held_in": "held-in task", "held_out": "held-out task"}
SIDES = ("held-in", "held-out")
NO_TIMES = (
    "no seconds a row, and none to fit of what was taught or chosen here: this run took learning, "
    "preparing and scoring together"
)
MOE_TASKS = ("lm", "vision", "diffusion", "speech")
MOE_REFERENCE = "top2"
# Speed needs a machine of its own; sizes are the spec's.
MOE_LEFT_OUT = {"tokens_per_s", "parameters"}
POOLS = {
    "served": "11 served chat models",
    "small": "14 models up to 8B",
    "complete": "26 models, one best at everything",
}


def leaderboard(pool: str) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((RESULTS / f"prompts-arena-{pool}.json").read_text("utf-8"))
    return board


def figure(row: dict[str, Any], metric: str, pattern: str) -> str:
    """Return the mean with half the width of its interval, or a dash."""
    summary = row["metrics"].get(metric) or {}
    if summary.get("mean") is None:
        return "-"
    text = format(summary["mean"], pattern)
    if summary.get("low") is None:
        return text
    return f"{text} ± {(summary['high'] - summary['low']) / 2:{pattern.lstrip('+')}}"


def overview() -> str:
    """One line a pool: best single model, `auto`, the chance-aware bound."""
    lines = [
        "| pool | best single model | `auto`: gain in points | AIQ, best single -> `auto` | "
        "cost for the best single's quality | hindsight, luck discounted |",
        "|---|---|---|---|---|---|",
    ]
    for pool, title in POOLS.items():
        rows = {row["router"]: row for row in leaderboard(pool)["rows"]}
        auto, best, bound = rows["auto"], rows["best-single"], rows["oracle-chance-aware"]
        lines.append(
            f"| `mmlu-pro:{pool}`, {title} | {figure(best, 'quality', '.3f')} "
            f"| {figure(auto, 'gain_over_best_single', '+.2f')} "
            f"| {best['metrics']['aiq']['mean']:.1f} -> {figure(auto, 'aiq', '.1f')} "
            f"| x {figure(auto, 'cost_at_equal_quality', '.2f')} "
            f"| {bound['metrics']['quality']['mean']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def full(pool: str) -> str:
    """Every router of one pool, best first."""
    lines = ["| router | quality | gain, points | AIQ | over mix, points | match cost | CPU us |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in leaderboard(pool)["rows"]:
        is_bound = row["router"].startswith("oracle")
        kind = " (bound)" if is_bound else " (baseline)" if row["baseline"] else ""
        cells = (
            figure(row, "quality", ".4f"),
            figure(row, "gain_over_best_single", "+.2f"),
            figure(row, "aiq", ".2f"),
            figure(row, "gain_over_mix", "+.2f"),
            figure(row, "cost_at_equal_quality", ".3f"),
            f"{row['metrics']['cpu_us']['mean']:.0f}",
        )
        lines.append(f"| {row['router']}{kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def report(name: str) -> str:
    """Every router on one of the docs' two tables, and how long the run took."""
    path = RESULTS / f"prompts-report-{name}.json"
    board = json.loads(path.read_text("utf-8"))
    columns = [
        ("quality", "quality", ".4f"),
        ("gain, points", "gain_over_best_single", "+.2f"),
        ("over mix at cost", "gain_at_equal_cost", "+.2f"),
        ("AIQ", "aiq", ".2f"),
        ("APGR", "apgr", ".3f"),
        ("ECE", "ece", ".3f"),
        ("coverage", "coverage_at_half_risk", ".2f"),
        ("robust", "robustness", ".2f"),
        ("CPU us", "cpu_us", ".0f"),
    ]
    known = {metric["name"] for metric in board["metrics"]}
    columns = [column for column in columns if column[1] in known]
    lines = ["| router | " + " | ".join(title for title, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in board["rows"]:
        is_bound = row["router"].startswith("oracle")
        kind = " (bound)" if is_bound else " (baseline)" if row["baseline"] else ""
        cells = [figure(row, metric, pattern) for _, metric, pattern in columns]
        cells[-1] = cells[-1].split(" ")[0]
        lines.append(f"| {row['router']}{kind} | " + " | ".join(cells) + " |")
    size = f"{len(board['rows'])} routers x {len(board['seeds'])} seeds"
    lines += ["", f"{board['description']}. {size} in {board['wall_seconds']:.0f} s on two cores."]
    return "\n".join(lines) + "\n"


def throughput() -> str:
    """CPU time of one decision, ours and the peers'."""
    result = json.loads((RESULTS / "prompts-throughput.json").read_text("utf-8"))
    lines = [
        "| router | one at a time, CPU us | prompts/s on one core | in batches, CPU us | quality |"
    ]
    lines.append("|---|---|---|---|---|")
    for name, row in result["crossroads"].items():
        single, batch = row["single"]["cpu_us"], row["batch"]["cpu_us"]
        lines.append(
            f"| {name} | {single:.0f} | {1e6 / single:,.0f} | {batch:.1f} | {row['quality']:.3f} |"
        )
    for name, row in result["peers"].items():
        single, ratio = row["single"]["cpu_us"], result["cpu_ratio_to_ours"][name]
        quality = f"{row['quality']:.3f}" if "quality" in row else "-"
        title = f"*{name}* ({ratio:.2g} x ours)"
        lines.append(f"| {title} | {single:,.1f} | {1e6 / single:,.0f} | - | {quality} |")
    encoder = result["encoder_100_words"]
    lines.append(
        f"| *encoding 100 words, static, on top* | {encoder['single']['cpu_us']:.0f} "
        f"| {1e6 / encoder['single']['cpu_us']:,.0f} | {encoder['batch']['cpu_us']:.1f} | |"
    )
    return "\n".join(lines) + "\n"


def levels() -> str:
    """What `auto` was to reach and what it reached, level by level."""
    result = json.loads((RESULTS / "prompts-auto-levels.json").read_text("utf-8"))
    lines = [
        "| case | embedding | figure | aim | measured | on each seed |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["levels"]:
        if row["metric"].endswith(("_us", "_us_p50")):
            continue  # speed is in a table of its own
        seeds = ", ".join("-" if s is None else f"{s:g}" for s in row["per_seed"])
        measured = "never" if row["measured"] is None else f"{row['measured']:.4g}"
        mark = "" if row["reached"] else " (**missed**)"
        figures = f"{row['metric']} | {row['wanted']:g} | {measured}{mark} | {seeds}"
        lines.append(f"| {row['case']} | {row['encoder']} | {figures} |")
    return "\n".join(lines) + "\n"


def adapters() -> str:
    """Mean losses of the collection's arms, then every held-in task."""
    result = json.loads((RESULTS / "adapters-levels.json").read_text("utf-8"))
    lines = ["| arm | held in | share closed, by draw | held out |", "|---|---|---|---|"]
    for arm in result["arms"]:
        held_in, held_out = (result["mean_nll"][group].get(arm) for group in GROUPS)
        shares = ", ".join(f"{share:.2f}" for share in result["share_closed"][arm])
        lines.append(f"| {arm} | {spread(held_in)} | {shares} | {spread(held_out)} |")
    for group, title in GROUPS.items():
        arms = [arm for arm in result["arms"] if arm in result["mean_nll"][group]]
        lines += ["", f"| {title} | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
        for task, told in result["tasks"].items():
            if told["held_in"] is (group == "held_in"):
                cells = [task_figures(result["arms"][arm][task]) for arm in arms]
                lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arena() -> str:
    """Every router of the adapters' arena, by what it must be given, the lowest loss first."""
    boards = {
        side: json.loads((RESULTS / f"adapters-arena-{side}.json").read_text("utf-8"))
        for side in SIDES
    }
    rows = {
        side: {row["router"]: row for row in board["rows"] if row["error"] is None}
        for side, board in boards.items()
    }
    lines = [
        "| group | router | loss held in | share of the gap closed | accuracy held in "
        "| loss held out | accuracy held out | prompt speed, of the base's | numbers of routing "
        "| MiB held |",
        "|---" * 10 + "|",
    ]
    for group in needs.GROUPS:
        mine = [name for name, row in rows["held-in"].items() if row["group"] == group]
        for name in sorted(mine, key=lambda n: rows["held-in"][n]["metrics"]["nll"]["mean"]):
            held_in, held_out = rows["held-in"][name], rows["held-out"].get(name)
            cells = [
                figure(held_in, "nll", ".2f"),
                closed(rows["held-in"], name),
                figure(held_in, "accuracy", ".0%"),
                figure(held_out, "nll", ".2f") if held_out else "-",
                figure(held_out, "accuracy", ".0%") if held_out else "-",
                figure(held_in, "speed", ".2f").split(" ")[0],
                figure(held_in, "parameters", ",.0f").split(" ")[0],
                figure(held_in, "held_mib", ",.0f").split(" ")[0],
            ]
            lines.append(f"| {group} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def moe_arena(task: str) -> str:
    """Every router of one task of the token arena, best first, beside top-2 seed by seed."""
    path = RESULTS / f"moe-arena-{task}.json"
    if not path.is_file():
        return f"`crossroads arena moe --task {task} --preset full --out FOLDER` makes this.\n"
    board = json.loads(path.read_text("utf-8"))
    known = {
        name for row in board["rows"] for name, value in row["metrics"].items() if value["mean"]
    }
    metrics = [m for m in board["metrics"] if m["name"] in known - MOE_LEFT_OUT]
    main = metrics[0]
    rows = [row for row in board["rows"] if row["error"] is None]
    (top2,) = (row for row in rows if row["router"] == MOE_REFERENCE)
    others = [", ".join(filter(None, (m["title"], m["unit"]))) for m in metrics[1:]]
    titles = [main["title"], f"minus {MOE_REFERENCE}", *others]
    lines = ["| router | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        values, reference = (r["metrics"][main["name"]]["per_seed"] for r in (row, top2))
        gap = paired_difference(values, reference)
        cells = [
            figure(row, main["name"], f".{main['digits']}f"),
            "0"
            if row is top2
            else f"{gap.mean:+.{main['digits']}f} ± {gap.half_width:.{main['digits']}f}",
            *(figure(row, m["name"], f".{m['digits']}f").split(" ")[0] for m in metrics[1:]),
        ]
        kind = " (baseline)" if row["baseline"] else ""
        lines.append(f"| `{row['router']}`{kind} | " + " | ".join(cells) + " |")
    seeds = len(board["seeds"])
    lines += [
        "",
        f"{board['description']}. {len(rows)} arms x {seeds} seeds, {board['created'][:10]}.",
    ]
    lines += [
        f"Left out: {row['router']} ({row['error']})." for row in board["rows"] if row["error"]
    ]
    return "\n".join(lines) + "\n"


def group_of(router: str) -> needs.Group:
    """Return what a router must be given; the base model is a reference."""
    return "reference" if router == "base" else needs.group_of(build_router(router))


def grouped(board: dict[str, Any]) -> dict[str, Any]:
    """Return a board of adapters with every router's group and axes, without times of before.

    Seconds to fit were a mean of one that learnt, or chose an expert, and two that found it done;
    seconds a row held preparing and the measurement of speed, too.
    """
    rows = []
    for row in board["rows"]:
        facts: dict[str, Any] = {"group": group_of(row["router"]), "axes": None}
        if row["router"] != "base":
            router = build_router(row["router"])
            facts |= {"axes": axes_of(router), "decide_seconds": None}
            if router.learns or row["router"] == BEST_SINGLE:
                facts["fit_seconds"] = None
        rows.append({**row, **facts})
    notes = [note for note in board["notes"] if note != NO_TIMES]
    return {**board, "notes": [*notes, NO_TIMES], "rows": rows}


def closed(rows: dict[str, Any], router: str) -> str:
    """Return the share of the way from uniform to oracle, mean over seeds, with its interval."""
    ends = [rows[name]["metrics"]["nll"]["per_seed"] for name in ("uniform", router, "oracle")]
    shares = [(low - own) / (low - high) for low, own, high in zip(*ends, strict=True)]
    found = summarise(shares)
    return f"{found.mean:.0%} ± {found.half_width:.0%}"


def spread(losses: list[float] | None) -> str:
    """Return the mean and the range of the draws, or a dash."""
    if losses is None:
        return "-"
    return f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def task_figures(told: dict[str, Any]) -> str:
    """Return the loss and, where there are options, the accuracy in brackets."""
    loss = f"{statistics.fmean(told['nll']):.2f}"
    return f"{loss} ({statistics.fmean(told['accuracy']):.2f})" if "accuracy" in told else loss


SPECIAL: dict[str, Callable[[], str]] = {
    "overview": overview,
    "throughput": throughput,
    "levels": levels,
    "adapters-levels": adapters,
    "adapters-arena": arena,
    **{f"moe-{task}": partial(moe_arena, task) for task in MOE_TASKS},
    "report-mmlu-pro": partial(report, "mmlu-pro"),
    "report-routellm": partial(report, "routellm"),
}


def rebuilt(page: Path) -> str:
    """Return the page's text with every measured table made anew."""

    def table(match: re.Match[str]) -> str:
        name = match.group(2)
        made = SPECIAL[name]() if name in SPECIAL else full(name)
        return match.group(1) + made + match.group(3)

    return BLOCK.sub(table, page.read_text("utf-8"))


def main() -> None:
    for side in SIDES if "--groups" in sys.argv[1:] else ():
        path = RESULTS / f"adapters-arena-{side}.json"
        made = grouped(json.loads(path.read_text("utf-8")))
        path.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    for page in PAGES:
        page.write_text(rebuilt(page), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
