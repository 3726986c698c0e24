from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.unit_table import unit_spellings
from crossroads.prompts.experts.units import answer

UNITS = sorted(set(unit_spellings().values()), key=lambda unit: unit.name)
PAIRS = [(a, b) for a in UNITS for b in UNITS if a.dimension == b.dimension and a != b]


@pytest.mark.parametrize(
    ("question", "converted"),
    [
        ("Convert 5 miles to kilometres.", "8.04672 kilometers"),
        ("How many minutes are in 2 hours?", "120 minutes"),
        ("How many feet are there in 3 yards?", "9 feet"),
        ("What is 100 degrees Fahrenheit in Celsius?", "about 37.77777778 degrees Celsius"),
        ("-40 C to F", "-40 degrees Fahrenheit"),
        ("What is minus forty degrees Celsius in Fahrenheit?", "-40 degrees Fahrenheit"),
        ("How hot is 25 \u00b0C in Fahrenheit?", "77 degrees Fahrenheit"),
        ("300 K in Celsius", "26.85 degrees Celsius"),
        ("3 hours is how many minutes?", "180 minutes"),
        ("How many seconds does half an hour have?", "1800 seconds"),
        ("How many bits make up a byte?", "8 bits"),
        ("how many inches go into a foot", "12 inches"),
        ("How tall is 5 feet 10 inches in centimeters?", "177.8 centimeters"),
        ("2 hours, 30 minutes and 15 seconds in seconds", "9015 seconds"),
        ("How many months are in 4 years?", "48 months"),
        ("twenty-five miles to km", "40.2336 kilometers"),
        ("How many square feet are in 2 square yards?", "18 square feet"),
        ("What is 72 km/h in m/s?", "20 meters per second"),
        ("1 GiB in bytes", "1073741824 bytes"),
        ("Could you tell me how many ounces there are in 2 pounds?", "32 ounces"),
        ("What is 10 miles expressed in kilometers?", "16.09344 kilometers"),
        ("10,000 m to km", "10 kilometers"),
        ("Convert 3 m\u00b2 to cm\u00b2", "30000 square centimeters"),
    ],
)
def test_conversions_are_answered_exactly(question: str, converted: str) -> None:
    assert answer(question) == converted


@pytest.mark.parametrize(
    "question",
    [
        "",
        "miles",
        "5 miles",
        "How many meters",
        "convert",
        "in in in",
        "convert 5 miles to kg",
        "5 feet 3 kilograms in meters",
        "20 C 30 F in kelvin",
        "How many legs does a spider have?",
        "What is 5 + 3?",
        "How many days are in February?",
        "How many days are in a year?",
        "How many minutes does a football match last?",
        "How many cups are on the table?",
        "What is a second language?",
        "Turn left in 5 minutes",
        "Write 5 in Roman numerals",
        "What is the boiling point of water in degrees Celsius?",
        "1 mile to " + "x" * 300,
    ],
)
def test_anything_else_is_declined(question: str) -> None:
    assert answer(question) is None


@given(st.sampled_from(PAIRS), st.integers(0, 10_000))
def test_every_unit_converts_to_every_other_of_its_dimension(pair: tuple, number: int) -> None:  # type: ignore[type-arg]
    source, target = pair
    found = answer(f"Convert {number} {source.name} to {target.name}")
    assert found is not None
    assert found.endswith(f" {target.name}")
    value = Fraction(found.removeprefix("about ").split()[0])
    exact = (number * source.factor + source.offset - target.offset) / target.factor
    assert abs(value - exact) <= abs(exact) / 10**8


@given(st.sampled_from(PAIRS))
def test_how_many_asks_the_same_as_convert(pair: tuple) -> None:  # type: ignore[type-arg]
    source, target = pair
    asked = answer(f"How many {target.name} are there in 7 {source.name}?")
    assert asked == answer(f"convert 7 {source.name} into {target.name}")
    assert asked is not None


@given(st.text(max_size=250))
def test_no_text_is_an_error(question: str) -> None:
    found = answer(question)
    assert found is None or found


# Definitions in terms of other units, from outside the table's own factors.
@pytest.mark.parametrize(
    ("many", "small", "large"),
    [
        (12, "inches", "feet"),
        (3, "feet", "yards"),
        (1760, "yards", "miles"),
        (16, "ounces", "pounds"),
        (14, "pounds", "stone"),
        (2000, "pounds", "short tons"),
        (43560, "square feet", "acres"),
        (640, "acres", "square miles"),
        (4, "quarts", "gallons"),
        (2, "pints", "quarts"),
        (2, "cups", "pints"),
        (8, "fluid ounces", "cups"),
        (16, "tablespoons", "cups"),
        (3, "teaspoons", "tablespoons"),
        (100, "hectares", "square kilometers"),
        (1024, "mebibytes", "gibibytes"),
        (8, "kilobits", "kilobytes"),
    ],
)
def test_units_agree_with_their_definitions(many: int, small: str, large: str) -> None:
    assert answer(f"How many {small} are in 1 {large}?") == f"{many} {small}"


def test_both_englishes_are_understood() -> None:
    assert answer("2 litres to millilitres") == answer("2 liters to milliliters")
    assert answer("2 kilometres in metres") == "2000 meters"
