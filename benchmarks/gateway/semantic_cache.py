"""Which similarity is near enough for the semantic cache: right and wrong hits by threshold.

Two real tables, asked in the manner of the cache (same group: equal numbers and negations; content
words that both texts have in the same order).

``intents``    utterances of CLINC150, written by people for 150 intents: each of the test part
               asks a cache that holds the training part. A hit of the same intent counts as right,
               of another as wrong. An utterance of the same intent may still want another answer,
               so the wrong hits are a lower bound.
``questions``  different questions of MMLU-Pro ask for each other: every hit is wrong, as no two
               have the same text. Mechanical rewordings of the same questions (case, politeness, a
               contraction, a typing error) ask for the original: every hit of it is right.
``orders``     made-up pairs of the same words in another order and of another meaning: every hit is
               wrong.

    python benchmarks/gateway/semantic_cache.py [--questions 4000]
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np

from crossroads.core.provenance import machine
from crossroads.datasets.mmlu_pro import read_questions
from crossroads.datasets.paths import data_folder
from crossroads.gateway.caches import SemanticSettings
from crossroads.gateway.caches.identity import semantic_key
from crossroads.gateway.caches.semantic import MOST_READ
from crossroads.gateway.caches.word_order import content_words, is_same_order
from crossroads.gateway.call import Call
from crossroads.models.encoders import get_encoder

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "gateway-semantic-cache.json"
THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
LONGEST = SemanticSettings().max_characters
ORDERS = (
    ("Convert this price from euros to dollars", "Convert this price from dollars to euros"),
    ("Did Alice lend money to Bob?", "Did Bob lend money to Alice?"),
    ("Is Python faster than Java?", "Is Java faster than Python?"),
    ("Translate from German to English: Gift", "Translate from English to German: Gift"),
    ("Should I sell shares to buy bonds?", "Should I buy shares to sell bonds?"),
    ("When did France invade Russia?", "When did Russia invade France?"),
    ("Book a flight from Paris to Rome", "Book a flight from Rome to Paris"),
    ("Can a dog bite a snake?", "Can a snake bite a dog?"),
)


def groups_of(texts: list[str]) -> np.ndarray:
    """Return a number per text, equal where the cache would compare them."""
    keys = []
    for text in texts:
        body = {"messages": [{"role": "user", "content": text}]}
        keys.append(semantic_key(Call(dialect="chat", model="auto", body=body), b"all"))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def nearest(asked: list[str], kept: list[str], *, guarded: bool, others_only: bool = False):
    """Return for each text asked the nearest kept one and its similarity (-1 for none)."""
    encoder = get_encoder("static")
    a, k = encoder.encode(asked), encoder.encode(kept)
    groups = groups_of(asked + kept)
    words = [content_words(text) for text in asked + kept]
    best, similarity = np.zeros(len(asked), dtype=int), np.full(len(asked), -1.0)
    same_text = {text: n for n, text in enumerate(kept)}
    for row, text in enumerate(asked):
        near = k @ a[row]
        if guarded:
            near = np.where(groups[len(asked) :] == groups[row], near, -1.0)
        if others_only:
            near[same_text[text]] = -1.0
        best[row] = near.argmax()
        if guarded:
            best[row] = in_order(near, words[len(asked) :], words[row])
        similarity[row] = near[best[row]] if best[row] >= 0 else -1.0
    return best, similarity


def in_order(near: np.ndarray, kept: list[bytes], own: bytes) -> int:
    """Return the nearest of those the cache reads whose words come in the same order; -1 if none.

    The cache reads as many that reach its threshold; here they are the same for all thresholds.
    """
    first = np.argpartition(-near, min(MOST_READ, len(near) - 1))[:MOST_READ]
    for place in first[np.argsort(-near[first], kind="stable")]:
        if near[place] >= THRESHOLDS[0] and is_same_order(own, kept[place]):
            return int(place)
    return -1


def orders(*, guarded: bool) -> list[dict[str, float]]:
    hits = []
    for one, other in ORDERS:
        _, similarity = nearest([other], [one], guarded=guarded)
        hits.append(similarity[0])
    return [
        {"threshold": threshold, "hit_rate": float((np.array(hits) >= threshold).mean())}
        for threshold in THRESHOLDS
    ]


def intents(*, guarded: bool) -> list[dict[str, float]]:
    with gzip.open(data_folder("clinc150") / "data_full.json.gz", "rt") as file:
        data = json.load(file)
    kept, asked = data["train"], data["test"]
    best, similarity = nearest([t for t, _ in asked], [t for t, _ in kept], guarded=guarded)
    is_right = np.array([kept[b][1] == label for b, (_, label) in zip(best, asked, strict=True)])
    rows = []
    for threshold in THRESHOLDS:
        hit = similarity >= threshold
        wrong = hit & ~is_right
        rows.append(
            {
                "threshold": threshold,
                "hit_rate": float(hit.mean()),
                "wrong_rate": float(wrong.mean()),
                "wrong_of_hits": float(wrong.sum() / max(1, hit.sum())),
            }
        )
    return rows


def rewordings(text: str) -> list[str]:
    letters = list(text)
    middle = next((n for n in range(len(text) // 2, len(text) - 1) if text[n : n + 2].isalpha()), 0)
    letters[middle : middle + 2] = letters[middle : middle + 2][::-1]
    return [
        text.lower().rstrip("?.: "),
        f"Please answer this question: {text}",
        text.replace("What is", "What's").replace("does not", "doesn't").replace(" the ", " ", 1),
        "".join(letters),
    ]


def questions(number: int, *, guarded: bool) -> list[dict[str, float]]:
    rows = read_questions(data_folder("mmlu_pro_outcomes"))
    texts = list(dict.fromkeys(str(row["question"]).strip() for row in rows))
    texts = [text for text in texts if 0 < len(text) <= LONGEST]
    picked = np.random.default_rng(0).permutation(len(texts))[:number]
    asked = [texts[n] for n in picked]
    _, similarity = nearest(asked, texts, guarded=guarded, others_only=True)
    new = [(other, n) for n, text in zip(picked, asked, strict=True) for other in rewordings(text)]
    best, again = nearest([text for text, _ in new], texts, guarded=guarded)
    is_right = best == np.array([n for _, n in new])
    return [
        {
            "threshold": threshold,
            "other_question_hit_rate": float((similarity >= threshold).mean()),
            "reworded_hit_rate": float(((again >= threshold) & is_right).mean()),
            "reworded_wrong_rate": float(((again >= threshold) & ~is_right).mean()),
        }
        for threshold in THRESHOLDS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=4000)
    number = parser.parse_args().questions
    started = time.process_time()
    result = {
        "question": "right and wrong hits of the semantic cache by threshold",
        "machine": machine(),
        "settings": {"encoder": "static", "questions": number, "longest_characters": LONGEST},
        "default_threshold": SemanticSettings().threshold,
        "intents": {"guarded": intents(guarded=True), "unguarded": intents(guarded=False)},
        "questions": {
            "guarded": questions(number, guarded=True),
            "unguarded": questions(number, guarded=False),
        },
        "orders": {"guarded": orders(guarded=True), "unguarded": orders(guarded=False)},
        "cpu_seconds": 0.0,
    }
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for table in ("intents", "questions", "orders"):
        for kind, rows in result[table].items():
            print(table, kind)
            for row in rows:
                print("  ", {name: round(value, 4) for name, value in row.items()})


if __name__ == "__main__":
    main()
