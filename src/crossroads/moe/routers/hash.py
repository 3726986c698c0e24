"""Hash routing: the expert of a token is a fixed function of what the token is.

Source: Hash Layers (2021), with the plain modulo as the hash. Nothing is learned, no loss is
added, and the weight is constant. Patches of an image have no id: the sum of their raw values,
a whole number for images of whole-numbered pixels, stands in for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.core.losses import pick_counts
from crossroads.moe.capacity import Capacity
from crossroads.moe.contract import (
    ExpertKind,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
    Weights,
)
from crossroads.moe.router import TokenChoiceRouter, closed, forced, per_token


class Hash(TokenChoiceRouter):
    """Expert (token id + place) mod E, each of the k places with weight 1/k.

    The id is ``cond["token_id"]`` (B, T), else the rounded sum over the last axis of
    ``cond["patch"]`` (B, T) or (B, T, P). Raises InputError where neither is given.
    """

    name = "hash"
    needs = frozenset({"cond:token_id"})

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        capacity: Capacity | float | None = None,
        kinds: tuple[ExpertKind, ...] | None = None,
    ) -> None:
        super().__init__(d, n_experts, k=k, balance=0.0, capacity=capacity, kinds=kinds)

    def build_score(self, bias: bool) -> None:
        """Nothing is learned."""

    def key(self, inp: RouterInput) -> Tensor:
        """Return what is hashed, int64 (B, T)."""
        if "token_id" in inp.cond:
            return inp.cond["token_id"].long()
        if "patch" not in inp.cond:
            raise InputError(
                f"router {self.name!r}: expected cond['token_id'] (B, T) or cond['patch'] "
                f"(B, T, P), got {sorted(inp.cond) or 'neither'}; pass one, or take 'position'"
            )
        patch = inp.cond["patch"]
        return (patch if patch.ndim == 2 else patch.sum(-1)).round().long()

    def decide(self, inp: RouterInput) -> RouterOutput:
        key_BT = self.key(inp)
        if key_BT.shape != inp.mask_BT.shape:
            raise InputError(
                f"router {self.name!r}: expected keys of shape {tuple(inp.mask_BT.shape)}, "
                f"got {tuple(key_BT.shape)}"
            )
        place_K = torch.arange(self.k, device=key_BT.device)
        idx_NK = (key_BT.reshape(-1, 1) + place_K) % self.n_experts
        idx_NK = closed(forced(idx_NK, inp, self.n_experts), self._openings(inp), inp)
        w_NK = (idx_NK >= 0).to(torch.float32) / self.k
        decision = RoutingDecision(
            choice=TokenChoice(idx_NK=idx_NK, w_NK=w_NK, dropped_NK=self.drops(idx_NK, w_NK, inp)),
            n_experts=self.n_experts,
            shape=(inp.x_BTD.shape[0], inp.x_BTD.shape[1]),
            mask_N=inp.mask_N,
            weights=self.weights_label(),
            stats={"count_E": pick_counts(idx_NK, self.n_experts)},
        )
        return RouterOutput(decision=decision, carry=inp.carry or {})

    def weights_label(self) -> Weights:
        return "ones" if self.k == 1 else "normalised"

    def _openings(self, inp: RouterInput) -> Tensor:
        """Return 0 for experts a token may use and -inf for the others, (N, E)."""
        open_NE = torch.zeros(inp.mask_N.shape[0], self.n_experts, device=inp.x_BTD.device)
        if inp.allow is None:
            return open_NE
        return open_NE.masked_fill(~per_token(inp.allow, open_NE, inp, "allow"), -torch.inf)
