"""``crossroads adapters export``: an expert, a merge or a whole routed bank as files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.adapters.loading import (
    adapters_folder,
    check_apart,
    check_routers,
    facts_of_bank,
    neural,
    partial_option,
    read_adapters,
    say,
)
from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from crossroads.adapters.bank import AdapterBank, Expert

_DTYPES = ("float32", "float16", "bfloat16")


@click.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--expert", metavar="NAME", help="Export this one as it is.")
@click.option("--weights", metavar="A=W[,B=W]", help="Export the weighted sum of these.")
@click.option(
    "--router",
    metavar="R",
    help="Export what a router makes of all: one adapter where its weights are the same for all "
    "tokens (saved = DIR's own); with --bank the bank with its router, the saved one by default.",
)
@click.option("--bank", "as_bank", is_flag=True, help="Write a bank, not one adapter.")
@click.option("--only", metavar="A,B", help="Take these adapters of DIR alone.")
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    help="Of the files; the adapters' by default. A merge is computed in float32 and rounded last: "
    "float16 files move logits by some 2e-3, float32 ones keep it whole.",
)
@click.option(
    "--padded",
    is_flag=True,
    help="Pad a merged adapter to one rank, for loaders that know no rank_pattern.",
)
@partial_option
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is an adapter or a bank.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON only.")
def command(
    *,
    folder: Path,
    out: Path,
    expert: str | None,
    weights: str | None,
    router: str | None,
    as_bank: bool,
    only: str | None,
    dtype: str | None,
    padded: bool,
    partial: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write an adapter that PEFT loads, or a bank with its router, from the adapters in DIR.

    One of --expert, --weights, --router or --bank. A merged adapter has the sum of the ranks and
    computes exactly what the router or the weights do; which a router that decides by token cannot
    become. JSON: {folder, kind (adapter or bank), router, experts: [names], layers, parameters,
    rank (largest, of an adapter), bytes}.
    """
    ways = {"--expert": expert, "--weights": weights, "--router": router}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1 or (as_bank and given not in ([], ["--router"])):
        raise UsageError(
            f"export: {' and '.join([*given, *(['--bank'] if as_bank else [])])} are different "
            "things to write; choose one"
        )
    if not given and not as_bank:
        raise UsageError("export: what? Give --expert, --weights, --router or --bank")
    if padded and (as_bank or expert is not None):
        raise UsageError("export: --padded is about merged adapters; leave it out")
    with neural():
        folder = adapters_folder(folder)
    check_apart(folder, out)
    if router is not None:
        with neural():
            check_routers([router], folder)
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another folder, or --overwrite it")
    with neural():
        import torch

        from crossroads.adapters.layout import export_expert, save_bank

        kind = None if dtype is None else getattr(torch, dtype)
        bank = read_adapters(folder, partial=partial, dtype="auto")
        names = comma_separated(only, "--only")
        if names is not None:
            bank = bank.subset(names)
        told: dict[str, Any] = {"folder": str(out), "kind": "bank" if as_bank else "adapter"}
        if as_bank:
            chosen = _router_of_bank(router, bank, folder, is_part=partial or names is not None)
            save_bank(out, bank, chosen, dtype=kind, overwrite=overwrite)
            told |= {"router": chosen and chosen.name, **facts_of_bank(bank), "rank": None}
        else:
            if expert is None:
                kind = kind or next(iter(bank.parameters())).dtype
                bank = bank.float()
            made, by = _adapter(bank, folder, expert, weights, router, padded=padded)
            export_expert(made, out, dtype=kind, task_type="CAUSAL_LM", overwrite=overwrite)
            told |= {
                "router": by,
                "experts": list(bank.names) if expert is None else [expert],
                "layers": len(made.modules),
                "parameters": made.n_parameters,
                "rank": max(lora.rank for lora in made.modules.values()),
            }
    told["bytes"] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    rank = f", rank up to {told['rank']}" if told["rank"] else ""
    named = f", router {told['router']}" if told["router"] else ", no router" if as_bank else ""
    click.echo(
        f"{told['kind']} in {out}: {told['layers']} layers, {told['parameters']:,} parameters"
        f"{rank}{named}, {_size(told['bytes'])}"
    )


def _adapter(
    bank: AdapterBank,
    folder: Path,
    expert: str | None,
    weights: str | None,
    router: str | None,
    *,
    padded: bool,
) -> tuple[Expert, str | None]:
    from crossroads.adapters.contract import Call, Router
    from crossroads.adapters.layout import merged_by_router, merged_expert
    from crossroads.core.progress import progress_bar

    form: Any = "padded" if padded else "tight"
    if expert is not None:
        return bank.expert(expert), None
    if weights is not None:
        return merged_expert(bank, _weights(weights, bank.names), form=form), None
    chosen = _router(router, bank, folder)
    is_merge = type(chosen).merged is not Router.merged
    if chosen.call_data or not (is_merge or chosen.is_static(Call())):
        by = "prompt" if chosen.call_data else "token"
        raise UsageError(
            f"router {chosen.name}: decides by {by}, which no single adapter does; write the bank "
            "with --bank, or choose a router whose weights do not vary"
        )
    with progress_bar(f"Merging by {chosen.name}, layers") as moved:
        return merged_by_router(bank, chosen, form=form, progress=moved), chosen.name


def _router_of_bank(
    spec: str | None, bank: AdapterBank, folder: Path, *, is_part: bool
) -> Any | None:
    """Return the router to write with a bank: the one named, else the saved one, else none.

    What a saved one learnt of all adapters says nothing of some: it is then left out, with a line.
    """
    from crossroads.adapters.choice import SAVED
    from crossroads.adapters.layout import has_router

    if spec is not None:
        return _router(spec, bank, folder)
    if not has_router(folder):
        return None
    try:
        return _router(SAVED, bank, folder)
    except InputError as error:
        if not is_part:
            raise
        say(f"the saved router is left out: {error}")
        return None


def _router(spec: str | None, bank: AdapterBank, folder: Path) -> Any:
    from crossroads.adapters.choice import choose_router

    return choose_router(spec, bank, folder)


def _size(count: int) -> str:
    """Return bytes as text.

    >>> _size(13_330), _size(14_660_000)
    ('13.0 KiB', '14.0 MiB')
    """
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Return the weights of a text A=W,B=W; a name of ``names`` may hold a comma.

    >>> _weights("red, blue=0.5,green=-1", ["red, blue", "green"])
    {'red, blue': 0.5, 'green': -1.0}
    """
    comma_separated(text, "--weights")
    found: dict[str, float] = {}
    rest = text.strip()
    while rest:
        known = max((name for name in names if rest.startswith(f"{name}=")), key=len, default="")
        end, _, after = rest[len(known) :].partition(",")
        name, equals, number = (known + end).rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not known + end.strip():
            rest = after.strip()
            continue
        if not equals or not math.isfinite(value):
            raise UsageError(f"--weights: expected NAME=NUMBER, got {(known + end).strip()!r}")
        if name in found:
            raise UsageError(f"--weights: {name} has two weights; leave one out")
        found[name] = value
        rest = after.strip()
    return found
