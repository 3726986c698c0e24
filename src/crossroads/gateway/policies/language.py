"""The language of a text, roughly: by its script, and in Latin script by its commonest words.

It reads the first ``_READ`` characters, knows ``LANGUAGES`` and answers "" when unsure: short
texts, mixed ones, and languages it does not know. It needs two different common words of one
language more than of any other, which a sentence of eight words usually has. Closely related
languages that share a script (Bulgarian and Russian, Hindi and Marathi) are told to be the larger.
"""

from __future__ import annotations

import re

_READ = 600  # characters
_LEAST_SHARE = 0.3  # of letters in one script, for the script to decide
_WORD = re.compile(r"[^\W\d_]+")

_COMMON = {
    "en": "the and is of to in that it for you with what how are this can be on have not",
    "fr": "le la les des est une un que pour dans qui sur pas vous je avec comment et du au",
    "de": "der die das und ist nicht ein eine mit auf wie ich sie von zu den was im wird auch",
    "es": "el los las una que es por con para como en del se lo y cual qu\u00e9 est\u00e1 su al",
    "it": "il lo gli che \u00e8 di per una con come non sono della nel del mi questo i cosa le",
    "pt": "o os as que n\u00e3o uma para com como em do da \u00e9 um por voc\u00ea se no na dos",
    "nl": "de het een en is van dat niet met voor op wat hoe zijn te ik je deze ook kan",
    "pl": "i w nie na jest to si\u0119 z do jak co czy \u017ce dla od o jestem ma tak po",
    "sv": "och att det som en \u00e4r p\u00e5 av f\u00f6r med jag inte hur ett den kan vad om",
    "tr": "ve bir bu i\u00e7in ile ne de da nas\u0131l mi \u00e7ok var gibi olan daha m\u0131 ben",
}
_WORDS: dict[str, frozenset[str]] = {}
for _code, _list in _COMMON.items():
    for _common in _list.split():
        _WORDS[_common] = _WORDS.get(_common, frozenset()) | {_code}

# Script to (language, class of characters), the more telling first.
_SCRIPTS = tuple(
    (code, re.compile(f"[{letters}]"))
    for code, letters in (
        ("ja", "\u3040-\u30ff"),
        ("zh", "\u4e00-\u9fff"),
        ("ko", "\uac00-\ud7af"),
        ("uk", "\u0456\u0457\u0454\u0491"),
        ("ru", "\u0400-\u04ff"),
        ("fa", "\u067e\u0686\u0698\u06af"),
        ("ar", "\u0600-\u06ff"),
        ("he", "\u0590-\u05ff"),
        ("hi", "\u0900-\u097f"),
        ("el", "\u0370-\u03ff"),
        ("th", "\u0e00-\u0e7f"),
    )
)
_TELLING = {"ja": ("zh", 0.1), "uk": ("ru", 0.02), "fa": ("ar", 0.01)}  # share of the wider script

LANGUAGES = frozenset(_COMMON) | {code for code, _ in _SCRIPTS}


def language(text: str) -> str:
    """Return the ISO 639-1 code of the text's language, "" where that is not clear."""
    text = text[:_READ]
    if not text.isascii():
        found = _by_script(text)
        if found:
            return found
    return _by_words(text)


def _by_script(text: str) -> str:
    num_letters = sum(map(str.isalpha, text)) or 1
    shares = {code: len(letters.findall(text)) / num_letters for code, letters in _SCRIPTS}
    for code, (wider, least) in _TELLING.items():
        together = shares[code] + shares[wider]
        if together >= _LEAST_SHARE and shares[code] >= least * together:
            return code
    best = max(shares, key=lambda code: shares[code])
    return best if shares[best] >= _LEAST_SHARE else ""


def _by_words(text: str) -> str:
    counts: dict[str, int] = {}
    for word in set(_WORD.findall(text.lower())):
        for code in _WORDS.get(word, ()):
            counts[code] = counts.get(code, 0) + 1
    if not counts:
        return ""
    ordered = sorted(counts.values(), reverse=True)
    runner_up = ordered[1] if len(ordered) > 1 else 0
    if ordered[0] - runner_up < 2:
        return ""
    return max(counts, key=lambda code: counts[code])
