"""From a name to the routed feed-forward places of a model, sized for equal active compute.

    spec = MoESpec(router="top-p:p=0.4", dense_hidden=352, layers="odd")
    model = DecoderLM(config, sublayer=MoEFactory(spec, num_layers=4))

Swapping the router is changing that name. An expert's hidden size is the dense one divided by the
experts a token runs, so every arm of a comparison spends the same on its feed-forwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from crossroads.core.errors import UsageError
from crossroads.core.routed import SublayerFactory
from crossroads.models.blocks import MLP, SwiGLU, dense_mlp, dense_swiglu
from crossroads.moe.checks import check_known
from crossroads.moe.contract import Router
from crossroads.moe.experts import Activation, FFNBank
from crossroads.moe.layer import GateSharing, Loop, MoELayer
from crossroads.moe.routers import build_router, known_settings, parse_router, router_class
from crossroads.moe.sharing import is_shared, routers_of_layers

DENSE = "dense"
MOST_SPLIT = 2  # experts of routers that run more than two are halved, no further


@dataclass(frozen=True, kw_only=True, slots=True)
class MoESpec:
    """What stands in the feed-forward places of a model.

    Attributes
    ----------
    router : ``name`` or ``name:setting=value``; ``dense`` = no experts at all
    hints : facts of the task by the setting they fill (``tokens`` of a sequence, ``uncond``), for
        routers that have it; what the text of ``router`` says wins
    n_experts : true experts; null experts come on top
    dense_hidden : hidden units of the dense feed-forward that active compute is matched to
    hidden : of one expert; None = dense_hidden divided by the experts a token runs (at most by 2),
        shared ones included
    activation : ``swiglu`` (no biases), ``gelu``, ``gelu_tanh``, ``relu`` or ``silu`` (with
        biases)
    layers : which layers are routed: ``all``, ``odd``, ``even`` (0-based), or their indices
    shared : experts every token runs; None = as many as the router's method has
    n_iter, gate_sharing, loop, inner_residual, outer_residual : of a chain, see ``MoELayer``
    out_scale, shared_scale : see ``MoELayer``
    path : ``sparse``, or ``dense`` for the reference by einsum
    """

    router: str = "switch"
    hints: Mapping[str, Any] = field(default_factory=dict)
    n_experts: int = 8
    dense_hidden: int = 352
    hidden: int | None = None
    activation: Activation = "swiglu"
    layers: Literal["all", "odd", "even"] | tuple[int, ...] = "all"
    shared: int | None = None
    n_iter: int = 1
    gate_sharing: GateSharing = "independent"
    loop: Loop = "prenorm"
    inner_residual: bool = True
    outer_residual: bool = False
    out_scale: float = 1.0
    shared_scale: float = 1.0
    path: str = "sparse"

    def __post_init__(self) -> None:
        for name, least in (
            ("n_experts", 1),
            ("dense_hidden", 1),
            ("hidden", 1),
            ("shared", 0),
            ("n_iter", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name}: expected at least {least}, got {value!r}")
        check_known("activation", self.activation, Activation)

    def routed(self, layer: int) -> bool:
        """Return whether a layer is routed."""
        if self.router == DENSE:
            return False
        if isinstance(self.layers, str):
            return {"all": True, "odd": layer % 2 == 1, "even": layer % 2 == 0}[self.layers]
        return layer in self.layers


class MoEFactory:
    """Makes the feed-forward place of every layer of one model. Use a new one for each model.

    ``shared`` holds routers that several layers use (Omni); the backbone registers them once.
    Raises UsageError for names and sizes that do not fit.
    """

    def __init__(self, spec: MoESpec, num_layers: int) -> None:
        if num_layers < 1:
            raise UsageError(f"num_layers: expected at least 1, got {num_layers!r}")
        if isinstance(spec.layers, str):
            if spec.layers not in ("all", "odd", "even"):
                raise UsageError(
                    f"layers: expected all, odd, even or layer numbers, got {spec.layers!r}"
                )
        elif not set(spec.layers) <= set(range(num_layers)):
            raise UsageError(
                f"layers: the model has layers 0 to {num_layers - 1}, got {list(spec.layers)}"
            )
        self.spec = spec
        self.num_layers = num_layers
        self.shared = nn.ModuleDict()
        if spec.router != DENSE:
            parse_router(spec.router)  # refuse a wrong name before any layer is made

    def __call__(self, layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        spec = self.spec
        if not spec.routed(layer):
            return self._dense()(layer, width, norm)
        own = not is_shared(spec.router)
        routers = self._routers(layer, width, own=own)
        n_shared = routers[0].shared_experts if spec.shared is None else spec.shared
        hidden = spec.hidden or expert_hidden(spec.dense_hidden, routers[0], n_shared)
        every = self._ffn(width, n_shared * hidden) if n_shared else None
        return MoELayer(
            routers,
            FFNBank(width, hidden, routers[0].kinds, activation=spec.activation),
            norm=norm,
            shared=every,
            shared_flops=0.0 if every is None else every.flops_per_token,
            shared_scale=spec.shared_scale,
            out_scale=spec.out_scale,
            layer=layer,
            n_layers=self.num_layers,
            n_iter=spec.n_iter,
            gate_sharing=spec.gate_sharing,
            loop=spec.loop,
            inner_residual=spec.inner_residual,
            outer_residual=spec.outer_residual,
            own_router=own,
            path=spec.path,
        )

    def _routers(self, layer: int, width: int, *, own: bool) -> tuple[Router, ...]:
        if own:
            count = self.spec.n_iter if self.spec.gate_sharing == "independent" else 1
            return tuple(self._router(width, self.spec.n_experts) for _ in range(count))
        routed = [i for i in range(self.num_layers) if self.spec.routed(i)]
        groups = routers_of_layers(
            self.spec.router, self.spec.hints, len(routed), self.spec.n_experts
        )
        number, group = groups[routed.index(layer)]
        name = f"router_{number}"
        if name not in self.shared:
            self.shared[name] = self._router(width, group.n_experts)
        return (self.shared[name],)

    def _router(self, width: int, n_experts: int) -> Router:
        known = known_settings(router_class(parse_router(self.spec.router)[0]))
        settings = {k: v for k, v in self.spec.hints.items() if k in known}
        return build_router(self.spec.router, width, n_experts, **settings)

    def _ffn(self, width: int, hidden: int) -> MLP | SwiGLU:
        if self.spec.activation == "swiglu":
            return SwiGLU(width, hidden)
        return MLP(width, hidden, self.spec.activation)

    def _dense(self) -> SublayerFactory:
        if self.spec.activation == "swiglu":
            return dense_swiglu(self.spec.dense_hidden)
        return dense_mlp(self.spec.dense_hidden, self.spec.activation)


def expert_hidden(dense_hidden: int, router: Router, n_shared: int) -> int:
    """Return the hidden units of one expert at the active compute of a dense feed-forward.

    Routers that run more than two experts get halves, so that experts stay of useful size; what
    they then spend more is in the count of operations.
    """
    active = min(max(round(router.nominal_active + n_shared), 1), MOST_SPLIT)
    return max(dense_hidden // active, 1)
