"""A test bed of text for encoders: which of ten domains a short request belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.datasets import clinc150
from crossroads.datasets.batches import batch_indices
from crossroads.models.encoder import EncoderClassifier, EncoderConfig
from crossroads.moe.beds.bed import Ints, Preset, tensor
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.training import TrainConfig

Batch = tuple[Tensor, Tensor, Tensor]  # word ids and mask (B, T), labels (B,)
JUDGED = 1500  # test requests
PROBED = 128


@dataclass(frozen=True, kw_only=True)
class IntentBed:
    """CLINC150 requests and their domains; a bidirectional encoder, layers 1 and 3 routed.

    Raises UnavailableError when used where the data are absent.
    """

    n_experts: int = 8
    num_layers: int = 4
    width: int = 64
    name: str = "intents"
    causal: bool = False

    @property
    def metrics(self) -> Sequence[Metric]:
        return (
            Metric(name="accuracy", title="Accuracy", help="Share of requests classified right."),
        )

    @property
    def description(self) -> str:
        return (
            f"CLINC150, 15,000 requests of 10 domains; encoder of {self.num_layers} layers, width "
            f"{self.width}, layers 1 and 3 routed"
        )

    @property
    def fingerprint(self) -> str:
        return f"intents clinc150 domain {self.width} {self.num_layers} v1"

    def spec(self, router: str) -> MoESpec:
        return MoESpec(
            router=router,
            hints={"tokens": 10, "uncond": False},
            n_experts=self.n_experts,
            dense_hidden=2 * self.width,
            activation="gelu",
            layers="odd",
        )

    def config(self, preset: Preset) -> TrainConfig:
        quick = TrainConfig(steps=120, batch_size=64, lr=3e-3, log_every=20)
        return quick if preset == "quick" else replace(quick, steps=1000, log_every=50)

    def tokens(self, config: TrainConfig) -> int:
        return int(self.batch(config, 0, 0)[1].sum()) * config.micro_batches

    def build(self, spec: MoESpec) -> nn.Module:
        data = _data()
        config = EncoderConfig(
            vocab_size=len(data.words),
            num_classes=len(data.classes),
            width=self.width,
            num_layers=self.num_layers,
            hidden=spec.dense_hidden,
            max_length=data.train.token.shape[1],
        )
        return EncoderClassifier(config, sublayer=MoEFactory(spec, self.num_layers))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Batch:
        train = _data().train
        place = step * config.micro_batches + micro_batch
        rows = batch_indices(len(train.label), config.batch_size, step=place, seed=config.seed)
        return _requests(train, rows)

    def loss(
        self, model: nn.Module, batch: Batch, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        token_BT, mask_BT, label_B = batch
        output: ModelOutput = model(token_BT, context=replace(context, mask_BT=mask_BT))
        return nn.functional.cross_entropy(output.out.float(), label_B), output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        batch = held_out(JUDGED)
        nll, output = self.loss(model, batch, RouteContext())
        right = output.out.argmax(-1) == batch[2]
        return {"accuracy": float(right.float().mean()), "nll": float(nll)}

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        token_BT, mask_BT, label_B = batch = held_out(PROBED)
        _, output = self.loss(model, batch, RouteContext())
        return output, label_B.unsqueeze(1).expand_as(token_BT)[mask_BT].numpy()


def held_out(count: int) -> Batch:
    """Return test requests, spread over the domains."""
    test = _data().test
    rows = np.linspace(0, len(test.label) - 1, min(count, len(test.label))).astype(np.int64)
    return _requests(test, rows)


def _requests(texts: clinc150.Texts, rows: Ints) -> Batch:
    """Return requests, cut to the longest of them."""
    longest = int(texts.mask[rows].sum(1).max())
    return (
        tensor(texts.token[rows, :longest]),
        tensor(texts.mask[rows, :longest]),
        tensor(texts.label[rows]),
    )


@cache
def _data() -> clinc150.Intents:
    return clinc150.load()
