"""Where a model stopped being finite: the first routed layer that holds NaN or infinity.

Numbers that are not finite spread to everything after them, so that what fails first is seldom
what broke: a router reports the NaN of the experts below it, and a gradient's norm has no place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.routed import routed_layers

Kind = Callable[[nn.Parameter], Tensor | None]


def broken_weights(model: nn.Module) -> str | None:
    """Return which weights are not finite, the first in the order of the layers; None if all are.

    State of a router that no gradient reaches counts as a weight.
    """
    places = list(_places(model, lambda parameter: parameter, with_buffers=True))
    return f"{places[0]}: weights are not finite" if places else None


def broken_gradients(model: nn.Module) -> str | None:
    """Return where the gradient is not finite, the first and the last place, or None.

    It is computed from the last layer to the first: what broke is at the last place, or after it.
    """
    places = list(_places(model, lambda parameter: parameter.grad, with_buffers=False))
    if not places:
        return None
    up_to = f" up to {places[-1]}" if len(places) > 1 else ""
    return f"{places[0]}{up_to}: not finite"


def _places(model: nn.Module, of: Kind, *, with_buffers: bool) -> Iterator[str]:
    layers: list[Any] = list(routed_layers(model))
    inside = {id(p) for layer in layers for p in _parameters(layer)}
    for layer in layers:
        name = getattr(layer.routers[0], "name", type(layer.routers[0]).__name__)
        parts = {
            f"router {name!r} of layer {layer.layer}": layer.routers,
            f"experts of layer {layer.layer} (router {name!r})": (layer.experts,),
            f"norm or shared experts of layer {layer.layer} (router {name!r})": (layer,),
        }
        for place, modules in parts.items():
            values = [of(p) for module in modules for p in module.parameters()]
            if with_buffers:
                values += [b for module in modules for b in module.buffers()]
            if not all(map(_is_finite, values)):
                yield place
                break
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside and not _is_finite(of(parameter)):
            yield f"{name} (outside of the routed layers)"
            break


def _parameters(layer: Any) -> Iterator[nn.Parameter]:
    yield from layer.parameters()
    for router in layer.routers:  # one that is shared is registered by the model
        yield from router.parameters()


def _is_finite(values: Tensor | None) -> bool:
    if values is None or not values.is_floating_point():
        return True
    return bool(torch.isfinite(values.detach()).all())
