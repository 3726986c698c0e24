"""Two kinds of generated text, easily told apart, and corpora of them."""

from __future__ import annotations

import numpy as np

from crossroads.prompts.tryage.corpora import Corpus, make_corpus

WORDS = {
    "letters": ["alpha", "beta", "gamma", "delta", "epsilon", "kappa", "lambda", "omega"],
    "digits": ["0.125", "3.1416", "2718", "42", "-7", "1e9", "600", "0.5"],
}


def texts(kind: str, num_documents: int = 40, num_words: int = 700) -> list[tuple[str, str]]:
    """Named documents of random words, one paragraph each."""
    rng = np.random.default_rng(sorted(WORDS).index(kind))
    return [
        (f"{kind}-{n}", " ".join(rng.choice(WORDS[kind], num_words))) for n in range(num_documents)
    ]


def corpora() -> tuple[Corpus, ...]:
    return tuple(make_corpus(kind, texts(kind)) for kind in WORDS)
