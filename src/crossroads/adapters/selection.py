"""From scores to a routing, the same steps for every router that has them.

Scores in float32 -> experts that do not adapt the layer to -inf -> divided by the temperature ->
top-k, ties to the lower index -> softmax over the kept -> weights.
"""

from __future__ import annotations

from torch import Tensor

from crossroads.adapters.contract import Routing
from crossroads.core.gating import at_least_float32, softmax, top_k


def select(
    scores: Tensor, alive_E: Tensor, *, k: int | None = None, temperature: float = 1.0
) -> Routing:
    """Return softmax weights over the k best experts of every token, all of them when k is None.

    ``scores`` is (B, T, H, E). k is at most the number of experts alive; a token with nothing
    alive gets zeros. Gradient flows through the weights of kept experts alone.
    """
    logits = at_least_float32(scores).masked_fill(~alive_E, float("-inf")) / temperature
    n_alive = int(alive_E.sum())
    if k is None or k >= n_alive:
        return Routing(weights=softmax(logits), logits=logits)
    index = top_k(logits.detach(), k)
    return Routing(weights=softmax(logits.gather(-1, index)), index=index, logits=logits)


def one_hot(best: Tensor) -> Routing:
    """Return the routing that gives each row of ``best``, int64 (B, T, H), its expert alone."""
    index = best.unsqueeze(-1)
    return Routing(weights=index.new_ones(index.shape).float(), index=index)
