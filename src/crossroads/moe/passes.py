"""Passes of a backbone of ours recorded while something else, a trainer or a judge, runs it.

    with recorded_passes(model, Recorder()) as recorder:
        bed.evaluate(model, config)
    recorder.trace().save("run.npz")

Models of ``transformers`` have ``crossroads.moe.convert.recording``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.moe.recording import Recorder


@contextmanager
def recorded_passes(
    model: nn.Module, recorder: Recorder, *, wanted: Callable[[RouteContext], bool] | None = None
) -> Iterator[Recorder]:
    """Record the forward passes within, of those contexts that are ``wanted`` (None = all).

    Which tokens are real comes from the decisions; their ids from ``cond["token_id"]``, or from
    the model's first argument where that is a (B, T) tensor of whole numbers.
    """

    def keep(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: ModelOutput) -> None:
        given = (*args, *kwargs.values())
        context = next((v for v in given if isinstance(v, RouteContext)), RouteContext())
        if wanted is not None and not wanted(context):
            return
        for record in output.records[:1]:
            decision = record.decisions[0]
            context = replace(context, mask_BT=decision.mask_N.reshape(decision.shape))
            first = args[0] if args else None
            if "token_id" not in context.cond and _are_ids(first, decision.shape):
                context = context.with_cond(token_id=first)
        recorder.record(output, context)

    recorder.describe(model)
    hook = model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield recorder
    finally:
        hook.remove()


def _are_ids(given: Any, shape: tuple[int, int]) -> bool:
    if not isinstance(given, Tensor) or given.shape != shape:
        return False
    return not (given.is_floating_point() or given.is_complex())
