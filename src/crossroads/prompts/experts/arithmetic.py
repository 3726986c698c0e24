"""Exact evaluation of arithmetic given as tokens.

A recursive-descent parser that evaluates as it reads, over fractions. Its grammar is all it can do,
so nothing a user writes is ever executed; sizes, exponents and nesting are bounded. Lowest
precedence first::

    question := verb product (link product)+ | sum
    sum      := product (("+" | "-" | "more" | "fewer") product)*
    product  := unary (("*" | "/" | "mod") unary)*
    unary    := "-" unary | power
    power    := postfix ("^" unary)?
    postfix  := atom ("!" | "squared" | "cubed" | "%" | "of" unary)*
    atom     := number | "(" sum ")" | function unary | function product ("and" product)+
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

Token = str | Fraction
Values = list[Fraction]

_MAX_DEPTH = 40
_MAX_BITS = 4096  # of a numerator or denominator: about 1,200 digits
_MAX_FACTORIAL = 400
_ROOT_DIGITS = 30  # decimals an irrational root is computed to


class NotArithmeticError(ValueError):
    """The tokens do not follow the grammar."""


class UndefinedError(ArithmeticError):
    """The value does not exist or is too large; the message says which, as an answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """A value, and whether no irrational root was rounded on the way."""

    value: Fraction
    is_exact: bool


