"""Kernels of banks of adapters: beside PEFT, beside the limit, and beside each other.

- ``mixed batch``: 32 adapters (r = 16) on one layer of 576 x 576, every request with an adapter of
  its own draw, 256 requests of one token and of 16; beside PEFT's ``adapter_names``, and beside the
  limit: the same rows, one adapter for all;
- ``arrow``: 128 adapters (r = 8), 1,024 tokens, top-2, beside PEFT's Arrow, routing included;
- ``choice``: dense and grouped kernel over rows, experts and ranks, and what the rule chose.

Every round draws new inputs and new adapters and runs every method once, in random order, on one
thread; time is CPU time of the process. Writes ``benchmarks/results/adapters-kernels.json``, and
the table of the choice into ``docs/adapters/kernels.md``.

    python benchmarks/adapters/kernels.py [--seconds 6] [--only PART ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

for _library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_library, "1")

import torch
from timing import interleaved, load
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.kernels import choose, mixed
from crossroads.adapters.routers import build_router
from crossroads.core.files import write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "adapters-kernels.json"
PAGE = ROOT / "docs" / "adapters" / "kernels.md"
LIBRARIES = ("crossroads", "torch", "transformers", "peft")
WIDTH = 576  # of SmolLM2-135M
LIMIT = "limit: one adapter for all"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def adapters(count: int, rank: int, dtype: torch.dtype = torch.float32) -> list[LoRA]:
    draw = torch.Generator().manual_seed(0)
    return [
        LoRA(
            a_RI=(0.04 * torch.randn(rank, WIDTH, generator=draw)).to(dtype),
            b_OR=(0.04 * torch.randn(WIDTH, rank, generator=draw)).to(dtype),
            scale=2.0,
        )
        for _ in range(count)
    ]


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WIDTH, bias=False).to(dtype).requires_grad_(False)


def bank_of(given: list[LoRA]) -> AdapterBank:
    return AdapterBank([Expert(name=f"e{i}", modules={"0": one}) for i, one in enumerate(given)])


def peft_layer(given: list[LoRA], base: nn.Linear) -> nn.Module:
    """Return PEFT's layer with the same adapters, in the type of the layer."""
    from peft import LoraConfig, get_peft_model

    rank = given[0].rank
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])
    model = get_peft_model(nn.Sequential(base), config, "e0", autocast_adapter_dtype=False)
    for place in range(1, len(given)):
        model.add_adapter(f"e{place}", config)
    found: nn.Module = model.base_model.model[0].to(base.weight.dtype).eval()
    with torch.no_grad():
        for place, one in enumerate(given):
            found.lora_A[f"e{place}"].weight.copy_(one.a_RI)
            found.lora_B[f"e{place}"].weight.copy_(one.b_OR)
    return found


def mixed_batch(seconds: float) -> dict[str, Any]:
    """Return figures by type and requests; ``peft_over_ours`` is a ratio of medians."""
    body = {}
    for (kind, dtype), positions in itertools.product(TYPES.items(), (1, 16)):
        methods, draw = _mixed_methods(dtype, positions)
        given = draw(-1)
        with torch.no_grad():
            agreement = _gap(methods["crossroads"](given), methods["PEFT adapter_names"](given))
        figures = interleaved(methods, draw, seconds=seconds, limit=LIMIT)
        ours, peft = figures["crossroads"], figures["PEFT adapter_names"]
        body[f"{kind}, 256 requests of {positions}"] = {
            "methods": figures,
            "peft_over_ours": round(peft["median_us"] / ours["median_us"], 2),
            "peft_over_ours_best": round(peft["best_us"] / ours["best_us"], 2),
            "largest_difference_from_peft": agreement,
        }
    return body


