"""A bidirectional text encoder with a classification head over the mean of its tokens.

Pre-norm blocks, learned positions, GELU feed-forwards; padding comes in ``context.mask_BT``.

Axes: B texts, T positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import ModelOutput, RouteContext, SublayerFactory, as_context, mask_of
from crossroads.models.attention import Attention, visibility
from crossroads.models.blocks import Block, Pass, dense_mlp, fill, mean_over_real
from crossroads.models.inputs import check_heads, check_sizes, check_tokens

EMBEDDING_STD = 0.5  # of tokens and positions alike: short runs must tell them apart early


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Sizes of an ``EncoderClassifier``.

    Attributes
    ----------
    vocab_size, num_classes : token ids and labels
    width, num_layers, num_heads : D, blocks, heads
    hidden : units of the dense feed-forwards
    max_length : most positions of one text
    checkpoint : recompute the activations of blocks in the backward pass
    """

    vocab_size: int = 256
    num_classes: int = 10
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 256
    max_length: int = 128
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            vocab_size=self.vocab_size,
            num_classes=self.num_classes,
            num_layers=self.num_layers,
            hidden=self.hidden,
            max_length=self.max_length,
        )
        check_heads(self.width, self.num_heads)


class EncoderClassifier(nn.Module):
    """Text classifier; ``out`` are logits (B, num_classes).

    Parameters
    ----------
    config : sizes
    sublayer : makes the feed-forward place of every layer; None = dense everywhere
    """

    def __init__(self, config: EncoderConfig, sublayer: SublayerFactory | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.width))
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        nn.init.normal_(self.positions, std=EMBEDDING_STD)
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

    def forward(self, tokens_BT: Tensor, *, context: RouteContext | None = None) -> ModelOutput:
        """Return the logits of every text.

        Parameters
        ----------
        tokens_BT : int64 token ids; padding may hold any id
        context : the mask of padding; "token_id" and "pos" are filled in

        Raises
        ------
        InputError : ids outside the vocabulary, or more positions than ``max_length``
        """
        config = self.config
        check_tokens(tokens_BT, config.vocab_size)
        length = tokens_BT.shape[1]
        if length > config.max_length:
            raise InputError(
                f"tokens: at most {config.max_length} positions, got {length}; "
                "cut the texts or raise max_length"
            )
        context = replace(as_context(context, training=self.training), causal=False)
        real_BT = mask_of(tokens_BT, context.mask_BT)
        pos_BT = torch.arange(length, device=tokens_BT.device).expand_as(tokens_BT)
        context = context.with_cond(token_id=tokens_BT, pos=pos_BT)
        routed = Pass(context, recompute=config.checkpoint)
        sight = visibility(real_BT, length, causal=False, doc_BS=context.cond.get("doc_id"))
        h_BTD = self.embedding(tokens_BT) + self.positions[:length]
        for block in self.blocks:
            h_BTD, _, _ = routed.run(block, h_BTD, sight)
        h_BTD = self.norm(h_BTD)
        return routed.output(self.head(mean_over_real(h_BTD, context.mask_BT)), h_BTD)
