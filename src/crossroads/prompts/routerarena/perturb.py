"""Robustness: does a router keep its choice when the prompt is reworded?

RouterArena's perturbed prompts are of four kinds; here they are generated offline, from a seed:

===========  =======================================================================================
kind         what changes
===========  =======================================================================================
paraphrase   the last sentence (usually the instruction) goes first, or a neutral lead-in is added
grammar      about half of the function words are dropped, and case and white space vary
synonym      words of a short list are replaced by a synonym
typo         about 3 % of the letters are swapped with their neighbour or dropped
===========  =======================================================================================

Options, code and numbers are words to these rules like any other: what is measured is the choice of
a model, not the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from crossroads.core.decision import Decision
from crossroads.core.errors import InputError, unknown_name
from crossroads.prompts.routerarena.names import canonical_name

TYPO_RATE = 0.03  # of letters; the arena's are between 2 and 5 %
_DROP_RATE = 0.5
_FUNCTION_WORDS = frozenset(
    {
        *("a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "with", "and", "or"),
        *("is", "are", "was", "were", "be", "been", "do", "does", "did", "has", "have", "had"),
        *("that", "which"),
    }
)
_LEAD_INS = ("Please consider the following. ", "Here is a task. ", "Take a look at this: ")
_SYNONYMS = {
    "answer": "reply",
    "begin": "start",
    "big": "large",
    "buy": "purchase",
    "calculate": "compute",
    "choose": "select",
    "correct": "right",
    "describe": "explain",
    "find": "determine",
    "following": "next",
    "get": "obtain",
    "give": "provide",
    "help": "assist",
    "large": "big",
    "likely": "probable",
    "make": "create",
    "many": "numerous",
    "often": "frequently",
    "provide": "give",
    "question": "query",
    "read": "examine",
    "select": "choose",
    "show": "display",
    "small": "little",
    "solve": "work out",
    "start": "begin",
    "statement": "claim",
    "use": "employ",
    "write": "compose",
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[A-Za-z]+")

Route = Callable[[Sequence[str]], Sequence[str]]
Generator = Callable[[str, np.random.Generator], str]


class Decider(Protocol):
    """What decides for a list of texts, such as a ``FittedRouter``."""

    def decide(self, prompts: list[str], *, seed: int) -> list[Decision]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Robustness:
    """Share of choices that stay, over all perturbed prompts and by kind; in [0, 1]."""

    share: float
    by_kind: Mapping[str, float]
    num_pairs: int


def typo(text: str, rng: np.random.Generator) -> str:
    """Swap letters with the next one, or drop them, at ``TYPO_RATE``; at least one of them."""
    letters = [n for n, letter in enumerate(text) if letter.isalpha()]
    if not letters:
        return text
    hit = rng.random(len(letters)) < TYPO_RATE
    hit[rng.integers(len(letters))] = True
    characters = list(text)
    for place in (letters[n] for n in np.flatnonzero(hit)):
        follows = place + 1 < len(characters) and characters[place + 1].isalpha()
        if follows and rng.random() < 0.5:
            swapped = characters[place + 1], characters[place]
            characters[place], characters[place + 1] = swapped
        else:
            characters[place] = ""
    return "".join(characters)


def vary_case_and_space(text: str, rng: np.random.Generator) -> str:
    """Change the case of the first letters of some words, and double some spaces."""
    words = text.split(" ")
    for n in np.flatnonzero(rng.random(len(words)) < 0.1):
        words[n] = f"{words[n][:1].swapcase()}{words[n][1:]}"
    gaps = rng.random(len(words)) < 0.05
    return " ".join(f"{word} " if wide else word for word, wide in zip(words, gaps, strict=True))


def drop_function_words(text: str, rng: np.random.Generator) -> str:
    """Drop about half of the articles, prepositions, auxiliaries and conjunctions."""
    parts = re.split(r"(\s+)", text)
    kept: list[str] = []
    for part in parts:
        is_function_word = part.casefold() in _FUNCTION_WORDS
        if not (is_function_word and rng.random() < _DROP_RATE):
            kept.append(part)
    return "".join(kept)


def grammar(text: str, rng: np.random.Generator) -> str:
    """Drop function words, then vary case and white space."""
    return vary_case_and_space(drop_function_words(text, rng), rng)


def synonym(text: str, rng: np.random.Generator) -> str:
    """Replace words of the list by their synonym, four out of five of them."""

    def replaced(match: re.Match[str]) -> str:
        word = match.group()
        other = _SYNONYMS.get(word.casefold())
        if other is None or rng.random() < 0.2:
            return word
        return other.capitalize() if word[0].isupper() else other

    return _WORD.sub(replaced, text)


def paraphrase(text: str, rng: np.random.Generator) -> str:
    """Put the last sentence first; a text of one sentence gets a neutral lead-in instead."""
    sentences = [part for part in _SENTENCE.split(text.strip()) if part.strip()]
    if len(sentences) > 1:
        return "\n".join([sentences[-1], *sentences[:-1]])
    return _LEAD_INS[rng.integers(len(_LEAD_INS))] + text


GENERATORS: Mapping[str, Generator] = {
    "paraphrase": paraphrase,
    "grammar": grammar,
    "synonym": synonym,
    "typo": typo,
}


def perturb(text: str, kind: str, *, seed: int) -> str:
    """Return the text in another wording; the same seed gives the same one. Raises UsageError."""
    if kind not in GENERATORS:
        raise unknown_name("perturbation", kind, GENERATORS)
    stream = list(GENERATORS).index(kind)
    return GENERATORS[kind](text, np.random.default_rng([seed, stream, len(text)]))


def flip_share(
    clean: Sequence[str], perturbed: Sequence[str], aliases: Mapping[str, str] | None = None
) -> float:
    """Return the share of pairs whose choice changes, names made canonical first."""
    if not len(clean) == len(perturbed) > 0:
        raise InputError(
            f"robustness: expected pairs of choices, got {len(clean)} and {len(perturbed)}"
        )
    flips = [
        canonical_name(a, aliases) != canonical_name(b, aliases)
        for a, b in zip(clean, perturbed, strict=True)
    ]
    return sum(flips) / len(flips)


def robustness_of(
    router: Decider | Route,
    texts: Sequence[str],
    seed: int = 0,
    *,
    kinds: Sequence[str] = tuple(GENERATORS),
    aliases: Mapping[str, str] | None = None,
) -> Robustness:
    """Return the share of choices that survive rewording: 1 - flips, over texts x kinds.

    ``router`` has ``decide(texts, seed=...)`` (any fitted router), or is a function from texts to
    model names. Each batch is decided with a seed of its own, so that a router that chooses at
    random among K models keeps about 1 / K of its choices. Raises InputError for no texts and for a
    function that does not name one model per text.
    """
    if not texts or not kinds:
        raise InputError("robustness: expected at least one text and one kind of perturbation")
    clean = _choices(router, list(texts), seed)
    by_kind = {}
    for n, kind in enumerate(kinds, start=1):
        reworded = [perturb(text, kind, seed=seed) for text in texts]
        by_kind[kind] = 1 - flip_share(clean, _choices(router, reworded, seed + n), aliases)
    share = sum(by_kind.values()) / len(by_kind)
    return Robustness(share=share, by_kind=by_kind, num_pairs=len(texts) * len(kinds))


def _choices(router: Decider | Route, texts: list[str], seed: int) -> Sequence[str]:
    if hasattr(router, "decide"):
        decided = cast(Decider, router).decide(texts, seed=seed)
        return [decision.model for decision in decided]
    names = router(texts)
    if len(names) != len(texts):
        raise InputError(f"robustness: the router named {len(names)} models for {len(texts)} texts")
    return names
