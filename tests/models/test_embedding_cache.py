from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.progress import Progress
from crossroads.models import embedding_cache
from crossroads.models.embedding_cache import cache_folder, encode_cached
from crossroads.models.encoders import Float32


class Counting:
    """An encoder of three dimensions that remembers what it was asked."""

    name, version, dim, is_slow = "counting", "1", 3, True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        self.asked += texts
        return np.array([[len(t), t.count("a"), 1] for t in texts], dtype=np.float32).reshape(-1, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(embedding_cache.VARIABLE, str(tmp_path))
    return tmp_path / "embeddings"


TEXTS = ["aa", "b", "aa", "caa"]
ROWS = [[2, 2, 1], [1, 0, 1], [2, 2, 1], [3, 2, 1]]


def test_each_text_is_encoded_once_in_all_processes() -> None:
    first, second = Counting(), Counting()
    assert encode_cached(first, TEXTS).tolist() == ROWS
    assert encode_cached(second, [*TEXTS, "new"])[:4].tolist() == ROWS
    assert sorted(first.asked) == ["aa", "b", "caa"]
    assert second.asked == ["new"]


def test_a_fast_encoder_writes_nothing(folder: Path) -> None:
    encoder = Counting()
    encoder.is_slow = False
    assert encode_cached(encoder, TEXTS).tolist() == ROWS
    assert not folder.exists()


def test_another_version_shares_nothing() -> None:
    encode_cached(Counting(), TEXTS)
    newer = Counting()
    newer.version = "2"
    encode_cached(newer, TEXTS)
    assert len(newer.asked) == 3


def test_no_text_is_no_row() -> None:
    assert encode_cached(Counting(), []).shape == (0, 3)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("damage", [b"", b"not a database", b"SQLite format 3\0" + b"\1" * 600])
def test_a_damaged_file_is_rebuilt(damage: bytes, folder: Path) -> None:
    encode_cached(Counting(), TEXTS)
    only_file(folder).write_bytes(damage)
    again, last = Counting(), Counting()
    assert encode_cached(again, TEXTS).tolist() == ROWS
    assert len(again.asked) == 3
    assert encode_cached(last, TEXTS).tolist() == ROWS
    assert last.asked == []


def test_a_truncated_file_is_rebuilt(folder: Path) -> None:
    encode_cached(Counting(), [f"text {n}" for n in range(300)])
    path = only_file(folder)
    path.write_bytes(path.read_bytes()[:5000])
    assert encode_cached(Counting(), TEXTS).tolist() == ROWS
    assert encode_cached(Counting(), TEXTS).tolist() == ROWS


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vectors SET checksum = checksum + 1",
        "UPDATE vectors SET vector = x'00000000'",
        "UPDATE vectors SET vector = NULL",
        "DROP TABLE vectors",
        "ALTER TABLE vectors RENAME COLUMN vector TO other",
    ],
)
def test_a_row_that_is_not_as_written_is_encoded_again(change: str, folder: Path) -> None:
    encode_cached(Counting(), TEXTS)
    with sqlite3.connect(only_file(folder)) as store:
        store.execute(change)
    store.close()
    again = Counting()
    assert encode_cached(again, TEXTS).tolist() == ROWS
    assert len(again.asked) == 3


def test_a_folder_that_cannot_be_written_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv(embedding_cache.VARIABLE, str(blocked))
    assert encode_cached(Counting(), TEXTS).tolist() == ROWS


def test_a_locked_file_is_passed_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_cached(Counting(), TEXTS)
    monkeypatch.setattr(embedding_cache, "_WAIT_SECONDS", 0.05)
    other = sqlite3.connect(only_file(folder), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert encode_cached(Counting(), TEXTS).tolist() == ROWS
    other.close()
    after = Counting()
    encode_cached(after, TEXTS)
    assert after.asked == []  # the lock did not cost the file


def test_writers_at_the_same_time_lose_nothing() -> None:
    texts = [[f"{worker} text {n}" for n in range(120)] for worker in range(6)]
    threads = [threading.Thread(target=encode_cached, args=(Counting(), part)) for part in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = Counting()
    encode_cached(after, [text for part in texts for text in part])
    assert after.asked == []


def test_progress_counts_what_is_left_to_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "_BATCH", 2)
    seen: list[tuple[int, int]] = []
    encode_cached(Counting(), TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


def test_an_interruption_keeps_the_batches_already_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding_cache, "_BATCH", 1)

    class Stopping(Counting):
        def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().encode(texts, progress)

    with pytest.raises(KeyboardInterrupt):
        encode_cached(Stopping(), TEXTS)
    after = Counting()
    encode_cached(after, TEXTS)
    assert after.asked == ["caa"]


def test_without_the_variable_the_users_cache_folder_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(embedding_cache.VARIABLE)
    assert cache_folder().name == "crossroads"


def test_minilm_vectors_are_the_same_from_disk_in_another_process() -> None:
    from crossroads.models.encoders import get_encoder

    encoder = get_encoder("minilm")
    first = encode_cached(encoder, ["a question"])
    code = (
        "from crossroads.models.embedding_cache import encode_cached\n"
        "from crossroads.models.encoders import MiniLMEncoder as E\n"
        "class Silent:\n"
        "    name, version, dim, is_slow = E.name, E.version, E.dim, True\n"
        "print(encode_cached(Silent(), ['a question'])[0].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == first[0].tobytes().hex()
