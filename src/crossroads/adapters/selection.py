"""From scores to a routing, the same steps for every router that has them.

Scores in float32 -> experts that do not adapt the layer to -inf -> divided by the temperature ->
top-k, ties to the lower index -> softmax over the kept -> weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossroads.adapters.contract import Routing
from crossroads.core.errors import UsageError
from crossroads.core.gating import at_least_float32, softmax, top_k

_FEW_ROWS = 16  # tokens times heads: a step of decoding


def select(
    scores: Tensor,
    alive_E: Tensor,
    *,
    k: int | None = None,
    temperature: float = 1.0,
    n_alive: int | None = None,
) -> Routing:
    """Return softmax weights over the k best experts of every token, all of them when k is None.

    ``scores`` is (B, T, H, E). k is at most the number of experts alive, ``n_alive`` where it is
    known; a token with nothing alive gets zeros. Gradient flows through the weights of kept experts
    alone.
    """
    n_alive = int(alive_E.sum()) if n_alive is None else n_alive
    logits = at_least_float32(scores)
    if n_alive < len(alive_E):
        logits = logits.masked_fill(~alive_E, float("-inf"))
    if temperature != 1.0:
        logits = logits / temperature
    if k is None or k >= n_alive:
        return Routing(weights=softmax(logits), logits=logits)
    if logits.shape[:3].numel() <= _FEW_ROWS:
        # Few operations count here, not few numbers: a sort and torch's own softmax.
        best, order = logits.sort(dim=-1, descending=True, stable=True)
        weights = torch.softmax(best[..., :k], -1)
        return Routing(weights=weights, index=order[..., :k], logits=logits)
    index = top_k(logits.detach(), k)
    return Routing(weights=softmax(logits.gather(-1, index)), index=index, logits=logits)


def check_settings(router: str, *, least: int, k: int, temperature: float) -> None:
    """Raise UsageError for fewer places than ``least``, or a temperature not above 0."""
    if k < least or not 0 < temperature < math.inf:
        raise UsageError(
            f"router {router}: expected k of at least {least} and a temperature above 0, got k={k} "
            f"and temperature={temperature:g}"
        )


def one_hot(best: Tensor) -> Routing:
    """Return the routing that gives each row of ``best``, int64 (B, T, H), its expert alone."""
    index = best.unsqueeze(-1)
    return Routing(weights=index.new_ones(index.shape).float(), index=index)
