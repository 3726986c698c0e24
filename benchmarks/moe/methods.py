"""The layers that benchmarks/moe compares: ours, its bank alone, peers, and the limit.

Every method maps tokens [N, D] to [N, D] with top-k routing by one linear gate, experts of equal
size. The limit is one dense SwiGLU FFN of an expert's size over N * K rows in plain torch: the same
active multiply-adds with no gate, no gather, no combine. The two hard or soft routing packages have
their own experts and capacities (GEGLU, equal hidden width); they see the tokens as sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossroads.core.dispatch import Path, swiglu_bank
from crossroads.core.dispatch.native import torch_only
from crossroads.core.routed import RouteContext
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer
from crossroads.moe.routers.top2 import Top2

LIMIT = "limit: one dense FFN"
OURS = "crossroads"  # the whole layer: router, checks, decision, bank
BANK, TORCH_ONLY = "crossroads, bank alone", "crossroads, bank alone, without compiled kernels"
HF_EAGER, HF_GROUPED = "transformers Mixtral, eager", "transformers Mixtral, grouped_mm"
SEQUENCE = 512  # tokens a sequence for the packages that route by sequence


@dataclass(frozen=True)
class Size:
    name: str
    width: int
    hidden: int
    experts: int
    places: int
    tokens: int = 4096

    @property
    def rows(self) -> int:
        return self.tokens * self.places


SMALL = Size("small", width=256, hidden=512, experts=8, places=2)
BIG = Size("big", width=512, hidden=1024, experts=16, places=2)


@dataclass(frozen=True)
class Method:
    """A layer to time: its call, and what it trains."""

    run: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]
    rows: int = 0  # rows of its input where they are not the tokens


@dataclass(frozen=True)
class Weights:
    gate: nn.Parameter
    gate_up: nn.Parameter
    down: nn.Parameter

    def all(self) -> list[nn.Parameter]:
        return [self.gate, self.gate_up, self.down]


def draw_weights(size: Size, dtype: torch.dtype, seed: int = 0) -> Weights:
    rng = torch.Generator().manual_seed(seed)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter((torch.randn(shape, generator=rng) / shape[-1] ** 0.5).to(dtype))

    return Weights(
        gate=parameter(size.experts, size.width),
        gate_up=parameter(size.experts, 2 * size.hidden, size.width),
        down=parameter(size.experts, size.width, size.hidden),
    )


def route(x_ND: Tensor, gate_ED: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Return the experts and renormalised weights of each token: softmax over the chosen logits."""
    logits_NE = functional.linear(x_ND, gate_ED).float()
    top_NK, idx_NK = logits_NE.topk(places, dim=-1)
    return idx_NK, top_NK.softmax(-1)


def ours(weights: Weights, size: Size) -> Method:
    """The layer with top-2 routing; where gradients are on, a pass of training with its losses."""
    router = Top2(size.width, size.experts, k=size.places)
    bank = FFNBank(size.width, size.hidden, size.experts)
    router.gate.weight, bank.up, bank.down = weights.gate, weights.gate_up, weights.down
    layer = MoELayer(router, bank)

    def run(x_ND: Tensor) -> Tensor:
        return layer(x_ND[None], RouteContext(training=torch.is_grad_enabled())).delta[0]

    return Method(run, weights.all())


def bank_alone(weights: Weights, size: Size, path: Path = "auto") -> Method:
    """The kernel under a gate in two lines: no checks, no decision to record, no losses."""

    def run(x_ND: Tensor) -> Tensor:
        idx_NK, w_NK = route(x_ND, weights.gate, size.places)
        return swiglu_bank(x_ND, idx_NK, w_NK, weights.gate_up, weights.down, path=path)

    return Method(run, weights.all())


def without_kernels(method: Method) -> Method:
    def run(x_ND: Tensor) -> Tensor:
        with torch_only():  # backward follows what forward chose
            return method.run(x_ND)

    return Method(run, method.parameters)


def limit(weights: Weights, size: Size) -> Method:
    """The dense FFN; it is given N * K rows instead of N tokens."""
    gate_up, down = (nn.Parameter(w[0].detach().clone()) for w in (weights.gate_up, weights.down))

    def run(x_SD: Tensor) -> Tensor:
        gate, up = functional.linear(x_SD, gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, down)

    return Method(run, [gate_up, down], size.rows)


def mixtral(weights: Weights, size: Size, implementation: str) -> Method:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_local_experts=size.experts,
        num_experts_per_tok=size.places,
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config)
    block.gate.weight = weights.gate
    block.experts.gate_up_proj, block.experts.down_proj = weights.gate_up, weights.down
    return Method(lambda x_ND: block(x_ND[None])[0], weights.all())


def st_moe(size: Size, dtype: torch.dtype) -> Method:
    from st_moe_pytorch import MoE

    layer = MoE(
        dim=size.width,
        num_experts=size.experts,
        gating_top_n=size.places,
        expert_hidden_mult=1.5 * size.hidden / size.width,  # the package takes 2/3 of it
        is_distributed=False,
    ).to(dtype)
    return Method(lambda x: layer(_sequences(x))[0].flatten(0, 1), list(layer.parameters()))


def soft_moe(size: Size, dtype: torch.dtype) -> Method:
    from soft_moe_pytorch import SoftMoE

    sequence = min(SEQUENCE, size.tokens)
    layer = SoftMoE(
        dim=size.width,
        num_experts=size.experts,
        num_slots=max(1, sequence * size.places // size.experts),
        expert_mult=1.5 * size.hidden / size.width,
        geglu=True,
        is_distributed=False,
        offload_unused_experts_to_cpu=False,
    ).to(dtype)
    return Method(lambda x: layer(_sequences(x)).flatten(0, 1), list(layer.parameters()))


def _sequences(x_ND: Tensor) -> Tensor:
    return x_ND.view(-1, min(SEQUENCE, len(x_ND)), x_ND.shape[-1])


def build(
    size: Size, dtype: torch.dtype, *, sequences: bool = True, only: str | None = None
) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods that run here by name, and why others were left out.

    ``sequences`` False leaves out the packages that route by sequence, without a word.
    """
    weights = draw_weights(size, dtype)
    makers: dict[str, Callable[[], Method]] = {
        LIMIT: lambda: limit(weights, size),
        OURS: lambda: ours(weights, size),
        BANK: lambda: bank_alone(weights, size),
        TORCH_ONLY: lambda: without_kernels(bank_alone(weights, size)),
        HF_EAGER: lambda: mixtral(weights, size, "eager"),
        HF_GROUPED: lambda: mixtral(weights, size, "grouped_mm"),
    }
    if sequences:
        makers |= {
            "st-moe-pytorch": lambda: st_moe(size, dtype),
            "soft-moe-pytorch": lambda: soft_moe(size, dtype),
        }
    methods: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        if only not in (None, name):
            continue
        try:
            methods[name] = make()
            methods[name].run(torch.randn(methods[name].rows or size.tokens, size.width).to(dtype))
        except (ImportError, RuntimeError) as error:
            methods.pop(name, None)
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return methods, left_out


def clear(methods: Iterable[Method]) -> None:
    """Drop all gradients, so that no method finds memory that another must make."""
    for method in methods:
        for parameter in method.parameters:
            parameter.grad = None
