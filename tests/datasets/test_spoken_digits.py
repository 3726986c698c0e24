from __future__ import annotations

import io
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError, UnavailableError, UsageError
from crossroads.datasets import spoken_digits
from crossroads.datasets.paths import VARIABLE
from crossroads.datasets.spoken_digits import Recording, SpokenDigits


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(8000 * seconds)) / 8000
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes((samples * 32767).astype("<i2").tobytes())
    return stream.getvalue()


def write_zip(folder: Path, speaker: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"{speaker}.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    for pitch, speaker in ((300, "ann"), (700, "bob_b")):
        files = {
            f"{digit}_{speaker}_{take}.wav": wav(tone(pitch + 90 * digit, 0.1 + 0.01 * take))
            for digit in (0, 3)
            for take in (0, 4, 5, 6)
        }
        write_zip(tmp_path, speaker, files)
    spoken_digits.load.cache_clear()
    yield tmp_path
    spoken_digits.load.cache_clear()


def test_takes_below_five_are_the_test_part(small: Path) -> None:
    found = spoken_digits.load(small)
    assert found.speakers == ("ann", "bob_b")
    assert {r.take for r in found.test} == {0, 4}
    assert {r.take for r in found.train} == {5, 6}
    assert (len(found.train), len(found.test)) == (8, 8)


def test_features_are_normalised_by_the_training_part(small: Path) -> None:
    found = spoken_digits.load(small)
    frames = np.concatenate([r.frames for r in found.train])
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-4)


def test_a_frame_is_25_ms_every_10_ms() -> None:
    assert spoken_digits.log_mel(np.zeros(200, np.float32)).shape == (1, 40)
    assert spoken_digits.log_mel(np.zeros(8000, np.float32)).shape == (98, 40)
    assert spoken_digits.log_mel(np.zeros(10, np.float32)).shape == (1, 40)


@pytest.mark.parametrize("hertz", [150, 500, 1000, 2500, 3700])
def test_a_tone_sounds_loudest_in_its_own_band(hertz: float) -> None:
    bands = spoken_digits.mel_bands()
    assert (bands.sum(1) > 0).all(), "no band is empty"
    frequency = np.fft.rfftfreq(spoken_digits.FFT_SIZE, 1 / 8000)
    loudest = bands[spoken_digits.log_mel(tone(hertz)).mean(0).argmax()]
    low, high = frequency[loudest > 0][[0, -1]]
    assert low - 20 <= hertz <= high + 20


def test_silence_is_finite() -> None:
    assert np.isfinite(spoken_digits.log_mel(np.zeros(1000, np.float32))).all()


def made(seed: int = 0) -> SpokenDigits:
    draws = np.random.default_rng(seed)
    return SpokenDigits(
        Recording(
            digit=digit,
            speaker=speaker,
            take=take,
            frames=np.full((int(draws.integers(3, 9)), 40), 100 * s + digit, dtype=np.float32),
        )
        for s, speaker in enumerate("xyz")
        for digit in range(10)
        for take in range(8)
    )


def test_a_string_is_recordings_of_one_speaker_and_its_labels() -> None:
    strings = made().strings("train", 2, 30, seed=1, longest=5)
    assert set(strings.target_length) == {2, 3, 4, 5}
    for row in range(30):
        frames = strings.frames[row, : strings.length[row]]
        assert np.unique(frames // 100).tolist() == [strings.speaker[row]]
        said = (frames[:, 0] % 100).astype(int)
        changes = said[np.r_[True, np.diff(said) != 0]]
        target = strings.target[row, : strings.target_length[row]] - 1
        assert changes.tolist() == target[np.r_[True, np.diff(target) != 0]].tolist()
        assert (strings.frames[row, strings.length[row] :] == 0).all()
        assert (strings.target[row, strings.target_length[row] :] == 0).all()


def test_strings_are_a_function_of_the_seed_and_the_part() -> None:
    digits = made()
    one, same, other = (digits.strings("train", 3, 8, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.frames, same.frames)
    assert not np.array_equal(one.target, other.target)
    assert (one.target_length == 3).all()


def test_labels_are_spelled_as_words() -> None:
    assert spoken_digits.words_of([1, 10, 4]) == ["zero", "nine", "three"]


def test_impossible_strings_are_refused() -> None:
    with pytest.raises(UsageError, match="split: expected 'train' or 'test'"):
        made().strings("dev", 3, 1, seed=0)
    with pytest.raises(UsageError, match="1 <= length <= longest"):
        made().strings("test", 3, 1, seed=0, longest=2)


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = spoken_digits.load(shared_folder("fsdd"))
    assert (len(found.train), len(found.test), len(found.speakers)) == (2700, 300, 6)
    assert all(np.isfinite(r.frames).all() for r in found.test)


def test_absent_recordings_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken_digits.load.cache_clear()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UnavailableError, match="fsdd"):
        spoken_digits.load()
    with pytest.raises(InputError, match="holds no zip"):
        spoken_digits.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("7.wav", wav(tone(300)), "not named digit_speaker_take"),
        ("0_ann_1.wav", wav(tone(300), rate=16000), "16000"),
        ("0_ann_1.wav", b"noise", "cannot be read"),
    ],
)
def test_broken_recordings_are_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    write_zip(tmp_path, "ann", {name: data})
    with pytest.raises(InputError, match=words):
        spoken_digits.load(tmp_path)