def _mixed_methods(
    dtype: torch.dtype, positions: int, requests: int = 256, count: int = 32
) -> tuple[dict[str, Callable[[Any], Tensor]], Callable[[int], Any]]:
    given, base = adapters(count, 16, dtype), layer(dtype)
    bank = ModuleBank("0", given)
    first, names = given[0], [f"e{i}" for i in range(count)]
    peft = peft_layer(given, layer(dtype))

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed + 10)
        x_BTI = torch.randn(requests, positions, WIDTH, generator=rng).to(dtype)
        return x_BTI, torch.randint(0, count, (requests,), generator=rng)

    def limit(drawn: tuple[Tensor, Tensor]) -> Tensor:
        x_NI = drawn[0].flatten(0, 1)
        y_NO = base(x_NI)
        return y_NO.addmm_(2.0 * (x_NI @ first.a_RI.T), first.b_OR.T)

    def ours(drawn: tuple[Tensor, Tensor], kernel: Any = "auto") -> Tensor:
        x_BTI, id_B = drawn
        index = id_B[:, None, None, None]
        routing = Routing(weights=torch.ones(index.shape), index=index)
        return mixed(x_BTI, bank, routing, kernel, base(x_BTI))

    def theirs(drawn: tuple[Tensor, Tensor]) -> Tensor:
        x_BTI, id_B = drawn
        return peft(x_BTI, adapter_names=[names[i] for i in id_B.tolist()])

    methods: dict[str, Callable[[Any], Tensor]] = {
        LIMIT: limit,
        "base layer alone": lambda drawn: base(drawn[0]),
        "crossroads": ours,
        "crossroads, dense": lambda drawn: ours(drawn, "dense"),
        "crossroads, grouped": lambda drawn: ours(drawn, "grouped"),
        "PEFT adapter_names": theirs,
    }
    return methods, draw


def arrow(seconds: float) -> dict[str, Any]:
    """Return figures of a whole layer with its router, beside PEFT's Arrow."""
    from peft import ArrowConfig, PeftModel, create_arrow_model

    # Adapters as trained ones are, with a main direction: PEFT finds it by an iteration that does
    # not settle where all directions of an adapter are of one size.
    falling_R = 0.5 ** torch.arange(8.0)
    given = [replace(one, b_OR=4 * one.b_OR * falling_R) for one in adapters(128, 8)]
    model = nn.Sequential(layer())
    RoutedModel(model, bank_of(given), build_router("arrow:k=2"))
    with tempfile.TemporaryDirectory() as folder:
        paths = _saved(given, Path(folder))
        theirs: PeftModel = create_arrow_model(
            nn.Sequential(layer()), paths, ArrowConfig(top_k=2, router_temperature=1.0)
        )
    theirs.eval()
    methods: dict[str, Callable[[Any], Tensor]] = {
        "base layer alone": layer(),
        "crossroads": model,
        "PEFT Arrow": theirs,
    }

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed + 10)
        return torch.randn(1, 1024, WIDTH, generator=rng)

    with torch.no_grad():
        agreement = _gap(methods["crossroads"](draw(-1)), methods["PEFT Arrow"](draw(-1)))
    figures = interleaved(methods, draw, seconds=seconds, limit="base layer alone")
    ours, peft = figures["crossroads"], figures["PEFT Arrow"]
    return {
        "methods": figures,
        "peft_over_ours": round(peft["median_us"] / ours["median_us"], 2),
        "peft_over_ours_best": round(peft["best_us"] / ours["best_us"], 2),
        "largest_difference_from_peft": agreement,
    }


def _saved(given: list[LoRA], folder: Path) -> list[str]:
    """Write adapters as PEFT does and return their folders."""
    from safetensors.torch import save_file

    rank, paths = given[0].rank, []
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["0"],
        "base_model_name_or_path": None, "task_type": None,
    }  # fmt: skip
    for place, one in enumerate(given):
        path = folder / f"e{place}"
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        tensors = {
            "base_model.model.0.lora_A.weight": one.a_RI.contiguous(),
            "base_model.model.0.lora_B.weight": one.b_OR.contiguous(),
        }
        save_file(tensors, path / "adapter_model.safetensors")
        paths.append(str(path))
    return paths


