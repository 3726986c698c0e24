"""Models of ``transformers`` with our routers: dense ones upcycled, sparse ones swapped.

    model = upcycle(model, router="top2", n_experts=8)          # Llama, SmolLM2, Qwen, ...
    model = swap_router(model)                                    # Mixtral, OLMoE, Qwen-MoE, ...
    with recording(model, Recorder()) as recorder:
        model.generate(...)
    recorder.trace().save(Path("run.npz"))

Upcycling copies the dense feed-forward into every expert (Sparse Upcycling, 2022). Where a token's
weights sum to 1 the model computes what it did before. Where they do not, the routed output is
divided by the mean sum of weights over probe tokens (``out_scale``), so that it keeps its size;
with ``router_std=0`` all scores are equal, every token has that same sum, and the outputs are equal
again, at the price that all tokens start on the same experts.

Axes: N tokens, D width, F hidden width, E experts, K places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError, MissingExtraError, UsageError, unknown_name
from crossroads.core.files import replacing, write_atomically
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.moe.checks import check_coefficients
from crossroads.moe.contract import Router, RouterInput
from crossroads.moe.conversions import executed, to_token_choice
from crossroads.moe.experts import FFNBank
from crossroads.moe.hf_blocks import (
    OriginalRouter,
    RoutedMLP,
    attach,
    bank_of,
    check_dense,
    check_sparse,
    dense_blocks,
    dtypes_of,
    moe_blocks,
    register_shared,
    set_dtypes,
    surroundings_of,
    switch_off_logits,
    take_older_names,
)
from crossroads.moe.hf_caches import same_sequences
from crossroads.moe.layer import MoELayer
from crossroads.moe.recording import Recorder
from crossroads.moe.routers import build_router, router_names
from crossroads.moe.sharing import is_shared, routers_of_layers

ORIGINAL = "original"
PROBE_TOKENS = 256
_SETTINGS = "crossroads.json"
_WEIGHTS = "model.safetensors"

Layers = Literal["all", "odd", "even"] | Sequence[int]


def upcycle(
    model: nn.Module,
    *,
    router: str = "top2",
    n_experts: int = 8,
    layers: Layers = "all",
    noise_std: float = 0.0,
    router_std: float | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Replace dense feed-forwards by mixtures of copies of them, in place; return the model.

    Raises UsageError for a model, router or layers that do not fit.

    Parameters
    ----------
    model : a causal language model with gated SiLU feed-forwards without biases
    router : name, or ``name:setting=value``; it must be causal and read the tokens alone
    n_experts : copies; null experts of a router come on top
    layers : ``all``, ``odd``, ``even`` (0-based) or layer numbers
    noise_std : of Gaussian noise on the copies, in units of each matrix's standard deviation, so
        that experts differ from the start; 0 keeps them equal
    router_std : standard deviation of the linear scores' weights; None = the router's own start
    seed : of router and noise
    """
    blocks = {index: (name, block) for index, name, block in dense_blocks(model)}
    if not blocks:
        what = "dense feed-forward (gate_proj, up_proj, down_proj)"
        raise _nothing(model, what, "Llama, Qwen or Mistral", "swap_router")
    chosen = _chosen(layers, blocks)
    for index in chosen:
        check_dense(index, blocks[index][1])
    surroundings = attach(model)
    made = torch.Generator().manual_seed(seed)
    n_layers = max(blocks) + 1
    groups = routers_of_layers(router, settings, len(chosen), n_experts)
    shared: dict[int, Router] = {}
    for (number, group), index in zip(groups, chosen, strict=True):
        name, block = blocks[index]
        gate, up, down = (
            getattr(block, part).weight for part in ("gate_proj", "up_proj", "down_proj")
        )
        if number not in shared:
            shared[number] = _router(router, gate.shape[1], group.n_experts, made, settings)
            if router_std is not None:
                check_coefficients(router_std=router_std)
                _redraw(shared[number], router_std, made)
        routes = shared[number]
        matrix_E2FD = _copies(torch.cat([gate, up]), group.n_experts, noise_std, made)
        down_EDF = _copies(down, group.n_experts, noise_std, made)
        moe = MoELayer(
            routes.to(gate.device),
            bank_of(matrix_E2FD, down_EDF, routes.kinds).to(gate.device),
            layer=index,
            n_layers=n_layers,
            own_router=not is_shared(router),
        )
        moe.out_scale = 1.0 / mean_weight_sum(moe)
        _put(model, name, RoutedMLP(moe, surroundings).train(model.training))
    register_shared(model)
    _remember(
        model,
        {
            "kind": "upcycle",
            "router": router,
            "n_experts": n_experts,
            "layers": list(chosen),
            "settings": dict(settings or {}),
        },
    )
    return model


