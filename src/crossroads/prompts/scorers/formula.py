r"""A small grammar of formulas, parsed into sympy objects without evaluating any text.

::

    value      = union | set | interval | tuple | list | [name "="] expression [ "%" ]
    expression = [sign] term { ("+" | "-") term }
    term       = power { ("*" | "/" | nothing) power }
    power      = atom { "!" } [ "^" ["-"] power ]
    atom       = number | name | \frac{}{} | \sqrt[]{} | function | "(" expression ")" | "|" ... "|"

A number directly followed by a fraction of numbers is a mixed number, as in ``1\frac{1}{2}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crossroads.prompts.scorers.latex import FormulaError, tokens

_MOST_DIGITS = 2000  # of a power of numbers
_LARGEST_EXPONENT = 5000
_LARGEST_FACTORIAL = 200
_DEEPEST = 40  # nested parts
_OPEN, _CLOSE = ("(", "["), (")", "]")
_FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "exp", "log")},
    **{"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "asin": "asin"},
    **{"acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh"},
}
_CONSTANTS = {"pi": "pi", "e": "E", "i": "I", "infty": "oo", "infinity": "oo", "inf": "oo"}
_GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu"),
        *("rho", "sigma", "tau", "phi", "psi", "omega"),
    )
)


def parse_formula(text: str) -> Any:
    """Return a sympy expression; a tuple, kind of brackets first, for tuples and intervals; a
    frozenset for sets, unions and several solutions. Raises FormulaError."""
    found = tokens(text)
    if not found:
        raise FormulaError("no formula")
    return _value(found)


def _value(found: list[str]) -> Any:
    united = _split(found, "\\cup")
    if len(united) > 1:
        return frozenset(map(_value, united))
    if found[:1] == ["\\{"] and found[-1] == "\\}":
        return frozenset(map(_value, _split(found[1:-1], ",")))
    if _is_bracketed(found):
        elements = _split(found[1:-1], ",")
        if len(elements) > 1:
            return (found[0] + found[-1], *map(_value, elements))
    solutions = _split(found, ",")
    if len(solutions) > 1:
        return frozenset(map(_value, solutions))
    return _Parser(found).whole()


def _split(found: list[str], separator: str) -> list[list[str]]:
    """Split at the separators that stand outside of all brackets."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in found:
        depth += (token in (*_OPEN, "{", "\\{")) - (token in (*_CLOSE, "}", "\\}"))
        if token == separator and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _is_bracketed(found: list[str]) -> bool:
    """Whether the first token is a bracket that the last one closes."""
    if found[:1] not in ([sign] for sign in _OPEN) or found[-1] not in _CLOSE:
        return False
    depth = 0
    for n, token in enumerate(found):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return n == len(found) - 1
    return False


