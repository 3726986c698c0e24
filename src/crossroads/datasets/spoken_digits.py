"""Spoken digits: 3,000 real recordings of ten digits by six speakers, and strings made of them.

Source: Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0), 8 kHz mono. Its own split: takes
0-4 of every digit and speaker are the test part (300), 5-49 the training part (2,700).

A string is recordings of one speaker one after the other, drawn with replacement. Features are
computed once a recording and then put together, so no frame spans two recordings; nothing is put
between them.
"""

from __future__ import annotations

import io
import wave
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets.paths import data_folder

SAMPLE_RATE = 8000
WINDOW, HOP = 200, 80  # 25 ms, 10 ms
FFT_SIZE = 512  # longer than the window: no mel band falls between two frequencies
NUM_MELS = 40
FLOOR = 1e-8  # power below which a band counts as silent
TEST_TAKES = 5
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One spoken digit: log-mel frames (R, 40), normalised by the training part."""

    digit: int
    speaker: str
    take: int
    frames: Float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Strings:
    """Digit strings, padded.

    Attributes
    ----------
    frames : (B, R, 40)
    length : real frames, (B,)
    target : digit + 1, (B, U); 0, the blank of CTC, is padding
    target_length : digits, (B,)
    speaker : index of the speaker, (B,)
    """

    frames: Float32
    length: Int64
    target: Int64
    target_length: Int64
    speaker: Int64


class SpokenDigits:
    """The recordings of both parts.

    Parameters
    ----------
    recordings : of all speakers and takes
    """

    def __init__(self, recordings: Iterable[Recording]) -> None:
        kept = sorted(recordings, key=lambda r: (r.speaker, r.digit, r.take))
        self.speakers = tuple(sorted({recording.speaker for recording in kept}))
        self.train = tuple(r for r in kept if r.take >= TEST_TAKES)
        self.test = tuple(r for r in kept if r.take < TEST_TAKES)

    def strings(
        self, split: Split, length: int, count: int, seed: int, *, longest: int | None = None
    ) -> Strings:
        """Return ``count`` strings of ``length`` digits, or of up to ``longest`` ones.

        The speaker of each string, its length and its recordings are drawn uniformly, by the
        seed alone. Raises UsageError for an unknown part or an impossible length.
        """
        longest = length if longest is None else longest
        if not 1 <= length <= longest:
            raise UsageError(
                f"length: expected 1 <= length <= longest, got {length!r} and {longest!r}"
            )
        draws = np.random.default_rng(seed)
        by_speaker = self._by_speaker(split)
        chosen, speakers = [], []
        for _ in range(count):
            speaker = int(draws.integers(len(self.speakers)))
            size = int(draws.integers(length, longest + 1))
            pool = by_speaker[speaker]
            chosen.append([pool[n] for n in draws.integers(len(pool), size=size)])
            speakers.append(speaker)
        return _padded(chosen, speakers)

    def _by_speaker(self, split: str) -> list[list[Recording]]:
        if split not in ("train", "test"):
            raise UsageError(f"split: expected 'train' or 'test', got {split!r}")
        part = self.train if split == "train" else self.test
        return [[r for r in part if r.speaker == speaker] for speaker in self.speakers]


@cache
def load(folder: Path | None = None) -> SpokenDigits:
    """Return the recordings with their features, computed once a process.

    ``folder`` holds one zip a speaker; None = the development data. Raises UnavailableError where
    those are absent, InputError for archives that cannot be read.
    """
    folder = folder or data_folder("fsdd")
    waves = [found for path in sorted(folder.glob("*.zip")) for found in _read(path)]
    if not waves:
        raise InputError(f"{folder}: holds no zip of recordings; restore the data set")
    raw = [(digit, speaker, take, log_mel(sound)) for digit, speaker, take, sound in waves]
    training = np.concatenate([frames for *_, take, frames in raw if take >= TEST_TAKES])
    mean, std = training.mean(axis=0), training.std(axis=0)
    return SpokenDigits(
        Recording(digit=digit, speaker=speaker, take=take, frames=(frames - mean) / std)
        for digit, speaker, take, frames in raw
    )


def log_mel(sound: Float32) -> Float32:
    """Return log-mel frames (R, 40) of samples in [-1, 1] at 8 kHz.

    Hann windows of 25 ms every 10 ms, power spectrum, triangular bands equally spaced on the mel
    scale from 0 to 4 kHz. A sound shorter than a window is filled with silence to one.
    """
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames * window, FFT_SIZE, axis=1)))
    return np.log(np.maximum(power @ mel_bands().T, FLOOR)).astype(np.float32)


@cache
def mel_bands() -> npt.NDArray[np.float64]:
    """Return the triangular bands, (40, FFT_SIZE / 2 + 1); mel = 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, NUM_MELS + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
    low, centre, high = (corners[n : n + NUM_MELS, None] for n in range(3))
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))


def words_of(labels: Iterable[int]) -> list[str]:
    """Return the words of CTC labels (digit + 1)."""
    return [WORDS[label - 1] for label in labels]


def _padded(chosen: list[list[Recording]], speakers: list[int]) -> Strings:
    frames = [np.concatenate([r.frames for r in string]) for string in chosen]
    length = np.array([len(rows) for rows in frames], dtype=np.int64)
    target_length = np.array([len(string) for string in chosen], dtype=np.int64)
    padded = np.zeros((len(chosen), length.max(initial=0), NUM_MELS), dtype=np.float32)
    target = np.zeros((len(chosen), target_length.max(initial=0)), dtype=np.int64)
    for row, rows in enumerate(frames):
        padded[row, : len(rows)] = rows
        target[row, : len(chosen[row])] = [r.digit + 1 for r in chosen[row]]
    return Strings(
        frames=padded,
        length=length,
        target=target,
        target_length=target_length,
        speaker=np.array(speakers, dtype=np.int64),
    )


def _read(path: Path) -> list[tuple[int, str, int, Float32]]:
    """Return digit, speaker, take and samples of every recording in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [
                (*_named(name, path), _samples(archive.read(name), f"{path}:{name}"))
                for name in sorted(archive.namelist())
                if name.endswith(".wav")
            ]
    except (OSError, zipfile.BadZipFile, EOFError, wave.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}; restore the file") from error


def _named(name: str, path: Path) -> tuple[int, str, int]:
    digit, _, rest = Path(name).stem.partition("_")
    speaker, _, take = rest.rpartition("_")
    if not (digit.isdigit() and int(digit) < len(WORDS) and take.isdigit() and speaker):
        raise InputError(f"{path}: {name!r} is not named digit_speaker_take.wav; restore the file")
    return int(digit), speaker, int(take)


def _samples(data: bytes, where: str) -> Float32:
    with wave.open(io.BytesIO(data)) as sound:
        form = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
        if form != (1, 2, SAMPLE_RATE):
            raise InputError(
                f"{where}: expected mono 16-bit sound at {SAMPLE_RATE} Hz, got (channels, "
                f"bytes, rate) = {form}; convert it"
            )
        samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / np.float32(32768)
