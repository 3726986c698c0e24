"""The baseline that reads model cards: a prompt goes to the card it resembles.

Nothing is learnt from losses. It stands for choosing a model by its description, as Gorilla
(2023, arXiv 2305.15334) retrieves interfaces by their documentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.models.encoders import get_encoder
from crossroads.prompts.pool import Pool


def choose_by_card(
    pool: Pool, texts: Sequence[str], *, encoder: str = "static"
) -> npt.NDArray[np.intp]:
    """Return for each text the expert whose description is nearest by cosine, shape (N,).

    Raises InputError where a card has no description, what ``get_encoder`` raises.
    """
    silent = [card.name for card in pool if not card.description.strip()]
    if silent:
        raise InputError(
            f"model cards: no description of {', '.join(silent)}; add the field 'description'"
        )
    reader = get_encoder(encoder)
    cards_KD = reader.encode([f"{card.name}: {card.description}" for card in pool])
    return np.asarray((reader.encode(list(texts)) @ cards_KD.T).argmax(axis=1), dtype=np.intp)
