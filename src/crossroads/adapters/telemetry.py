"""What routing does in use: loads, certainty and agreement of layers, padding left out.

>>> telemetry = Telemetry(routed)                       # doctest: +SKIP
>>> with telemetry.on():                                # doctest: +SKIP
...     model.generate(**inputs)
>>> telemetry.report()["agreement"]                     # doctest: +SKIP

Only sums are kept, so a service may run it for as long as it likes. Weights are looked at as the
layer used them, each as a share of the sum of their sizes; where heads choose, their mean.

Axes: L layers that are looked at together, B sequences, T positions (b and t where weights hold for
all of them), N of both, H heads, E experts, K places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass, Seen
from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.core.gating import entropy

_CHUNK = 1 << 20  # numbers of a one-hot matrix looked at together


@dataclass(slots=True)
class _Sums:
    """Sums over real tokens, of layers with inputs of one form, which are looked at together."""

    tokens: float
    counts_LE: Tensor
    share_LE: Tensor
    entropy_L: Tensor
    margin_L: Tensor
    everyone_L: Tensor
    nobody_L: Tensor
    agreed_LL: Tensor

    @classmethod
    def zero(cls, n_layers: int, n_experts: int) -> _Sums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(n_layers, *shape, dtype=torch.float64)

        return cls(
            tokens=0.0,
            counts_LE=zeros(n_experts),
            share_LE=zeros(n_experts),
            entropy_L=zeros(),
            margin_L=zeros(),
            everyone_L=zeros(),
            nobody_L=zeros(),
            agreed_LL=zeros(n_layers),
        )


class Telemetry:
    """Sums of what the layers of a routed model decide.

    Parameters
    ----------
    routed : the model; its experts must stay the same while it is looked at
    agreement : also count how often two layers have the same first expert for a token
    """

    def __init__(self, routed: RoutedModel, *, agreement: bool = True) -> None:
        self.routed, self.agreement = routed, agreement
        self.experts: tuple[str, ...] = routed.bank.names
        self.n_passes = 0
        self._known = routed.bank.keys_by_name
        self._alive_E = {name: bank.alive_E for name, bank in routed.bank.layers.items()}
        self._sums: dict[tuple[str, ...], _Sums] = {}

    @contextmanager
    def on(self) -> Iterator[Telemetry]:
        """Look at every forward pass inside."""
        with self.routed.watched(self.add):
            yield self

    @torch.no_grad()
    def add(self, one: Pass) -> None:
        """Take one pass; experts are reported by the names they have in the last one.

        Raises InputError where they are others than at the start.
        """
        if not self.routed.bank.is_as_in(self._known):
            raise InputError("telemetry: the experts changed; begin another one for the new set")
        self.experts = self.routed.bank.names
        self.n_passes += 1
        for names, seen in _alike(one):
            sums = self._sums.get(names)
            if sums is None:
                sums = self._sums[names] = _Sums.zero(len(names), len(self.experts))
            alive_LE = torch.stack([self._alive_E[name] for name in names])
            self._count(sums, seen, alive_LE)

    def report(self) -> dict[str, Any]:
        """Return plain data.

        ``experts`` (names), ``passes``; ``layers``, by name: ``tokens``; ``counts`` of tokens an
        expert had weight for and its ``mean_share`` of the weights, by expert; ``entropy`` of the
        shares in nats and ``normalised_entropy`` (by that of all living experts alike); ``margin``
        between the largest and the second share; ``broadcast`` and ``unrouted``, the shares of
        tokens that went to all living experts and to none. Then ``agreement``: for ``layers`` over
        the same tokens, the ``matrix`` of the share of tokens two of them give to the same first
        expert.
        """
        layers: dict[str, Any] = {}
        agreement = []
        for names, sums in self._sums.items():
            for place, name in enumerate(names):
                layers.setdefault(name, []).append((sums, place))
            if self.agreement and sums.tokens:
                matrix = (sums.agreed_LL / sums.tokens).tolist()
                agreement.append({"layers": list(names), "tokens": sums.tokens, "matrix": matrix})
        return {
            "experts": list(self.experts),
            "passes": self.n_passes,
            "layers": {name: self._layer(name, found) for name, found in layers.items()},
            "agreement": agreement,
        }

    def save(self, path: Path) -> None:
        """Write the report as JSON. Atomic."""
        write_atomically(path, json.dumps(self.report(), indent=1) + "\n")

    def _layer(self, name: str, found: Sequence[tuple[_Sums, int]]) -> dict[str, Any]:
        tokens = sum(sums.tokens for sums, _ in found)
        if not tokens:
            return {"tokens": 0}

        def total(field: str) -> Tensor:
            return torch.stack([getattr(sums, field)[place] for sums, place in found]).sum(0)

        def mean(field: str) -> float:
            return float(total(field)) / tokens

        alive = int(self._alive_E[name].sum())
        return {
            "tokens": int(tokens),
            "counts": self._by_expert(total("counts_LE").long()),
            "mean_share": self._by_expert(total("share_LE") / tokens),
            "entropy": mean("entropy_L"),
            "normalised_entropy": mean("entropy_L") / log(alive) if alive > 1 else 0.0,
            "margin": mean("margin_L"),
            "broadcast": mean("everyone_L"),
            "unrouted": mean("nobody_L"),
        }

    def _by_expert(self, values_E: Tensor) -> dict[str, Any]:
        return dict(zip(self.experts, values_E.tolist(), strict=True))

    def _count(self, sums: _Sums, seen: Sequence[Seen], alive_LE: Tensor) -> None:
        share_LNE = _shares(seen, len(self.experts))
        tokens_N = _tokens(seen[0])
        is_there_LNE = share_LNE > 0
        best = share_LNE.topk(min(2, share_LNE.shape[-1]), -1)
        second_LN = best.values[..., 1] if best.values.shape[-1] > 1 else 0.0
        sums.tokens += float(tokens_N.sum())
        sums.counts_LE += torch.einsum("lne,n->le", is_there_LNE.float(), tokens_N)
        sums.share_LE += torch.einsum("lne,n->le", share_LNE, tokens_N)
        sums.entropy_L += entropy(share_LNE) @ tokens_N
        sums.margin_L += (best.values[..., 0] - second_LN) @ tokens_N
        everyone_LN = (is_there_LNE | ~alive_LE[:, None]).all(-1) & alive_LE.any(-1)[:, None]
        sums.everyone_L += everyone_LN.float() @ tokens_N
        sums.nobody_L += (~is_there_LNE.any(-1)).float() @ tokens_N
        if self.agreement:
            sums.agreed_LL += _agreed(share_LNE, tokens_N)


def _alike(one: Pass) -> Iterator[tuple[tuple[str, ...], list[Seen]]]:
    """Group the layers of a pass whose inputs and weights have one form."""
    groups: dict[Any, list[tuple[str, Seen]]] = {}
    for name, seen in one.seen.items():
        routing = seen.routing
        form = (seen.shape, id(seen.mask_BT), routing.index is None, routing.weights.shape)
        groups.setdefault(form, []).append((name, seen))
    for group in groups.values():
        yield tuple(name for name, _ in group), [seen for _, seen in group]


def _shares(seen: Sequence[Seen], n_experts: int) -> Tensor:
    """Return the shares (L, b * t, E) of the weights, zeros where there are none."""
    weights = torch.stack([s.routing.weights.detach().abs().float() for s in seen])
    indices = [s.routing.index for s in seen if s.routing.index is not None]
    if indices:
        empty = weights.new_zeros((*weights.shape[:-1], n_experts))
        weights = empty.scatter_add_(-1, torch.stack(indices), weights)
    share = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return share.mean(3).flatten(1, 2)


def _tokens(seen: Seen) -> Tensor:
    """Return how many real tokens every (b, t) of the weights stands for, (b * t,) float32."""
    tokens_BT = torch.ones(seen.shape) if seen.mask_BT is None else seen.mask_BT.float()
    for axis in (0, 1):
        if seen.routing.weights.shape[axis] == 1:
            tokens_BT = tokens_BT.sum(axis, keepdim=True)
    return tokens_BT.flatten()


def _agreed(share_LNE: Tensor, tokens_N: Tensor) -> Tensor:
    """Return for how many tokens two layers have the same first expert, (L, L)."""
    n_layers, n_tokens, n_experts = share_LNE.shape
    best_LN = share_LNE.argmax(-1)
    is_routed_LN = share_LNE.amax(-1) > 0
    agreed_LL = tokens_N.new_zeros(n_layers, n_layers, dtype=torch.float64)
    step = max(1, _CHUNK // (n_layers * n_experts))
    for start in range(0, n_tokens, step):
        part = slice(start, start + step)
        first_LNE = share_LNE.new_zeros(n_layers, len(tokens_N[part]), n_experts)
        first_LNE.scatter_(-1, best_LN[:, part, None], is_routed_LN[:, part, None].float())
        weighed_LNE = first_LNE * tokens_N[part, None]
        agreed_LL += weighed_LNE.flatten(1) @ first_LNE.flatten(1).T
    return agreed_LL
