"""Train several arms side by side with paired seeds, and compare them seed by seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import getfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crossroads.core.errors import CrossroadsError
from crossroads.core.files import write_atomically
from crossroads.core.processes import unordered
from crossroads.core.progress import progress_bar
from crossroads.core.routed import routed_layers
from crossroads.core.statistics import Summary, paired_difference
from crossroads.moe.beds import ArenaBed
from crossroads.moe.building import MoESpec
from crossroads.moe.probing import figures, probe
from crossroads.moe.tasks import identify
from crossroads.moe.training import TrainConfig, Watch, train

# What a claim measures on a trained model beyond the bed's figures: plain numbers by name. Must be
# a function of a module, so that it can be sent to another process.
Inspect = Callable[[nn.Module, ArenaBed, TrainConfig], dict[str, float]]
KEPT = Path("runs") / "verify"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to fill the feed-forward places; ``changes`` are those to the bed's own spec."""

    router: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, bed: ArenaBed) -> MoESpec:
        return replace(bed.spec(self.router), **self.changes)


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Figures of every arm, one value a seed, in the order of ``seeds``."""

    seeds: tuple[int, ...]
    figures: Mapping[str, Mapping[str, tuple[float, ...]]]

    def of(self, arm: str, figure: str) -> tuple[float, ...]:
        """Return a figure of an arm, one value a seed."""
        return self.figures[arm][figure]

    def mean(self, arm: str, figure: str) -> float:
        return float(np.mean(self.of(arm, figure)))

    def difference(self, first: str, second: str, figure: str) -> Summary:
        """Return ``first - second`` seed by seed, with its interval."""
        return paired_difference(self.of(first, figure), self.of(second, figure))

    def table(self, names: Sequence[str], *, digits: int = 4) -> dict[str, dict[str, list[float]]]:
        """Return some figures of all arms as plain data, rounded."""
        return {
            arm: {n: [round(v, digits) for v in found[n]] for n in names if n in found}
            for arm, found in self.figures.items()
        }


def run_arms(
    bed: ArenaBed,
    arms: Mapping[str, Arm],
    config: TrainConfig,
    *,
    seeds: Iterable[int],
    inspect: Inspect | None = None,
    keep: str | None = None,
    jobs: int | None = None,
) -> Arms:
    """Train every arm with every seed and return their figures.

    Figures are the bed's, those of ``crossroads.moe.probing.figures`` (``load_cv``,
    ``active_experts``, ``agreement`` ...), ``mflops`` per token, ``loss`` (task loss of the last
    logged step) and what ``inspect`` returns. ``keep`` names a folder under runs/verify in which
    finished runs stay, so that a stopped job continues. Raises what training raises.
    """
    seeds = tuple(seeds)
    places = [(name, seed) for name in arms for seed in seeds]
    found: dict[tuple[str, int], dict[str, float]] = {}
    files = {p: _file(keep, bed, arms[p[0]], replace(config, seed=p[1]), inspect) for p in places}
    for place, file in files.items():
        if file is not None and file.exists():
            found[place] = {k: _number(v) for k, v in json.loads(file.read_text("utf-8")).items()}
    todo = [p for p in places if p not in found]
    with progress_bar(f"train {bed.name}: {len(arms)} arms") as report:
        report(len(found), len(places))
        calls = [(bed, place, arms[place[0]], config, inspect) for place in todo]
        for place, figures_of_run in unordered(_run, calls, jobs):
            found[place] = figures_of_run
            if (file := files[place]) is not None:
                write_atomically(file, json.dumps(_plain(figures_of_run)) + "\n")
            report(len(found), len(places))
    names = {name: list(found[name, seeds[0]]) for name in arms}
    return Arms(
        seeds=seeds,
        figures={
            name: {f: tuple(found[name, seed][f] for seed in seeds) for f in names[name]}
            for name in arms
        },
    )


def run_arm(
    bed: ArenaBed,
    arm: Arm,
    config: TrainConfig,
    *,
    inspect: Inspect | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Train one arm and return its figures."""
    done = train(bed, arm.spec(bed), config, progress=False, watch=watch)
    with torch.no_grad():
        output, labels_N = bed.probe(done.model)
        kinds = [layer.experts.kinds for layer in routed_layers(done.model)]
        found = {**done.figures, **figures(probe(output.records, kinds), labels_N)}
        found["mflops"] = output.flops / len(labels_N) / 1e6
        found["loss"] = float(done.history[-1]["loss"])
        if inspect is not None:
            found |= inspect(done.model, bed, config)
    return {name: float(value) for name, value in found.items()}


def _run(
    bed: ArenaBed,
    place: tuple[str, int],
    arm: Arm,
    config: TrainConfig,
    inspect: Inspect | None,
) -> tuple[tuple[str, int], dict[str, float]]:
    torch.set_num_threads(1)
    try:
        return place, run_arm(bed, arm, replace(config, seed=place[1]), inspect=inspect)
    except CrossroadsError as error:
        raise type(error)(f"arm {place[0]!r}, seed {place[1]}: {error}") from error


def _file(
    keep: str | None, bed: ArenaBed, arm: Arm, config: TrainConfig, inspect: Inspect | None
) -> Path | None:
    """Return where a run is kept: elsewhere when data, settings or the measuring code changed."""
    if keep is None:
        return None
    spec = arm.spec(bed)
    code = [identify(spec.router)] if inspect is None else [identify(spec.router), _code(inspect)]
    text = f"{bed.fingerprint} {spec} {config} {code} {torch.__version__}"
    return KEPT / keep / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.json"


def _code(inspect: Inspect) -> str:
    source = Path(getfile(inspect)).read_bytes()
    return hashlib.blake2b(source, digest_size=10).hexdigest()


def _plain(found: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
