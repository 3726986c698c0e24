"""The mixture-of-experts layer: norm, router, dispatch, experts, combine, shared experts, loop.

The layer takes the stream before the norm and returns what the block adds to it. Nothing is left on
the layer: losses, decisions and new state are in the answer.

Axes: B sequences, T positions, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.later import Deferred
from crossroads.core.routed import AuxTerm, Carry, RouteContext, SublayerOutput, as_context, mask_of
from crossroads.moe.checks import check_known
from crossroads.moe.contract import Router, RouterInput, RouterOutput, RoutingDecision
from crossroads.moe.execution import apply_decision, apply_to_sequences, executed_counts
from crossroads.moe.experts import Experts

GateSharing = Literal["independent", "module", "decision"]
Loop = Literal["prenorm", "released"]


class MoELayer(nn.Module):
    """A routed feed-forward place.

    Raises UsageError for routers and experts that do not fit each other.

    Parameters
    ----------
    router : one, or one per iteration under ``gate_sharing="independent"``
    experts : what is routed to
    norm : applied to the stream first; None where the block has normed already
    shared : experts every token runs, as one module; ``shared_scale`` or a learnt sigmoid gate
        (``shared_gate=True``, a row per token) weighs them, ``out_scale`` the routed part
    layer, n_layers : where in the model
    n_iter : times the layer is run in a chain (Chain-of-Experts); ``loop`` says how the stream is
        handed on: ``prenorm`` norms every iteration's input and adds residually, ``released`` norms
        once: x_0 = norm(h), x_(t+1) = x_t + MoE(x_t), and the stream becomes x_C
    inner_residual, outer_residual : of the ``released`` loop: whether x_t is added within, and
        h at the end
    own_router : False where the router is shared between layers and registered by the model, so
        that ``state_dict`` names it once
    path : ``sparse``, or ``dense`` for the reference by einsum
    """

    is_routed = True

    def __init__(
        self,
        router: Router | Sequence[Router],
        experts: Experts,
        *,
        norm: nn.Module | None = None,
        shared: nn.Module | None = None,
        shared_flops: float = 0.0,
        shared_scale: float = 1.0,
        shared_gate: bool = False,
        out_scale: float = 1.0,
        layer: int = 0,
        n_layers: int = 1,
        n_iter: int = 1,
        gate_sharing: GateSharing = "independent",
        loop: Loop = "prenorm",
        inner_residual: bool = True,
        outer_residual: bool = False,
        own_router: bool = True,
        path: str = "sparse",
    ) -> None:
        super().__init__()
        routers = (router,) if isinstance(router, Router) else tuple(router)
        check_known("gate_sharing", gate_sharing, GateSharing)
        check_known("loop", loop, Loop)
        _check_fit(routers, experts, n_iter, gate_sharing)
        self._routers = (routers,)  # inside a tuple: not registered by attribute
        if own_router:
            self.router = routers[0] if len(routers) == 1 else nn.ModuleList(routers)
        self.experts = experts
        self.norm = norm if norm is not None else nn.Identity()
        self.shared = shared
        self.shared_flops = shared_flops
        self.shared_scale = shared_scale
        width = getattr(experts, "d", experts.d_out)
        self.shared_gate = nn.Linear(width, 1, bias=False) if shared_gate else None
        self.out_scale = out_scale
        self.layer, self.n_layers, self.n_iter = layer, n_layers, n_iter
        self.gate_sharing: GateSharing = gate_sharing
        self.loop: Loop = loop
        if loop == "prenorm" and (outer_residual or not inner_residual):
            raise UsageError(
                "inner_residual and outer_residual: switches of the released loop; set loop to it"
            )
        self.inner_residual, self.outer_residual = inner_residual, outer_residual
        self.path = path
        self.needs = frozenset().union(*(r.needs for r in routers)) & {"attn", "attn_out"}

    @property
    def routers(self) -> tuple[Router, ...]:
        """The distinct routers of this layer."""
        return self._routers[0]

    def forward(
        self,
        h_BTD: Tensor,
        context: RouteContext | None = None,
        *,
        attn: Tensor | None = None,
        attn_out: Tensor | None = None,
        carry: Carry | None = None,
        cache: Any = None,
        decision: RoutingDecision | Sequence[RoutingDecision] | None = None,
    ) -> SublayerOutput:
        """Run the layer. ``decision`` (or that of the context) takes the router's place.

        It is one for all iterations, or one for each; the router's state does not follow it.
        """
        context = as_context(context)
        mask_BT = self._check_call(h_BTD, context)
        if context.mask_BT is not None:
            # Whatever padding holds, also NaN: zero times it must be zero, in gradients too.
            h_BTD = torch.where(mask_BT.unsqueeze(-1), h_BTD, torch.zeros_like(h_BTD))
        given = self._given(decision if decision is not None else context.decisions.get(self.layer))
        aux: dict[str, AuxTerm] = {}
        decisions: list[RoutingDecision] = []
        new_state: dict[str, Tensor] = {}
        routed = 0  # iterations that asked a router
        carry = dict(carry or {})
        caches = list(cache) if self.n_iter > 1 and cache is not None else [cache] * self.n_iter
        stream = h_BTD if self.loop == "prenorm" else self.norm(h_BTD)
        is_chain = self.n_iter > 1 or self.loop == "released"
        delta = stream
        for iteration in range(self.n_iter):
            x_BTD = self.norm(stream) if self.loop == "prenorm" else stream
            answer = None
            if not given:
                inp = self._view(
                    x_BTD,
                    mask_BT,
                    context,
                    iteration=iteration,
                    attn=attn,
                    attn_out=attn_out,
                    resid_BTD=h_BTD,
                    carry=carry or None,
                    cache=caches[iteration],
                )
                answer = self._asked(iteration, inp)
                routed += 1
                carry |= answer.carry
                caches[iteration] = answer.cache
                self._collect(answer, iteration, aux, new_state)
                if self.gate_sharing == "decision":
                    given = (answer.decision,) * self.n_iter
            chosen = given[iteration] if answer is None else answer.decision
            _check_decision(chosen, self.experts, mask_BT)
            is_full = answer is not None and context.mask_BT is None
            delta = self._outputs(x_BTD, chosen, context, is_full=is_full)
            decisions.append(chosen)
            if is_chain:
                stream = stream + delta if self.inner_residual else delta
        if is_chain:
            delta = stream if self.outer_residual else stream - h_BTD
            # A norm with a bias makes something of padding.
            delta = torch.where(mask_BT.unsqueeze(-1), delta, torch.zeros_like(delta))
        return SublayerOutput(
            delta=delta,
            aux=aux,
            carry=carry,
            decisions=tuple(decisions),
            new_state=new_state,
            flops=self._flops(tuple(decisions), mask_BT, routed, context),
            cache=self._joined(caches),
        )

    def init_cache(self, batch: int) -> Any:
        """Return the caches of the iterations for decoding so many sequences, or None.

        Raises UsageError for experts that see whole sequences: they keep nothing between calls.
        """
        if self.experts.view != "token":
            raise UsageError(
                f"experts of layer {self.layer}: a {self.experts.view} view needs the whole "
                "sequence and keeps nothing between calls; decode without a cache"
            )
        return self._joined([self._router_of(i).init_cache(batch) for i in range(self.n_iter)])

    def _joined(self, caches: list[Any]) -> Any:
        """Return one cache as it is, those of a loop as a tuple, None where nobody keeps one."""
        if self.n_iter == 1 or all(cache is None for cache in caches):
            return caches[0]
        return tuple(caches)

    def _given(
        self, decision: RoutingDecision | Sequence[RoutingDecision] | None
    ) -> tuple[RoutingDecision, ...]:
        """Return decisions from outside, one an iteration, without counts for the router."""
        if decision is None:
            return ()
        if isinstance(decision, RoutingDecision):
            decision = (decision,) * self.n_iter
        found = tuple(decision)
        if len(found) != self.n_iter:
            raise InputError(
                f"decision: layer {self.layer} runs {self.n_iter} times, got {len(found)} "
                "decisions; give one for all, or one each"
            )
        return tuple(replace(d, stats={}) for d in found)

    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        """Advance the routers' state once per optimiser step (see ``Router.commit``)."""
        for iteration, router in enumerate(self.routers):
            mine = f"{iteration}/" if len(self.routers) > 1 else ""
            counts, state = _under(stats, mine), _under(new_state, mine)
            if counts or state:  # else it was not asked: all decisions came from outside
                router.commit(counts, state)

    def stats(self, decisions: Sequence[RoutingDecision]) -> dict[str, Tensor]:
        """Return the statistics of a forward pass, summed over the iterations of each router."""
        total: dict[str, Tensor] = {}
        for iteration, decision in enumerate(decisions):
            index = min(iteration, len(self.routers) - 1)
            mine = f"{index}/" if len(self.routers) > 1 else ""
            for name, value in decision.stats.items():
                key = mine + name
                total[key] = total[key] + value if key in total else value
        return total

    # ------------------------------------------------------------------ the pieces of a call

    def _router_of(self, iteration: int) -> Router:
        return self.routers[min(iteration, len(self.routers) - 1)]

    def _asked(self, iteration: int, inp: RouterInput) -> RouterOutput:
        """Return the router's answer, scored in float32 whatever the precision of the experts."""
        router, device = self._router_of(iteration), inp.x_BTD.device.type
        if not torch.is_autocast_enabled(device):
            answer: RouterOutput = router(inp)
            return answer
        with torch.autocast(device, enabled=False):
            answer = router(inp)
        return answer

    def _view(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor,
        context: RouteContext,
        *,
        iteration: int,
        **layer_state: Any,
    ) -> RouterInput:
        return RouterInput(
            x_BTD=x_BTD,
            mask_BT=mask_BT,
            is_full=context.mask_BT is None,
            layer=self.layer,
            n_layers=self.n_layers,
            iteration=iteration,
            training=context.training,
            step=context.step,
            progress=context.progress,
            pass_id=context.pass_id,
            causal=context.causal,
            rng=_later_generator(context, self.layer, iteration),
            logit_bias=context.logit_bias,
            force_BT=context.force_BT,
            allow=context.allow,
            cond=context.cond,
            **layer_state,
        )

    def _collect(
        self,
        answer: RouterOutput,
        iteration: int,
        aux: dict[str, AuxTerm],
        new_state: dict[str, Tensor],
    ) -> None:
        suffix = f"/{iteration}" if self.n_iter > 1 else ""
        aux.update({f"{name}{suffix}": term for name, term in answer.aux.items()})
        mine = f"{min(iteration, len(self.routers) - 1)}/" if len(self.routers) > 1 else ""
        new_state.update({mine + name: value for name, value in answer.new_state.items()})

    def _outputs(
        self, x_BTD: Tensor, decision: RoutingDecision, context: RouteContext, *, is_full: bool
    ) -> Tensor:
        if self.experts.view == "token":
            routed = apply_decision(self.experts, x_BTD, decision, path=self.path, is_full=is_full)
        else:
            pos_BT = context.cond.get("pos")
            if pos_BT is None:
                pos_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
            routed = apply_to_sequences(
                self.experts, x_BTD, decision, pos_BT=pos_BT, causal=context.causal
            )
        if self.out_scale != 1.0:
            routed = self.out_scale * routed
        if self.shared is None:
            return routed
        every = self.shared(x_BTD) * self.shared_scale
        if self.shared_gate is not None:
            every = torch.sigmoid(self.shared_gate(x_BTD)) * every
        if is_full:
            return routed + every
        real_BT1 = decision.mask_N.reshape(x_BTD.shape[:2]).unsqueeze(-1)
        return routed + torch.where(real_BT1, every, torch.zeros_like(every))

    def _flops(
        self,
        decisions: tuple[RoutingDecision, ...],
        mask_BT: Tensor,
        routed: int,
        context: RouteContext,
    ) -> float | Deferred[float]:
        """Return what the iterations cost, ``routed`` of which asked a router.

        Later, where all it depends on was made in this call: a caller may fill masks anew.
        """
        length = mask_BT.shape[1]
        is_own = context.mask_BT is None and routed == self.n_iter
        if is_own and not torch.compiler.is_compiling():
            return Deferred(partial(self._counted, decisions, mask_BT.numel(), length, routed))
        real = mask_BT.numel() if context.mask_BT is None else int(mask_BT.sum())
        return self._counted(decisions, real, length, routed)

    def _counted(
        self, decisions: tuple[RoutingDecision, ...], real: int, length: int, routed: int
    ) -> float:
        flops_E = self.experts.flops_E(length)
        total = len(decisions) * self.shared_flops * real
        if routed:
            total += routed * self.routers[0].router_flops(real)
        for decision in decisions:
            for choice in decision.choices:
                ran_E = executed_counts(choice, decision, self.experts)
                total += float((ran_E.cpu() * flops_E).sum())
        return total

    def _check_call(self, h_BTD: Tensor, context: RouteContext) -> Tensor:
        if h_BTD.ndim != 3 or not h_BTD.is_floating_point():
            raise InputError(
                f"MoE layer {self.layer}: expected a floating tensor (batch, length, width), "
                f"got {h_BTD.dtype} of shape {tuple(h_BTD.shape)}"
            )
        if not h_BTD.numel():
            raise InputError(
                f"MoE layer {self.layer}: expected at least one token, got shape "
                f"{tuple(h_BTD.shape)}; leave empty batches out, or send one masked token"
            )
        for router in self.routers:
            width = getattr(router, "d", None)
            if width is not None and h_BTD.shape[-1] != width:
                raise InputError(
                    f"MoE layer {self.layer}: tokens are {h_BTD.shape[-1]} wide, "
                    f"the router was built for {width}"
                )
            if context.causal and not router.causal_safe:
                name = getattr(router, "name", type(router).__name__)
                raise UsageError(
                    f"router {name!r} looks at later tokens and cannot serve a decoder; "
                    f"{router.remedy}"
                )
        if context.mask_BT is not None and not isinstance(context.mask_BT, Tensor):
            raise InputError(
                f"mask: expected a bool tensor of shape {tuple(h_BTD.shape[:2])} (True = real "
                f"token), got {type(context.mask_BT).__name__}"
            )
        return mask_of(h_BTD, context.mask_BT)