def swap_router(
    model: nn.Module,
    router: str = ORIGINAL,
    *,
    layers: Layers = "all",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put routers of ours before the experts of a sparse model, in place; return the model.

    ``original`` keeps the model's own router and its outputs; it makes decisions visible to
    recorders. Experts and shared experts keep their weights, which are not copied. ``out_scale``
    makes up for another mean sum of weights (DeepSeek's sum to its scaling factor). Mixtral's input
    jitter in training is left out. Raises UsageError for a model or router that does not fit.
    """
    name = router.split(":", maxsplit=1)[0].replace("_", "-")
    if "." not in name and name not in (known := [ORIGINAL, *router_names()]):
        raise unknown_name("router", name, known)
    blocks = {index: (name, block) for index, name, block in moe_blocks(model)}
    if not blocks:
        what = "mixture of experts (a gate and stacked experts)"
        raise _nothing(model, what, "Mixtral, OLMoE or Qwen-MoE", "upcycle")
    chosen = _chosen(layers, blocks)
    for index in chosen:
        check_sparse(index, blocks[index][1])
    surroundings = attach(model)
    found = [_layer(blocks[index][1], index, max(blocks) + 1) for index in chosen]
    if router != ORIGINAL:
        found = _with_routers(found, router, settings, torch.Generator().manual_seed(seed))
    for index, moe in zip(chosen, found, strict=True):
        _put(model, blocks[index][0], RoutedMLP(moe, surroundings).train(model.training))
    register_shared(model)
    switch_off_logits(model)
    _remember(
        model,
        {
            "kind": "swap",
            "router": router,
            "layers": list(chosen),
            "settings": dict(settings or {}),
        },
    )
    return model


def _layer(block: Any, index: int, n_layers: int) -> MoELayer:
    """Return a sparse block as a MoE layer over the same parameters."""
    if isinstance(block, RoutedMLP):
        return block.moe
    experts = block.experts
    n_experts = experts.gate_up_proj.shape[0]
    router = OriginalRouter(block.gate, n_experts)
    shared = getattr(block, "shared_expert", None) or getattr(block, "shared_experts", None)
    gate = getattr(block, "shared_expert_gate", None)
    flops = 0.0 if shared is None else 2.0 * sum(p.numel() for p in shared.parameters())
    moe = MoELayer(
        router,
        bank_of(experts.gate_up_proj, experts.down_proj, router.kinds),
        shared=shared,
        shared_flops=flops,
        shared_gate=gate is not None,
        layer=index,
        n_layers=n_layers,
    )
    if gate is not None:
        moe.shared_gate = gate
    return moe


def _with_routers(
    layers: Sequence[MoELayer],
    spec: str,
    settings: Mapping[str, Any] | None,
    made: torch.Generator,
) -> list[MoELayer]:
    """Return the layers with a new router each, or with one for each group that shares it."""
    numbers = [layer.experts.kinds.count("ffn") for layer in layers]
    shared: dict[int, Router] = {}
    answer = []
    for (number, group), layer, n_experts in zip(
        routers_of_layers(spec, settings, len(layers), numbers[0]), layers, numbers, strict=True
    ):
        if is_shared(spec) and group.n_experts != n_experts:
            raise UsageError(
                f"router {spec!r}: its group has {group.n_experts} experts, layer {layer.layer} "
                f"has {n_experts}; choose a share that fits"
            )
        if number not in shared:
            routes = _router(spec, layer.experts.d_out, n_experts, made, settings)
            shared[number] = routes.to(next(layer.experts.parameters()).device)
        answer.append(_with_router(layer, shared[number], own=not is_shared(spec)))
    return answer


def _with_router(layer: MoELayer, router: Router, *, own: bool) -> MoELayer:
    experts = layer.experts
    assert isinstance(experts, FFNBank)
    moe = MoELayer(
        router,
        bank_of(experts.up, experts.down, router.kinds),  # with the null experts it may have
        shared=layer.shared,
        shared_flops=layer.shared_flops,
        shared_gate=layer.shared_gate is not None,
        layer=layer.layer,
        n_layers=layer.n_layers,
        own_router=own,
    )
    moe.shared_gate = layer.shared_gate
    moe.out_scale = layer.out_scale * mean_weight_sum(layer) / mean_weight_sum(moe)
    return moe


@torch.no_grad()
def mean_weight_sum(moe: MoELayer) -> float:
    """Return the mean over normal probe tokens of a token's summed weights; 1 within 1e-5 is 1.

    What the routed output of identical experts has to be divided by to keep its size.
    """
    router = moe.routers[0]
    parameter = next(moe.experts.parameters())
    made = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(1, PROBE_TOKENS, moe.experts.d_out, generator=made)
    x_BTD = x_BTD.to(parameter)
    mask_BT = torch.ones(1, PROBE_TOKENS, dtype=torch.bool, device=x_BTD.device)
    place_BT = torch.arange(PROBE_TOKENS, device=x_BTD.device).unsqueeze(0)
    inp = RouterInput(
        x_BTD=x_BTD,
        mask_BT=mask_BT,
        rng=made,
        causal=True,
        layer=moe.layer,
        # Every token looks at itself and all before it alike.
        attn=torch.ones(PROBE_TOKENS, PROBE_TOKENS, device=x_BTD.device).tril()[None, None]
        / (place_BT + 1).unsqueeze(-1),
        cond={"token_id": place_BT, "pos": place_BT},
    )
    decision = router.eval()(inp).decision
    total = 0.0
    for choice in decision.choices:
        places = to_token_choice(choice)
        runs = executed(places, router.kinds) >= 0
        total += float(torch.where(runs, places.w_NK, 0.0).sum(-1).double().mean())
    if not total > 0:
        raise UsageError(
            f"router {getattr(router, 'name', '?')!r}: its weights sum to {total:.3g} on average; "
            "copies of a feed-forward can not be scaled to match it, choose another router"
        )
    return 1.0 if abs(total - 1.0) < 1e-5 else total


# ---------------------------------------------------------------------- watching a model


@contextmanager
def observed(
    model: nn.Module, context: RouteContext | None = None
) -> Iterator[list[tuple[ModelOutput, RouteContext]]]:
    """Collect every forward pass within: decisions, auxiliary losses (with gradient), context.

    ``context`` sets seed, step and the like; mask, token ids and ``training`` come from the calls.
    """
    passes: list[tuple[ModelOutput, RouteContext]] = []

    def keep(output: ModelOutput, seen: RouteContext, continues: bool) -> None:
        passes.append((output, seen))

    around = surroundings_of(model)
    before = around.context, around.observer
    around.context, around.observer = context or around.context, keep
    try:
        yield passes
    finally:
        around.context, around.observer = before


@contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[Recorder]:
    """Record every forward pass within; the steps of ``generate`` continue their sequences.

    The recorder takes kinds and metadata from the model, see ``Recorder.describe``.

    Beam search puts sequences in another order between steps, and assisted decoding takes tokens
    back: neither can be followed, and where it shows in the model's cache InputError is raised.
    """
    numbers: list[int] = []

    def keep(output: ModelOutput, seen: RouteContext, continues: bool) -> None:
        same = continues and len(numbers) == output.out.shape[0]
        numbers[:] = recorder.record(output, seen, sequences=list(numbers) if same else None)

    around = surroundings_of(model)
    recorder.describe(model)
    before, around.observer = around.observer, keep
    try:
        with same_sequences(model):
            yield recorder
    finally:
        around.observer = before


# ---------------------------------------------------------------------- saving


def save_converted(model: nn.Module, folder: str | Path) -> None:
    """Write a converted model: its configuration, the conversion, and weights as safetensors.

    Raises UsageError for a model that was not converted, InputError where nothing can be written.
    """
    folder = Path(folder)
    transformers_config = getattr(model, "config", None)
    conversions = getattr(model, "conversions", None)
    if conversions is None or transformers_config is None:
        raise UsageError("model: was not converted; call upcycle or swap_router first")
    from safetensors.torch import save_model

    scales = {m.moe.layer: m.moe.out_scale for m in model.modules() if isinstance(m, RoutedMLP)}
    with replacing(folder / _WEIGHTS) as partial:
        save_model(model, str(partial))
    write_atomically(folder / "config.json", transformers_config.to_json_string(use_diff=False))
    kept = {"conversions": conversions, "out_scale": scales, "dtypes": dtypes_of(model)}
    kept["eager"] = any("attn" in m.moe.needs for m in model.modules() if isinstance(m, RoutedMLP))
    write_atomically(folder / _SETTINGS, json.dumps(kept, indent=2) + "\n")


def load_converted(folder: str | Path) -> nn.Module:
    """Return a model that ``save_converted`` wrote, in evaluation mode.

    Raises InputError for a folder that holds no such model.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_model
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError(f"{error.name}", extra="neural") from None
    folder = Path(folder)
    try:
        kept = json.loads((folder / _SETTINGS).read_text("utf-8"))
        conversions, scales = kept["conversions"], kept["out_scale"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder}: holds no converted model ({error}); give a folder of save_converted"
        ) from error
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        # A word of the folder, not arguments: those could have it run code of its own.
        eager = {"attn_implementation": "eager"} if kept.get("eager") is True else {}
        model: Any = AutoModelForCausalLM.from_config(config, **eager)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder}: config.json cannot be read: {reason}; save it again"
        ) from error
    for conversion in conversions:
        arguments = {k: v for k, v in conversion.items() if k != "kind"}
        if conversion["kind"] == "upcycle":
            upcycle(model, **arguments)
        else:
            swap_router(model, **arguments)
    for block in model.modules():
        if isinstance(block, RoutedMLP):
            block.moe.out_scale = float(scales[str(block.moe.layer)])
    try:
        dtypes = kept.get("dtypes", {})
        take_older_names(model, dtypes)
        set_dtypes(model, dtypes)
        load_model(model, str(folder / _WEIGHTS))
    except (AttributeError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: weights cannot be read: {error}; save it again") from error
    loaded: nn.Module = model.eval()
    return loaded


# ---------------------------------------------------------------------- the pieces


def _nothing(model: nn.Module, what: str, families: str, other: str) -> UsageError:
    """Return the error for a model without a block of the wanted form."""
    if any(isinstance(module, RoutedMLP) for module in model.modules()):
        return UsageError(
            f"model: {type(model).__name__} is converted already; swap_router changes its routers"
        )
    return UsageError(
        f"model: {type(model).__name__} has no {what} in its layers; expected a model like "
        f"{families}, or try {other}"
    )


def _chosen(layers: Layers, blocks: Mapping[int, Any]) -> list[int]:
    if isinstance(layers, str):
        keep = {"all": (0, 1), "odd": (1,), "even": (0,)}.get(layers)
        if keep is None:
            raise UsageError(f"layers: expected all, odd, even or numbers, got {layers!r}")
        return sorted(index for index in blocks if index % 2 in keep)
    unknown = sorted(set(layers) - set(blocks))
    if not layers:
        raise UsageError(f"layers: expected some of {sorted(blocks)}, got none")
    if unknown:
        raise UsageError(f"layers: the model has {sorted(blocks)} of this form, got {unknown}")
    return sorted(set(layers))


def _router(
    spec: str, d: int, n_experts: int, made: torch.Generator, settings: Mapping[str, Any] | None
) -> Router:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=made)))
        router = build_router(spec, d, n_experts, **(settings or {}))
    reads = router.needs - {"attn", "carry", "cond:token_id", "cond:pos"}
    if not router.causal_safe or reads:
        why = f"reads {', '.join(sorted(reads))}" if reads else "looks at later tokens"
        raise UsageError(f"router {spec!r}: {why}, which a language model's block cannot give")
    return router


