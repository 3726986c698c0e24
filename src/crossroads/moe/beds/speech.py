"""Recognising strings of spoken digits: a CTC encoder on log-mel frames, every layer routed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import spoken_digits
from crossroads.models.metrics import word_error_rate
from crossroads.models.speech_encoder import SpeechConfig, SpeechEncoder, ctc_loss, greedy_labels
from crossroads.moe.beds.bed import Ints, Preset, tensor
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.training import TrainConfig

JUDGED = 200  # strings of held-out recordings
PROBED = 32


@dataclass(frozen=True, kw_only=True)
class SpeechBed:
    """Strings of two to four digits by one of six speakers; real recordings put together."""

    n_experts: int = 4
    num_layers: int = 4
    width: int = 64
    name: str = "speech"
    causal: bool = False

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(
                name="wer",
                title="Word error rate",
                higher_is_better=False,
                help="Edits per spoken digit of the best CTC path, on held-out recordings.",
            ),
            Metric(
                name="ctc",
                title="CTC loss",
                unit="nats",
                higher_is_better=False,
                headline=False,
                help="Mean negative log likelihood per digit.",
            ),
        )

    @property
    def description(self) -> str:
        return (
            "3,000 real recordings of digits, put together to strings of 2 to 4; CTC encoder of "
            f"{self.num_layers} layers, width {self.width}, every layer routed"
        )

    @property
    def fingerprint(self) -> str:
        return f"speech fsdd {self.width} {self.num_layers} v1"

    def spec(self, router: str) -> MoESpec:
        return MoESpec(
            router=router,
            hints={
                "tokens": 40,
                "uncond": False,
            },  # stacked frames of a string of typical length
            n_experts=self.n_experts,
            dense_hidden=4 * self.width,
            activation="relu",
        )

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(steps=300, batch_size=16, lr=3e-3, warmup=30, log_every=20)
        return quick if preset == "quick" else replace(quick, steps=900, warmup=100, log_every=50)

    def tokens(self, config: TrainConfig) -> int:
        batch = self.batch(config, 0, 0)
        return int((-(-batch.length // SpeechConfig().stack)).sum()) * config.micro_batches

    def build(self, spec: MoESpec) -> nn.Module:
        config = SpeechConfig(
            width=self.width, num_layers=self.num_layers, hidden=spec.dense_hidden
        )
        return SpeechEncoder(config, sublayer=MoEFactory(spec, self.num_layers))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> spoken_digits.Strings:
        place = step * config.micro_batches + micro_batch
        return spoken_digits.load().strings(
            "train", 2, config.batch_size, config.seed * 1_000_003 + place, longest=4
        )

    def loss(
        self, model: nn.Module, batch: spoken_digits.Strings, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        length_B = tensor(batch.length)
        output = self._answer(model, batch, context)
        loss = ctc_loss(
            output.out,
            model.output_lengths(length_B),
            tensor(batch.target),
            tensor(batch.target_length),
        )
        return loss, output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        losses, pairs = [], []
        for batch in _held_out():
            loss, output = self.loss(model, batch, RouteContext())
            losses.append(float(loss))
            found = greedy_labels(output.out, model.output_lengths(tensor(batch.length)))
            said = [
                row[:n].tolist() for row, n in zip(batch.target, batch.target_length, strict=True)
            ]
            pairs += list(zip(said, found, strict=True))
        return {"wer": word_error_rate(pairs), "ctc": float(np.mean(losses))}

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        batch = _held_out()[0]
        output = self._answer(model, batch, RouteContext())
        best_BT = output.out.argmax(-1)  # what the model hears in a frame
        steps = model.output_lengths(tensor(batch.length))
        real_BT = torch.arange(best_BT.shape[1]) < steps[:, None]
        return output, best_BT[real_BT].numpy()

    def _answer(
        self, model: nn.Module, batch: spoken_digits.Strings, context: RouteContext
    ) -> ModelOutput:
        frames = tensor(batch.frames)
        answer: ModelOutput = model(frames, tensor(batch.length), context=context)
        return answer


@cache
def _held_out() -> list[spoken_digits.Strings]:
    found = spoken_digits.load()
    return [
        found.strings("test", 2, PROBED, seed, longest=4) for seed in range(JUDGED // PROBED + 1)
    ]
