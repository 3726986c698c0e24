"""The MoErging survey (arXiv 2408.07057): its scheme, and the methods implemented under it.

A survey reports no figure of its own. What can be measured is what it says of the methods: that
nine axes tell them apart, and that few of them were ever compared on equal terms. The rules:

1. the inventory is complete and valid: the 26 methods of the authors' list, nine legal cells each;
2. every two of the authors' methods differ on at least one axis;
3. every router here that states a row of the inventory states the row's cells, save for the
   departures that are declared, and combines experts as its cells say when it is run on a small
   bank: it mixes outputs, merges parameters, or takes one expert;
4. when run, with its defaults save for ``SETTINGS``, it also shows its cells of input and depth
   granularity and of selection.

``fails``: 1 or 3 does not hold. ``holds``: all four do, and every router with cells could be run.
``holds in direction``: 2 holds for more than half of the methods. ``null``: anything else. That
rule 2 holds was known from the authors' list when the rules were written; 3 and 4 were not.

Reported beside it, without a say in the verdict: the shares of every axis, the fewest axes that
tell the methods apart, and the pairs of methods that share a setting (what they are given and what
for). The other pairs can not be ranked in one table without giving one of the two more than the
other, which is why methods are rarely compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossroads.adapters.routers import build_router, router_class, router_names
from crossroads.adapters.survey.figures import SETTING, fewest_axes, num_pairs, same_on, shares
from crossroads.adapters.survey.implementations import DEPARTURES, implementations
from crossroads.adapters.survey.inventory import inventory, row
from crossroads.adapters.survey.moerging import methods
from crossroads.adapters.survey.observed import NAMES, Observation, observe
from crossroads.adapters.survey.schema import Cells
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.errors import CrossroadsError

NUM_AUTHORS = 26  # methods of the authors' public list
SEEDS = (0, 1, 2)  # of the small bank; full: ten
MORE_SEEDS = tuple(range(10))
# How a router is run where its defaults name no expert, or decide otherwise than its paper.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "best-single": {"expert": NAMES[0]},
    "flylora": {"k": 2},
    "poly": {"tasks": 2},
    "task-moe": {"tasks": 2},
    "x-lora": {"by_layer": True},
}
RANKS: Mapping[str, int] = {"flylora": 1}  # its experts are single ranks; of all others 2


def verify(full: bool) -> Verdict:
    """Measure the survey's claim; ``full`` runs the routers on more banks."""
    seeds = MORE_SEEDS if full else SEEDS
    scheme = scheme_figures()
    stated = stated_cells()
    unlike = {name: axes for name in stated if (axes := undeclared(name, stated[name]))}
    runs, not_run = run_routers(stated, seeds)
    wrong = {
        name: found for name, cells in stated.items() if (found := seen_wrong(runs, name, cells))
    }
    outcome = judge(scheme, unlike=unlike, wrong=wrong, not_run=not_run)
    return Verdict(
        name="moerging-survey",
        verdict=outcome,
        paper={
            "scheme": "nine axes of experts, routing and use tell published methods apart",
            "remark": "methods are rarely compared with one another",
        },
        measured={
            **scheme,
            "implemented": {name: ", ".join(names) for name, names in implementations().items()},
            "undeclared_departures": {name: ", ".join(axes) for name, axes in unlike.items()},
            "seen_otherwise": {name: ", ".join(axes) for name, axes in wrong.items()},
            "seen": {name: _shown(found[0]) for name, found in runs.items()},
            "not_run": not_run,
            "shares": shares(methods(source="authors")),
        },
        seeds=seeds,
        data=(
            f"the authors' list of {NUM_AUTHORS} methods and {len(methods(source='ours'))} rows of "
            f"ours; {len(runs)} routers run on six random adapters at two layers"
        ),
    )


def scheme_figures() -> dict[str, Any]:
    """Return what the scheme does to the authors' methods."""
    listed = methods(source="authors")
    alike = same_on(listed, tuple(listed[0].cells.to_dict()))
    share_setting = same_on(listed, SETTING)
    pairs = len(listed) * (len(listed) - 1) // 2
    fewest = fewest_axes(listed)
    return {
        "num_authors_methods": len(listed),
        "num_methods": len(inventory()),
        "alike_on_all_axes": "; ".join(", ".join(names) for names in alike) or "none",
        "num_alike": sum(len(names) for names in alike),
        "fewest_axes_that_tell_all_apart": len(fewest[0]) if fewest else None,
        "pairs": pairs,
        "pairs_of_one_setting": num_pairs(share_setting),
        "of_one_setting": "; ".join(", ".join(names) for names in share_setting),
    }


def stated_cells() -> dict[str, Cells]:
    """Return the cells that routers state, by name; routers outside the scheme state none."""
    found = {name: router_class(name).cells for name in router_names()}
    return {name: cells for name, cells in found.items() if cells is not None}


def undeclared(name: str, cells: Cells) -> tuple[str, ...]:
    """Return the axes on which a router's cells are not its row's, save declared departures."""
    departure = DEPARTURES.get(name)
    of = departure.row if departure else router_class(name).survey_row
    if of is None:
        return ()
    declared = set(departure.axes) if departure else set()
    # A departure that is none any more is as wrong as one that nobody declared.
    return tuple(sorted(set(cells.differences(row(of).cells)) ^ declared))


def run_routers(
    stated: Mapping[str, Cells], seeds: tuple[int, ...]
) -> tuple[dict[str, list[Observation]], dict[str, str]]:
    """Return what the routers were seen to do, by name, and why the others could not be run."""
    runs: dict[str, list[Observation]] = {}
    not_run = {}
    for name in stated:
        try:
            runs[name] = [
                observe(
                    build_router(name, **SETTINGS.get(name, {})),
                    seed=seed,
                    rank=RANKS.get(name, 2),
                )
                for seed in seeds
            ]
        except (CrossroadsError, TypeError) as error:
            not_run[name] = " ".join(str(error).split())
    return runs, not_run


def seen_wrong(runs: Mapping[str, list[Observation]], name: str, cells: Cells) -> tuple[str, ...]:
    """Return the axes on which any run of a router contradicts its cells."""
    return tuple(sorted({axis for seen in runs.get(name, ()) for axis in seen.contradicts(cells)}))


def judge(
    scheme: Mapping[str, Any],
    *,
    unlike: Mapping[str, Any],
    wrong: Mapping[str, tuple[str, ...]],
    not_run: Mapping[str, str],
) -> Outcome:
    """Return the verdict by the rules of the module."""
    complete = scheme["num_authors_methods"] == NUM_AUTHORS
    combined_otherwise = any("expert_aggregation" in axes for axes in wrong.values())
    if not complete or unlike or combined_otherwise:
        return "fails"
    if not scheme["num_alike"] and not wrong and not not_run:
        return "holds"
    return "holds in direction" if 2 * scheme["num_alike"] < NUM_AUTHORS else "null"


def _shown(seen: Observation) -> dict[str, Any]:
    return {
        "mode": seen.mode,
        "experts": seen.num_experts,
        "per": seen.input_granularity,
        "depth": seen.depth_granularity,
        "selection": seen.expert_selection,
    }
