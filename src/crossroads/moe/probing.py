"""What a routed model did on a fixed batch: figures for tables, curves and heat maps.

Axes: N real tokens, E experts, L routed layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossroads.core import gating
from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord
from crossroads.moe.contract import Dense, RoutingDecision
from crossroads.moe.conversions import executed, to_token_choice
from crossroads.moe.execution import per_token

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProbe:
    """One routed layer on the probe batch, real tokens only.

    Attributes
    ----------
    layer : index in the model
    load_E : share of executed places by expert; for soft mixtures, of combine weight
    top1_N : expert of the largest weight, -1 for tokens without one
    experts_N : how many experts a token ran (for soft mixtures: slots' worth)
    dropped : share of picked places lost to capacity
    entropy : mean entropy of the router's probabilities in nats, NaN without probabilities
    """

    layer: int
    load_E: Floats
    top1_N: Ints
    experts_N: Floats
    dropped: float
    entropy: float
    kinds: tuple[str, ...] = field(default=())

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load over true experts; 0 = perfectly balanced."""
        true_E = self.load_E[[k != "null" for k in self.kinds]] if self.kinds else self.load_E
        mean = float(true_E.mean())
        return float(true_E.std() / mean) if mean > 0 else 0.0

    @property
    def max_over_mean(self) -> float:
        mean = float(self.load_E.mean())
        return float(self.load_E.max() / mean) if mean > 0 else 0.0


def probe(records: Sequence[LayerRecord], kinds: Sequence[tuple[str, ...]]) -> list[LayerProbe]:
    """Return one probe per routed layer (its first iteration); ``kinds`` of its experts."""
    return [
        _of_layer(record.layer, record.decisions[0], kinds[i]) for i, record in enumerate(records)
    ]


def _of_layer(layer: int, decision: RoutingDecision, kinds: tuple[str, ...]) -> LayerProbe:
    real_N = decision.mask_N
    weight_NE = torch.zeros(len(real_N), decision.n_experts, dtype=torch.float64)
    ran_NE = torch.zeros_like(weight_NE)
    picked = lost = 0.0
    gates = [branch.gate_N1 for branch in decision.branches] or [None]
    for choice, gate_N1 in zip(decision.choices, gates, strict=True):
        w_NE, r_NE, places, drops = _spread(choice, decision, kinds)
        weight_NE += w_NE if gate_N1 is None else w_NE * gate_N1.detach().double()
        ran_NE += r_NE
        picked, lost = picked + places, lost + drops
    weight_NE, ran_NE = weight_NE[real_N], ran_NE[real_N]
    top1_N = gating.first_maximum(weight_NE.abs())
    top1_N = torch.where(ran_NE.sum(1) > 0, top1_N, -1)
    load_E = ran_NE.sum(0)
    entropy = float("nan")
    if decision.probs_NE is not None and decision.probs_NE.shape[0] == len(real_N):
        entropy = float(gating.entropy(decision.probs_NE.detach()[real_N]).mean())
    return LayerProbe(
        layer=layer,
        load_E=(load_E / load_E.sum().clamp_min(1e-30)).numpy(),
        top1_N=top1_N.numpy(),
        experts_N=ran_NE.sum(1).numpy(),
        dropped=lost / picked if picked else 0.0,
        entropy=entropy,
        kinds=tuple(kinds),
    )


def _spread(
    choice: Any, decision: RoutingDecision, kinds: tuple[str, ...]
) -> tuple[Tensor, Tensor, float, float]:
    """Return weights and runs by token and expert, and how many places were picked and lost."""
    if isinstance(choice, Dense):
        combine_NE = choice.combine_GSEC.detach().double().sum(-1).flatten(0, 1)
        slots = choice.dispatch_GSEC.shape[-1] * choice.dispatch_GSEC.shape[0]
        # A soft layer runs E * C slots a group whatever the tokens; shared out by weight.
        per_token_runs = combine_NE / combine_NE.sum().clamp_min(1e-30)
        return combine_NE, per_token_runs * slots * decision.n_experts, 0.0, 0.0
    choice = per_token(to_token_choice(choice), decision, *decision.shape)
    idx_NK = executed(choice, kinds)
    there_NK = (idx_NK >= 0).double()
    empty = torch.zeros(idx_NK.shape[0], decision.n_experts, dtype=torch.float64)
    weight_NE = empty.scatter_add(1, idx_NK.clamp_min(0), choice.w_NK.detach().double() * there_NK)
    ran_NE = empty.scatter_add(1, idx_NK.clamp_min(0), there_NK)
    picked = float((choice.idx_NK >= 0).sum())
    lost = 0.0 if choice.dropped_NK is None else float(choice.dropped_NK.sum())
    return weight_NE, ran_NE, picked, lost


def figures(probes: Sequence[LayerProbe], labels_N: Ints | None = None) -> dict[str, float]:
    """Return the means over layers that an arena compares; empty for dense models.

    ``labels_N`` names what each real token is (its class, its byte): ``specialisation`` is the
    normalised mutual information between that and its expert, ``agreement`` the same between
    adjacent routed layers' experts.
    """
    if not probes:
        return {}
    from sklearn.metrics import normalized_mutual_info_score as nmi

    found = {
        "load_cv": float(np.mean([p.load_cv for p in probes])),
        "max_load": float(np.mean([p.max_over_mean for p in probes])),
        "dropped": float(np.mean([p.dropped for p in probes])),
        "active_experts": float(np.mean([p.experts_N.mean() for p in probes])),
        "entropy": float(np.mean([p.entropy for p in probes])),
    }
    if len(probes) > 1:
        pairs = itertools.pairwise(probes)
        found["agreement"] = float(np.mean([nmi(a.top1_N, b.top1_N) for a, b in pairs]))
    if labels_N is not None:
        if len(labels_N) != len(probes[0].top1_N):
            raise InputError(
                f"labels: expected one per real token ({len(probes[0].top1_N)}), "
                f"got {len(labels_N)}"
            )
        found["specialisation"] = float(np.mean([nmi(labels_N, p.top1_N) for p in probes]))
    return found


def overlap(first: Sequence[LayerProbe], second: Sequence[LayerProbe]) -> float:
    """Return the share of tokens whose first expert is the same, mean over layers."""
    return float(
        np.mean([(a.top1_N == b.top1_N).mean() for a, b in zip(first, second, strict=True)])
    )


def load_table(probe_of_layer: LayerProbe, labels_N: Ints) -> Floats:
    """Return share of each label's tokens by first expert, (labels in ascending order, E)."""
    rows = []
    for label in np.unique(labels_N):
        experts = probe_of_layer.top1_N[(labels_N == label) & (probe_of_layer.top1_N >= 0)]
        count = np.bincount(experts, minlength=len(probe_of_layer.load_E))
        rows.append(count / max(count.sum(), 1))
    return np.array(rows, dtype=np.float64)
