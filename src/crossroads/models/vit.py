"""A vision transformer for small images: patches, learned positions, mean pooling.

Dosovitskiy et al., An image is worth 16x16 words (2021), with global average pooling instead of a
class token. Positions start with a standard deviation of 0.5: at the usual 0.02 a run of a few
hundred steps hardly learns where a patch is, and differences between routers are then differences
in how they find out.

Axes: B images, C channels, T patches (row-major), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossroads.core.routed import ModelOutput, RouteContext, SublayerFactory, as_context, mask_of
from crossroads.models.attention import Attention, visibility
from crossroads.models.blocks import Block, Pass, dense_mlp, fill, mean_over_real
from crossroads.models.inputs import (
    check_heads,
    check_images,
    check_patches,
    check_sizes,
    to_patches,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """Sizes of a ``ViT``; the defaults are those of the 8 x 8 digits.

    Attributes
    ----------
    image_size, channels, patch : pixels per side, C, pixels per side of a patch
    num_classes : of the head
    width, num_layers, num_heads : D, blocks, heads
    hidden : units of the dense feed-forwards
    position_std : of the learned positions at the start
    checkpoint : recompute the activations of blocks in the backward pass
    """

    image_size: int = 8
    channels: int = 1
    patch: int = 2
    num_classes: int = 10
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 128
    position_std: float = 0.5
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_patches(self.image_size, self.channels, self.patch)
        check_sizes(num_classes=self.num_classes, num_layers=self.num_layers, hidden=self.hidden)
        check_heads(self.width, self.num_heads)

    @property
    def num_patches(self) -> int:
        """T."""
        return (self.image_size // self.patch) ** 2


class ViT(nn.Module):
    """Image classifier; ``out`` are logits (B, num_classes).

    Parameters
    ----------
    config : sizes
    sublayer : makes the feed-forward place of every layer; None = dense everywhere
    """

    def __init__(self, config: ViTConfig, sublayer: SublayerFactory | None = None) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Linear(config.channels * config.patch**2, config.width)
        self.positions = nn.Parameter(torch.empty(config.num_patches, config.width))
        nn.init.normal_(self.positions, std=config.position_std)
        self.blocks = nn.ModuleList(
            Block(
                layer,
                nn.LayerNorm(config.width),
                Attention(config.width, config.num_heads, bias=True),
            )
            for layer in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.num_classes)
        factory = sublayer or dense_mlp(config.hidden)
        self.shared = fill(self.blocks, factory, config.width, lambda: nn.LayerNorm(config.width))

    def forward(self, image_BCHW: Tensor, *, context: RouteContext | None = None) -> ModelOutput:
        """Return the logits of every image.

        Parameters
        ----------
        image_BCHW : floating-point pixels
        context : a mask (B, T) leaves patches out; "pos" is filled in. Patches have no token ids:
            a router that hashes them needs "token_id" from the caller

        Raises
        ------
        InputError : images of another shape
        """
        config = self.config
        check_images(image_BCHW, config.channels, config.image_size)
        h_BTD = self.patches(to_patches(image_BCHW, config.patch)) + self.positions
        context = replace(as_context(context, training=self.training), causal=False)
        real_BT = mask_of(h_BTD, context.mask_BT)
        pos_BT = torch.arange(config.num_patches, device=h_BTD.device).expand_as(real_BT)
        routed = Pass(context.with_cond(pos=pos_BT), recompute=config.checkpoint)
        sight = visibility(real_BT, config.num_patches, causal=False)
        for block in self.blocks:
            h_BTD, _, _ = routed.run(block, h_BTD, sight)
        h_BTD = self.norm(h_BTD)
        return routed.output(self.head(mean_over_real(h_BTD, context.mask_BT)), h_BTD)
