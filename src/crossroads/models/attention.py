"""Self-attention by the fused kernel, or explicitly where its probabilities are asked for.

Axes: B sequences, T positions (queries), S positions (keys), D width, H heads, P width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossroads.models.inputs import check_heads

ROPE_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """Which keys each query may look at.

    Attributes
    ----------
    allowed_BTS : bool, (B, T, S); None = every key, or every earlier one when ``causal``. Every
        query sees at least itself, so that no softmax is empty
    causal : only read without ``allowed_BTS``; queries and keys are then the same positions
    real_BT : queries that are not padding; None = all. Attention of the others is zero
    """

    allowed_BTS: Tensor | None = None
    causal: bool = False
    real_BT: Tensor | None = None


def visibility(
    real_BS: Tensor,
    num_queries: int,
    *,
    causal: bool,
    doc_BS: Tensor | None = None,
) -> Visibility:
    """Return what the last ``num_queries`` of S positions may look at.

    Parameters
    ----------
    real_BS : bool, True = real token
    causal : only positions up to its own
    doc_BS : only positions of the same document (packed sequences: block-diagonal)
    """
    num_keys = real_BS.shape[1]
    past = num_keys - num_queries
    padded = not bool(real_BS.all())
    if not padded and doc_BS is None and (not causal or past == 0 or num_queries == 1):
        return Visibility(causal=causal and past == 0)
    key_S = torch.arange(num_keys, device=real_BS.device)
    query_T = key_S[past:]
    allowed_BTS = real_BS[:, None, :].expand(-1, num_queries, -1)
    if causal:
        allowed_BTS = allowed_BTS & (key_S <= query_T[:, None])
    if doc_BS is not None:
        allowed_BTS = allowed_BTS & (doc_BS[:, past:, None] == doc_BS[:, None, :])
    real_BT = real_BS[:, past:]
    own = key_S == query_T[:, None]
    # A padded query sees itself and nothing else: no empty softmax, and nothing leaks from it.
    allowed_BTS = (allowed_BTS & real_BT[:, :, None]) | own
    return Visibility(allowed_BTS=allowed_BTS, real_BT=real_BT if padded else None)


def rotation(pos_BT: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (B, 1, T, P/2) of rotary positions (Su et al. 2021), base 10000."""
    index = torch.arange(0, head_width, 2, device=pos_BT.device, dtype=torch.float32)
    angle = pos_BT[:, None, :, None].float() * ROPE_BASE ** (-index / head_width)
    return angle.cos(), angle.sin()


def rotate(x_BHTP: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + P/2) of every head by the angles of its position."""
    cos, sin = (part.to(x_BHTP.dtype) for part in turn)
    first, second = x_BHTP.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """What attention returns.

    Attributes
    ----------
    out_BTD : after the output projection
    probs_BHTS : rows sum to 1 over the keys in sight, zero rows for padded queries, float32 at
        least; None unless asked for
    keys_BHSP, values_BHSP : of all positions so far, for incremental decoding
    """

    out_BTD: Tensor
    probs_BHTS: Tensor | None
    keys_BHSP: Tensor
    values_BHSP: Tensor


class Attention(nn.Module):
    """Multi-head self-attention.

    Parameters
    ----------
    width, num_heads : D and H; H divides D
    bias : whether the projections have biases
    """

    def __init__(self, width: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        sight: Visibility,
        *,
        explicit: bool = False,
        turn: tuple[Tensor, Tensor] | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> Attended:
        """Attend.

        Parameters
        ----------
        explicit : compute and return the probabilities
        turn : cosines and sines of rotary positions of the T queries
        past : keys and values (B, H, S - T, P) of earlier positions
        """
        B, T, D = x_BTD.shape
        shaped = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        q_BHTP, k_BHSP, v_BHSP = shaped.permute(2, 0, 3, 1, 4)
        if turn is not None:
            q_BHTP, k_BHSP = rotate(q_BHTP, turn), rotate(k_BHSP, turn)
        if past is not None:
            k_BHSP = torch.cat((past[0], k_BHSP), dim=2)
            v_BHSP = torch.cat((past[1], v_BHSP), dim=2)
        probs_BHTS = None
        if explicit:
            probs_BHTS = _probabilities(q_BHTP, k_BHSP, sight)
            mixed_BHTP = probs_BHTS.to(v_BHSP.dtype) @ v_BHSP
        else:
            mixed_BHTP = _fused(q_BHTP, k_BHSP, v_BHSP, sight)
        out_BTD = self.out(mixed_BHTP.transpose(1, 2).reshape(B, T, D))
        return Attended(
            out_BTD=out_BTD, probs_BHTS=probs_BHTS, keys_BHSP=k_BHSP, values_BHSP=v_BHSP
        )


def _probabilities(q_BHTP: Tensor, k_BHSP: Tensor, sight: Visibility) -> Tensor:
    scores_BHTS = q_BHTP @ k_BHSP.transpose(-1, -2) / math.sqrt(q_BHTP.shape[-1])
    if scores_BHTS.dtype in (torch.float16, torch.bfloat16):
        scores_BHTS = scores_BHTS.float()  # a softmax in half precision does not sum to 1
    if sight.allowed_BTS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~sight.allowed_BTS[:, None], -torch.inf)
    elif sight.causal:
        ahead = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=q_BHTP.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(ahead, -torch.inf)
    probs_BHTS = scores_BHTS.softmax(dim=-1)
    if sight.real_BT is not None:
        probs_BHTS = probs_BHTS.masked_fill(~sight.real_BT[:, None, :, None], 0.0)
    return probs_BHTS


def _fused(q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor, sight: Visibility) -> Tensor:
    mask = None if sight.allowed_BTS is None else sight.allowed_BTS[:, None]
    causal = mask is None and sight.causal
    mixed: Tensor = functional.scaled_dot_product_attention(
        q_BHTP, k_BHSP, v_BHSP, attn_mask=mask, is_causal=causal
    )
    if sight.real_BT is not None:
        mixed = mixed.masked_fill(~sight.real_BT[:, None, :, None], 0.0)
    return mixed
