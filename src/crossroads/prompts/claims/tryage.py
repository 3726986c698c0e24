"""Tryage: a router that predicts losses picks the best expert more often than one that reads cards.

Rules, set before measuring. (a) On six experts trained here on six kinds of text, the router, which
never sees the kind, picks the expert of least loss at least twice as often as the card router and
closes at least 80 % of the gap between the best single expert and the oracle. (b) On the twelve
experts of two sizes, raising the weight of size never raises the mean parameters, and no operating
point is above what any two experts reach by chance at the same mean. ``holds``: all of it in every
seed; ``holds in direction``: more often than the cards, part of the gap, and mean parameters that
never rise, in every seed; ``fails``: a mean loss above the best single expert's, or parameters that
rise; else ``null``. (c) The gain on replayed MMLU-Pro outcomes is reported and decides nothing: the
method is not expected to win there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.errors import MissingExtraError, UnavailableError
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import summarise
from crossroads.models.encoders import get_encoder
from crossroads.prompts.embedded import load_embedded
from crossroads.prompts.features import queries, table_features, training_set
from crossroads.prompts.pool import Pool
from crossroads.prompts.routers.tryage import Tryage
from crossroads.prompts.tryage.asked import NO_ANSWER, choose_by_asking
from crossroads.prompts.tryage.cards import choose_by_card
from crossroads.prompts.tryage.corpora import Corpus, Prompts, held_out_prompts, load_corpora
from crossroads.prompts.tryage.goals import scaled, size, sweep
from crossroads.prompts.tryage.measure import choice_figures, excess_over_mixing, one_hot
from crossroads.prompts.tryage.predictor import LossPredictor, fit_predictor

if TYPE_CHECKING:
    from crossroads.prompts.tryage.experts import Expert, Schedule

Float64 = npt.NDArray[np.float64]

SEEDS = (0, 1, 2)
PAPER = {"best_expert_chosen": 0.509, "gpt_3_5_turbo": 0.236, "gorilla": 0.108}
TIMES_THE_CARDS = 2.0
GAP_CLOSED = 0.8
WEIGHTS = (0.0, *np.geomspace(0.01, 10.0, 31).tolist())  # of size; losses are nats per byte
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Library:
    """Experts of two sizes, the prompts, and every expert's loss on every prompt.

    ``losses`` is (N, 2 G) for G domains: the larger experts first.
    """

    pool: Pool
    prompts: Prompts
    embeddings: npt.NDArray[np.float32]
    losses: Float64

    @property
    def num_domains(self) -> int:
        return len(self.pool) // 2


def verify(full: bool) -> Verdict:
    """Train the experts (or take them from the cache), then measure routers with three seeds.

    ``full`` trains a pool for each seed, takes twice as many prompts and asks SmolLM2 as well where
    it is installed. Raises InputError where this machine lacks one of the six kinds of text,
    MissingExtraError without torch.
    """
    corpora = load_corpora()
    per_domain = 600 if full else 300
    first = build_library(corpora, per_domain=per_domain, seed=SEEDS[0])
    rows = []
    for seed in SEEDS:
        again = full and seed != SEEDS[0]
        library = build_library(corpora, per_domain=per_domain, seed=seed) if again else first
        rows.append(measure_seed(library, seed))
    measured: dict[str, Any] = {
        "experts": dict(
            zip(first.pool.names, first.losses.mean(axis=0).round(3).tolist(), strict=True)
        ),
        "parameters": sorted({int(card.parameters or 0) for card in first.pool}),
        "prompts": len(first.prompts),
        "per_seed": rows,
        "mean": _means(rows),
        "replayed_mmlu_pro": {part: _replayed(part) for part in ("small", "complete")},
    }
    if full:
        measured["asked_smollm2"] = _asked(first)
    return Verdict(
        name="tryage",
        verdict=judge(rows),
        paper=PAPER,
        measured=measured,
        seeds=SEEDS,
        data=(
            "twelve byte-level language models trained here on six kinds of text of this machine; "
            "replayed MMLU-Pro outcomes of 2024 models"
        ),
    )


def judge(rows: Sequence[dict[str, Any]]) -> Outcome:
    """Return the verdict on the figures of all seeds; the module's text has the rules."""
    if any(not row["sizes_never_rise"] for row in rows):
        return "fails"
    gap = [row["tryage"]["gap_closed"] or 0.0 for row in rows]
    ahead = [row["tryage"]["agreement"] - row["cards"]["agreement"] for row in rows]
    if np.mean(gap) < 0:
        return "fails"
    if min(ahead) <= 0 or min(gap) <= 0:
        return "null"
    strong = all(
        row["tryage"]["agreement"] >= TIMES_THE_CARDS * row["cards"]["agreement"]
        and row["tryage"]["gap_closed"] >= GAP_CLOSED
        and row["worst_excess_over_mixing"] <= _ROUNDING
        and row["best_excess_over_mixing"] < 0
        for row in rows
    )
    return "holds" if strong else "holds in direction"


def build_library(
    corpora: Sequence[Corpus],
    *,
    per_domain: int,
    seed: int,
    schedule: Schedule | None = None,
    show: bool | None = None,
) -> Library:
    """Train both sizes of experts and measure them on held-out prompts."""
    from crossroads.prompts.tryage import experts

    how = schedule or experts.Schedule(seed=seed)
    base = experts.train_pool(corpora, experts.BASE, how, show=show)
    small = experts.train_pool(
        corpora, experts.SMALL, how, suffix=experts.SMALL_SUFFIX, show=show
    )  # fmt: skip
    prompts = held_out_prompts(corpora, per_domain=per_domain, length=experts.BASE.context)
    return Library(
        pool=experts.pool_of([*base, *small]),
        prompts=prompts,
        embeddings=get_encoder("static").encode(prompts.texts.tolist()),
        losses=loss_table([*base, *small], prompts, show=show),
    )


