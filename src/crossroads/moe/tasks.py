"""The arena of layers of experts: train the same small model with each router, and compare.

Every arm of a task has the same backbone, the same first weights of it, the same batches in the
same order and the same compute in its feed-forwards. A cell is one training run.

Axes: N real tokens of the probe batch, E experts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from crossroads.core.arena import Cell, Leaderboard, Metric
from crossroads.core.fingerprints import hash_of_modules
from crossroads.core.routed import routed_layers
from crossroads.moe.beds import ArenaBed, Preset, without_ids
from crossroads.moe.building import DENSE
from crossroads.moe.fingerprints import code_fingerprint
from crossroads.moe.probing import LayerProbe, figures, load_table, overlap, probe
from crossroads.moe.routers import build_router, parse_router, router_class, router_names
from crossroads.moe.training import TrainConfig, train

if TYPE_CHECKING:
    from crossroads.core.report import Plot

BASELINES = ("dense", "switch", "top2", "hash", "random", "loss-free", "sigmoid")
SNAPSHOTS = 8  # times in a run at which routing is compared with its end
COMMON: tuple[Metric, ...] = (
    Metric(
        name="mflops",
        title="Compute",
        unit="MFLOP/token",
        higher_is_better=False,
        help="Of the feed-forwards, routers and experts together; attention is the same in all.",
    ),
    Metric(
        name="tokens_per_s",
        title="Speed",
        unit="tokens/s",
        digits=0,
        help="Of a training step on this machine, one thread.",
    ),
    Metric(
        name="active_experts",
        title="Experts per token",
        digits=2,
        higher_is_better=None,
        help="Mean number a token ran, shared and null ones left out; all of them, if slots mix.",
    ),
    Metric(
        name="load_cv",
        title="Load CV",
        higher_is_better=False,
        help="Standard deviation over mean of the true experts' loads; 0 is perfectly balanced.",
    ),
    Metric(
        name="dropped",
        title="Dropped",
        headline=False,
        higher_is_better=None,
        help="Share of picks lost to capacity.",
    ),
    Metric(
        name="entropy",
        title="Entropy",
        unit="nats",
        headline=False,
        higher_is_better=None,
        help="Mean entropy of a token's probabilities over experts.",
    ),
    Metric(
        name="agreement",
        title="Layer agreement",
        headline=False,
        higher_is_better=None,
        help="Normalised mutual information of the experts chosen in adjacent routed layers.",
    ),
    Metric(
        name="specialisation",
        title="Specialisation",
        headline=False,
        higher_is_better=None,
        help="Normalised mutual information of a token's expert and what the token is.",
    ),
    Metric(
        name="saturation",
        title="Saturation",
        headline=False,
        higher_is_better=None,
        help="Share of probe tokens that have their final expert half-way through training.",
    ),
    Metric(
        name="parameters",
        title="Parameters",
        digits=0,
        headline=False,
        higher_is_better=False,
        help="Of the whole model.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MoETask:
    """One bed under one preset; satisfies ``crossroads.core.arena.Task``.

    ``config`` overrides the preset's (shorter runs in tests). ``is_selection`` says that somebody
    chose the routers, so that the notes need not tell which others there are.
    """

    bed: ArenaBed
    preset: Preset = "quick"
    config: TrainConfig | None = None
    family: str = "moe"
    baselines: Sequence[str] = BASELINES
    evidence: str = "trained here"
    remarks: Sequence[str] = field(default=())
    is_selection: bool = False

    def __post_init__(self) -> None:
        able = tuple(name for name in self.baselines if not misfit(name, self.bed))
        object.__setattr__(self, "baselines", able)

    @property
    def name(self) -> str:
        return f"{self.bed.name}-{self.preset}"

    @property
    def metrics(self) -> Sequence[Metric]:
        return (*self.bed.metrics, *COMMON)

    @property
    def training(self) -> TrainConfig:
        return self.config or self.bed.config(self.preset)

    @property
    def description(self) -> str:
        config = self.training
        return f"{self.bed.description}; {config.steps} steps of {config.batch_size}"

    @property
    def notes(self) -> Sequence[str]:
        notes = [
            "experts are sized for the compute of the dense arm; routers that run more than two "
            "experts a token spend more, see Compute"
        ]
        if self.bed.causal and not self.is_selection:
            left_out = [n for n in router_names() if not serves(n, causal=True)]
            notes.append(f"routers that look at later tokens are left out: {', '.join(left_out)}")
        for name in BASELINES:
            if why := misfit(name, self.bed):
                notes.append(f"the baseline {name} is left out: it {why}")
        return (*notes, *self.remarks)

    @property
    def fingerprint(self) -> str:
        text = f"{self.bed.fingerprint} {self.training} torch {torch.__version__}"
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

    def identify(self, router: str) -> str:
        return identify(router)

    def run(self, router: str, seed: int) -> Cell:
        """Train one model and judge it."""
        config = replace(self.training, seed=seed)
        watch = _Watch(self.bed, config)
        started = time.perf_counter()
        done = train(self.bed, self.bed.spec(router), config, progress=False, watch=watch)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            before = time.perf_counter()
            output, labels_N = self.bed.probe(done.model)
            decide_seconds = (time.perf_counter() - before) / len(labels_N)
        probes = probe(output.records, _kinds(done.model))
        tokens = self.bed.tokens(config)
        metrics = {
            **done.figures,
            "mflops": output.flops / len(labels_N) / 1e6,
            "tokens_per_s": tokens * config.steps / watch.training_seconds(seconds),
            "parameters": float(sum(p.numel() for p in done.model.parameters())),
            **figures(probes, labels_N),
        }
        if probes:
            metrics["saturation"] = watch.half_way(probes)
        return Cell(
            metrics=metrics,
            fit_seconds=seconds,
            decide_seconds=decide_seconds,
            curves=_curves(done.history, watch, probes),
            notes=_notes(probes, labels_N),
        )

    def plots(self, board: Leaderboard) -> Sequence[Plot]:
        """Return the curves and heat maps of the report."""
        from crossroads.moe.plots import moe_plots

        return moe_plots(board, self.bed.metrics[0])


def identify(router: str) -> str:
    """Return the router with a digest of the code that its cells depend on.

    That is the source of this room and of what it runs on, and of a router from elsewhere.
    """
    if router == DENSE:
        return f"{DENSE} {code_fingerprint()}"
    own = hash_of_modules([router_class(parse_router(router)[0])])
    return f"{router} {code_fingerprint()} {own}"


def serves(router: str, *, causal: bool) -> bool:
    """Return whether a router can stand in a backbone; decoders take none that looks ahead."""
    return not causal or router == DENSE or build_router(router, 8, 8).causal_safe


def misfit(router: str, bed: ArenaBed) -> str:
    """Return why a router cannot stand in a bed's backbone, or nothing where it can."""
    if not serves(router, causal=bed.causal):
        return "looks at later tokens and cannot serve a decoder"
    if router == DENSE:
        return ""
    return without_ids(router, bed)


