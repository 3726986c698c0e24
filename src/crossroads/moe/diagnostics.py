"""What routing looks like: load, certainty, consistency, agreement, redundancy, specialisation.

Everything is a function of decisions, traces or layers and changes none of them. Logarithms are
natural. The set is that of LibMoE-style analyses; the corrected specialisation subtracts what a
finite sample shows by chance.

Axes: N rows, E experts, K places, L columns of a trace, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import routed_layers
from crossroads.core.trace import RoutingTrace
from crossroads.moe.contract import Dense, Router, RouterInput, RouterOutput, RoutingDecision
from crossroads.moe.conversions import to_token_choice
from crossroads.moe.experts import Experts, FFNBank

NONE = -1
DEAD_SHARE = 0.1  # of the mean load; an expert below it is called dead


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One router call in figures.

    Attributes
    ----------
    load : share of picks per expert before capacity, sums to 1; null experts included
    cv : population standard deviation of the load over its mean
    max_over_mean : largest load times E
    dead : experts with less than a tenth of the mean load
    dropped : share of picks lost to capacity
    mean_active : experts a row really runs, on average (null, dropped and empty places are none)
    entropy : mean entropy of a row's probabilities in nats; None without probabilities
    margin : mean difference of the two largest probabilities; None without, 1 for one expert
    """

    load: tuple[float, ...]
    cv: float
    max_over_mean: float
    dead: tuple[int, ...]
    dropped: float
    mean_active: float
    entropy: float | None = None
    margin: float | None = None


def summarise(decision: RoutingDecision, kinds: Sequence[str] | None = None) -> Summary:
    """Return the figures of a decision; the routes of branches add up.

    A dense decision has no picks: its load is the share of absolute combine weight, and every
    expert is active. ``kinds`` says which experts are null.
    """
    probs = None if decision.probs_NE is None else decision.probs_NE.detach().float()
    real = decision.mask_N.cpu().numpy()
    rows = _real_rows(decision, real)
    if isinstance(decision.choice, Dense):
        weight_SE = decision.choice.combine_GSEC.detach().abs().sum(-1).flatten(0, 1)
        count_E = weight_SE.double().cpu().numpy()[real].sum(0)
        places, lost = np.zeros((1, 0), np.int64), np.zeros((1, 0), bool)
        found = _summary(places, lost, decision.n_experts, kinds, count_E)
        found = replace(found, mean_active=float(decision.n_experts))
    else:
        choices = [to_token_choice(choice) for choice in decision.choices]
        ids = torch.cat([c.idx_NK for c in choices], -1).cpu().numpy()[rows]
        live = torch.cat([c.live_NK for c in choices], -1).cpu().numpy()[rows]
        found = _summary(ids, (ids >= 0) & ~live, decision.n_experts, kinds)
    if probs is None:
        return found
    probs_N = probs.cpu().numpy()
    return _with_certainty(found, probs_N[rows] if len(probs_N) == len(rows) else probs_N)


