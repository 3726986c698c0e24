"""What a routed model did on a fixed batch, in the figures and tables that an arena compares.

Axes: N real tokens, E experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from crossroads.core import gating
from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord
from crossroads.moe.contract import Dense, RoutingDecision
from crossroads.moe.conversions import executed, to_token_choice
from crossroads.moe.diagnostics import Summary, summarise, true_load, variation
from crossroads.moe.execution import per_token

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProbe:
    """One routed layer (its first iteration) on the probe batch.

    Attributes
    ----------
    layer : index in the model
    summary : load, dropped share, experts per token, entropy
    top1_N : the executed expert of the largest weight, -1 for tokens without one; real tokens only
    experts_N : how many experts a real token ran (of a soft mixture: all of them)
    kinds : of the experts
    """

    layer: int
    summary: Summary
    top1_N: Ints
    experts_N: Ints
    kinds: tuple[str, ...]

    @property
    def true_load(self) -> Floats:
        """Share of picks by true expert, null ones left out; zeros where none was picked."""
        return true_load(self.summary.load, self.kinds)

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load over true experts; 0 = perfectly balanced."""
        return variation(self.true_load)


def probe(records: Sequence[LayerRecord], kinds: Sequence[tuple[str, ...]]) -> list[LayerProbe]:
    """Return one probe per routed layer; ``kinds`` are those of each layer's experts."""
    return [
        LayerProbe(
            layer=record.layer,
            summary=summarise(record.decisions[0], of_layer),
            top1_N=first_experts(record.decisions[0], of_layer),
            experts_N=experts_run(record.decisions[0], of_layer),
            kinds=tuple(of_layer),
        )
        for record, of_layer in zip(records, kinds, strict=True)
    ]


def first_experts(decision: RoutingDecision, kinds: Sequence[str]) -> Ints:
    """Return every real token's executed expert of the largest weight, -1 where there is none.

    Branches add up, each weighed by its gate; ties go to the lower expert.
    """
    weight_NE = torch.zeros(len(decision.mask_N), decision.n_experts, dtype=torch.float64)
    gates: list[Tensor | None] = [branch.gate_N1 for branch in decision.branches] or [None]
    for choice, gate_N1 in zip(decision.choices, gates, strict=True):
        share_NE = _weights(choice, decision, tuple(kinds))
        weight_NE += share_NE if gate_N1 is None else share_NE * gate_N1.detach().double()
    weight_NE = weight_NE[decision.mask_N].abs()
    top1_N = gating.first_maximum(weight_NE)
    return torch.where(weight_NE.sum(1) > 0, top1_N, -1).numpy()


def experts_run(decision: RoutingDecision, kinds: Sequence[str]) -> Ints:
    """Return how many experts every real token ran, calls of branches added up."""
    total_N = torch.zeros(len(decision.mask_N), dtype=torch.int64)
    for choice in decision.choices:
        if isinstance(choice, Dense):
            total_N += decision.n_experts
        else:
            spread = per_token(to_token_choice(choice), decision, *decision.shape)
            total_N += (executed(spread, tuple(kinds)) >= 0).sum(-1)
    return total_N[decision.mask_N].numpy()


def _weights(choice: object, decision: RoutingDecision, kinds: tuple[str, ...]) -> Tensor:
    """Return the weight that every token's output gets from every expert, (N, E)."""
    if isinstance(choice, Dense):
        return choice.combine_GSEC.detach().double().sum(-1).flatten(0, 1)
    spread = per_token(to_token_choice(choice), decision, *decision.shape)  # type: ignore[arg-type]
    idx_NK = executed(spread, kinds)
    w_NK = torch.where(idx_NK >= 0, spread.w_NK.detach().double(), 0.0)
    empty_NE = torch.zeros(idx_NK.shape[0], decision.n_experts, dtype=torch.float64)
    return empty_NE.scatter_add(1, idx_NK.clamp_min(0), w_NK)


def figures(probes: Sequence[LayerProbe], labels_N: Ints | None = None) -> dict[str, float]:
    """Return the means over layers that an arena compares; empty for dense models.

    ``labels_N`` names what each real token is (its class, its byte): ``specialisation`` is the
    normalised mutual information between that and its expert, ``agreement`` the same between
    adjacent routed layers' experts. Raises InputError for labels of other tokens.
    """
    if not probes:
        return {}

    def mean(values: Sequence[float | None]) -> float:
        return float(np.mean([np.nan if value is None else value for value in values]))

    nmi = normalized_mutual_info_score
    found = {
        "load_cv": mean([p.load_cv for p in probes]),
        "max_load": mean([p.summary.max_over_mean for p in probes]),
        "dropped": mean([p.summary.dropped for p in probes]),
        "active_experts": mean([p.summary.mean_active for p in probes]),
        "entropy": mean([p.summary.entropy for p in probes]),
    }
    if len(probes) > 1:
        found["agreement"] = mean([nmi(a.top1_N, b.top1_N) for a, b in itertools.pairwise(probes)])
    if labels_N is not None:
        if len(labels_N) != len(probes[0].top1_N):
            raise InputError(
                f"labels: expected one per real token ({len(probes[0].top1_N)}), "
                f"got {len(labels_N)}"
            )
        found["specialisation"] = mean([nmi(labels_N, p.top1_N) for p in probes])
    return found


def overlap(first: Sequence[LayerProbe], second: Sequence[LayerProbe]) -> float:
    """Return the share of tokens whose first expert is the same, mean over layers."""
    pairs = zip(first, second, strict=True)
    return float(np.mean([(a.top1_N == b.top1_N).mean() for a, b in pairs]))


def load_table(probe_of_layer: LayerProbe, labels_N: Ints) -> Floats:
    """Return share of each label's tokens by first expert, (labels in ascending order, true E).

    Null experts are no column: a first expert is one that ran.
    """
    true = [e for e, kind in enumerate(probe_of_layer.kinds) if kind != "null"]
    rows = []
    for label in np.unique(labels_N):
        experts = probe_of_layer.top1_N[(labels_N == label) & (probe_of_layer.top1_N >= 0)]
        count = np.bincount(experts, minlength=len(probe_of_layer.kinds))[true]
        rows.append(count / max(count.sum(), 1))
    return np.array(rows, dtype=np.float64)
