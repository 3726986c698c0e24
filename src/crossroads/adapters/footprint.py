"""What a routed model holds and how fast it runs, beside its base model.

Speed is a ratio of two times measured in turns, base model and routed model on the same tokens in
the same process, so that a busy machine slows down both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.adapters.embedding import embed
from crossroads.adapters.generating import generate
from crossroads.adapters.insertion import RoutedLinear, RoutedModel

_TURNS = 3
_TEXT = "A lorry full of apples crossed the old bridge at noon and stopped at the market. "


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Speed of a routed model on this machine, with the threads torch has.

    Attributes
    ----------
    prefill, decode : tokens a second, of one prompt and of what follows it one by one
    prefill_ratio : to the base model's prefill, median of paired turns; 1 = as fast
    """

    prefill: float
    decode: float
    prefill_ratio: float


def measure_speed(
    base: BaseModel, routed: RoutedModel, *, tokens: int = 128, steps: int = 8, turns: int = _TURNS
) -> Speed:
    """Return the speed on a text of ``tokens`` tokens and ``steps`` tokens after it."""
    words = base.tokenizer.encode(_TEXT, add_special_tokens=False).ids or [0]
    ids = (words * (tokens // len(words) + 1))[: min(tokens, base.context - steps - 1)]
    facts = _any_facts(routed)
    ids_BT = torch.tensor([ids])

    def prefill() -> float:
        started = time.perf_counter()
        with torch.inference_mode(), calling(**facts):
            base.model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - started

    def alone() -> float:
        with routed.disabled():
            return prefill()

    prefill(), alone()  # what is made once: merged weights, compiled sizes
    pairs = [(alone(), prefill()) for _ in range(turns)]
    return Speed(
        prefill=len(ids) / min(routed_s for _, routed_s in pairs),
        decode=_decode_rate(base, routed.router, ids[: len(ids) // 4 or 1], steps, facts),
        prefill_ratio=median(base_s / routed_s for base_s, routed_s in pairs),
    )


def _decode_rate(
    base: BaseModel, router: Router, ids: list[int], steps: int, facts: Mapping[str, Any]
) -> float:
    times = [
        time.perf_counter()
        for _ in generate(base, router, ids, most=steps + 1, facts=facts, ends=frozenset())
    ]
    return (len(times) - 1) / (times[-1] - times[0])


def _any_facts(routed: RoutedModel) -> dict[str, Any]:
    """Return facts a router can be run with, of nobody in particular."""
    asked, bank = routed.router.call_data, routed.bank
    found: dict[str, Any] = {}
    if "experts" in asked:
        found["experts"] = [bank.names[0]]
    if "labels_B" in asked:
        found["labels"] = torch.zeros(1, dtype=torch.long)
    if "task_ids_B" in asked:
        found["task_ids"] = torch.zeros(1, dtype=torch.long)
    if "embedding_BG" in asked:
        found["embedding"] = embed([_TEXT])
    return found


def router_parameters(routed: RoutedModel) -> int:
    """Return how many numbers routing itself has: the router's own, and the side data it reads."""
    router, bank = routed.router, routed.bank
    own = sum(values.numel() for values in router.state_dict().values())
    for layer in bank.layers.values():
        own += len(router.artifacts) * int(layer.alive_E.sum()) * layer.inputs
    if "embedding_BG" in router.call_data:
        vectors = (v for card in bank.cards for v in (card.embedding_G, card.examples_JG))
        own += sum(v.numel() for v in vectors if v is not None)
    return own


def held_bytes(routed: RoutedModel) -> int:
    """Return the bytes held beside the base model: adapters, side data, what was merged."""
    layers = [m for m in routed.model.modules() if isinstance(m, RoutedLinear)]
    base = {_place(t) for t in routed.model.parameters()}
    roots: list[Any] = [routed.bank, routed.router]
    roots += [(layer._static, layer._one) for layer in layers]
    found = {_place(t): t.untyped_storage().nbytes() for t in _tensors(roots, set())}
    return sum(size for place, size in found.items() if place not in base)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(things: Iterable[Any], seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor that is reachable through containers, modules and plain objects."""
    for thing in things:
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, Mapping):
            yield from _tensors(thing.values(), seen)
        elif isinstance(thing, list | tuple | set | frozenset):
            yield from _tensors(thing, seen)
        elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("crossroads."):
            yield from _tensors(_fields(thing), seen)


def _fields(thing: Any) -> list[Any]:
    names = [*getattr(thing, "__dict__", {})]
    names += [n for n in getattr(thing, "__slots__", ()) if is_dataclass(thing)]
    return [getattr(thing, name) for name in names]