def _real_rows(decision: RoutingDecision, real: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if decision.granularity == "token":
        return real
    rows = np.asarray(real.reshape(decision.shape).any(1), bool)
    return rows if decision.granularity == "sequence" else np.ones(1, bool)


def summarise_trace(trace: RoutingTrace) -> list[Summary]:
    """Return the figures of every column.

    Entropy and margin are those of the softmax of the logits, where the trace holds them, whatever
    the router made of them.
    """
    found = []
    for column, row in enumerate(trace.rows):
        lost = _places(trace.dropped, column, trace)
        wanted = trace.expert if trace.wanted is None else trace.wanted
        ids = _ids(wanted[:, column], trace.sentinel)
        size = trace.experts_per_column[column]
        summary = _summary(ids, lost, size, row.get("expert_kinds"))
        logits = None if trace.logits is None else trace.logits[:, column, :size]
        if logits is not None and np.isfinite(logits).any():
            scores = logits.astype(np.float64)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            summary = _with_certainty(summary, share / share.sum(-1, keepdims=True))
        found.append(summary)
    return found


def _places(array: NDArray[np.bool_] | None, column: int, trace: RoutingTrace) -> NDArray[np.bool_]:
    shape = (trace.expert.shape[0], trace.expert.shape[2])
    return np.zeros(shape, bool) if array is None else np.asarray(array[:, column])


def _ids(expert: NDArray[Any], sentinel: int) -> NDArray[np.int64]:
    ids = expert.astype(np.int64)
    return np.where(ids == sentinel, NONE, ids)


def _firsts(trace: RoutingTrace, column: int) -> NDArray[np.int64]:
    """Return the first expert of every row, -1 where there is none."""
    if not 0 <= column < trace.n_columns:
        raise InputError(f"column: the trace has 0 to {trace.n_columns - 1}, got {column}")
    return _ids(trace.expert[:, column, 0], trace.sentinel)


def _summary(
    ids_NK: NDArray[np.int64],
    lost_NK: NDArray[np.bool_],
    n_experts: int,
    kinds: Sequence[str] | None,
    count_E: NDArray[np.float64] | None = None,
) -> Summary:
    picked = ids_NK >= 0
    if count_E is None:
        count_E = np.bincount(ids_NK[picked], minlength=n_experts).astype(np.float64)
    load = count_E / max(count_E.sum(), 1e-300)
    is_null = np.array([kind == "null" for kind in kinds or ["ffn"] * n_experts])
    runs = picked & ~lost_NK & ~is_null[np.maximum(ids_NK, 0)]
    mean = 1.0 / n_experts
    return Summary(
        load=tuple(load.tolist()),
        cv=float(load.std() / mean) if load.any() else 0.0,
        max_over_mean=float(load.max() / mean),
        dead=tuple(np.flatnonzero(load < DEAD_SHARE * mean).tolist()),
        dropped=float(lost_NK.sum() / max(picked.sum(), 1)),
        mean_active=float(runs.sum() / max(len(ids_NK), 1)),
    )


def _with_certainty(summary: Summary, probs_NE: NDArray[Any]) -> Summary:
    probs = probs_NE.astype(np.float64)
    if not len(probs):
        return summary
    logs = np.log(np.where(probs > 0, probs, 1.0))
    best = np.sort(probs, -1)[:, ::-1]
    second = best[:, 1] if best.shape[1] > 1 else np.zeros(len(best))
    return replace(
        summary,
        entropy=float(-(probs * logs).sum(-1).mean()),
        margin=float((best[:, 0] - second).mean()),
    )


# ---------------------------------------------------------------------- between two runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Consistency:
    """How alike two runs route the same rows, per column.

    ``switched`` is the share of rows whose first expert differs, ``overlap`` the mean size of the
    common set over the larger of both sets, ``same_place`` the share of places with equal experts.
    """

    switched: tuple[float, ...]
    overlap: tuple[float, ...]
    same_place: tuple[float, ...]


def consistency(one: RoutingTrace, other: RoutingTrace) -> Consistency:
    """Return how alike two checkpoints (or clean and noisy input) route a fixed batch.

    Raises InputError when the traces are not about the same tokens and columns.
    """
    if one.expert.shape[:2] != other.expert.shape[:2] or not (
        np.array_equal(one.token_id, other.token_id) and np.array_equal(one.seq_ptr, other.seq_ptr)
    ):
        raise InputError(
            "traces: recorded from different tokens or layers; record both on the same batch"
        )
    figures = [
        _alike(_ids(one.expert[:, c], one.sentinel), _ids(other.expert[:, c], other.sentinel))
        for c in range(one.n_columns)
    ]
    switched, overlap, same_place = zip(*figures, strict=True) if figures else ((), (), ())
    return Consistency(switched=switched, overlap=overlap, same_place=same_place)


def _alike(a_NK: NDArray[np.int64], b_NK: NDArray[np.int64]) -> tuple[float, float, float]:
    k = max(a_NK.shape[1], b_NK.shape[1])
    a_NK, b_NK = (
        np.pad(x, [(0, 0), (0, k - x.shape[1])], constant_values=NONE) for x in (a_NK, b_NK)
    )
    common = ((a_NK[:, :, None] == b_NK[:, None, :]) & (a_NK[:, :, None] >= 0)).sum((1, 2))
    larger = np.maximum((a_NK >= 0).sum(1), (b_NK >= 0).sum(1))
    shared = np.where(larger > 0, common / np.maximum(larger, 1), 1.0)
    there = (a_NK >= 0) | (b_NK >= 0)
    same = ((a_NK == b_NK) & there).sum() / max(there.sum(), 1)
    return float((a_NK[:, 0] != b_NK[:, 0]).mean()), float(shared.mean()), float(same)


def saturation(checkpoints: Sequence[RoutingTrace]) -> NDArray[np.float64]:
    """Return the overlap of every checkpoint with the last one, (checkpoints, L)."""
    if not checkpoints:
        raise InputError("checkpoints: expected at least one trace, in order of training")
    return np.array([consistency(trace, checkpoints[-1]).overlap for trace in checkpoints])


# ---------------------------------------------------------------------- between layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far two columns say the same: after the best relabelling, and as information."""

    matched: float
    nmi: float


def layer_agreement(trace: RoutingTrace, first: int, second: int) -> Agreement:
    """Return the agreement of two columns' first experts.

    ``matched`` is the share of rows that agree under the one-to-one relabelling of experts that
    makes it largest (at least 1 / E by chance), ``nmi`` the normalised mutual information.
    """
    a, b = (_firsts(trace, column) for column in (first, second))
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    if not len(a):
        raise InputError(f"columns {first} and {second}: no row has an expert in both")
    size = trace.n_experts
    together = np.bincount(a * size + b, minlength=size * size).reshape(size, size)
    rows, columns = linear_sum_assignment(together, maximize=True)
    return Agreement(
        matched=float(together[rows, columns].sum() / len(a)),
        nmi=float(normalized_mutual_info_score(a, b)),
    )


# ---------------------------------------------------------------------- specialisation


@dataclass(frozen=True, kw_only=True, slots=True)
class Specialisation:
    """Information about a label in the first expert: plain NMI, and with chance taken out.

    ``corrected`` = (I - C) / (H(expert) - C), C the mean information under permuted labels: 1 for
    an expert that the label determines, about 0 for independence. 0 when one expert serves all.
    """

    nmi: float
    corrected: float


def specialisation(
    trace: RoutingTrace,
    column: int,
    labels: NDArray[Any] | None = None,
    *,
    permutations: int = 20,
    seed: int = 0,
) -> Specialisation:
    """Return how much the first expert of a column tells about labels (default: token ids).

    ``labels`` has one integer per row. Raises InputError for another length or type, and where
    token ids were not recorded.
    """
    given = trace.token_id if labels is None else np.asarray(labels)
    if labels is None and (given < 0).any():
        raise InputError(
            "labels: the trace does not know its tokens; record them with token_id_BT, or give "
            "labels"
        )
    if given.dtype.kind not in "biu":
        raise InputError(f"labels: expected integers, got {given.dtype}; number the classes")
    expert = _firsts(trace, column)
    if given.shape != expert.shape:
        raise InputError(
            f"labels: expected one per row, shape {expert.shape}, got {given.shape}; "
            "spread decisions about sequences with per_token()"
        )
    if permutations < 1:
        raise InputError(f"permutations: expected at least 1, got {permutations}")
    label, expert = given[expert >= 0], expert[expert >= 0]
    if not len(expert):
        raise InputError(f"column {column}: no row has an expert")
    rng = np.random.default_rng(seed)
    chance = float(
        np.mean([mutual_info_score(rng.permutation(label), expert) for _ in range(permutations)])
    )
    information = float(mutual_info_score(label, expert))
    most = float(mutual_info_score(expert, expert))
    room = most - chance
    return Specialisation(
        nmi=float(normalized_mutual_info_score(label, expert)),
        corrected=(information - chance) / room if room > 1e-12 else 0.0,
    )


# ---------------------------------------------------------------------- of layers and models


def mean_pairwise_cosine(rows_EX: Tensor) -> float:
    """Return the mean cosine over pairs of different rows; 0 for a single row."""
    flat = torch.nn.functional.normalize(rows_EX.detach().flatten(1).double(), dim=-1)
    count = len(flat)
    if count < 2:
        return 0.0
    cosine = flat @ flat.T
    return float((cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1)))


