"""The units the converter knows, with exact factors.

Sources: the International System of Units (BIPM brochure, 9th edition), the international yard and
pound agreement of 1959 (1 yd = 0.9144 m, 1 lb = 0.45359237 kg), the US gallon of 231 cubic inches,
the imperial gallon of 4.54609 l, IEC 80000-13 for kibi and its kin. Words that mean two things
(ton, a bare gallon outside the US, months in days) are either left out or fixed here in one sense:
US customary for volumes, 8 bits to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit: ``base = value * factor + offset`` in the base unit of its dimension."""

    name: str  # plural, as answers write it
    dimension: str
    factor: Fraction
    offset: Fraction = Fraction(0)


# dimension -> lines "factor to the base unit; plural name; other spellings"
_TABLE: dict[str, tuple[str, ...]] = {
    "length": (
        "1e-9; nanometers; nanometer nm",
        "1e-6; micrometers; micrometer micron microns",
        "0.001; millimeters; millimeter mm",
        "0.01; centimeters; centimeter cm",
        "0.1; decimeters; decimeter dm",
        "1; meters; meter m",
        "1000; kilometers; kilometer km kms",
        "0.0254; inches; inch",
        "0.3048; feet; foot ft",
        "0.9144; yards; yard yd yds",
        "1609.344; miles; mile mi",
        "1852; nautical miles; nautical_mile",
    ),
    "mass": (
        "1e-6; milligrams; milligram mg",
        "0.001; grams; gram g gramme grammes",
        "1; kilograms; kilogram kg kgs kilo kilos",
        "1000; tonnes; tonne metric_ton metric_tons",
        "0.028349523125; ounces; ounce oz",
        "0.45359237; pounds; pound lb lbs",
        "6.35029318; stone; stones",
        "907.18474; short tons; short_ton us_ton us_tons",
    ),
    "time": (
        "1e-6; microseconds; microsecond",
        "0.001; milliseconds; millisecond ms",
        "1; seconds; second sec secs s",
        "60; minutes; minute min mins",
        "3600; hours; hour hr hrs h",
        "86400; days; day",
        "604800; weeks; week",
        "1209600; fortnights; fortnight",
    ),
    "calendar": (  # kept apart from time: a month has no fixed number of days
        "1; months; month",
        "12; years; year yr yrs",
        "120; decades; decade",
        "1200; centuries; century",
        "12000; millennia; millennium",
    ),
    "volume": (
        "0.001; milliliters; milliliter ml cubic_centimeters cubic_centimeter cc",
        "0.01; centiliters; centiliter cl",
        "0.1; deciliters; deciliter dl",
        "1; liters; liter l",
        "1000; cubic meters; cubic_meter m3 m^3",
        "3.785411784; gallons; gallon gal us_gallon us_gallons",
        "0.946352946; quarts; quart qt",
        "0.473176473; pints; pint pt",
        "0.2365882365; cups; cup",
        "0.0295735295625; fluid ounces; fluid_ounce fl_oz",
        "0.01478676478125; tablespoons; tablespoon tbsp",
        "0.00492892159375; teaspoons; teaspoon tsp",
        "4.54609; imperial gallons; imperial_gallon uk_gallon uk_gallons",
    ),
    "area": (
        "1e-6; square millimeters; square_millimeter mm2 mm^2",
        "1e-4; square centimeters; square_centimeter cm2 cm^2",
        "1; square meters; square_meter m2 m^2 sq_m",
        "1e6; square kilometers; square_kilometer km2 km^2 sq_km",
        "1e4; hectares; hectare ha",
        "4046.8564224; acres; acre",
        "0.00064516; square inches; square_inch sq_in",
        "0.09290304; square feet; square_foot sq_ft",
        "0.83612736; square yards; square_yard sq_yd",
        "2589988.110336; square miles; square_mile sq_mi",
    ),
    "speed": (
        "3600; meters per second; meter_per_second m/s",
        "1000; kilometers per hour; kilometer_per_hour km/h kmh kph",
        "1609.344; miles per hour; mile_per_hour mph",
        "1852; knots; knot kn",
        "1097.28; feet per second; foot_per_second ft/s",
    ),
    "data": (
        "1; bits; bit",
        "8; bytes; byte",
        "8e3; kilobytes; kilobyte kb",
        "8e6; megabytes; megabyte mb",
        "8e9; gigabytes; gigabyte gb",
        "8e12; terabytes; terabyte tb",
        "8e15; petabytes; petabyte pb",
        "1e3; kilobits; kilobit kbit",
        "1e6; megabits; megabit mbit",
        "1e9; gigabits; gigabit gbit",
        "8192; kibibytes; kibibyte kib",
        "8388608; mebibytes; mebibyte mib",
        "8589934592; gibibytes; gibibyte gib",
    ),
}
_TEMPERATURES = (  # kelvin = value * factor + offset
    Unit("degrees Celsius", "temperature", Fraction(1), Fraction("273.15")),
    Unit("degrees Fahrenheit", "temperature", Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
    Unit("kelvins", "temperature", Fraction(1)),
)
_TEMPERATURE_SPELLINGS = (
    "degrees_celsius degree_celsius celsius degrees_c c centigrade degrees_centigrade",
    "degrees_fahrenheit degree_fahrenheit fahrenheit degrees_f f",
    "kelvins kelvin k degrees_kelvin",
)


@cache
def unit_spellings() -> dict[str, Unit]:
    """Return every spelling, in lower case with single spaces, with its unit."""
    known: dict[str, Unit] = {}
    for dimension, lines in _TABLE.items():
        for line in lines:
            factor, name, others = (part.strip() for part in line.split(";"))
            unit = Unit(name, dimension, Fraction(factor))
            for spelling in (name, *others.split()):
                for written in _both_englishes(spelling.replace("_", " ")):
                    assert written not in known, f"two units are spelt {written!r}"
                    known[written] = unit
    for unit, spellings in zip(_TEMPERATURES, _TEMPERATURE_SPELLINGS, strict=True):
        known.update({spelling.replace("_", " "): unit for spelling in spellings.split()})
    return known


def _both_englishes(spelling: str) -> set[str]:
    """Meters and metres, liters and litres."""
    return {spelling, spelling.replace("meter", "metre").replace("liter", "litre")}
