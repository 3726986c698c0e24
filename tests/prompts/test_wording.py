from __future__ import annotations

import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts import wording as module
from crossroads.prompts.wording import (
    MOST_CHARACTERS,
    NUM_BUCKETS,
    NUM_STYLES,
    read_wording,
    word_buckets,
)

TEXTS = st.lists(st.text(max_size=60), max_size=6)


def table(columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM_BUCKETS, columns)).astype(np.float32)


@given(TEXTS)
def test_a_text_reads_the_same_alone_and_among_others(texts: list[str]) -> None:
    together = read_wording(texts)
    sums = together.sums(table())
    assert sums.shape == (len(texts), 3)
    for n, text in enumerate(texts):
        alone = read_wording([text])
        np.testing.assert_array_equal(alone.style[0], together.style[n])
        np.testing.assert_allclose(alone.sums(table())[0], sums[n], atol=1e-12)


@given(TEXTS)
def test_sums_are_the_product_with_the_matrix(texts: list[str]) -> None:
    wording = read_wording(texts)
    np.testing.assert_allclose(
        wording.sums(table()), wording.matrix() @ table().astype(np.float64), atol=1e-9
    )


@given(st.text())
def test_every_text_has_a_finite_style(text: str) -> None:
    wording = read_wording([text])
    assert wording.style.shape == (1, NUM_STYLES)
    assert np.isfinite(wording.style).all()
    assert ((wording.buckets >= 0) & (wording.buckets < NUM_BUCKETS)).all()


def test_buckets_are_the_same_on_every_machine() -> None:
    assert word_buckets("The cat, the CAT") == word_buckets("the cat")
    assert word_buckets("cat") == [936]
    assert word_buckets("") == word_buckets("?!") == []


def test_no_text_is_an_empty_text() -> None:
    none, empty = read_wording([None]), read_wording([""])
    np.testing.assert_array_equal(none.style, empty.style)
    assert none.counts.tolist() == [0]
    assert none.sums(table()).tolist() == [[0.0, 0.0, 0.0]]


def test_what_follows_the_limit_is_not_read() -> None:
    head = "a" * MOST_CHARACTERS
    np.testing.assert_array_equal(read_wording([head]).style, read_wording([head + " 99"]).style)


def test_style_tells_formulas_from_prose() -> None:
    style = read_wording(["x = 3 + 4", "who is liable here"]).style
    assert np.abs(style[0] - style[1]).max() > 0.3


def test_lone_surrogates_are_read() -> None:
    assert read_wording(["\ud800 half a character"]).counts.tolist() == [3]


@pytest.mark.parametrize("count", [0, 1])
def test_no_texts_at_all_give_empty_rows(count: int) -> None:
    wording = read_wording([""] * count)
    assert wording.matrix().shape == (count, NUM_BUCKETS)
    assert wording.sums(table()).shape == (count, 3)


ASCII = st.text(st.characters(max_codepoint=127))


@given(st.one_of(st.text(), ASCII))
def test_words_are_runs_of_word_characters_whatever_the_alphabet(text: str) -> None:
    hashes = [zlib.crc32(word.encode()) % NUM_BUCKETS for word in re.findall(r"\w+", text.lower())]
    assert word_buckets(text) == list(dict.fromkeys(hashes))


def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Buckets, "_MOST", 3)
    few = module._Buckets()
    words = [b"one", b"two", b"three", b"four", b"one"]
    assert [few[word] for word in words] == [zlib.crc32(word) % NUM_BUCKETS for word in words]
    assert list(few) == [b"four", b"one"]
