"""Compiled sums of words change no bit of a vector, whatever the text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.native import VARIABLE
from crossroads.models import word_sums
from crossroads.models.encoders import LONGEST_TEXT, StaticEncoder
from tests.models.test_encoders import TEXTS, encoded_by_threads

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler here"
)
MORE = ["", " ", "a ", " a", "a  b", "a\u00a0b", "word " * 9000, "x" * LONGEST_TEXT, "<s>"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("kernels")))
        yield word_sums.SOURCE.build()


@pytest.fixture(scope="module")
def compiled(built: Path) -> StaticEncoder:
    encoder = StaticEncoder()
    assert encoder._word_sums is not None
    return encoder


@pytest.fixture(scope="module")
def plain() -> StaticEncoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "off")
        encoder = StaticEncoder()
    assert encoder._word_sums is None
    return encoder


def test_vectors_are_the_same_to_the_last_bit(
    compiled: StaticEncoder, plain: StaticEncoder
) -> None:
    texts = [*TEXTS, *MORE]
    wanted = plain.encode(texts)
    np.testing.assert_array_equal(compiled.encode(texts), wanted)
    for text, row in zip(texts, wanted, strict=True):
        np.testing.assert_array_equal(compiled.encode([text])[0], row)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_has_the_same_vector(
    compiled: StaticEncoder, plain: StaticEncoder, text: str
) -> None:
    np.testing.assert_array_equal(compiled.encode([text]), plain.encode([text]))


@given(text=st.text("ab \n<s>\u2581", max_size=12))
def test_spaces_and_marks_have_the_same_vector(
    compiled: StaticEncoder, plain: StaticEncoder, text: str
) -> None:
    np.testing.assert_array_equal(compiled.encode([text]), plain.encode([text]))


@pytest.mark.parametrize(("name", "room"), [("_MOST", 4), ("_TEXT_ROOM", 600), ("_ROWS_ROOM", 600)])
def test_words_are_forgotten_where_there_is_no_room(
    built: Path, plain: StaticEncoder, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    monkeypatch.setattr(word_sums, name, room)
    forgetful = StaticEncoder()
    for _ in range(2):
        np.testing.assert_array_equal(forgetful.encode(TEXTS), plain.encode(TEXTS))


def test_words_of_one_hash_are_told_apart(compiled: StaticEncoder, plain: StaticEncoder) -> None:
    texts = ["ecdy", "kybn", "ecdy kybn", "kybn ecdy"]
    np.testing.assert_array_equal(compiled.encode(texts), plain.encode(texts))


def test_long_words_are_not_remembered(built: Path, plain: StaticEncoder) -> None:
    encoder, texts = StaticEncoder(), ["one " + "y" * 300 + " two", "\u4f60\u597d" * 40 + " one"]
    learned = _watch(encoder)
    for _ in range(2):
        np.testing.assert_array_equal(encoder.encode(texts), plain.encode(texts))
    assert sorted(learned, key=len)[:2] == ["one", "two"]
    assert len(learned) == 2 + 2 * 2


def _watch(encoder: StaticEncoder) -> list[str]:
    """Return the words that an encoder learns from now on."""
    learned: list[str] = []
    learn, sums = encoder._learn, encoder._word_sums
    assert sums is not None
    sums._learn = lambda word: learned.append(word) or learn(word)
    return learned


def test_a_word_is_learned_once(built: Path) -> None:
    encoder = StaticEncoder()
    learned = _watch(encoder)
    encoder.encode(["one two one", "two three  three"])
    encoder.encode(["three two one"])
    assert learned == ["one", "two", "three", " three"]


def test_threads_share_one_encoder(built: Path, plain: StaticEncoder) -> None:
    wanted = plain.encode(TEXTS * 4)
    for rows in encoded_by_threads(StaticEncoder(), TEXTS * 4):
        np.testing.assert_array_equal(rows, wanted)


def test_a_server_builds_it_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    assert "without compiled code, which is slower: no C compiler" in word_sums.prepare()
    monkeypatch.delenv("CC")
    assert "once for this machine" in word_sums.prepare()
    assert word_sums.prepare() == ""
    assert StaticEncoder()._word_sums is not None
    path = word_sums.SOURCE.built_path()
    assert path is not None
    damaged = path.read_bytes()[:4000]
    path.unlink()  # the encoder above may still have it mapped
    path.write_bytes(damaged)
    assert "once for this machine" in word_sums.prepare()  # a damaged one is replaced
    monkeypatch.setenv(VARIABLE, "off")
    assert word_sums.prepare() == ""
    assert StaticEncoder()._word_sums is None