def loss_table(experts: Sequence[Expert], prompts: Prompts, *, show: bool | None = None) -> Float64:
    """Return every expert's loss on every prompt, (N, K), in nats per byte."""
    columns = []
    with progress_bar("measuring experts", show=show) as progress:
        for done, expert in enumerate(experts, start=1):
            columns.append(expert.losses(prompts.pieces))
            progress(done, len(experts))
    return np.stack(columns, axis=1)


def measure_seed(library: Library, seed: int) -> dict[str, Any]:
    """Return one seed's figures: routers on the larger experts, the size sweep on all."""
    train, test = library.prompts.split(seed)
    num = library.num_domains
    learnt, true = library.losses[train, :num], library.losses[test, :num]
    single = int(learnt.mean(axis=0).argmin())
    texts = library.prompts.texts[test].tolist()
    larger = library.pool.subset(library.pool.names[:num])
    choices = {
        "tryage": _predictor(library, train, slice(0, num), seed)
        .predict(library.embeddings[test])
        .argmin(axis=1),
        "cards": choose_by_card(larger, texts),
        "told_the_kind": _home_expert(library, test),
        "best_single": np.full(len(test), single),
        "oracle": true.argmin(axis=1),
    }
    shares = {name: one_hot(choice, num) for name, choice in choices.items()}
    shares["random"] = np.full(true.shape, 1.0 / num)
    figures: dict[str, Any] = {
        name: choice_figures(share, true, best_single=single).to_dict()
        for name, share in shares.items()
    }
    return {"seed": seed, "test_prompts": len(test), **figures, **_sweep(library, seed)}


def _home_expert(library: Library, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return the expert trained on each prompt's kind: what a label, hidden here, would say."""
    names = list(library.pool.names[: library.num_domains])
    return np.array([names.index(kind) for kind in library.prompts.domain[rows]], dtype=np.intp)


def _predictor(
    library: Library, train: npt.NDArray[np.intp], columns: slice, seed: int
) -> LossPredictor:
    rng = np.random.default_rng(seed)
    return fit_predictor(library.embeddings[train], library.losses[train, columns], rng=rng)


def _sweep(library: Library, seed: int) -> dict[str, Any]:
    """Weigh size from nothing to everything on experts of both sizes."""
    train, test = library.prompts.split(seed)
    predictor = _predictor(library, train, slice(None), seed)
    parameters = np.array([float(card.parameters or 0) for card in library.pool])
    found = sweep(
        predictor.predict(library.embeddings[test]),
        library.losses[test],
        penalty=scaled(size(library.pool), name="size", num_experts=len(library.pool)),
        measure=parameters,
        weights=WEIGHTS,
    )
    excess = excess_over_mixing(
        found.measure, found.loss, parameters, library.losses[test].mean(axis=0)
    )
    rise = np.diff(found.measure)
    return {
        "sizes_never_rise": bool((rise <= _ROUNDING * parameters.max()).all()),
        "worst_excess_over_mixing": float(excess.max()),
        "best_excess_over_mixing": float(excess.min()),
        "front": [
            {"weight": round(w, 4), "loss": round(loss, 4), "parameters": round(mean)}
            for w, loss, mean, kept in zip(
                found.weights.tolist(),
                found.loss.tolist(),
                found.measure.tolist(),
                found.is_on_front,
                strict=True,
            )
            if kept
        ],
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and half width of the 95 % interval over seeds, by router and figure."""
    routers = ("tryage", "cards", "told_the_kind", "random", "best_single", "oracle")
    return {
        router: {
            figure: {"mean": found.mean, "half_width": found.half_width}
            for figure in ("loss", "regret", "agreement", "gap_closed")
            if (found := summarise([row[router][figure] for row in rows])).mean is not None
        }
        for router in routers
    }


def _replayed(part: str) -> dict[str, Any]:
    """Return gain over the best single model and regret to the oracle on a shipped table."""
    table = load_embedded(part)
    features = table_features(table)
    gain, regret = [], []
    for seed in SEEDS:
        train, test = table.split_by_hash(seed)
        router = Tryage().fit(training_set(table, train, features), seed=seed)
        score = table.score[test].astype(np.float64)
        choice = router.predict(queries(table, test, features)).argmax(axis=1)
        single = int(table.score[train].mean(axis=0).argmax())
        reached = score[np.arange(len(test)), choice].mean()
        gain.append(float(reached - score[:, single].mean()))
        regret.append(float(score.max(axis=1).mean() - reached))
    return {"gain_over_best_single": gain, "regret": regret, "gain": summarise(gain).to_dict()}


def _asked(library: Library, num_prompts: int = 60) -> dict[str, Any] | str:
    """Ask SmolLM2 about a sample of the first seed's test prompts."""
    from crossroads.prompts.experts.smollm import SmolLM

    _, test = library.prompts.split(SEEDS[0])
    rows = np.random.default_rng(SEEDS[0]).permutation(test)[:num_prompts]
    num = library.num_domains
    larger = library.pool.subset(library.pool.names[:num])
    texts = library.prompts.texts[rows].tolist()
    try:
        with progress_bar("asking SmolLM2") as progress:
            choice = choose_by_asking(SmolLM(name="smollm2"), larger, texts, progress)
    except (MissingExtraError, UnavailableError) as missing:
        return f"not measured: {missing}"
    true = library.losses[rows, :num]
    single = int(library.losses[:, :num].mean(axis=0).argmin())
    read = choice != NO_ANSWER
    figures = choice_figures(
        one_hot(np.where(read, choice, single), num), true, best_single=single
    ).to_dict()
    return {"prompts": len(rows), "unreadable": int((~read).sum()), **figures}
