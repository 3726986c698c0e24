"""Top-2 routing: the two best experts of every token, weights divided by their sum.

Sources: GShard (2020), section 2.2, whose balance loss counts first choices only; ST-MoE (2022),
appendix, for the policy that drops later places at random. Mesh TensorFlow also draws in
evaluation; here evaluation keeps every place unless ``draw_in_eval`` is set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from crossroads.core import gating
from crossroads.core.errors import UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.contract import NOBODY, RouterInput
from crossroads.moe.router import Scored, TokenChoiceRouter, wanted_experts

Counted = Literal["first", "all"]
LaterPlaces = Literal["all", "random"]


class Top2(TokenChoiceRouter):
    """Top-k of a softmax, renormalised over the chosen: w_k = g_k / (g_1 + ... + g_K).

    Parameters
    ----------
    later : ``random`` keeps place k >= 2 with probability min(1, w_k / threshold) and leaves the
        other weights as they are, and a forced expert takes the first place freed; ``all`` keeps
        every place
    threshold : weight above which a later place is certain, in (0, 1]
    counted : which picks the balance loss counts, the ``first`` of every token or ``all``
    draw_in_eval : whether ``later="random"`` draws in evaluation too
    settings : of ``TokenChoiceRouter``
    """

    name = "top2"
    default_renorm: ClassVar[bool] = True

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 2,
        later: LaterPlaces = "all",
        threshold: float = 0.2,
        draw_in_eval: bool = False,
        counted: Counted = "first",
        **settings: Any,
    ) -> None:
        if later not in ("all", "random"):
            raise UsageError(f"later: expected 'all' or 'random', got {later!r}")
        if counted not in ("first", "all"):
            raise UsageError(f"counted: expected 'first' or 'all', got {counted!r}")
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold: expected a number in (0, 1], got {threshold}")
        super().__init__(d, n_experts, k=k, **settings)
        self.later = later
        self.threshold = threshold
        self.draw_in_eval = draw_in_eval
        self.counted = counted

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        idx_NK = super().select(probs_NE, logits_NE, inp)
        if self.later == "all" or not (inp.training or self.draw_in_eval):
            return idx_NK
        share_NK = self.weigh(probs_NE, idx_NK, inp).detach()
        drawn_NK = torch.rand(share_NK.shape, generator=inp.rng).to(share_NK.device)
        keep_NK = drawn_NK < share_NK / self.threshold
        keep_NK[:, 0] = True
        # Empty places go last, so that the places of a token stay packed.
        order_NK = torch.argsort(keep_NK.int(), dim=-1, descending=True, stable=True)
        idx_NK = torch.where(keep_NK, idx_NK, NOBODY).gather(-1, order_NK)
        return self._with_forced(idx_NK, inp)

    def _with_forced(self, idx_NK: Tensor, inp: RouterInput) -> Tensor:
        """Return the choice with the expert of ``force`` in the first place the draw has freed."""
        wanted_BT = wanted_experts(inp, self.n_experts)
        if wanted_BT is None:
            return idx_NK
        wanted_N1 = wanted_BT.reshape(-1, 1)
        is_free_NK = idx_NK < 0
        is_first_NK = is_free_NK & (is_free_NK.cumsum(-1) == 1)
        absent_N1 = ~(idx_NK == wanted_N1).any(-1, keepdim=True)
        return torch.where(is_first_NK & absent_N1, wanted_N1.clamp_min(NOBODY), idx_NK)

    def weigh(self, probs_NE: Tensor, idx_NK: Tensor, inp: RouterInput) -> Tensor:
        """Return g / sum of the chosen g; a place lost to the draw stays in the sum."""
        if self.later == "all" or not self.renorm:
            return super().weigh(probs_NE, idx_NK, inp)
        best_NK = probs_NE.gather(-1, gating.top_k(probs_NE, self.k))
        w_NK = probs_NE.gather(-1, idx_NK.clamp_min(0))
        return w_NK / best_NK.sum(-1, keepdim=True).clamp_min(1e-20)

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        if self.counted == "first":
            scored = replace(scored, idx_NK=scored.idx_NK[:, :1])
        return super().losses(scored, inp)
