"""Omni-router: all routed layers of a model share one router, their experts stay their own.

    p_l = softmax(W x_l [+ b]),  e = argmax p_l,  y = p_l,e f_(l,e)(x_l)

so that an expert's number means the same at every depth. Inputs differ by layer, so choices may.
Source: Omni-Router: Sharing Routing Decisions in Sparse Mixture-of-Experts for Speech Recognition
(2025). Choices made here: Gaussian noise of standard deviation 0.1 on the logits in
training serves choice, weight and balance loss alike; no bias unless asked for, so that Switch
differs in the sharing alone.

The router keeps nothing of a layer: whoever builds the model makes one object per group of
layers (``crossroads.moe.sharing``), hands it to each of them and registers it once.
"""

from __future__ import annotations

from typing import Any, ClassVar

from crossroads.moe.router import TokenChoiceRouter
from crossroads.moe.sharing import parse_plan


class OmniRouter(TokenChoiceRouter):
    """Switch routing whose one gate serves every layer of a group.

    Raises UsageError for a plan that cannot be read.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts; equal in all layers of a group
    k : experts per token
    share : ``all`` layers, or a plan such as ``4x2-4x4``: four layers of 2 experts share one
        router, the next four of 4 experts another
    noise_std, settings : of ``TokenChoiceRouter``
    """

    name = "omni"
    system = "omni-router"
    shared_across_layers: ClassVar[bool] = True

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        share: str = "all",
        noise_std: float = 0.1,
        **settings: Any,
    ) -> None:
        if share != "all":
            parse_plan(share)
        super().__init__(
            d,
            n_experts,
            k=k,
            noise_std=noise_std,
            **settings,
        )
        self.share = share
