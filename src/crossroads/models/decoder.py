"""A decoder language model: RMSNorm, rotary positions, SwiGLU, tied embeddings, KV cache.

Padding (left or right) comes in ``context.mask_BT``, packed documents in ``context.cond``
("doc_id"): attention is then block-diagonal. The position of a token is the number of real tokens
it can see before itself, so padding and packing change no position.

Axes: B sequences, T new positions, S all positions so far, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import ModelOutput, RouteContext, SublayerFactory, as_context, mask_of
from crossroads.models.attention import Attention, Visibility, rotation, visibility
from crossroads.models.blocks import Block, Pass, dense_swiglu, fill
from crossroads.models.inputs import check_heads, check_sizes, check_tokens

EMBEDDING_STD = 0.02  # tied: first logits of a normed stream then have a std of .02 sqrt(D)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes of a ``DecoderLM``; the defaults are a byte-level model for two cores.

    Attributes
    ----------
    vocab_size : V
    width, num_layers, num_heads : D, blocks, heads
    hidden : units of the dense feed-forwards; routed sublayers have their own
    max_length : most positions of one sequence
    checkpoint : recompute the activations of blocks in the backward pass
    """

    vocab_size: int = 256
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 352
    max_length: int = 128
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            hidden=self.hidden,
            max_length=self.max_length,
        )
        check_heads(self.width, self.num_heads, rotary=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderCache:
    """What incremental decoding carries from call to call; a value, never changed.

    Attributes
    ----------
    past : keys and values (B, H, S, P) of every layer
    real_BS : True = real token
    doc_BS : documents of the positions; None = one document
    sublayers : caches of routed sublayers, by layer index
    """

    past: tuple[tuple[Tensor, Tensor], ...] = ()
    real_BS: Tensor
    doc_BS: Tensor | None = None
    sublayers: Mapping[int, Any] = field(default_factory=dict)


class DecoderLM(nn.Module):
    """Causal language model; ``out`` are logits (B, T, V).

    Parameters
    ----------
    config : sizes
    sublayer : makes the feed-forward place of every layer; None = dense everywhere
    """

    def __init__(self, config: DecoderConfig, sublayer: SublayerFactory | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.blocks = nn.ModuleList(
            Block(layer, _norm(config), Attention(config.width, config.num_heads, bias=False))
            for layer in range(config.num_layers)
        )
        self.norm = _norm(config)
        factory = sublayer or dense_swiglu(config.hidden)
        self.shared = fill(self.blocks, factory, config.width, lambda: _norm(config))

    def init_cache(self, batch_size: int) -> DecoderCache:
        """Return the cache to start incremental decoding of B sequences with."""
        started = {
            layer: cache
            for layer, block in enumerate(self.blocks)
            if hasattr(block.ffn, "init_cache")
            and (cache := block.ffn.init_cache(batch_size)) is not None
        }
        real_BS = torch.ones(batch_size, 0, dtype=torch.bool, device=self.embedding.weight.device)
        return DecoderCache(real_BS=real_BS, sublayers=started)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        context: RouteContext | None = None,
        cache: DecoderCache | None = None,
    ) -> ModelOutput:
        """Return the logits after every token.

        Parameters
        ----------
        tokens_BT : int64 token ids
        context : mask and "doc_id" of these T tokens, and what routers may know; ``causal``,
            "token_id" and "pos" are filled in
        cache : from ``init_cache`` or the last call's ``ModelOutput.cache``; the tokens follow it.
            None: no cache is returned either

        Raises
        ------
        InputError : token ids outside the vocabulary, more positions than ``max_length``, a cache
            of another batch size
        """
        config = self.config
        check_tokens(tokens_BT, config.vocab_size)
        context = as_context(context, training=self.training)
        real_BS, doc_BS = _so_far(tokens_BT, context, cache)
        sight = visibility(real_BS, tokens_BT.shape[1], causal=True, doc_BS=doc_BS)
        pos_BT = _positions(sight, real_BS, tokens_BT)
        if pos_BT.numel() and int(pos_BT.max()) >= config.max_length:
            raise InputError(
                f"tokens: at most {config.max_length} positions, got {int(pos_BT.max()) + 1}; "
                "shorten the sequences or raise max_length"
            )
        context = replace(context, causal=True).with_cond(token_id=tokens_BT, pos=pos_BT)
        turn = rotation(pos_BT, config.width // config.num_heads)

        routed = Pass(
            context,
            None if cache is None else cache.sublayers,
            recompute=config.checkpoint and cache is None,
        )
        past = cache.past if cache is not None and cache.past else (None,) * config.num_layers
        kept = []
        h_BTD = self.embedding(tokens_BT)
        for block, before in zip(self.blocks, past, strict=True):
            h_BTD, keys, values = routed.run(block, h_BTD, sight, turn, before)
            kept.append((keys, values))
        h_BTD = self.norm(h_BTD)
        after = None
        if cache is not None:
            after = DecoderCache(
                past=tuple(kept), real_BS=real_BS, doc_BS=doc_BS, sublayers=routed.caches
            )
        return routed.output(h_BTD @ self.embedding.weight.T, h_BTD, after)

    @torch.no_grad()
    def generate(
        self,
        prompt_BT: Tensor,
        num_new: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        context: RouteContext | None = None,
    ) -> Tensor:
        """Return ``num_new`` continuation tokens (B, num_new).

        Parameters
        ----------
        prompt_BT : at least one token a sequence; pad shorter prompts on the left and say so in
            ``context.mask_BT``
        temperature : 0 = greedy (ties to the lower id); above, samples of softmax(logits / t)
        generator : the source of the samples; required with a temperature
        context : as in ``forward``; what it says of the prompt's last tokens ((B, T, ...) values
            of ``cond``, ``allow`` and ``logit_bias``) holds for the new ones

        Raises
        ------
        UsageError : a negative number of tokens or temperature, a temperature without a generator,
            or given decisions, which do not cover tokens that are not known yet
        InputError : an empty prompt, or one that ends in padding
        """
        if num_new < 0:
            raise UsageError(f"num_new: expected 0 or more tokens, got {num_new!r}")
        if temperature < 0 or (temperature > 0 and generator is None):
            raise UsageError(
                f"temperature: expected 0, or a positive number and a generator, got "
                f"{temperature!r} and {generator!r}"
            )
        context = as_context(context)
        if context.decisions:
            raise UsageError("decisions: cannot be given for generation; leave them out")
        real_BT = mask_of(prompt_BT, context.mask_BT)
        if prompt_BT.shape[1] == 0 or not bool(real_BT[:, -1].all()):
            raise InputError(
                "prompt: expected a real last token in every sequence; pad on the left"
            )
        answer = self(prompt_BT, context=context, cache=self.init_cache(len(prompt_BT)))
        follow = _after(prompt_BT, context)
        found = [_pick(answer.out[:, -1], temperature, generator)]
        while len(found) < num_new:
            answer = self(found[-1], context=follow, cache=answer.cache)
            found.append(_pick(answer.out[:, -1], temperature, generator))
        return torch.cat(found, dim=1)[:, :num_new]


def _norm(config: DecoderConfig) -> nn.Module:
    return nn.RMSNorm(config.width, eps=1e-5)


def _so_far(
    tokens_BT: Tensor, context: RouteContext, cache: DecoderCache | None
) -> tuple[Tensor, Tensor | None]:
    """Return mask and documents of all positions: those of the cache, then the new ones."""
    real_BS = mask_of(tokens_BT, context.mask_BT)
    doc_BS = context.cond.get("doc_id")
    if doc_BS is not None and doc_BS.shape != tokens_BT.shape:
        raise InputError(
            f"doc_id: expected shape {tuple(tokens_BT.shape)}, got {tuple(doc_BS.shape)}"
        )
    if cache is None:
        return real_BS, doc_BS
    if len(cache.real_BS) != len(tokens_BT):
        raise InputError(
            f"cache: holds {len(cache.real_BS)} sequences, got tokens of {len(tokens_BT)}; "
            "start again from init_cache"
        )
    num_past = cache.real_BS.shape[1]
    if doc_BS is None and cache.doc_BS is not None:
        doc_BS = cache.doc_BS[:, -1:].expand_as(tokens_BT)
    if doc_BS is not None and num_past and cache.doc_BS is None:
        raise InputError(
            "doc_id: given now but not for the tokens in the cache; give it from the start"
        )
    if doc_BS is not None and cache.doc_BS is not None:
        doc_BS = torch.cat((cache.doc_BS, doc_BS), dim=1)
    return torch.cat((cache.real_BS, real_BS), dim=1), doc_BS


def _after(prompt_BT: Tensor, context: RouteContext) -> RouteContext:
    """Return the context of one token after the prompt."""

    def last(value: Tensor) -> Tensor:
        per_token = value.dim() > 1 and value.shape[:2] == prompt_BT.shape
        return value[:, -1:] if per_token else value

    return replace(
        context,
        mask_BT=None,
        cond={name: last(value) for name, value in context.cond.items()},
        allow=None if context.allow is None else last(context.allow),
        logit_bias=None if context.logit_bias is None else last(context.logit_bias),
    )


def _positions(sight: Visibility, real_BS: Tensor, tokens_BT: Tensor) -> Tensor:
    if sight.allowed_BTS is not None:
        return sight.allowed_BTS.sum(dim=-1) - 1
    past = real_BS.shape[1] - tokens_BT.shape[1]
    return torch.arange(past, real_BS.shape[1], device=tokens_BT.device).expand_as(tokens_BT)


def _pick(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    return torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator)
