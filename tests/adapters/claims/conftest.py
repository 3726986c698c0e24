"""Real tasks on a model of random numbers, for claims whose long run trains SmolLM2."""

from __future__ import annotations

import pytest

from crossroads.adapters.claims.text_tasks import TextTasks
from crossroads.core.errors import UnavailableError
from tests.adapters import toys


@pytest.fixture(scope="package")
def texts() -> TextTasks:
    """Three of the collection's tasks."""
    found = TextTasks(
        rows=2,
        names=("clinc-a", "clinc-b", "bbh-logic"),
        model=toys.tiny_llama(vocab_size=49152, max_position_embeddings=128),
    )
    try:
        assert found.tasks
    except UnavailableError as error:
        pytest.skip(str(error))
    return found