class _Parser:
    def __init__(self, found: list[str]) -> None:
        self._tokens = list(found)
        self._at = 0
        self._depth = 0

    def whole(self) -> Any:
        """Read one expression: ``x = 3`` says 3, ``50%`` says 1/2."""
        value = self._expression()
        if self._next_is("="):
            self._at += 1
            if not value.is_Symbol:
                raise FormulaError("an equation")
            value = self._expression()
        if self._next_is("%"):
            self._at += 1
            value = value / 100
        if self._peek() is not None:
            raise FormulaError(f"no formula from {self._peek()!r} on")
        return value

    # -- expressions ----------------------------------------------------------------------------

    def _expression(self) -> Any:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise FormulaError("nested too deeply")
        value = self._signed(self._term)
        while self._peek() in ("+", "-"):
            sign = self._take()
            term = self._term()
            value = value + term if sign == "+" else value - term
        self._depth -= 1
        return value

    def _signed(self, read: Callable[[], Any]) -> Any:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        value = read()
        return -value if negative else value

    def _term(self) -> Any:
        value = self._mixed_number()
        if value is None:
            value = self._power()
        while True:
            token = self._peek()
            if token in ("*", "/"):
                self._at += 1
                factor = self._signed(self._power)
                value = value * factor if token == "*" else value / factor
            elif token is not None and self._starts_atom(token):
                value = value * self._power()
            else:
                return value

    def _mixed_number(self) -> Any:
        """Read ``1\\frac{1}{2}`` as one and a half; None where it is anything else."""
        import sympy

        head, after = self._tokens[self._at : self._at + 1], self._tokens[self._at + 1 :][:7]
        if not head or not head[0].isdigit() or after[:1] != ["\\frac"]:
            return None
        body = [token for token in after[1:] if token not in "{}"]
        shape = [token for token in after[1:] if token in "{}"]
        if shape != ["{", "}", "{", "}"] or not all(token.isdigit() for token in body):
            return None
        self._at += 8
        return sympy.Integer(head[0]) + sympy.Rational(int(body[0]), int(body[1]) or 1)

    def _power(self) -> Any:
        import sympy

        value = self._atom()
        while self._next_is("!"):
            self._at += 1
            if not (value.is_Integer and 0 <= value <= _LARGEST_FACTORIAL):
                raise FormulaError("a factorial that is too large")
            value = sympy.factorial(value)
        if not self._next_is("^"):
            return value
        self._at += 1
        return _bounded_power(value, self._signed(self._power_argument))

    def _power_argument(self) -> Any:
        """Read an exponent: a group, else LaTeX's single token, which plain text extends."""
        return self._atom() if self._next_is("{") else self._power()

    # -- atoms ----------------------------------------------------------------------------------

    def _starts_atom(self, token: str) -> bool:
        return token[0].isalnum() or token in ("(", "{", ".") or self._is_command_atom(token)

    @staticmethod
    def _is_command_atom(token: str) -> bool:
        return len(token) > 1 and token[0] == "\\" and token[1:].isalpha()

    def _atom(self) -> Any:
        import sympy

        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return sympy.Rational(token)
        if token in _OPEN:
            return self._closed_by(*_CLOSE)
        if token == "{":
            return self._closed_by("}")
        if token in ("|", "\\|"):
            return sympy.Abs(self._closed_by(token))
        return self._named(token, token.lstrip("\\"))

    def _named(self, token: str, name: str) -> Any:
        """Read a function, a constant or a variable."""
        import sympy

        if name == "frac":
            return self._group_or_digit() / self._group_or_digit()
        if name in _FUNCTIONS:
            return self._function(_FUNCTIONS[name])
        if name in _CONSTANTS:
            return getattr(sympy, _CONSTANTS[name])
        if name == "sqrt":
            return self._root()
        return self._binomial() if name == "binom" else self._symbols(token, name)

    def _symbols(self, token: str, name: str) -> Any:
        """Read a variable; letters side by side are a product, words are refused."""
        import sympy

        if name in _GREEK or "_" in name:
            return sympy.Symbol(name, positive=True)
        if token.startswith("\\") or not name.isalpha() or len(name) > 3:
            raise FormulaError(f"unknown word {name[:20]!r}")
        letters = [
            getattr(sympy, _CONSTANTS[letter])
            if letter in _CONSTANTS
            else sympy.Symbol(letter, positive=True)
            for letter in name
        ]
        return sympy.Mul(*letters)

    def _root(self) -> Any:
        import sympy

        degree = sympy.Integer(2)
        if self._next_is("["):
            self._at += 1
            degree = self._closed_by("]")
        if degree.is_zero:
            raise FormulaError("a root of degree 0")
        return _bounded_power(self._group_or_digit(), 1 / degree)

    def _binomial(self) -> Any:
        import sympy

        top, bottom = self._group_or_digit(), self._group_or_digit()
        if not (top.is_Integer and bottom.is_Integer and abs(top) <= _LARGEST_FACTORIAL):
            raise FormulaError("a binomial coefficient that is too large")
        return sympy.binomial(top, bottom)

    def _function(self, name: str) -> Any:
        import sympy

        exponent, base = None, None
        if name == "log" and self._next_is("_"):
            self._at += 1
            base = self._group_or_digit()
        if self._next_is("^"):
            self._at += 1
            exponent = self._group_or_digit()
        argument = self._atom() if self._peek() in ("(", "{") else self._power()
        value = getattr(sympy, name)(argument)
        if base is not None:
            value = value / sympy.log(base)
        return value if exponent is None else _bounded_power(value, exponent)

    def _group_or_digit(self) -> Any:
        """Read ``{...}``, ``(...)`` or, as LaTeX does, the first digit of a number."""
        import sympy

        token = self._peek()
        if token is not None and token.isdigit() and len(token) > 1:
            self._tokens[self._at] = token[1:]
            return sympy.Integer(token[0])
        return self._atom()

    def _closed_by(self, *closing: str) -> Any:
        value = self._expression()
        if self._peek() not in closing:
            raise FormulaError(f"expected {closing[0]!r}, found {self._peek()!r}")
        self._at += 1
        return value

    # -- tokens ---------------------------------------------------------------------------------

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next_is(self, token: str) -> bool:
        return self._peek() == token

    def _take(self) -> str:
        token = self._peek()
        if token is None:
            raise FormulaError("the formula ends too early")
        self._at += 1
        return token


def _bounded_power(base: Any, exponent: Any) -> Any:
    """Return ``base ** exponent`` unless its digits would fill the memory. Raises FormulaError."""
    import sympy

    if exponent.is_number:
        power = abs(exponent.evalf(15))
        if not power.is_finite or power > _LARGEST_EXPONENT:
            raise FormulaError("a power that is too large")
        if base.is_number and not base.is_zero:
            digits = abs(sympy.log(abs(base.evalf(15)), 10).evalf(15)) * power
            if not digits.is_finite or digits > _MOST_DIGITS:
                raise FormulaError("a power that is too large")
    return base**exponent
