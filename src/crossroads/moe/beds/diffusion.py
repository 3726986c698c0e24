"""Drawing digits: a class-conditional diffusion transformer, layers 1 and 3 routed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import digits
from crossroads.datasets.batches import batch_indices
from crossroads.datasets.digits_classifier import digits_classifier
from crossroads.models.diffusion import DDPM, RectifiedFlow, guided_field, training_pass
from crossroads.models.dit import DiT, DiTConfig
from crossroads.models.metrics import Gaussian, frechet_distance
from crossroads.moe.beds.bed import Ints, Preset, tensor
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.training import TrainConfig

Batch = tuple[Tensor, Tensor, int]  # images in [-1, 1], labels, seed of this step's draws
Part = tuple[Tensor, Tensor]  # images in [-1, 1], labels
NUM_PATCHES = 16
HELD_OUT_DRAWS = 4  # noise levels drawn for every held-out image
SAMPLES = 500
SAMPLING_STEPS = 25
DRAWS_FROM = 1000  # training steps; what a model trained less draws is noise in every arm


@dataclass(frozen=True, kw_only=True)
class DiffusionBed:
    """8 x 8 digits in pixel space by rectified flow, or by DDPM with noise as the target.

    ``frechet`` is the Frechet distance between Gaussians fitted to features of a small fixed
    classifier of digits, on drawn and on test images: like FID, on another network. Models trained
    for fewer than ``DRAWS_FROM`` steps are judged by their held-out error alone.
    """

    objective: Literal["flow", "ddpm"] = "flow"
    n_experts: int = 4
    num_layers: int = 4
    name: str = "diffusion"
    causal: bool = False

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(
                name="error",
                title="Held-out error",
                higher_is_better=False,
                digits=4,
                help="Mean squared error of the predicted velocity (noise, under DDPM).",
            ),
            Metric(
                name="frechet",
                title="Frechet distance",
                higher_is_better=False,
                digits=2,
                help="Of features of a fixed digit classifier: drawn against real test images.",
            ),
            Metric(
                name="recognised",
                title="Recognised",
                help="Share of drawn images the classifier gives the label they were drawn for.",
            ),
        )

    @property
    def description(self) -> str:
        return (
            "1,797 real 8x8 digits; class-conditional DiT of 4 layers, width 64, layers 1 and 3 "
            f"routed; {'rectified flow' if self.objective == 'flow' else 'DDPM'}"
        )

    @property
    def fingerprint(self) -> str:
        return f"diffusion digits {self.objective} {self.num_layers} v1"

    @property
    def process(self) -> RectifiedFlow | DDPM:
        return RectifiedFlow() if self.objective == "flow" else DDPM()

    def spec(self, router: str) -> MoESpec:
        return MoESpec(
            router=router,
            hints={"tokens": NUM_PATCHES},
            n_experts=self.n_experts,
            dense_hidden=256,
            activation="gelu_tanh",
            layers="odd",
        )

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(
            steps=200,
            batch_size=64,
            lr=1e-3,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            clip=0.5,
            warmup=0,
            schedule="constant",
            ema=0.99,
        )
        return quick if preset == "quick" else replace(quick, steps=DRAWS_FROM, log_every=100)

    def tokens(self, config: TrainConfig) -> int:
        return config.batch_size * config.micro_batches * NUM_PATCHES

    def build(self, spec: MoESpec) -> nn.Module:
        config = DiTConfig(num_layers=self.num_layers, hidden=spec.dense_hidden)
        return DiT(config, sublayer=MoEFactory(spec, self.num_layers))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Batch:
        place = step * config.micro_batches + micro_batch
        images, label = _part("train")
        rows = batch_indices(len(label), config.batch_size, step=place, seed=config.seed)
        index = torch.from_numpy(rows)
        return images[index], label[index], config.seed * 1_000_003 + place

    def loss(
        self, model: nn.Module, batch: Batch, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        images, label, seed = batch
        return training_pass(
            model,
            self.process,
            images,
            label,
            generator=torch.Generator().manual_seed(seed),
            label_dropout=0.1 if context.training else 0.0,
            context=context,
        )

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        images, label = _part("test")
        errors = [
            float(self.loss(model, (images, label, draw), RouteContext())[0])
            for draw in range(HELD_OUT_DRAWS)
        ]
        if config.steps < DRAWS_FROM:
            return {"error": float(np.mean(errors))}
        drawn, wanted = self.draw(model, SAMPLES)
        classifier = digits_classifier()
        features = classifier.features(digits.from_signed(drawn))
        real = classifier.features(digits.from_signed(images.numpy()))
        return {
            "error": float(np.mean(errors)),
            "frechet": frechet_distance(Gaussian.of(features), Gaussian.of(real)),
            "recognised": classifier.accuracy(digits.from_signed(drawn), wanted),
        }

    def draw(
        self, model: nn.Module, count: int, *, guidance: float = 1.0, seed: int = 0
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Ints]:
        """Return images (count, 1, 8, 8) in [-1, 1] and the labels they were drawn for."""
        label = torch.arange(count) % digits.NUM_CLASSES
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        field = guided_field(model, label, guidance=guidance)
        drawn = self.process.sample(field, noise, num_steps=SAMPLING_STEPS)
        return drawn.numpy(), label.numpy()

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        images, label = _part("test")
        _, output = self.loss(model, (images[:128], label[:128], 0), RouteContext())
        return output, np.repeat(label[:128].numpy(), NUM_PATCHES)


@cache
def _part(name: Literal["train", "test"]) -> Part:
    part = getattr(digits.load(), name)
    return tensor(digits.to_signed(part.pixels)), tensor(part.label)
