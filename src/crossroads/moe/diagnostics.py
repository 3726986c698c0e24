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
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import routed_layers
from crossroads.core.trace import RoutingTrace
from crossroads.moe.contract import (
    Dense,
    ExpertChoice,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
)
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
    real = decision.mask_N.cpu().numpy()
    rows = _real_rows(decision, real)
    if isinstance(decision.choice, Dense):
        weight_SE = decision.choice.combine_GSEC.detach().abs().sum(-1).flatten(0, 1)
        counts = _Counts(weight_SE.double().cpu().numpy()[real].sum(0))
    elif isinstance(decision.choice, ExpertChoice):
        counts = _counts_of_slots(decision.choice, real)
    else:
        counts = _counts_of_choices(decision.choices, rows, decision.n_experts)
    found = _summary(counts, int(rows.sum()), kinds)
    if isinstance(decision.choice, Dense):
        found = replace(found, mean_active=float(decision.n_experts))
    if decision.probs_NE is None:
        return found
    probs = decision.probs_NE.detach().float()
    is_by_row = len(probs) == len(rows)
    return _with_certainty(found, _of(probs, rows) if is_by_row else probs.cpu().numpy())


@dataclass(frozen=True, slots=True)
class _Counts:
    """Picks by expert, how many of them were lost, and those that were not (None = all)."""

    picks_E: NDArray[np.float64]
    lost: int = 0
    kept_E: NDArray[np.float64] | None = None


def _counts_of_slots(choice: ExpertChoice, real_N: NDArray[np.bool_]) -> _Counts:
    tok_GEC = choice.tok_GEC.cpu().numpy()
    first_G11 = np.arange(len(tok_GEC))[:, None, None] * choice.group_size
    taken_GEC = (tok_GEC >= 0) & real_N[np.maximum(tok_GEC, 0) + first_G11]
    return _Counts(taken_GEC.sum((0, 2)).astype(np.float64))


def _counts_of_choices(choices: Sequence[Any], rows: NDArray[np.bool_], n_experts: int) -> _Counts:
    ids, lost = [], []
    for choice in choices:
        ids_NK = _of(choice.idx_NK, rows)
        is_lost = choice.dropped_NK is not None
        ids.append(ids_NK)
        lost.append(_of(choice.dropped_NK, rows) if is_lost else np.zeros(ids_NK.shape, bool))
    ids_NK, lost_NK = (np.concatenate(x, -1) if len(x) > 1 else x[0] for x in (ids, lost))
    return _counts(ids_NK, lost_NK & (ids_NK >= 0), n_experts)


def _counts(ids_NK: NDArray[np.int64], lost_NK: NDArray[np.bool_], n_experts: int) -> _Counts:
    def by_expert(places: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(ids_NK[places], minlength=n_experts).astype(np.float64)

    picked = ids_NK >= 0
    if not lost_NK.any():
        return _Counts(by_expert(picked))
    return _Counts(by_expert(picked), int(lost_NK.sum()), by_expert(picked & ~lost_NK))


def _of(values: Tensor, rows: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the values of some rows; nothing is copied for all of them."""
    array: NDArray[Any] = values.cpu().numpy()
    return array if rows.all() else array[rows]


def _real_rows(decision: RoutingDecision, real: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if decision.granularity == "token":
        return real
    rows = np.asarray(real.reshape(decision.shape).any(1), bool)
    return rows if decision.granularity == "sequence" else np.ones(1, bool)


def true_load(load: Sequence[float], kinds: Sequence[str]) -> NDArray[np.float64]:
    """Return the share of picks by true expert, null ones left out; zeros where none was picked."""
    load_E = np.array(load)[[kind != "null" for kind in kinds]]
    return np.asarray(load_E / max(float(load_E.sum()), 1e-30))


def variation(load_E: NDArray[np.float64]) -> float:
    """Return standard deviation over mean; 0 = perfectly balanced, or no load at all."""
    return float(load_E.std() / load_E.mean()) if load_E.sum() > 0 else 0.0


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
        summary = _summary(_counts(ids, lost, size), len(ids), row.get("expert_kinds"))
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


def _summary(counts: _Counts, n_rows: int, kinds: Sequence[str] | None) -> Summary:
    total = float(counts.picks_E.sum())
    load = counts.picks_E / max(total, 1e-300)
    ran_E = counts.picks_E if counts.kept_E is None else counts.kept_E
    if kinds is not None and "null" in kinds:
        ran_E = ran_E[[kind != "null" for kind in kinds]]
    mean = 1.0 / len(load)
    return Summary(
        load=tuple(load.tolist()),
        cv=float(load.std() / mean) if total > 0 else 0.0,
        max_over_mean=float(load.max() / mean),
        dead=tuple(np.flatnonzero(load < DEAD_SHARE * mean).tolist()),
        dropped=counts.lost / max(total, 1),
        mean_active=float(ran_E.sum()) / max(n_rows, 1),
    )


def _with_certainty(summary: Summary, probs_NE: NDArray[Any]) -> Summary:
    count, n_experts = probs_NE.shape
    if not count:
        return summary
    logs = np.log(probs_NE, out=np.zeros_like(probs_NE), where=probs_NE > 0)
    best = np.sort(probs_NE, -1)
    gaps = best[:, -1] - best[:, -2] if n_experts > 1 else best[:, -1]
    return replace(
        summary,
        entropy=0.0 - float((probs_NE * logs).sum(dtype=np.float64)) / count,
        margin=float(gaps.mean(dtype=np.float64)),
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
    from scipy.optimize import linear_sum_assignment  # here: training reads summaries alone
    from sklearn.metrics import normalized_mutual_info_score

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
    from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

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