def choice(seconds: float) -> list[dict[str, Any]]:
    """Return a row per size: dense and grouped medians, the rule's choice, and what it cost."""
    sizes = [
        (rows, experts, rank)
        for rows in (1, 16, 64, 256, 1024, 4096)
        for experts, rank in ((12, 2), (8, 8), (8, 16), (32, 8), (32, 16), (128, 8))
    ]
    body = []
    with progress_bar("sizes") as told:
        for done, ((kind, dtype), (rows, experts, rank)) in enumerate(
            itertools.product(TYPES.items(), sizes)
        ):
            body.append({"type": kind, **_choice(dtype, rows, experts, rank, seconds / 60)})
            told(done + 1, len(TYPES) * len(sizes))
    return body


def _choice(
    dtype: torch.dtype, rows: int, experts: int, rank: int, seconds: float
) -> dict[str, Any]:
    bank, base = ModuleBank("0", adapters(experts, rank, dtype)), layer(dtype)

    def draw(seed: int) -> tuple[Tensor, Routing]:
        rng = torch.Generator().manual_seed(seed + 10)
        x_BTI = torch.randn(1, rows, WIDTH, generator=rng).to(dtype)
        scores = torch.rand(1, rows, 1, experts, generator=rng)
        best = scores.topk(2, -1)
        return x_BTI, Routing(weights=best.values, index=best.indices, normalised=False)

    def run(kernel: Any) -> Callable[[Any], Tensor]:
        return lambda drawn: mixed(drawn[0], bank, drawn[1], kernel, base(drawn[0]))

    methods = {"dense": run("dense"), "grouped": run("grouped")}
    figures = interleaved(methods, draw, seconds=seconds, limit="dense", least=5)
    chosen = choose(rows, 2, bank, dtype)
    best = min(figure["median_us"] for figure in figures.values())
    return {
        "rows": rows,
        "experts": experts,
        "rank": rank,
        "dense_us": figures["dense"]["median_us"],
        "grouped_us": figures["grouped"]["median_us"],
        "chosen": chosen,
        "over_best": round(figures[chosen]["median_us"] / best, 2),
    }


def _gap(one: Tensor, other: Tensor) -> float:
    return round((one - other.view_as(one)).abs().max().item(), 7)


PARTS: dict[str, Callable[[float], Any]] = {
    "mixed batch": mixed_batch,
    "arrow": arrow,
    "choice": choice,
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the choice as Markdown: microseconds of the dense and the grouped kernel."""
    lines = []
    for kind in dict.fromkeys(row["type"] for row in rows):
        mine = [row for row in rows if row["type"] == kind]
        banks = list(dict.fromkeys((row["experts"], row["rank"]) for row in mine))
        heads = " | ".join(f"{experts} x r {rank}" for experts, rank in banks)
        lines += [f"| {kind}, rows | {heads} |", "|---" * (len(banks) + 1) + "|"]
        for count in dict.fromkeys(row["rows"] for row in mine):
            cells = [_cell(row) for row in mine if row["rows"] == count]
            lines.append(f"| {count} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    shown = {"dense": f"{row['dense_us']:.0f}", "grouped": f"{row['grouped_us']:.0f}"}
    shown[row["chosen"]] = f"**{shown[row['chosen']]}**"
    return f"{shown['dense']} / {shown['grouped']}"


def write_page(rows: list[dict[str, Any]]) -> None:
    begin, end = "<!-- choice: generated -->\n", "<!-- end of choice -->"
    text = PAGE.read_text("utf-8")
    head, rest = text.split(begin)
    write_atomically(PAGE, head + begin + "\n" + table(rows) + "\n" + end + rest.split(end)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="for each comparison")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="renew these parts of the result")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    body: dict[str, Any] = {}
    if options.only and options.out.is_file():
        body = json.loads(options.out.read_text("utf-8"))
    body |= {
        "what": "Banks of adapters on one layer: CPU time on one thread, new inputs every round.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(LIBRARIES),
        "threads": 1,
    }
    for part in options.only or PARTS:
        print(f"{part} ...", file=sys.stderr)
        body[part] = PARTS[part](options.seconds)
        body.setdefault("load", {})[part] = load()
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")
    if PAGE.is_file() and options.out == RESULT:
        write_page(body["choice"])


if __name__ == "__main__":
    main()
