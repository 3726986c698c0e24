"""A speech encoder: log-mel frames in, CTC logits out.

Stacked frames, a linear map, pre-norm transformer blocks, a linear head whose class 0 is the CTC
blank (Graves et al. 2006). Positions are rotary, so strings longer than those of training need
nothing new; ReLU feed-forwards as in the speech models that routers are compared in.

Axes: B recordings, R frames, M mel bins, T stacked frames, D width, V classes with the blank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossroads.core.errors import InputError
from crossroads.core.routed import ModelOutput, RouteContext, SublayerFactory, as_context
from crossroads.models.attention import Attention, rotation, visibility
from crossroads.models.blocks import Block, Pass, dense_mlp, fill
from crossroads.models.inputs import check_heads, check_sizes

BLANK = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechConfig:
    """Sizes of a ``SpeechEncoder``; the defaults suit digit strings on two cores.

    Attributes
    ----------
    num_mels, stack : M, and frames per stacked frame
    vocab_size : V, the blank included
    width, num_layers, num_heads : D, blocks, heads
    hidden : units of the dense feed-forwards
    checkpoint : recompute the activations of blocks in the backward pass
    """

    num_mels: int = 40
    stack: int = 4
    vocab_size: int = 11
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 256
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            num_mels=self.num_mels,
            stack=self.stack,
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            hidden=self.hidden,
        )
        check_heads(self.width, self.num_heads, rotary=True)


class SpeechEncoder(nn.Module):
    """CTC acoustic model; ``out`` are logits (B, T, V) with T = ceil(R / stack).

    Parameters
    ----------
    config : sizes
    sublayer : makes the feed-forward place of every layer; None = dense everywhere
    """

    def __init__(self, config: SpeechConfig, sublayer: SublayerFactory | None = None) -> None:
        super().__init__()
        self.config = config
        self.frames = nn.Linear(config.num_mels * config.stack, config.width)
        self.blocks = nn.ModuleList(
            Block(
                layer,
                nn.LayerNorm(config.width),
                Attention(config.width, config.num_heads, bias=True),
            )
            for layer in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size)
        factory = sublayer or dense_mlp(config.hidden, "relu")
        self.shared = fill(self.blocks, factory, config.width, lambda: nn.LayerNorm(config.width))

    def output_lengths(self, length_B: Tensor) -> Tensor:
        """Return the number of stacked frames of recordings of so many frames."""
        return (length_B + self.config.stack - 1) // self.config.stack

    def forward(
        self, frames_BRM: Tensor, length_B: Tensor, *, context: RouteContext | None = None
    ) -> ModelOutput:
        """Return the logits of every stacked frame.

        Parameters
        ----------
        frames_BRM : log-mel frames; those past a recording's length are ignored
        length_B : int64, real frames of each recording, in [1, R]
        context : the mask (of stacked frames) and "pos" are filled in

        Raises
        ------
        InputError : frames or lengths of another shape or range
        """
        config = self.config
        self._check(frames_BRM, length_B)
        real_BR = torch.arange(frames_BRM.shape[1], device=frames_BRM.device) < length_B[:, None]
        stacked_BTW = self._stacked(frames_BRM.masked_fill(~real_BR[:, :, None], 0.0))
        h_BTD = self.frames(stacked_BTW)

        step_T = torch.arange(h_BTD.shape[1], device=h_BTD.device)
        real_BT = step_T < self.output_lengths(length_B)[:, None]
        pos_BT = step_T.expand_as(real_BT)
        context = replace(
            as_context(context, training=self.training), causal=False, mask_BT=real_BT
        ).with_cond(pos=pos_BT)
        routed = Pass(context, recompute=config.checkpoint)
        sight = visibility(real_BT, len(step_T), causal=False)
        turn = rotation(pos_BT[:1], config.width // config.num_heads)
        for block in self.blocks:
            h_BTD, _, _ = routed.run(block, h_BTD, sight, turn)
        h_BTD = self.norm(h_BTD)
        return routed.output(self.head(h_BTD), h_BTD)

    def _stacked(self, frames_BRM: Tensor) -> Tensor:
        B, R, M = frames_BRM.shape
        stack = self.config.stack
        return functional.pad(frames_BRM, (0, 0, 0, -R % stack)).reshape(B, -1, stack * M)

    def _check(self, frames_BRM: Tensor, length_B: Tensor) -> None:
        if frames_BRM.dim() != 3 or frames_BRM.shape[2] != self.config.num_mels:
            raise InputError(
                f"frames: expected shape (B, frames, {self.config.num_mels}), got "
                f"{tuple(frames_BRM.shape)}"
            )
        B, R, _ = frames_BRM.shape
        if length_B.shape != (B,) or length_B.dtype != torch.int64:
            raise InputError(
                f"length: expected int64 of shape ({B},), got {length_B.dtype} of shape "
                f"{tuple(length_B.shape)}"
            )
        if B and (int(length_B.min()) < 1 or int(length_B.max()) > R):
            raise InputError(
                f"length: expected values in [1, {R}], got {int(length_B.min())} to "
                f"{int(length_B.max())}"
            )


def ctc_loss(
    logits_BTV: Tensor, length_B: Tensor, target_BU: Tensor, target_length_B: Tensor
) -> Tensor:
    """Return the mean over recordings of -log p(target) / target length, in float32.

    ``length_B`` counts stacked frames (``SpeechEncoder.output_lengths``). A target that does not
    fit its recording (each repeated label needs a blank between) adds zero, not infinity.
    """
    log_probs_TBV = logits_BTV.float().log_softmax(dim=-1).transpose(0, 1)
    return functional.ctc_loss(
        log_probs_TBV, target_BU, length_B, target_length_B, blank=BLANK, zero_infinity=True
    )


def greedy_labels(logits_BTV: Tensor, length_B: Tensor) -> list[list[int]]:
    """Return the best path of each recording, repeats merged and blanks removed."""
    best_BT = logits_BTV.argmax(dim=-1)
    paths = []
    for best_T, length in zip(best_BT, length_B.tolist(), strict=True):
        merged = best_T[:length].unique_consecutive().tolist()
        paths.append([label for label in merged if label != BLANK])
    return paths
