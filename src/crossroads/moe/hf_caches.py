"""Whether a model of ``transformers`` still decodes the sequences whose cache it left behind.

Beam search puts the rows of the cache in another order between two steps, assisted decoding takes
positions back. Neither shows in a forward pass itself, so the cache is looked at before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError


@contextmanager
def same_sequences(model: nn.Module) -> Iterator[None]:
    """Refuse, within, a decoding step whose cache does not hold what the last pass left there."""
    left: list[Tensor] = []

    def check(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        here = _newest_keys(kwargs.get("past_key_values"))
        if left and here is not None and not torch.equal(here, left[0]):
            raise InputError(
                "recording: sequences changed between two decoding steps, as in beam search or "
                "assisted decoding, and cannot be followed; generate with num_beams=1 and without "
                "an assistant"
            )

    def remember(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        here = _newest_keys(getattr(output, "past_key_values", None))
        left[:] = [] if here is None else [here.clone()]

    hooks = (
        model.register_forward_pre_hook(check, with_kwargs=True),
        model.register_forward_hook(remember, with_kwargs=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _newest_keys(cache: Any) -> Tensor | None:
    """Return the last layer's keys of the newest position, which depend on all before it."""
    layers = getattr(cache, "layers", None)
    keys = getattr(layers[-1], "keys", None) if layers else None
    if not isinstance(keys, Tensor) or keys.ndim != 4 or not keys.shape[2]:
        return None
    newest: Tensor = keys[:, :, -1].detach()
    return newest