def candidates(bed: ArenaBed) -> list[str]:
    """Return the routers a bed can compare, baselines left out."""
    names = [n for n in router_names() if n not in BASELINES and not misfit(n, bed)]
    return names + (["da-moe:importance=self"] if bed.causal else [])


class _Watch:
    """Looks at the routing of the probe batch now and then during training."""

    def __init__(self, bed: ArenaBed, config: TrainConfig) -> None:
        self.bed = bed
        self.due = {round(config.steps * (i + 1) / SNAPSHOTS) for i in range(SNAPSHOTS - 1)}
        self.middle = round(config.steps / 2)
        self.seen: dict[int, list[LayerProbe]] = {}
        self.seconds = 0.0

    def __call__(self, step: int, model: nn.Module) -> None:
        if step not in self.due:
            return
        before = time.perf_counter()
        model.eval()
        with torch.no_grad():
            output, _ = self.bed.probe(model)
        if output.records:
            self.seen[step] = probe(output.records, _kinds(model))
        self.seconds += time.perf_counter() - before

    def training_seconds(self, total: float) -> float:
        return max(total - self.seconds, 1e-9)

    def half_way(self, last: Sequence[LayerProbe]) -> float:
        step = min(self.seen, key=lambda s: abs(s - self.middle))
        return overlap(self.seen[step], last)


def _kinds(model: nn.Module) -> list[tuple[str, ...]]:
    return [layer.experts.kinds for layer in routed_layers(model)]


def _curves(
    history: Sequence[Any], watch: _Watch, last: Sequence[LayerProbe]
) -> dict[str, list[list[float]]]:
    curves = {"loss": [[float(row["step"]), row["loss"]] for row in history if "loss" in row]}
    if watch.seen:
        curves["saturation"] = [[float(s), overlap(p, last)] for s, p in watch.seen.items()]
        curves["active"] = [
            [float(s), float(np.mean([layer.summary.mean_active for layer in p]))]
            for s, p in watch.seen.items()
        ]
    return curves


def _notes(probes: Sequence[LayerProbe], labels_N: Any) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "load": {str(p.layer): [round(float(v), 4) for v in p.true_load] for p in probes}
    }
    if probes and len(np.unique(labels_N)) <= 16:
        table = load_table(probes[-1], labels_N)
        notes["by_label"] = [[round(float(v), 4) for v in row] for row in table]
        notes["labels"] = [int(label) for label in np.unique(labels_N)]
    return notes