def evaluate(tokens: Sequence[Token]) -> Result:
    """Evaluate a whole question. Raises NotArithmeticError and UndefinedError."""
    parser = _Parser(tokens)
    value = parser.question()
    return Result(value, parser.is_exact)


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._num_operations = 0
        self.is_exact = True

    def question(self) -> Fraction:
        value = self._command() if self._peek() in _VERBS else self._sum()
        # A number alone is no question for a calculator: "What is 1984?"
        if self._position != len(self._tokens) or self._num_operations == 0:
            raise NotArithmeticError
        return value

    def _command(self) -> Fraction:
        verb = _VERBS[str(self._next())]
        values = self._list(verb.links)
        if len(values) > 2 and not verb.takes_many:
            raise NotArithmeticError
        if verb.is_relative and self._tokens[-1] == "%":  # by 20 % of the first number
            values[1] *= values[0]
        return self._done(verb.apply(values))

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in _ADDITIVE:
            apply = _ADDITIVE[str(self._next())]
            value = self._done(apply(value, self._product()))
        return value

    def _product(self) -> Fraction:
        value = self._unary()
        while True:
            sign = "mod" if self._is_modulo() else self._peek()
            if sign not in _MULTIPLICATIVE:
                return value
            self._next()
            value = self._done(_MULTIPLICATIVE[str(sign)](value, self._unary()))

    def _unary(self) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotArithmeticError
        if self._peek() == "-":
            self._next()
            value = -self._unary()
        else:
            value = self._power()
        self._depth -= 1
        return value

    def _power(self) -> Fraction:
        base = self._postfix()
        if self._peek() != "^":
            return base
        self._next()
        return self._done(self._raise(base, self._unary()))

    def _postfix(self) -> Fraction:
        value = self._atom()
        while True:
            if self._peek() == "of":  # a share, or a percentage
                self._next()
                value = self._done(value * self._unary())
            elif self._peek() in _POSTFIX and not self._is_modulo():
                value = self._done(_POSTFIX[str(self._next())](value))
            else:
                return value

    def _atom(self) -> Fraction:
        token = self._next()
        if isinstance(token, Fraction):
            return token
        if token == "(":
            value = self._sum()
            self._expect(")")
            return value
        if token == "remainder":
            return self._remainder()
        if token in _ROOTS:
            return self._done(self._root(self._unary(), _ROOTS[token]))
        if token in _PREFIX:
            return self._done(_PREFIX[token](self._unary()))
        if token in _OF_LISTS:
            return self._done(_OF_LISTS[token](self._bracketed_list()))
        raise NotArithmeticError

    def _remainder(self) -> Fraction:
        """``remainder 29 is / 4``."""
        dividend = self._unary()
        if self._peek() == "is":
            self._next()
        self._expect("/")
        return self._done(_modulo(dividend, self._unary()))

    def _bracketed_list(self) -> Values:
        if self._peek() != "(":
            return self._list({"and"})
        self._next()
        values = self._list({"and"})
        self._expect(")")
        return values

    def _list(self, links: set[str]) -> Values:
        """Two products or more, parted by commas and the words in ``links``."""
        values = [self._product()]
        while self._peek() in {",", *links}:
            if self._next() == "," and self._peek() in links:  # "2, 3, and 4"
                self._next()
            values.append(self._product())
        if len(values) < 2:
            raise NotArithmeticError
        return values

    def _raise(self, base: Fraction, exponent: Fraction) -> Fraction:
        if exponent.denominator in {2, 3}:
            base, exponent = self._root(base, exponent.denominator), Fraction(exponent.numerator)
        if exponent.denominator != 1:
            raise UndefinedError("I can only raise to whole powers, halves and thirds.")
        power = exponent.numerator
        if base == 0 and power < 0:
            raise UndefinedError(_BY_ZERO)
        # The result has at least (bits - 1) * |power| bits: refused before it is computed.
        bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
        if (bits - 1) * abs(power) > _MAX_BITS:
            raise UndefinedError(_TOO_LARGE)
        return Fraction(base**power)

    def _root(self, value: Fraction, degree: int) -> Fraction:
        if value < 0 and degree == 2:
            raise UndefinedError("The square root of a negative number is not a real number.")
        sign = -1 if value < 0 else 1
        top, bottom = abs(value.numerator), value.denominator
        root = Fraction(_integer_root(top, degree), _integer_root(bottom, degree))
        if root**degree != abs(value):
            self.is_exact = False
            scale = 10**_ROOT_DIGITS
            root = Fraction(_integer_root(top * scale**degree // bottom, degree), scale)
        return sign * root

    def _done(self, value: Fraction) -> Fraction:
        """Count an operation and bound its result."""
        self._num_operations += 1
        if max(abs(value.numerator).bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            raise UndefinedError(_TOO_LARGE)
        return value

    def _is_modulo(self) -> bool:
        """Whether the next token is the % of ``17 % 5``, not that of ``17 % of 5``."""
        following = self._peek(1)
        return self._peek() == "%" and (isinstance(following, Fraction) or following == "(")

    def _peek(self, ahead: int = 0) -> Token:
        position = self._position + ahead
        return self._tokens[position] if position < len(self._tokens) else ""

    def _next(self) -> Token:
        token = self._peek()
        self._position += 1
        return token

    def _expect(self, word: str) -> None:
        if self._next() != word:
            raise NotArithmeticError


_BY_ZERO = "Division by zero is undefined."
_TOO_LARGE = "That number is too large to write out."


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise UndefinedError(_BY_ZERO)
    return a / b


def _modulo(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise UndefinedError(_BY_ZERO)
    return a % b


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise UndefinedError("The factorial is defined for whole numbers from 0 on.")
    if value > _MAX_FACTORIAL:
        raise UndefinedError(_TOO_LARGE)
    return Fraction(math.factorial(value.numerator))


def _integer_root(value: int, degree: int) -> int:
    """Largest integer whose ``degree``-th power is at most ``value`` (Newton's method)."""
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _whole(values: Values) -> list[int]:
    if any(value.denominator != 1 for value in values):
        raise UndefinedError("Divisors and multiples are defined for whole numbers.")
    return [value.numerator for value in values]


def _pair(apply: Callable[[Fraction, Fraction], Fraction]) -> Callable[[Values], Fraction]:
    def checked(values: Values) -> Fraction:
        if len(values) != 2:
            raise NotArithmeticError
        return apply(values[0], values[1])

    return checked


def _add(values: Values) -> Fraction:
    return sum(values, Fraction(0))


def _multiply(values: Values) -> Fraction:
    return math.prod(values, start=Fraction(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verb:
    """A command such as ``subtract 7 from 30``."""

    links: set[str]  # the words between its numbers
    apply: Callable[[Values], Fraction]
    takes_many: bool = False
    is_relative: bool = False


_ADDITIVE: dict[Token, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "more": lambda a, b: b + a,  # 5 more than 3
    "fewer": lambda a, b: b - a,  # 5 less than 30
}
_MULTIPLICATIVE: dict[Token, Callable[[Fraction, Fraction], Fraction]] = {
    "*": lambda a, b: a * b,
    "/": _divide,
    "mod": _modulo,
}
_POSTFIX: dict[Token, Callable[[Fraction], Fraction]] = {
    "!": _factorial,
    "factorial": _factorial,
    "squared": lambda a: a**2,
    "cubed": lambda a: a**3,
    "%": lambda a: a / 100,
}
_PREFIX: dict[Token, Callable[[Fraction], Fraction]] = {
    "factorial": _factorial,
    "square": lambda a: a**2,
    "cube": lambda a: a**3,
    "double": lambda a: 2 * a,
    "triple": lambda a: 3 * a,
}
_ROOTS: dict[Token, int] = {"sqrt": 2, "cbrt": 3}
_OF_LISTS: dict[Token, Callable[[Values], Fraction]] = {
    "sum": _add,
    "product": _multiply,
    "difference": _pair(lambda a, b: abs(a - b)),
    "quotient": _pair(_divide),
    "mean": lambda values: _add(values) / len(values),
    "max": max,
    "min": min,
    "gcd": lambda values: Fraction(math.gcd(*_whole(values))),
    "lcm": lambda values: Fraction(math.lcm(*_whole(values))),
}
_VERBS: dict[Token, _Verb] = {
    "add": _Verb(links={"and", "to", "+"}, apply=_add, takes_many=True),
    "multiply": _Verb(links={"and", "by", "with"}, apply=_multiply, takes_many=True),
    "subtract": _Verb(links={"from"}, apply=lambda v: v[1] - v[0]),
    "take": _Verb(links={"from"}, apply=lambda v: v[1] - v[0]),
    "divide": _Verb(links={"by"}, apply=lambda v: _divide(v[0], v[1])),
    "increase": _Verb(links={"by"}, apply=lambda v: v[0] + v[1], is_relative=True),
    "decrease": _Verb(links={"by"}, apply=lambda v: v[0] - v[1], is_relative=True),
    "reduce": _Verb(links={"by"}, apply=lambda v: v[0] - v[1], is_relative=True),
}
