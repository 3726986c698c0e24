"""Kernels whose backward is written by hand, and so cannot be differentiated a second time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossroads.core.errors import UsageError

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_order(backward: Backward) -> Backward:
    """Make the gradients of a Function refuse a backward of their own, where they would be wrong.

    ``backward`` is called with the context, the tuple of saved tensors (a checkpoint hands them out
    only once) and the incoming gradients. The Function must save all its inputs. PyTorch's
    ``once_differentiable`` refuses only where the incoming gradient needs a gradient; that of a sum
    does not, and what the saved tensors add to second derivatives would silently be left out.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():  # no ``create_graph``: nobody can ask
            return backward(ctx, saved, *grads)
        with torch.no_grad():
            found = backward(ctx, saved, *grads)
        needs = (*saved, *grads)
        return tuple(None if grad is None else _Refusal.apply(grad, *needs) for grad in found)

    return wrapped


class _Refusal(torch.autograd.Function):
    """Returns a gradient; the others are what it was made of, so that all ways lead through."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *needs: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise UsageError(
            "second derivatives: kernels with a backward written by hand, of experts and of soft "
            "routing, have none; set path='loop' on an FFNBank (for a gradient penalty, say), "
            "or leave create_graph out"
        )
