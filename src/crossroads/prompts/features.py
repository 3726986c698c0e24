"""From an outcome table to what routers see: embeddings, training sets, queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.progress import Progress
from crossroads.models.embedding_cache import encode_cached
from crossroads.models.encoders import get_encoder
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.router import Queries, TrainingSet

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[Any]  # indices, or a boolean mask of shape (N,)


def table_features(
    table: OutcomeTable, encoder_name: str = "static", progress: Progress | None = None
) -> Float32:
    """Return the embeddings of the table's prompts, float32 (N, D), rows of unit length.

    They are the table's own where it carries this encoder's, else its texts are encoded (slow
    encoders keep their vectors on disk). A prompt without text has a zero row. Raises InputError
    where the table has neither, UsageError for an unknown encoder.
    """
    if encoder_name in table.embeddings:
        return table.embeddings[encoder_name]
    encoder = get_encoder(encoder_name)
    if table.texts is None:
        carried = ", ".join(repr(name) for name in table.embeddings)
        remedy = f"choose the encoder {carried}, or " if carried else ""
        raise InputError(
            f"the table has no prompt texts to encode with {encoder_name!r}; "
            f"{remedy}add a 'prompt' column"
        )
    return encode_cached(encoder, table.texts.tolist(), progress)


def with_features(
    table: OutcomeTable, encoder_name: str = "static", progress: Progress | None = None
) -> OutcomeTable:
    """Return the table carrying the embeddings of this encoder."""
    features = table_features(table, encoder_name, progress)
    return replace(table, embeddings={**table.embeddings, encoder_name: features})


def training_set(table: OutcomeTable, rows: Rows, features: Float32) -> TrainingSet:
    """Return what a router may learn from these rows; ``features`` are of the whole table."""
    part = table.take(rows)
    costs = np.full(part.score.shape, np.nan) if part.cost is None else part.cost
    return TrainingSet(
        models=table.models,
        embeddings=features[rows],
        scores=part.score,
        costs=costs,
        domains=part.domain,
        subjects=part.subject,
        texts=part.texts,
    )


def queries(
    table: OutcomeTable, rows: Rows, features: Float32, *, hindsight: bool = False
) -> Queries:
    """Return these rows as prompts to route.

    Only routers with ``hindsight`` see the labels (scores, domains, chance of a blind guess): a
    router that serves is given the prompt and nothing else.
    """
    part = table.take(rows)
    return Queries(
        embeddings=features[rows],
        texts=part.texts,
        domains=part.domain if hindsight else None,
        truth=part.score if hindsight else None,
        chance=part.chance if hindsight else None,
    )
