"""In which order the words of a text come that say what it is about.

Vectors that are means of word vectors do not know the order: "euros to dollars" and "dollars to
euros" are one point. So two texts are taken for the same only where the content words that both
have come in the same order, as often. Words are runs of letters and digits, of any script that
puts something between them.
"""

from __future__ import annotations

import re
from zlib import crc32

_WORD = re.compile(r"\w+")
_SIZE = 4  # bytes of a word
# Words that stand anywhere without changing what is asked; prepositions go with what follows them.
_PLAIN_WORDS = (
    "a about all also am an and any anybody anyone anything are as at be because been being "
    "both but by can could d did do does doing done each either else for from get give go "
    "had has have he her here hers him his how i if in into is it its just let ll m may me "
    "might mine my now of off on or our ours out please re s shall she should so some "
    "somebody someone something t tell than thanks that the their theirs them then there "
    "these they this those to too up us ve very was we were what when where whether which "
    "who whom whose why will with would yes you your yours "
)
_PLAIN = frozenset(_PLAIN_WORDS.split())


def content_words(text: str) -> bytes:
    """Return the content words of a text in order, four bytes each; equal in every process."""
    words = _WORD.findall(text.lower())
    return b"".join(
        crc32(word.encode("utf-8", "surrogatepass")).to_bytes(_SIZE, "little")
        for word in words
        if word not in _PLAIN
    )


def is_same_order(one: bytes, other: bytes) -> bool:
    """Whether the content words that both texts have come in the same order, as often."""
    if one == other:
        return True
    first, second = _split(one), _split(other)
    shared = set(first) & set(second)
    return [word for word in first if word in shared] == [w for w in second if w in shared]


def with_words(words: bytes, data: bytes) -> bytes:
    """Return one value of the content words of a text and the answer kept for it."""
    return (len(words) // _SIZE).to_bytes(_SIZE, "little") + words + data


def without_words(value: bytes) -> tuple[bytes, bytes]:
    """Return the content words and the answer of a value."""
    end = _SIZE + _SIZE * int.from_bytes(value[:_SIZE], "little")
    return value[_SIZE:end], value[end:]


def _split(words: bytes) -> list[bytes]:
    return [words[place : place + _SIZE] for place in range(0, len(words), _SIZE)]
