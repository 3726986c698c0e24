"""What a routed model holds and how fast it runs, beside its base model.

Speed is a ratio of two times measured in turns, base model and routed model on the same tokens in
the same process: the least of either, of as many turns as it takes for the halves of them to agree.
Torch on one thread is timed by that thread's CPU time, which other processes hardly touch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.adapters.embedding import embed
from crossroads.adapters.generating import generate
from crossroads.adapters.insertion import RoutedLinear, RoutedModel

_TURNS, _MOST_TURNS = 4, 12  # of a ratio; where halves of the most turns disagree, there is none
_LEAST_S = 0.1  # of all turns together
_AGREE = 0.1  # halves differ by no more than this share
Pair = tuple[float, float]  # seconds of the base model and of the routed one
_TEXT = "A lorry full of apples crossed the old bridge at noon and stopped at the market. "


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Speed of a routed model on this machine, with the threads torch has.

    Attributes
    ----------
    prefill, decode : tokens a second, of one prompt and of what follows it one by one
    prefill_ratio : to the base model's prefill, 1 = as fast; None where turns did not agree on one
    """

    prefill: float
    decode: float
    prefill_ratio: float | None


def measure_speed(
    base: BaseModel, routed: RoutedModel, *, tokens: int = 128, steps: int = 8, turns: int = _TURNS
) -> Speed:
    """Return the speed on a text of ``tokens`` tokens and ``steps`` tokens after it."""
    words = base.tokenizer.encode(_TEXT, add_special_tokens=False).ids or [0]
    ids = (words * (tokens // len(words) + 1))[: min(tokens, base.context - steps - 1)]
    facts = _any_facts(routed)
    ids_BT = torch.tensor([ids])

    walls: list[float] = []  # of the routed model

    def prefill() -> float:
        started, wall = clock(), time.perf_counter()
        with torch.inference_mode(), calling(**facts):
            base.model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
        walls.append(time.perf_counter() - wall)
        return clock() - started

    def alone() -> float:
        with routed.disabled():
            found = prefill()
        walls.pop()
        return found

    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    prefill(), alone()  # what is made once: merged weights, compiled sizes
    walls.clear()
    ratio = ratio_in_turns(lambda: (alone(), prefill()), turns=turns)
    return Speed(
        prefill=len(ids) / min(walls),
        decode=_decode_rate(base, routed.router, ids[: len(ids) // 4 or 1], steps, facts),
        prefill_ratio=ratio,
    )


def ratio_in_turns(turn: Callable[[], Pair], *, turns: int = _TURNS) -> float | None:
    """Return how much longer the first of two takes, by the least time of either.

    At least so many turns, and as many more as it takes for every other turn to tell what the rest
    tell; None where the most turns there are do not.
    """
    pairs = [turn() for _ in range(turns)]
    while len(pairs) < _MOST_TURNS and (sum(map(sum, pairs)) < _LEAST_S or not _agree(pairs)):
        pairs.append(turn())
    return _ratio(pairs) if _agree(pairs) else None


def _agree(pairs: Sequence[Pair]) -> bool:
    if len(pairs) < 2:
        return True
    one, other = _ratio(pairs[::2]), _ratio(pairs[1::2])
    return max(one, other) <= (1 + _AGREE) * min(one, other)


def _ratio(pairs: Sequence[Pair]) -> float:
    return min(base_s for base_s, _ in pairs) / min(routed_s for _, routed_s in pairs)


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
