"""METEOR with exact unigram matches (Banerjee and Lavie 2005), for free text and translations.

With m matched words, precision P and recall R over words::

    F = 10 P R / (R + 9 P),    score = F (1 - 0.5 (chunks / m)^3)

where chunks counts runs of words that are adjacent and in the same order on both sides. Stems and
synonyms are not matched. Words of scripts without spaces are single characters. Of several ways to
match a repeated word, the one that continues a run is taken, else the earliest: fewest chunks are
not searched for.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# Chinese characters and Japanese kana are written without spaces: each is a word.
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


def meteor(candidate: str, reference: str) -> float:
    """Return the score in [0, 1]; 0 where either side has no word."""
    found, wanted = words_of(candidate), words_of(reference)
    pairs = _align(found, wanted)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(found), len(pairs) / len(wanted)
    mean = 10 * precision * recall / (recall + 9 * precision)
    chunks = 1 + sum((a[0] + 1, a[1] + 1) != b for a, b in pairwise(pairs))
    if len(pairs) == len(found) == len(wanted) and chunks == 1:
        return 1.0  # the formula would charge a perfect answer for its one chunk
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def words_of(text: str) -> list[str]:
    """Return the words of a text, case and punctuation aside."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # By category, not by \w, which would break Indic words at their vowel signs.
    kept = (" " if unicodedata.category(c)[0] in "PSC" else c for c in folded)
    return _UNSPACED.sub(r" \1 ", "".join(kept)).split()


def _align(found: list[str], wanted: list[str]) -> list[tuple[int, int]]:
    """Return matched places (candidate, reference), each used once, in the candidate's order."""
    free: dict[str, list[int]] = {}
    for place, word in enumerate(wanted):
        free.setdefault(word, []).append(place)
    pairs: list[tuple[int, int]] = []
    for place, word in enumerate(found):
        places = free.get(word)
        if not places:
            continue
        next_one = pairs[-1][1] + 1 if pairs else -1
        chosen = next_one if next_one in places else places[0]
        places.remove(chosen)
        pairs.append((place, chosen))
    return pairs
