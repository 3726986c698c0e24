"""Sentences for routers that read them: prompts and experts as vectors of one encoder.

``minilm`` (all-MiniLM-L6-v2, 384 numbers) where it is installed, else ``static`` (256 numbers,
weaker on paraphrases). Both are of ``crossroads.models.encoders``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.core.errors import InputError, MissingExtraError
from crossroads.models.embedding_cache import encode_cached
from crossroads.models.encoders import Encoder, get_encoder

_LOG = logging.getLogger(__name__)


@cache
def default_encoder() -> str:
    """Return "minilm" where it is installed, else "static"."""
    try:
        get_encoder("minilm")
    except MissingExtraError as missing:
        _LOG.warning("%s; prompts are embedded by the encoder 'static' instead", missing)
        return "static"
    return "minilm"


def embed(texts: Sequence[str], encoder: str | None = None) -> Tensor:
    """Return unit vectors (N, G), float32, zero for empty texts; None = ``default_encoder``."""
    found: Encoder = get_encoder(encoder or default_encoder())
    return torch.from_numpy(encode_cached(found, list(texts)).copy())


def embed_experts(
    bank: AdapterBank,
    examples: Mapping[str, Sequence[str]],
    *,
    instructions: Mapping[str, str] | None = None,
    encoder: str | None = None,
) -> None:
    """Give every expert the embeddings that retrieval and GLIDER read.

    Raises InputError naming an expert without examples or instruction.

    Parameters
    ----------
    examples : prompts of each expert's training data; kept one by one as ``examples_JG``
    instructions : what each expert's task asks for, one sentence: its embedding becomes
        ``embedding_G`` and itself the description. None: the mean of the example prompts
    encoder : of all texts; prompts to route must use the same one
    """
    for name in bank.names:
        prompts = examples.get(name, ())
        if not prompts:
            raise InputError(f"expert {name!r}: has no example prompts to embed; give some")
        examples_JG = embed(prompts, encoder)
        facts: dict[str, object] = {"examples_JG": examples_JG}
        if instructions is None:
            facts["embedding_G"] = unit(examples_JG.mean(0))
        elif name not in instructions:
            raise InputError(f"expert {name!r}: has no instruction; write one, or give none at all")
        else:
            facts["embedding_G"] = embed([instructions[name]], encoder)[0]
            facts["description"] = instructions[name]
        bank.describe(name, **facts)


def unit(vector: Tensor) -> Tensor:
    """Return the last axis scaled to length one; zeros stay zeros."""
    return torch.nn.functional.normalize(vector, dim=-1)
