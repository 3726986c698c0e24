"""Language modelling on bytes: a decoder reads a text and predicts the next byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import char_text
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe.beds.bed import Ints, Preset, tensor
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.training import TrainConfig

JUDGED = 96  # windows of held-out text


@dataclass(frozen=True, kw_only=True)
class LanguageBed:
    """Byte-level language model, every layer routed; presets change its training, not its size."""

    width: int = 64
    length: int = 64
    num_layers: int = 4
    n_experts: int = 8
    name: str = "lm"
    causal: bool = True

    @property
    def dense_hidden(self) -> int:
        return round(8 / 3 * self.width / 16) * 16

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(
                name="bpb",
                title="Bits per byte",
                unit="bits",
                higher_is_better=False,
                help="Mean negative log2 likelihood of held-out bytes.",
            ),
        )

    @property
    def description(self) -> str:
        return (
            f"{char_text.load().name}, bytes; decoder of {self.num_layers} layers, width "
            f"{self.width}, context {self.length}, every layer routed"
        )

    @property
    def fingerprint(self) -> str:
        return f"lm {char_text.load().name} {self.width} {self.length} {self.num_layers} v1"

    def spec(self, router: str) -> MoESpec:
        return MoESpec(
            router=router,
            hints={"tokens": self.length, "uncond": False},
            n_experts=self.n_experts,
            dense_hidden=self.dense_hidden,
            activation="swiglu",
        )

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(steps=200, batch_size=16, lr=3e-3, log_every=20)
        return quick if preset == "quick" else replace(quick, steps=600, warmup=50, log_every=50)

    def tokens(self, config: TrainConfig) -> int:
        return config.batch_size * config.micro_batches * self.length

    def build(self, spec: MoESpec) -> nn.Module:
        config = DecoderConfig(
            width=self.width,
            num_layers=self.num_layers,
            num_heads=4,
            hidden=spec.dense_hidden,
            max_length=self.length,
        )
        return DecoderLM(config, sublayer=MoEFactory(spec, self.num_layers))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
        place = step * config.micro_batches + micro_batch
        return tensor(
            char_text.batch(
                char_text.load().train,
                length=self.length,
                batch_size=config.batch_size,
                step=place,
                seed=config.seed,
            )
        )

    def loss(
        self, model: nn.Module, batch: Tensor, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        output: ModelOutput = model(batch[:, :-1], context=context)
        return nn.functional.cross_entropy(
            output.out.float().flatten(0, 1), batch[:, 1:].flatten()
        ), output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        nats = [
            float(self.loss(model, part, RouteContext())[0]) for part in self._held_out().split(32)
        ]
        return {"bpb": sum(nats) / len(nats) / math.log(2)}

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        windows = self._held_out()[:32]
        output: ModelOutput = model(windows[:, :-1], context=RouteContext())
        return output, windows[:, :-1].flatten().numpy()

    def _held_out(self) -> Tensor:
        windows = char_text.windows(char_text.load().valid, self.length)
        spread = torch.linspace(0, len(windows) - 1, min(JUDGED, len(windows))).long()
        return tensor(windows)[spread]
