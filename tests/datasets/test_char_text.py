from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets import char_text
from crossroads.datasets.paths import VARIABLE


@pytest.fixture
def fresh_load() -> Iterator[Callable[[], char_text.CharText]]:
    char_text.load.cache_clear()
    yield char_text.load
    char_text.load.cache_clear()


def test_a_text_is_cut_in_two_without_loss(tmp_path: Path) -> None:
    (tmp_path / "input.txt.gz").write_bytes(gzip.compress(bytes(range(200))))
    text = char_text.load_shakespeare(tmp_path)
    assert (len(text.train), len(text.valid)) == (190, 10)
    assert bytes(text.train) + bytes(text.valid) == bytes(range(200))


def test_shakespeare_is_read_where_it_is(shared_folder: Callable[[str], Path]) -> None:
    text = char_text.load_shakespeare(shared_folder("tinyshakespeare"))
    assert bytes(text.train[:14]) == b"First Citizen:"
    assert len(text.train) + len(text.valid) == 1_115_394


def test_without_the_data_the_help_topics_stand_in_under_their_own_name(
    fresh_load: Callable[[], char_text.CharText],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    text = fresh_load()
    assert text.name == "python-topics"
    assert len(text.train) > 200_000
    assert b"statement" in bytes(text.train)


def test_batches_are_windows_drawn_by_seed_and_step() -> None:
    text = np.arange(100, dtype=np.uint8)
    drawn = [
        char_text.batch(text, length=8, batch_size=5, step=step, seed=seed)
        for step, seed in ((3, 1), (3, 1), (4, 1), (3, 2))
    ]
    assert drawn[0].shape == (5, 9)
    assert (np.diff(drawn[0], axis=1) == 1).all()
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])
    shortest = char_text.batch(text[:9], length=8, batch_size=3, step=0, seed=0)
    assert shortest.tolist() == [list(range(9))] * 3


def test_validation_windows_take_every_byte_as_a_target_once() -> None:
    cut = char_text.windows(np.arange(12, dtype=np.uint8), 4)
    assert cut.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    exact = char_text.windows(np.arange(13, dtype=np.uint8), 4)
    assert exact[:, 1:].ravel().tolist() == list(range(1, 13))


def test_bad_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"length: expected a number in \[1, 9\]"):
        char_text.batch(np.zeros(10, np.uint8), length=10, batch_size=1, step=0, seed=0)
    (tmp_path / "input.txt.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match="cannot be read as gzip"):
        char_text.load_shakespeare(tmp_path)