def generator(context: RouteContext, layer: int, iteration: int) -> torch.Generator:
    """Return the generator of one decide call, the same whenever that call is computed again."""
    place = (
        context.seed,
        context.step if context.training else -1,
        context.micro_batch,
        context.pass_id,
        layer,
        iteration,
    )
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    made = torch.Generator()
    made.manual_seed(int.from_bytes(digest, "little") >> 1)
    return made


def _later_generator(
    context: RouteContext, layer: int, iteration: int
) -> torch.Generator | Deferred[torch.Generator | None]:
    """Return the generator, made only for a router that draws."""
    if torch.compiler.is_compiling():
        return generator(context, layer, iteration)
    return Deferred(partial(generator, context, layer, iteration))


def _under(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _check_fit(
    routers: tuple[Router, ...], experts: Experts, n_iter: int, sharing: GateSharing
) -> None:
    if n_iter < 1:
        raise UsageError(f"n_iter: expected at least 1, got {n_iter}")
    expected = n_iter if sharing == "independent" else 1
    if len(routers) != expected:
        raise UsageError(
            f"router: expected {expected} for {n_iter} iterations with {sharing} gates, "
            f"got {len(routers)}"
        )
    for router in routers:
        if router.kinds != experts.kinds:
            raise UsageError(
                f"experts: the router chooses among {router.n_experts} ({_kinds(router.kinds)}), "
                f"but {experts.n_experts} were given ({_kinds(experts.kinds)}); "
                "build them from router.kinds"
            )
        widths = getattr(router, "d", None), getattr(experts, "d", None)
        if None not in widths and widths[0] != widths[1]:
            raise UsageError(
                f"experts: the router was built for tokens {widths[0]} wide, the experts for "
                f"{widths[1]}; build both for the model's width"
            )


def _kinds(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _check_decision(decision: RoutingDecision, experts: Experts, mask_BT: Tensor) -> None:
    if decision.n_experts != experts.n_experts or decision.shape != tuple(mask_BT.shape):
        raise InputError(
            f"decision: made for {decision.n_experts} experts and tokens {decision.shape}, "
            f"but the layer has {experts.n_experts} and got {tuple(mask_BT.shape)}"
        )
