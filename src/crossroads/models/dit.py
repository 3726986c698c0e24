"""A diffusion transformer: images in, a velocity or noise field of the same shape out.

Peebles and Xie, Scalable diffusion models with transformers (2023): every block is modulated by
the sum c of a time and a label embedding (adaLN-zero),
``(s1, b1, g1, s2, b2, g2) = Linear(silu(c))``,
``x += g1 * attn(LN(x) (1 + s1) + b1)`` and ``x += g2 * ffn(LN(x) (1 + s2) + b2)``.
All modulations and the last linear map start at zero, so an untrained model answers zero.

The released DiT doubles its output channels for a learned variance; this one does not, as
neither objective of ``crossroads.models.diffusion`` uses it.

Axes: B images, C channels, T patches (row-major), D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import (
    Collector,
    DenseSublayer,
    ModelOutput,
    RouteContext,
    SublayerFactory,
    as_context,
    mask_of,
)
from crossroads.models.attention import Attention, Visibility, visibility
from crossroads.models.blocks import MLP, Pass, fill, place, wants
from crossroads.models.inputs import (
    check_heads,
    check_images,
    check_labels,
    check_patches,
    check_sizes,
    from_patches,
    to_patches,
)

EMBEDDING_STD = 0.02
MAX_PERIOD = 10_000.0  # of the sinusoids of time and of positions


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Sizes of a ``DiT``; the defaults are those of the 8 x 8 digits.

    Attributes
    ----------
    image_size, channels, patch : pixels per side, C, pixels per side of a patch
    num_classes : real labels; the label ``num_classes`` is the null one
    width, num_layers, num_heads : D, blocks, heads
    hidden : units of the dense feed-forwards
    num_frequencies : width of the sinusoidal time embedding
    checkpoint : recompute the activations of blocks in the backward pass
    """

    image_size: int = 8
    channels: int = 1
    patch: int = 2
    num_classes: int = 10
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 256
    num_frequencies: int = 256
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_patches(self.image_size, self.channels, self.patch)
        check_sizes(num_classes=self.num_classes, num_layers=self.num_layers, hidden=self.hidden)
        check_heads(self.width, self.num_heads)
        if self.width % 4:
            raise UsageError(f"width: 2-D sin-cos positions need a multiple of 4, got {self.width}")
        if self.num_frequencies < 2 or self.num_frequencies % 2:
            raise UsageError(
                f"num_frequencies: expected a positive even number, got {self.num_frequencies}"
            )

    @property
    def null_label(self) -> int:
        """The label of an unconditional image."""
        return self.num_classes

    @property
    def num_patches(self) -> int:
        """T."""
        return (self.image_size // self.patch) ** 2


def sinusoids(value_N: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of values at ``width / 2`` geometric frequencies, (N, width)."""
    half = width // 2
    index = torch.arange(half, device=value_N.device, dtype=torch.float32)
    angle = value_N[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * index / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def grid_positions(side: int, width: int) -> Tensor:
    """Return fixed 2-D positions (side * side, width): half of it for columns, half for rows."""
    steps = torch.arange(side)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat(
        (sinusoids(columns.flatten(), width // 2), sinusoids(rows.flatten(), width // 2)), dim=-1
    )


def drop_labels(
    label_B: Tensor, rate: float, null_label: int, generator: torch.Generator
) -> Tensor:
    """Return labels of which a share ``rate``, drawn one by one, became the null label."""
    if not 0 <= rate <= 1:
        raise UsageError(f"rate: expected a share in [0, 1], got {rate!r}")
    dropped = torch.rand(label_B.shape, generator=generator, device=generator.device) < rate
    return label_B.masked_fill(dropped.to(label_B.device), null_label)


def modulated(x_BTD: Tensor, scale_BD: Tensor, shift_BD: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``, the same for all positions."""
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class DiTBlock(nn.Module):
    """adaLN-zero block; the sublayer gets modulated normed tokens and owns no norm."""

    ffn: nn.Module

    def __init__(self, layer: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = _plain_norm(width)
        self.ffn_norm = _plain_norm(width)
        self.attention = Attention(width, num_heads, bias=True)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, routed: Collector, h_BTD: Tensor, c_BD: Tensor, sight: Visibility) -> Tensor:
        """Return the stream after the block."""
        s1, b1, g1, s2, b2, g2 = self.modulation(functional.silu(c_BD)).chunk(6, dim=-1)
        seen = self.attention(
            modulated(self.attention_norm(h_BTD), s1, b1), sight, explicit=wants(self.ffn, "attn")
        )
        h_BTD = h_BTD + g1[:, None] * seen.out_BTD
        x_BTD = modulated(self.ffn_norm(h_BTD), s2, b2)
        return h_BTD + g2[:, None] * place(routed, self.layer, self.ffn, x_BTD, seen)


class DiT(nn.Module):
    """Class-conditional diffusion transformer; ``out`` is a field (B, C, H, W).

    Linear maps start Xavier-uniform with zero biases, embeddings normal with std 0.02,
    modulations and the last map at zero. Routed sublayers start themselves.

    Parameters
    ----------
    config : sizes
    sublayer : makes the feed-forward place of every layer (its norm argument is None); None =
        dense everywhere
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, sublayer: SublayerFactory | None = None) -> None:
        super().__init__()
        self.config = config
        width, pixels = config.width, config.channels * config.patch**2
        self.patches = nn.Linear(pixels, width)
        positions = grid_positions(config.image_size // config.patch, width)
        self.register_buffer("positions", positions, persistent=False)
        self.time = nn.Sequential(
            nn.Linear(config.num_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.labels = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            DiTBlock(layer, width, config.num_heads) for layer in range(config.num_layers)
        )
        self.norm = _plain_norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, pixels)
        self.apply(_start)
        for silent in (self.head, self.modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(silent.weight)
        factory = sublayer or _dense_sublayers(config.hidden)
        self.shared = fill(self.blocks, factory, width, None)

    def forward(
        self,
        image_BCHW: Tensor,
        time_B: Tensor,
        label_B: Tensor,
        *,
        context: RouteContext | None = None,
    ) -> ModelOutput:
        """Return the field at noised images.

        Parameters
        ----------
        image_BCHW : noised images
        time_B : diffusion time in [0, 1000]; may be fractional
        label_B : int64, after label dropout; ``num_classes`` = null
        context : "label", "null" (bool), "time" and "pos" are filled in

        Raises
        ------
        InputError : images, times or labels of another shape, labels above the null one
        """
        config = self.config
        check_images(image_BCHW, config.channels, config.image_size)
        check_labels(label_B, len(image_BCHW), config.num_classes + 1)
        if time_B.shape != label_B.shape:
            raise InputError(
                f"time: expected shape {tuple(label_B.shape)}, got {tuple(time_B.shape)}"
            )
        h_BTD = self.patches(to_patches(image_BCHW, config.patch)) + self.positions
        times_BF = sinusoids(time_B, config.num_frequencies).to(h_BTD.dtype)
        c_BD = self.time(times_BF) + self.labels(label_B)

        context = replace(as_context(context, training=self.training), causal=False)
        real_BT = mask_of(h_BTD, context.mask_BT)
        pos_BT = torch.arange(config.num_patches, device=h_BTD.device).expand_as(real_BT)
        null_B = label_B == config.null_label
        context = context.with_cond(label=label_B, null=null_B, time=time_B, pos=pos_BT)
        routed = Pass(context, recompute=config.checkpoint)
        sight = visibility(real_BT, config.num_patches, causal=False)
        for block in self.blocks:
            h_BTD = routed.run(block, h_BTD, c_BD, sight)
        scale_BD, shift_BD = self.modulation(functional.silu(c_BD)).chunk(2, dim=-1)
        h_BTD = modulated(self.norm(h_BTD), scale_BD, shift_BD)
        field_BCHW = from_patches(self.head(h_BTD), config.channels, config.patch)
        return routed.output(field_BCHW, h_BTD)


def _plain_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)


def _dense_sublayers(hidden: int) -> SublayerFactory:
    def make(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        ffn = MLP(width, hidden, "gelu_tanh").apply(_start)
        return DenseSublayer(ffn, norm, ffn.flops_per_token)

    return make