def _redraw(router: Router, std: float, made: torch.Generator) -> None:
    gate = getattr(router, "gate", None)
    if not isinstance(gate, nn.Linear):
        raise UsageError("router_std: this router has no linear score; leave it out")
    gate.weight.data = std * torch.randn(gate.weight.shape, generator=made)


def _copies(
    matrix: Tensor, n_experts: int, noise_std: float, made: torch.Generator
) -> nn.Parameter:
    check_coefficients(noise_std=noise_std)
    stacked = matrix.detach().expand(n_experts, *matrix.shape).clone()
    if noise_std:
        scale = noise_std * float(matrix.detach().float().std())
        drawn = torch.randn(stacked.shape, generator=made).to(stacked)
        stacked += scale * drawn
    return nn.Parameter(stacked, requires_grad=matrix.requires_grad)


def _put(model: nn.Module, name: str, block: RoutedMLP) -> None:
    above, _, last = name.rpartition(".")
    parent = model.get_submodule(above)
    block.listen(model, parent)
    before = getattr(parent, last)
    if isinstance(before, RoutedMLP):
        before.deafen()
    setattr(parent, last, block)
    if parent not in block.surroundings.layers:
        block.surroundings.layers.append(parent)


def _remember(model: Any, conversion: dict[str, Any]) -> None:
    model.conversions = [*getattr(model, "conversions", []), conversion]
