"""Classifying 8 x 8 handwritten digits with a vision transformer, layers 1 and 3 routed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import digits
from crossroads.datasets.batches import batch_indices
from crossroads.models.vit import ViT, ViTConfig
from crossroads.moe.beds.bed import Ints, Preset, tensor
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.training import TrainConfig

Batch = tuple[Tensor, Tensor, Tensor]  # pixels, what a hash router takes for token ids, labels
NUM_PATCHES = 16


@dataclass(frozen=True, kw_only=True)
class VisionBed:
    """Digits in 16 patches; the hash baseline hashes a patch's content."""

    n_experts: int = 8
    num_layers: int = 4
    name: str = "vision"
    causal: bool = False

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(
                name="accuracy", title="Accuracy", help="Share of test images classified right."
            ),
            Metric(
                name="nll",
                title="NLL",
                unit="nats",
                higher_is_better=False,
                headline=False,
                help="Mean negative log likelihood of the right class.",
            ),
        )

    @property
    def description(self) -> str:
        return "1,797 real 8x8 digits (70/30); ViT of 4 layers, width 64, layers 1 and 3 routed"

    @property
    def fingerprint(self) -> str:
        return f"vision digits {self.num_layers} v1"

    def spec(self, router: str) -> MoESpec:
        return MoESpec(
            router=router,
            hints={"tokens": NUM_PATCHES, "uncond": False},
            n_experts=self.n_experts,
            dense_hidden=128,
            activation="gelu",
            layers="odd",
        )

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(steps=200, batch_size=64, lr=3e-3, log_every=20)
        return quick if preset == "quick" else replace(quick, steps=600, log_every=50)

    def tokens(self, config: TrainConfig) -> int:
        return config.batch_size * config.micro_batches * NUM_PATCHES

    def build(self, spec: MoESpec) -> nn.Module:
        config = ViTConfig(num_layers=self.num_layers, hidden=spec.dense_hidden)
        return ViT(config, sublayer=MoEFactory(spec, self.num_layers))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Batch:
        place = step * config.micro_batches + micro_batch
        train = digits.load().train
        rows = batch_indices(len(train.label), config.batch_size, step=place, seed=config.seed)
        return _images("train", rows)

    def loss(
        self, model: nn.Module, batch: Batch, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        pixels, content, label = batch
        output: ModelOutput = model(pixels, context=context.with_cond(token_id=content))
        return nn.functional.cross_entropy(output.out.float(), label), output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        batch = _images("test", None)
        nll, output = self.loss(model, batch, RouteContext())
        right = output.out.argmax(-1) == batch[2]
        return {"accuracy": float(right.float().mean()), "nll": float(nll)}

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        batch = _images("test", np.arange(128))
        _, output = self.loss(model, batch, RouteContext())
        return output, np.repeat(batch[2].numpy(), NUM_PATCHES)


@cache
def _parts() -> dict[str, Batch]:
    found = digits.load()
    return {
        name: (
            tensor(part.pixels),
            tensor(digits.patch_sums(part.pixels)),
            tensor(part.label),
        )
        for name, part in (("train", found.train), ("test", found.test))
    }


def _images(part: str, rows: Ints | None) -> Batch:
    pixels, content, label = _parts()[part]
    if rows is None:
        return pixels, content, label
    index = torch.from_numpy(rows)
    return pixels[index], content[index], label[index]