def output_redundancy(experts: Experts, probe_ND: Tensor) -> float:
    """Return the mean cosine of two experts' outputs for a token, over a probe batch.

    Near 1 the experts have collapsed into one. Null and constant experts are left out.
    """
    members = [e for e, kind in enumerate(experts.kinds) if kind not in ("null", "const")]
    with torch.no_grad():
        outs = torch.stack([experts.expert(e, probe_ND) for e in members])
    unit = torch.nn.functional.normalize(outs.double(), dim=-1)
    count = len(members)
    if count < 2:
        return 0.0
    total = unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))
    return float(total.mean() / (count * (count - 1)))


def weight_redundancy(experts: FFNBank) -> float:
    """Return the mean cosine between the experts' first weight matrices."""
    return mean_pairwise_cosine(experts.up)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """A metric as it is, and with every token's best expert forbidden."""

    plain: float
    without_best: float


def drop_top1_sensitivity(model: nn.Module, metric: Callable[[], float]) -> Sensitivity:
    """Return ``metric()``, which evaluates ``model``, as it is and ``without_best`` experts."""
    plain = metric()
    with without_best(model):
        return Sensitivity(plain=plain, without_best=metric())


@contextmanager
def without_best(model: nn.Module) -> Iterator[None]:
    """Forbid every token's best expert in all routed layers, for the duration.

    The router decides, and decides again with its first choice closed; the layers above see what
    that did. Routers without token choices are left as they are. Raises InputError for a model
    without routed layers.
    """
    routers = {id(r): r for layer in routed_layers(model) for r in _routers(layer)}
    if not routers:
        raise InputError("model: has no routed layer; give one with experts")
    hooks = [router.register_forward_hook(_again) for router in routers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _routers(layer: Any) -> Sequence[Router]:
    found: Sequence[Router] = layer.routers
    return found


def _again(router: Any, inputs: tuple[RouterInput, ...], answer: RouterOutput) -> RouterOutput:
    inp, decision = inputs[0], answer.decision
    if not hasattr(decision.choice, "idx_NK") or decision.granularity != "token":
        return answer
    best_N = decision.choice.idx_NK[:, :1]  # type: ignore[union-attr]
    closed_NE = torch.zeros(len(best_N), decision.n_experts, dtype=torch.bool)
    closed_NE = closed_NE.to(best_N.device).scatter(1, best_N.clamp_min(0), True)
    allow = ~closed_NE.reshape(*inp.mask_BT.shape, -1)
    if inp.allow is not None:  # (E,), (B, E) or (B, T, E)
        allow = allow & (inp.allow.unsqueeze(1) if inp.allow.ndim == 2 else inp.allow)
    result: RouterOutput = router.decide(replace(inp, allow=allow))
    return result
