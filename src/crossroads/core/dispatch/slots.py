"""Experts that each have their own buffer of slots: expert choice and soft mixtures.

No sort and no combine: the buffer [E, C, D] is the dispatch already, so each projection is one
batched product. An empty slot is a row of zeros; it costs what a full one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.dispatch.activations import Activation, Kind, activate
from crossroads.core.errors import InputError


def swiglu_slots(x_ECD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """Return y_ECD: y[e, c] = down[e] (silu(gate[e] x[e, c]) * up[e] x[e, c]); differentiable."""
    return _slots(x_ECD, "swiglu", gate_up_E2FD, None, down_EDF, None)


def mlp_slots(
    x_ECD: Tensor,
    up_EFD: Tensor,
    up_bias_EF: Tensor | None,
    down_EDF: Tensor,
    down_bias_ED: Tensor | None,
    *,
    activation: Activation = "gelu",
) -> Tensor:
    """Return y_ECD: y[e, c] = down[e] act(up[e] x[e, c] + b[e]) + d[e]; differentiable."""
    return _slots(x_ECD, activation, up_EFD, up_bias_EF, down_EDF, down_bias_ED)


def _slots(  # noqa: PLR0917 - a bank's tensors in the order they are applied
    x_ECD: Tensor,
    kind: Kind,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor,
    second_bias: Tensor | None,
) -> Tensor:
    if x_ECD.ndim != 3 or x_ECD.shape[0] != first.shape[0] or x_ECD.shape[2] != first.shape[2]:
        raise InputError(
            f"x must be [experts, slots, width] = [{first.shape[0]}, C, {first.shape[2]}], "
            f"got {list(x_ECD.shape)}; one buffer per expert"
        )
    h_ECF = activate(kind, _batched_linear(x_ECD, first, first_bias))
    return _batched_linear(h_ECF, second, second_bias)


def _batched_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(rows, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
