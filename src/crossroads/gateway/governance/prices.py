"""What calls cost: the pool's prices, and a file that goes before them and may be edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from crossroads.core.errors import InputError
from crossroads.core.problems import on_one_line, problems_of, yaml_problem
from crossroads.gateway.contracts import Usage
from crossroads.gateway.governance.watch import FileWatch
from crossroads.gateway.settings import Section
from crossroads.prompts.pool import ModelCard

_OUTPUT_TOKENS = 4096  # of an answer with no bound: what vendors mostly give at most by default

Rates = tuple[float, float, float]  # USD per input token, per output token, per call

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Section):
    """Of one model, as a line of the file: USD per million tokens, and USD per call."""

    in_: _Amount = Field(default=0.0, alias="in")
    out: _Amount = 0.0
    per_call: _Amount = 0.0


_Prices = dict[str, Price]
_FILE = TypeAdapter(_Prices)


class PriceBook:
    """Prices by model, in USD. Models that nobody priced cost nothing.

    Raises InputError for a file that is not there or not right where nothing is kept.

    Parameters
    ----------
    cards : of the pool
    file : YAML ``{model: {in, out, per_call}}``, USD per million tokens and per call; a model in it
        goes by it alone. Read now and by ``refresh``.
    kept : what the file held when it was last right, for one that no longer is; None without
    """

    def __init__(
        self,
        cards: Iterable[ModelCard] = (),
        file: str | Path | None = None,
        *,
        kept: Mapping[str, Rates] | None = None,
    ) -> None:
        self._pool: dict[str, Rates] = {}
        self._bounds: dict[str, int] = {}
        for card in cards:
            rates = (card.price_in / 1e6, card.price_out / 1e6, card.price_per_call)
            self._pool[card.name] = rates
            if card.max_output is not None:
                self._bounds[card.name] = card.max_output
        self._file = None if file is None else Path(file)
        self._watch = None if self._file is None else FileWatch(self._file)
        self.problem = ""
        self.listed: Mapping[str, Rates] = {}  # by the file
        if self._file is not None:
            try:
                self.listed = read_prices(self._file)
            except InputError as error:
                if kept is None:
                    raise
                self.listed, self.problem = kept, str(error)
        self._rates = {**self._pool, **self.listed}

    @property
    def models(self) -> frozenset[str]:
        """Models that have a price."""
        return frozenset(self._rates)

    def cost(self, model: str, usage: Usage) -> float:
        """Return what an answer costs."""
        rates = self._rates.get(model)
        if rates is None:
            return 0.0
        return usage.input_tokens * rates[0] + usage.output_tokens * rates[1] + rates[2]

    def upper(self, model: str, input_tokens: int, max_output: int | None = None) -> float:
        """Return what a call costs at most, as far as the prompt's estimate is right.

        Without ``max_output`` the model's own bound counts, else 4096 tokens.
        """
        rates = self._rates.get(model)
        if rates is None:
            return 0.0
        if max_output is None:
            max_output = self._bounds.get(model, _OUTPUT_TOKENS)
        return input_tokens * rates[0] + max_output * rates[1] + rates[2]

    def refresh(self) -> bool:
        """Read the file again where it changed; True when it did and is right.

        A file that became wrong leaves the prices as they were; ``problem`` then says what is.
        """
        if self._file is None or self._watch is None or not self._watch.has_changed():
            return False
        try:
            self.listed = read_prices(self._file)
        except InputError as error:
            self.problem = str(error)
            return False
        self._rates = {**self._pool, **self.listed}
        self.problem = ""
        return True


def price_of(card: ModelCard, usage: Usage) -> float:
    """Return what an answer costs by the pool's own prices, in USD."""
    return float(card.price(usage.input_tokens, usage.output_tokens))


def read_prices(path: Path) -> dict[str, Rates]:
    """Return USD per input token, per output token and per call, by model. Raises InputError."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"prices {path}: cannot be read: {error.strerror}; correct the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = yaml_problem(error)
        raise InputError(f"prices {path}: not valid YAML: {problem}; correct it") from None
    try:
        found = _FILE.validate_python({} if raw is None else raw)
    except ValidationError as error:
        problem = on_one_line(problems_of(error, _Prices))
        raise InputError(f"prices {path}: {problem}") from None
    return {
        model: (price.in_ / 1e6, price.out / 1e6, price.per_call) for model, price in found.items()
    }
