"""``crossroads adapters route``: point at a folder of adapters, ask, see who answered."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.adapters.loading import (
    adapters_folder,
    load,
    neural,
    on_a_folder,
    percent,
    tell_of_no_chat,
    told_when_long,
)
from crossroads.cli.words import counted
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from crossroads.adapters.base_models import BaseModel
    from crossroads.adapters.insertion import RoutedModel

_SHOWN = 5  # experts of a line


@click.command("route")
@on_a_folder
@click.option(
    "--prompt", "prompts", multiple=True, required=True, help="Text; - reads it. Repeatable."
)
@click.option(
    "--router",
    metavar="R",
    help="As NAME, NAME:setting=value, package.module.Class, or saved. By default the saved one, "
    "else phatgoose where all adapters have gates, else arrow. Names: crossroads list "
    "adapter-routers.",
)
@click.option("--expert", metavar="NAME", help="The prompts' own expert, for routers that are told")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat form.")
@click.option(
    "--tokens", type=click.IntRange(0), default=24, show_default=True, help="Of the answer at most."
)
@click.option("--explain", is_flag=True, help="Show the shares by kind of layer too.")
@click.option("--explain-all", is_flag=True, help="Show the shares in every layer too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
def command(
    *,
    folder: Path,
    model: Path | None,
    partial: bool,
    prompts: tuple[str, ...],
    router: str | None,
    expert: str | None,
    chat: bool,
    tokens: int,
    explain: bool,
    explain_all: bool,
    as_json: bool,
) -> None:
    """Route prompts among the adapters in DIR, in PEFT's layout, and answer them; the word shipped
    for DIR names the twelve that come with the package.

    Shows each expert's share of the routing weights over all tokens of the prompt, mean over
    layers, and the likeliest answer; where only some experts adapt a layer, its weights are theirs
    alone. JSON: {router, settings, model, experts: [names], prompts:
    [{prompt, tokens, shares: {expert: share}, answer, answer_tokens, seconds}]}, with --explain
    or --explain-all also layers: {layer: {expert: share}}. shares is empty for routers that merge
    adapters by other means than weights (ties, dare).
    """
    texts = [_read(prompt) for prompt in prompts]
    with neural():
        from crossroads.adapters.choice import choose_router, told
        from crossroads.adapters.insertion import RoutedModel
        from crossroads.core.progress import progress_bar

        folder = adapters_folder(folder)
        base, bank = load(folder, model, [router] if router else (), partial=partial)
        if chat:
            tell_of_no_chat(base)
        with told_when_long("preparing the router"):
            chosen = choose_router(router, bank, folder)
        if expert is not None and not chosen.call_data & {"experts", "labels_B"}:
            raise UsageError(
                f"--expert {expert}: router {chosen.name} decides itself and is not told; leave it "
                "out, or choose --router named"
            )
        with told_when_long("putting the adapters into the model"):
            routed = RoutedModel(base.model, bank, chosen)
        rows: list[dict[str, Any]] = []
        with progress_bar("Answering") as moved:
            for text in texts:
                facts = told(chosen, bank, [text], expert=expert)
                prompt = base.chat([{"role": "user", "content": text}]) if chat else text
                rows.append({"prompt": text, **_answer(base, routed, prompt, facts, tokens)})
                moved(len(rows), len(texts))
    if not explain and not explain_all:
        for row in rows:
            row.pop("layers")
    if as_json:
        board = {
            "router": chosen.name,
            "settings": dict(chosen.settings()),
            "model": base.name,
            "experts": list(bank.names),
            "prompts": rows,
        }
        click.echo(json.dumps(board, indent=2))
        return
    click.echo(f"{counted(len(bank.names), 'adapter')} of {base.name}, router {chosen.name}")
    for row in rows:
        _show(row, every_layer=explain_all)


def _answer(
    base: BaseModel, routed: RoutedModel, prompt: str, facts: dict[str, Any], tokens: int
) -> dict[str, Any]:
    from crossroads.adapters.generating import generate
    from crossroads.adapters.shares import shares_of

    ids = base.tokenizer.encode(prompt, add_special_tokens=False).ids
    passes: list[Any] = []  # the first one reads the prompt
    started = time.perf_counter()
    with routed.watched(passes.append):
        said = list(generate(base, routed.router, ids, most=max(tokens, 1), facts=facts))[:tokens]
    shares = shares_of(routed, passes[0])
    return {
        "tokens": len(ids),
        "shares": shares.experts,
        "answer": base.tokenizer.decode(said),
        "answer_tokens": len(said),
        "seconds": round(time.perf_counter() - started, 3),
        "layers": shares.layers,
    }


def _show(row: dict[str, Any], *, every_layer: bool) -> None:
    click.echo(f"\n{row['prompt']}")
    if row["answer_tokens"]:
        said = row["answer"].strip().replace("\n", "\n   ")
        click.echo(f"-> {said or '(nothing)'}")
    shown = [f"{name} {percent(share)}" for name, share in [*row["shares"].items()][:_SHOWN]]
    more = len(row["shares"]) - len(shown)
    rest = f", {more} more" if more > 0 else ""
    click.echo(f"   {', '.join(shown) or 'no weights: merged, or the base model'}{rest}")
    layers = row.get("layers", {})
    for kind, shares in _by_kind(layers).items():
        _show_shares(kind, shares)
    for layer, shares in layers.items() if every_layer else ():
        _show_shares(layer, shares)


def _show_shares(layer: str, shares: Mapping[str, float]) -> None:
    best = sorted(shares.items(), key=lambda pair: -pair[1])[:_SHOWN]
    said = ", ".join(f"{name} {percent(share)}" for name, share in best if share > 0)
    click.echo(f"   {layer}: {said or 'none'}")


def _by_kind(layers: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean shares over layers that differ in numbers alone, and how many these are.

    >>> _by_kind({"h.0.q": {"a": 1.0, "b": 0.0}, "h.1.q": {"a": 0.5, "b": 0.5}, "h.0.v": {"a": 1}})
    {'h.*.q (2 layers)': {'a': 0.75, 'b': 0.25}, 'h.*.v (1 layer)': {'a': 1.0}}
    """
    kinds: dict[str, list[Mapping[str, float]]] = {}
    for layer, shares in layers.items():
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", layer), []).append(shares)
    return {
        f"{kind} ({counted(len(found), 'layer')})": {
            name: sum(shares.get(name, 0.0) for shares in found) / len(found)
            for name in dict.fromkeys(name for shares in found for name in shares)
        }
        for kind, found in kinds.items()
    }


def _read(prompt: str) -> str:
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input: not UTF-8 text (byte {error.start}); send the prompt as UTF-8"
            ) from error
    if not prompt.strip():
        raise UsageError("--prompt is empty; give a text, or - to read standard input")
    return prompt
