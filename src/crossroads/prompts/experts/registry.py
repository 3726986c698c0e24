"""From a card of a pool to the expert behind it."""

from __future__ import annotations

from collections.abc import Callable

from crossroads.core.errors import InputError, unknown_name
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.experts.http import HttpExpert
from crossroads.prompts.pool import ModelCard

_PREFIX = "local:"


def _smollm2(card: ModelCard) -> Expert:
    from crossroads.prompts.experts.smollm import SmolLM

    return SmolLM(name=card.name, context=card.context or SmolLM.context)


def _calculator(card: ModelCard) -> Expert:
    from crossroads.prompts.experts import calculator
    from crossroads.prompts.experts.tools import ToolExpert

    return ToolExpert(name=card.name, answer=calculator.answer, refusal=calculator.REFUSAL)


def _units(card: ModelCard) -> Expert:
    from crossroads.prompts.experts import units
    from crossroads.prompts.experts.tools import ToolExpert

    return ToolExpert(name=card.name, answer=units.answer, refusal=units.REFUSAL)


_LOCAL: dict[str, Callable[[ModelCard], Expert]] = {
    "smollm2": _smollm2,
    "calculator": _calculator,
    "units": _units,
}


def build_expert(card: ModelCard, *, timeouts: Timeouts | None = None) -> Expert:
    """Build the expert of a card: ``local:<expert>`` or an OpenAI-compatible URL.

    ``timeouts`` hold where the card has none of its own.

    Raises InputError for a card without an endpoint or with a malformed one, UsageError for an
    unknown local expert. Nothing is loaded or connected before ``start``.
    """
    if card.endpoint is None:
        raise InputError(
            f"model {card.name!r} has no endpoint; add 'endpoint: https://host/v1' to its card "
            "in the pool"
        )
    if card.endpoint.startswith(_PREFIX):
        name = card.endpoint.removeprefix(_PREFIX)
        if name not in _LOCAL:
            raise unknown_name("local expert", name, _LOCAL)
        return _LOCAL[name](card)
    return HttpExpert(card, timeouts=timeouts)
