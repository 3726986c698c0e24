"""Small language models of bytes, one for each domain, trained here from nothing.

A pre-norm transformer decoder (Radford et al., 2019) without biases, tied embeddings, learned
positions, and in each block a depthwise causal convolution over the last four positions, without
which so short a training learns little of spelling. The loss of an expert on a piece of text is its
mean next-byte cross entropy in nats; the first byte is predicted from a start symbol. Experts of
one pool are comparable because all of them predict the same bytes.

An expert is trained on one domain only. Trained experts are kept in the cache folder under a hash
of their texts, shape, training and seed; one that is there is not trained again, so an interrupted
pool goes on with the expert it was at.

Shapes: N pieces, L bytes of context, M width, V = 257 symbols.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, MissingExtraError
from crossroads.core.files import replacing
from crossroads.core.progress import Progress, progress_bar
from crossroads.models.embedding_cache import cache_folder
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.tryage.corpora import Corpus

try:
    import torch
    import torch.nn.functional as F  # noqa: N812 - the library's own custom
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", extra="neural") from error

START = 256  # the symbol before the first byte
_NUM_SYMBOLS = 257
_CLIP = 1.0  # norm of the gradient
_WARM_UP = 0.05  # share of the steps
_RECENT = 4  # positions, this one included, that a block first mixes
_RECENT_SPREAD = 0.3  # at the start: channels that lean on different neighbours learn faster
_VERSION = 1  # raised when the same settings give other weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Size of an expert: ``layers``, ``width`` (a multiple of ``heads``), ``context`` in bytes."""

    layers: int = 3
    width: int = 96
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.context) < 1 or self.width % self.heads:
            raise InputError(
                "expert: expected layers, heads and context >= 1 and width a multiple of heads, "
                f"got {asdict(self)!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How an expert is trained: ``steps`` of ``batch`` windows, peak ``rate`` of AdamW, seed."""

    steps: int = 600
    batch: int = 4
    rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 < self.rate < 1:
            raise InputError(
                f"training: expected steps and batch >= 1 and 0 < rate < 1, got {asdict(self)!r}"
            )


BASE = Shape()
SMALL = Shape(layers=2, width=32)
SMALL_SUFFIX = "-small"
DESCRIPTIONS = {
    "python": "writes Python source code: modules, classes, functions, imports",
    "c": "writes C header files: declarations, macros, structs, include guards",
    "prose": "writes English documentation: language reference, read-me pages, explanations",
    "licences": "writes legal text: software licences, copyright notices, warranty disclaimers",
    "records": "writes package records: name, version, maintainer and dependency header fields",
    "tables": "writes numeric tables: columns of floating-point numbers, CSV data",
}


class _Block(nn.Module):  # type: ignore[misc]
    """Causal attention, then a feed-forward layer of four times the width."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.recent = nn.Parameter(torch.empty(_RECENT, shape.width))
        self.mix = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x_NLM: Any) -> Any:
        num, length, width = x_NLM.shape
        x_NLM = x_NLM + self._local(x_NLM)
        split = self.mix(self.norm1(x_NLM)).view(num, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_NLM = x_NLM + self.out(mixed.transpose(1, 2).reshape(num, length, width))
        return x_NLM + self.down(F.gelu(self.up(self.norm2(x_NLM)), approximate="tanh"))

    def _local(self, x_NLM: Any) -> Any:
        """Weigh the last few positions, channel by channel: letters lean on their neighbours."""
        length = x_NLM.shape[1]
        padded = F.pad(x_NLM, (0, 0, _RECENT - 1, 0))
        return sum(padded[:, j : j + length] * self.recent[j] for j in range(_RECENT))


class ByteModel(nn.Module):  # type: ignore[misc]
    """Symbols (N, L) in, logits of the next symbol (N, L, V) out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.symbols = nn.Embedding(_NUM_SYMBOLS, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        # What adds to the residual stream starts smaller the more layers add to it.
        depth = math.sqrt(2 * shape.layers)
        for name, weight in self.named_parameters():
            if name.endswith("recent"):
                nn.init.normal_(weight, std=_RECENT_SPREAD)
            elif weight.ndim == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / depth if adds else 0.02)

    def forward(self, symbols_NL: Any) -> Any:
        x_NLM = self.symbols(symbols_NL) + self.places.weight[: symbols_NL.shape[1]]
        for block in self.blocks:
            x_NLM = block(x_NLM)
        return self.norm(x_NLM) @ self.symbols.weight.T

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A trained model and the text it was trained on, named by its domain."""

    name: str
    domain: str
    model: ByteModel

    def losses(self, pieces: npt.NDArray[np.uint8], *, batch: int = 256) -> npt.NDArray[np.float64]:
        """Return the mean cross entropy in nats per byte of each piece, (N, L) -> (N,).

        Raises InputError where pieces are longer than the context.
        """
        if pieces.ndim != 2 or not 1 <= pieces.shape[1] <= self.model.shape.context:
            raise InputError(
                f"expert {self.name!r}: expected pieces of shape (N, L), L from 1 to "
                f"{self.model.shape.context} bytes, got {pieces.shape}"
            )
        found = []
        with torch.inference_mode():
            for start in range(0, len(pieces), batch):
                found.append(_losses(self.model, pieces[start : start + batch]).numpy())
        return np.concatenate(found or [np.zeros(0)]).astype(np.float64)


def train_expert(
    data: npt.NDArray[np.uint8],
    shape: Shape = BASE,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> ByteModel:
    """Train a model on windows drawn from ``data``, shape (B,); the same seed, the same model.

    Raises InputError where there are fewer bytes than one context.
    """
    how = schedule or Schedule()
    if len(data) < shape.context:
        raise InputError(f"expert: {len(data)} bytes to train on, needed {shape.context}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = ByteModel(shape)
    rng = np.random.default_rng(how.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.rate, weight_decay=0.01)
    places = np.arange(shape.context)
    for step in range(how.steps):
        starts = rng.integers(len(data) - shape.context + 1, size=how.batch)
        loss = _losses(model, data[starts[:, None] + places]).mean()
        for group in optimiser.param_groups:
            group["lr"] = how.rate * _warm_up_then_cosine(step / how.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimiser.step()
        if progress:
            progress(step + 1, how.steps)
    return model


def train_pool(
    corpora: Sequence[Corpus],
    shape: Shape = BASE,
    schedule: Schedule | None = None,
    *,
    suffix: str = "",
    show: bool | None = None,
) -> tuple[Expert, ...]:
    """Return one expert for each corpus, trained or taken from the cache.

    ``suffix`` is added to the domains to name the experts; ``show`` forces or forbids the progress
    bar.
    """
    how = schedule or Schedule()
    experts = []
    for corpus in corpora:
        name = corpus.domain + suffix
        path = expert_path(corpus, shape, how)
        model = _load(path, shape)
        if model is None:
            with progress_bar(f"training expert {name}", show=show) as progress:
                model = train_expert(corpus.training_bytes(), shape, how, progress)
            _save(path, model)
        experts.append(Expert(name=name, domain=corpus.domain, model=model))
    return tuple(experts)


def expert_path(corpus: Corpus, shape: Shape, schedule: Schedule) -> Path:
    """Return where the expert of these texts and settings is kept."""
    facts = [_VERSION, corpus.digest(), asdict(shape), asdict(schedule)]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()
    return cache_folder() / "tryage" / f"{corpus.domain}-{key}.npz"


def pool_of(experts: Sequence[Expert]) -> Pool:
    """Return the pool's cards: names, what each expert writes, parameters."""
    return Pool(
        name="tryage",
        note="byte-level language models trained on text of this machine",
        models=tuple(
            ModelCard(
                name=expert.name,
                description=DESCRIPTIONS.get(expert.domain, f"writes {expert.domain}"),
                parameters=expert.model.num_parameters,
                context=expert.model.shape.context,
            )
            for expert in experts
        ),
    )


def _losses(model: ByteModel, pieces_NL: npt.NDArray[np.uint8]) -> Any:
    """Mean cross entropy of each piece."""
    target_NL = torch.from_numpy(pieces_NL.astype(np.int64))
    start_N1 = torch.full((len(pieces_NL), 1), START)
    logits_NLV = model(torch.cat([start_N1, target_NL[:, :-1]], dim=1))
    flat = F.cross_entropy(logits_NLV.flatten(0, 1), target_NL.flatten(), reduction="none")
    return flat.view(target_NL.shape).mean(dim=1)


def _warm_up_then_cosine(done: float) -> float:
    """Share of the peak rate after this share of the steps."""
    if done < _WARM_UP:
        return (done + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) * 0.95 + 0.05


def _save(path: Path, model: ByteModel) -> None:
    arrays = {name: weight.numpy() for name, weight in model.state_dict().items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, shape: Shape) -> ByteModel | None:
    """Return the kept model, or None where there is none that fits."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        model = ByteModel(shape)
        model.load_state_dict(weights)
    except (OSError, ValueError, RuntimeError, EOFError, BadZipFile):
        return None
    return model
