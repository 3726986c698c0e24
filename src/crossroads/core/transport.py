"""Balanced transport of tokens to experts: entropic (Sinkhorn) and sparsity-constrained.

Both look for a plan Q >= 0 between the S real tokens of a group and E experts with

    row sums 1,    column sums S / E,

so that every token is served once and every expert equally often. Padded tokens have marginal 0.
An expert that no token of the group may use has none either; the others share its part.

Sources: Cuturi (2013) for the entropic plan; Sparsity-Constrained Optimal Transport (2023) for the
plan whose columns have at most k entries.

Axes: G groups, S tokens (padding included), E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.core.gating import at_least_float32

# Stands in for -inf: the logarithm of no mass, without 0 * inf in gradients.
NO_MASS = -1e30


def check_sinkhorn(eps: float, iters: int) -> None:
    """Raise UsageError for settings under which there is no entropic plan."""
    if not eps > 0 or iters < 1:
        raise UsageError(f"sinkhorn: expected eps > 0 and iters >= 1, got {eps} and {iters}")


def check_sparse(gamma: float, lr: float, iters: int) -> None:
    """Raise UsageError for settings under which there is no sparse plan."""
    if not (gamma > 0 and lr > 0 and iters >= 0):
        raise UsageError(
            "sparse plan: expected gamma > 0, a learning rate > 0 and iterations >= 0, "
            f"got {gamma}, {lr} and {iters}"
        )


def sinkhorn_plan(
    logits_GSE: Tensor, mask_GS: Tensor | None = None, *, eps: float = 1.0, iters: int = 20
) -> Tensor:
    """Return argmax of <Q, logits> + eps * H(Q) under the marginals above, (G, S, E).

    Runs ``iters`` times rows then columns in log space, so column sums are exact and row sums
    converge. Differentiable through the iterations. A pair with logit -inf gets no mass, a group
    without real tokens zeros. Adding a constant to a row or column changes nothing.

    Raises UsageError for an ``eps`` or ``iters`` that is not positive.
    """
    check_sinkhorn(eps, iters)
    logits_GSE = at_least_float32(logits_GSE)
    mask_GS = _all_real(logits_GSE, mask_GS)
    # Tokens last: sums over them and over the few experts both run along contiguous memory.
    open_GES = mask_GS.unsqueeze(1) & ~torch.isneginf(logits_GSE).transpose(1, 2)
    kernel_GES = torch.where(open_GES, logits_GSE.transpose(1, 2) / eps, NO_MASS)
    live_GE1, live_G1S = open_GES.any(2, keepdim=True), open_GES.any(1, keepdim=True)
    per_column_G11 = mask_GS.sum(1)[:, None, None] / live_GE1.sum(1, keepdim=True).clamp_min(1)
    column_G11 = torch.log(per_column_G11.to(kernel_GES.dtype).clamp_min(1e-30))
    b_GE1 = torch.zeros_like(kernel_GES[..., :1])
    for _ in range(iters):
        # A row or column without an open pair has no potential; 0 keeps its pairs without mass.
        a_G1S = torch.where(live_G1S, -torch.logsumexp(kernel_GES + b_GE1, 1, keepdim=True), 0.0)
        sum_GE1 = torch.logsumexp(kernel_GES + a_G1S, 2, keepdim=True)
        b_GE1 = torch.where(live_GE1, column_G11 - sum_GE1, 0.0)
    return torch.exp(kernel_GES + a_G1S + b_GE1).transpose(1, 2)


def _all_real(like_GSE: Tensor, mask_GS: Tensor | None) -> Tensor:
    if mask_GS is None:
        return torch.ones(like_GSE.shape[:2], dtype=torch.bool, device=like_GSE.device)
    return mask_GS


def simplex_projection(x: Tensor, k: Tensor | int | None = None) -> Tensor:
    """Return the nearest point of the simplex with at most ``k`` non-zeros, along the last axis.

    Keeps the k largest entries (ties to the lower index) and projects them, the rest is 0; that is
    a nearest point of the sparse simplex too. ``k`` is a number, a tensor that broadcasts against
    ``x[..., :1]``, or None for all. Entries of -inf get 0; k = 0 gives zeros.
    """
    x = at_least_float32(x)
    length = x.shape[-1]
    sorted_x, order = torch.sort(x, dim=-1, descending=True, stable=True)
    place = torch.arange(1, length + 1, device=x.device)
    kept = torch.isfinite(sorted_x)
    if k is not None:
        kept = kept & (place <= k)
    value = torch.where(kept, sorted_x, 0.0)
    excess = (value.cumsum(-1) - 1) / place
    # The support is the longest prefix whose entries exceed the threshold they imply.
    size = (kept & (value > excess)).sum(-1, keepdim=True)
    threshold = excess.gather(-1, (size - 1).clamp_min(0))
    projected = torch.where(kept, (value - threshold).clamp_min(0), 0.0)
    return torch.zeros_like(x).scatter(-1, order, projected)


def column_plan(
    alpha_GS: Tensor,
    cost_GSE: Tensor,
    mask_GS: Tensor,
    k_G: Tensor,
    *,
    gamma: float = 1.0,
) -> Tensor:
    """Return the plan whose columns maximise the semi-dual at ``alpha``, (G, S, E).

    q_e = argmax over q >= 0 with sum S / E and at most k non-zeros of
    <q, alpha - cost_e> - gamma / 2 ||q||^2. Column sums and sparsity are exact for every alpha.
    """
    b_G11 = (mask_GS.sum(1) / cost_GSE.shape[-1]).to(cost_GSE.dtype)[:, None, None]
    gain_GES = (alpha_GS.unsqueeze(-1) - cost_GSE).transpose(1, 2)
    gain_GES = gain_GES.masked_fill(~mask_GS.unsqueeze(1), -torch.inf)
    scale_G11 = (gamma * b_G11).clamp_min(torch.finfo(cost_GSE.dtype).tiny)
    share_GES = simplex_projection(gain_GES / scale_G11, k_G[:, None, None])
    return (b_G11 * share_GES).transpose(1, 2)


def semi_dual(
    alpha_GS: Tensor,
    cost_GSE: Tensor,
    mask_GS: Tensor,
    k_G: Tensor,
    *,
    gamma: float = 1.0,
) -> Tensor:
    """Return sum(alpha) - sum_e h_e(alpha - cost_e) of each group, (G,), to be maximised.

    Its gradient in alpha is 1 - the row sums of ``column_plan``.
    """
    plan_GSE = column_plan(alpha_GS, cost_GSE, mask_GS, k_G, gamma=gamma)
    gain_GSE = torch.where(plan_GSE > 0, alpha_GS.unsqueeze(-1) - cost_GSE, 0.0)
    h_G = (plan_GSE * gain_GSE - 0.5 * gamma * plan_GSE.square()).sum((1, 2))
    return torch.where(mask_GS, alpha_GS, 0.0).sum(1) - h_G


@torch.no_grad()
def sparse_plan(
    cost_GSE: Tensor,
    mask_GS: Tensor | None = None,
    *,
    k: Tensor | int,
    gamma: float = 1.0,
    lr: float = 1e-2,
    iters: int = 20,
) -> tuple[Tensor, Tensor]:
    """Return a plan with at most ``k`` non-zeros a column, and its potential alpha.

    Minimises <Q, cost> + gamma / 2 ||Q||^2 by Adam (betas .9, .999) on the semi-dual from
    alpha = 0. Column sums are exact; row sums approach 1 for k near S only, and with k near S / E
    some tokens stay unserved: the relaxed dual has no exact primal there. A pair with cost +inf
    gets no mass as long as a column has k others.

    Raises UsageError for settings that are not positive.

    Parameters
    ----------
    cost_GSE : one problem a group
    mask_GS : real tokens; None = all
    k : the bound, one number or one a group (G,), at most the real tokens of the group
    """
    check_sparse(gamma, lr, iters)
    cost_GSE = at_least_float32(cost_GSE)
    mask_GS = _all_real(cost_GSE, mask_GS)
    k_G = torch.as_tensor(k, device=cost_GSE.device).expand(cost_GSE.shape[0])
    alpha_GS = torch.zeros_like(cost_GSE[..., 0])
    mean_GS, square_GS = torch.zeros_like(alpha_GS), torch.zeros_like(alpha_GS)
    for step in range(1, iters + 1):
        plan_GSE = column_plan(alpha_GS, cost_GSE, mask_GS, k_G, gamma=gamma)
        gradient_GS = torch.where(mask_GS, 1 - plan_GSE.sum(2), 0.0)
        mean_GS = 0.9 * mean_GS + 0.1 * gradient_GS
        square_GS = 0.999 * square_GS + 0.001 * gradient_GS.square()
        unbiased_GS = (square_GS / (1 - 0.999**step)).sqrt() + 1e-8
        alpha_GS = alpha_GS + lr * (mean_GS / (1 - 0.9**step)) / unbiased_GS
    return column_plan(alpha_GS, cost_GSE, mask_GS, k_G, gamma=gamma), alpha_GS
