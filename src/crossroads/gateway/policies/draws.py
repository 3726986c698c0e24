"""Chance that can be repeated: a hash of a seed and a key, in place of a random generator.

Whoever knows the seed and the key of a call draws the same again, in every process and version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

_UNIT = 1.0 / (1 << 53)


def salt(seed: int, purpose: str) -> bytes:
    """Return what tells the draws of one policy from those of another, 32 bytes."""
    return blake2b(f"{seed}:{purpose}".encode(), digest_size=32).digest()


def draw(salted: bytes, key: str) -> float:
    """Return a number in [0, 1) for a key, uniform over keys."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=salted).digest()
    return (int.from_bytes(digest, "little") >> 11) * _UNIT


def pick(probabilities: Sequence[float], number: float) -> int:
    """Return the index whose stretch of [0, sum) a number in [0, 1) falls into."""
    rest = number * math.fsum(probabilities)
    last = 0
    for index, probability in enumerate(probabilities):
        if probability > 0:
            if rest < probability:
                return index
            rest -= probability
            last = index
    return last  # rounding spared a little at the end


def rendezvous(salts: Sequence[bytes], weights: Sequence[float], key: str) -> int:
    """Return the index of the arm that keeps ``key``, arms being chosen in proportion to weights.

    Weighted rendezvous hashing: an arm that goes or comes moves only its own keys, whoever
    computes it. At least one weight must be above 0.
    """
    best, lowest = -1, math.inf
    for index, weight in enumerate(weights):
        if weight > 0:
            # an exponential waiting time of rate weight: the first to ring wins
            waited = -math.log1p(-draw(salts[index], key)) / weight
            if waited < lowest or best < 0:
                best, lowest = index, waited
    return best
