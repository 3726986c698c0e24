"""The activations of expert FFNs, forward and backward, written into buffers that are handed in.

``swiglu`` reads both halves of [R, 2F], gate before up: silu(gate) * up (Shazeer, "GLU variants
improve transformer", 2020). The others are elementwise on [R, F]; ``gelu`` is the exact one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from crossroads.core.dispatch.native import Kernels

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Kind = Literal["swiglu", "gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def activate(kind: Kind, a: Tensor) -> Tensor:
    """Return the hidden rows [..., F] of pre-activations [..., F], or [..., 2F] for swiglu."""
    if kind == "swiglu":
        gate, up = a.chunk(2, dim=-1)
        return functional.silu(gate) * up
    if kind == "silu":
        return functional.silu(a)
    if kind == "relu":
        return functional.relu(a)
    return functional.gelu(a, approximate=_APPROXIMATE[kind])


def activate_into(kind: Kind, a: Tensor, h: Tensor, kernels: Kernels | None = None) -> Tensor:
    """As ``activate``, of contiguous [R, F] or [R, 2F], written into contiguous ``h``."""
    aten = torch.ops.aten
    if kind == "swiglu":
        if kernels is not None:
            kernels.swiglu(a.data_ptr(), h.data_ptr(), *h.shape)
            return h
        gate, up = a.chunk(2, dim=-1)
        return aten.silu.out(gate, out=h).mul_(up)
    if kind == "silu":
        return aten.silu.out(a, out=h)
    if kind == "relu":
        return torch.clamp(a, min=0, out=h)
    return aten.gelu.out(a, approximate=_APPROXIMATE[kind], out=h)


def activate_back(  # noqa: PLR0917 - inputs, then what is written
    kind: Kind, a: Tensor, dh: Tensor, h: Tensor, da: Tensor, kernels: Kernels | None = None
) -> None:
    """Write the hidden rows into ``h`` and the gradient of ``a`` into ``da``, given that of h."""
    aten = torch.ops.aten
    if kind == "swiglu":
        if kernels is not None:
            pointers = (a.data_ptr(), dh.data_ptr(), h.data_ptr(), da.data_ptr())
            kernels.swiglu_back(*pointers, *h.shape)
            return
        gate, up = a.chunk(2, dim=-1)
        d_gate, d_up = da.chunk(2, dim=-1)
        aten.silu.out(gate, out=h)
        torch.mul(dh, h, out=d_up)
        h.mul_(up)
        torch.mul(dh, up, out=d_gate)
        aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        return
    activate_into(kind, a, h)
    if kind == "silu":
        aten.silu_backward.grad_input(dh, a, grad_input=da)
    elif kind == "relu":
        aten.threshold_backward.grad_input(dh, a, 0, grad_input=da)
    else:
        aten.gelu_backward.grad_input(dh, a, approximate=_APPROXIMATE[kind], grad_input=da)
