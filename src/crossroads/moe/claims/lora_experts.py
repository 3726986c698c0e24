"""A bed of adapters: the last two blocks of SmolLM2, frozen, with routed LoRA experts beside them.

The task is the domain of a short request (CLINC150), read off the last token. The blocks below are
frozen too, so their output is computed once and kept in crossroads' cache with the weights of the
last two; a run then costs seconds. Departure from the papers, which adapt single linear maps: an
expert of rank r stands beside the whole feed-forward, y = mlp(x) + sum_e w_e B_e A_e x.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crossroads.core import dispatch
from crossroads.core.arena import Metric
from crossroads.core.files import replacing
from crossroads.core.progress import progress_bar
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import clinc150
from crossroads.datasets.batches import batch_indices
from crossroads.models.blocks import Pass
from crossroads.models.embedding_cache import cache_folder
from crossroads.moe.beds.bed import Ints, Preset
from crossroads.moe.building import MoESpec
from crossroads.moe.contract import ExpertKind
from crossroads.moe.experts import Experts
from crossroads.moe.layer import MoELayer
from crossroads.moe.routers import build_router
from crossroads.moe.training import TrainConfig

ADAPTED = 2  # blocks with experts, the last ones
LONGEST = 16  # tokens of a request; the rest is cut
TRAINED, JUDGED = 600, 300  # requests
Batch = tuple[Tensor, Tensor, Tensor]  # stream (B, T, D), mask (B, T), labels (B,)


class LoRABank(Experts):
    """Experts B_e A_e x of rank r; B starts at zero, so training starts from the frozen model.

    ``kinds`` holds true experts first and null ones after them.
    """

    def __init__(self, width: int, rank: int, kinds: Sequence[ExpertKind]) -> None:
        super().__init__(kinds, width)
        self.n_true = sum(kind != "null" for kind in kinds)
        self.down = nn.Parameter(torch.randn(self.n_true, rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(self.n_true, width, rank))

    def run_tokens(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        plan = dispatch.plan_rows(torch.where(idx_NK < self.n_true, idx_NK, -1), self.n_true)
        low_SR = dispatch.grouped_linear(dispatch.gather_rows(x_ND, plan), plan, self.down)
        return dispatch.combine_rows(dispatch.grouped_linear(low_SR, plan, self.up), w_NK, plan)

    def expert(self, index: int, x: Tensor, **arguments: Any) -> Tensor:
        if index >= self.n_true:
            return torch.zeros_like(x)
        return x @ self.down[index].T @ self.up[index].T

    def flops_E(self, length: int = 1) -> Tensor:
        one = 4.0 * self.down.shape[1] * self.d_out
        return torch.tensor([0.0 if kind == "null" else one for kind in self.kinds])


class AdaptedTail(nn.Module):
    """Frozen last blocks of a Llama model with routed experts, and a new head on the last token.

    ``weights`` are those of ``prepare``; parameters that ask for gradients are experts, routers and
    the head alone.
    """

    def __init__(self, config: Any, weights: dict[str, Tensor], routed: Sequence[MoELayer]) -> None:
        from transformers.models.llama import modeling_llama as llama

        super().__init__()
        first = config.num_hidden_layers - len(routed)
        self.blocks = nn.ModuleList(
            llama.LlamaDecoderLayer(config, first + i) for i in range(len(routed))
        )
        self.norm = llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = llama.LlamaRotaryEmbedding(config)
        self.load_state_dict(weights)
        self.requires_grad_(False)
        self.routed = nn.ModuleList(routed)
        self.head = nn.Linear(config.hidden_size, clinc_classes())

    def forward(
        self, h_BTD: Tensor, mask_BT: Tensor, *, context: RouteContext | None = None
    ) -> ModelOutput:
        """Return logits (B, classes) of streams before the adapted blocks; padding comes last."""
        given = context or RouteContext(training=self.training)
        routed = Pass(replace(given, mask_BT=mask_BT, causal=True))
        places = torch.arange(h_BTD.shape[1]).unsqueeze(0)
        turn = self.rotary(h_BTD, places)
        for block, layer in zip(self.blocks, self.routed, strict=True):
            seen, _ = block.self_attn(
                block.input_layernorm(h_BTD), position_embeddings=turn, attention_mask=None
            )
            h_BTD = h_BTD + seen
            x_BTD = block.post_attention_layernorm(h_BTD)
            h_BTD = h_BTD + block.mlp(x_BTD) + routed(layer.layer, layer, x_BTD)
        last_B = mask_BT.sum(1) - 1
        h_BD = self.norm(h_BTD)[torch.arange(len(last_B)), last_B]
        return routed.output(self.head(h_BD), h_BTD)


@dataclass(frozen=True, kw_only=True)
class AdapterBed:
    """Requests to domains by ``AdaptedTail``; ``path`` is what ``prepare`` returned."""

    path: str
    rank: int = 8
    n_experts: int = 4
    name: str = "adapters"
    causal: bool = True

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(name="accuracy", title="Accuracy", help="Share of requests classified right."),
        )

    @property
    def description(self) -> str:
        return (
            f"CLINC150, {TRAINED:,} requests of 10 domains; SmolLM2-135M frozen, {self.n_experts} "
            f"LoRA experts of rank {self.rank} at its last {ADAPTED} feed-forwards"
        )

    @property
    def fingerprint(self) -> str:
        return f"adapters {Path(self.path).name} {self.rank} v1"

    def spec(self, router: str) -> MoESpec:
        return MoESpec(router=router, n_experts=self.n_experts)

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(steps=80, batch_size=32, lr=2e-3, warmup=10, log_every=20)
        return quick if preset == "quick" else replace(quick, steps=240)

    def tokens(self, config: TrainConfig) -> int:
        return int(self.batch(config, 0, 0)[1].sum()) * config.micro_batches

    def build(self, spec: MoESpec) -> nn.Module:
        config, weights, _ = _prepared(self.path)
        layers = []
        for i in range(ADAPTED):
            router = build_router(spec.router, config.hidden_size, spec.n_experts)
            experts = LoRABank(config.hidden_size, self.rank, router.kinds)
            layers.append(MoELayer(router, experts, layer=i, n_layers=ADAPTED))
        return AdaptedTail(config, weights, layers)

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Batch:
        place = step * config.micro_batches + micro_batch
        h_NTD, mask_NT, label_N = _prepared(self.path)[2]["train"]
        rows = batch_indices(len(label_N), config.batch_size, step=place, seed=config.seed)
        index = torch.from_numpy(rows)
        longest = int(mask_NT[index].sum(1).max())
        return h_NTD[index, :longest], mask_NT[index, :longest], label_N[index]

    def loss(
        self, model: nn.Module, batch: Batch, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        output: ModelOutput = model(batch[0], batch[1], context=context)
        return nn.functional.cross_entropy(output.out.float(), batch[2]), output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        held = _prepared(self.path)[2]["test"]
        nll, output = self.loss(model, held, RouteContext())
        right = output.out.argmax(-1) == held[2]
        return {"accuracy": float(right.float().mean()), "nll": float(nll)}

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        h_NTD, mask_NT, label_N = _prepared(self.path)[2]["test"]
        batch = (h_NTD[:128], mask_NT[:128], label_N[:128])
        _, output = self.loss(model, batch, RouteContext())
        labels: Ints = batch[2].unsqueeze(1).expand_as(batch[1])[batch[1]].numpy()
        return output, labels


def prepare() -> str:
    """Compute what lies below the adapted blocks, once a machine, and return the file's path.

    Raises UnavailableError where model or data are absent, MissingExtraError without libraries.
    """
    from crossroads.models.smollm2 import smollm2_path
    from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

    parts = _requests()
    stamp = f"{smollm2_path().stat().st_size} {ADAPTED} {LONGEST} {TRAINED} {JUDGED} v1"
    name = hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()
    path = cache_folder() / "moe" / f"smollm2-tail-{name}.safetensors"
    if not path.exists():
        write_prefix(load_smollm2(), smollm2_tokenizer(), parts, path)
    return str(path)


def write_prefix(
    model: Any, tokenizer: Any, parts: dict[str, tuple[list[str], Tensor]], path: Path
) -> None:
    """Write the streams before the adapted blocks, and those blocks, to a safetensors file."""
    found: dict[str, Tensor] = {}
    for part, (texts, label_N) in parts.items():
        token_NT, mask_NT = _tokens(tokenizer, texts)
        rows = []
        with progress_bar(f"frozen blocks: {part}") as report:
            for start in range(0, len(texts), 32):
                with torch.no_grad():
                    answer = model.model(token_NT[start : start + 32], output_hidden_states=True)
                rows.append(answer.hidden_states[-1 - ADAPTED])
                report(min(start + 32, len(texts)), len(texts))
        found |= {f"{part}.h": torch.cat(rows), f"{part}.mask": mask_NT, f"{part}.label": label_N}
    first = len(model.model.layers) - ADAPTED
    for i in range(ADAPTED):
        state = model.model.layers[first + i].state_dict()
        found |= {f"tail.blocks.{i}.{name}": value for name, value in state.items()}
    found["tail.norm.weight"] = model.model.norm.weight
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(
            {name: value.detach().contiguous().clone() for name, value in found.items()},
            temporary,
            metadata={"config": json.dumps(model.config.to_dict(), default=str)},
        )


def _tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    rows = [tokenizer.encode(text).ids[:LONGEST] for text in texts]
    token_NT = torch.zeros(len(rows), LONGEST, dtype=torch.int64)
    mask_NT = torch.zeros(len(rows), LONGEST, dtype=torch.bool)
    for number, row in enumerate(rows):
        token_NT[number, : len(row)] = torch.tensor(row)
        mask_NT[number, : len(row)] = True
    return token_NT, mask_NT


def _requests() -> dict[str, tuple[list[str], Tensor]]:
    """Return texts and labels, spread over the domains; rare words read "unknown"."""
    data = clinc150.load()
    words = ("", "unknown", *data.words[2:])
    found = {}
    for name, part, count in (("train", data.train, TRAINED), ("test", data.test, JUDGED)):
        rows = np.linspace(0, len(part.label) - 1, count).astype(np.int64)
        texts = [" ".join(words[i] for i in part.token[row][part.mask[row]]) for row in rows]
        found[name] = (texts, torch.from_numpy(part.label[rows]))
    return found


@cache
def clinc_classes() -> int:
    """Return the number of domains."""
    return len(clinc150.load().classes)


@cache
def _prepared(path: str) -> tuple[Any, dict[str, Tensor], dict[str, Batch]]:
    """Return the model's configuration, the adapted blocks' weights, and both parts."""
    from transformers import LlamaConfig

    with safe_open(path, framework="pt") as file:
        config = LlamaConfig(**json.loads(file.metadata()["config"]))
        config._attn_implementation = "sdpa"
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("tail."): v for k, v in held.items() if k.startswith("tail.")}
    parts = {
        part: (held[f"{part}.h"], held[f"{part}.mask"], held[f"{part}.label"])
        for part in ("train", "test")
    }
    return config, weights, parts
