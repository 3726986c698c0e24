"""Handwritten digits: 1,797 images of 8 x 8 pixels that come with scikit-learn.

Source: the test part of the UCI set "Optical recognition of handwritten digits" (Alpaydin and
Kaynak 1998). 70 / 30 split, stratified by label, always the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, MissingExtraError

LEVELS = 16  # pixels are counts 0 ... 16
NUM_CLASSES = 10
TEST_SHARE = 0.3
SPLIT_SEED = 0

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Images (N, 1, 8, 8) with pixels in [0, 1], and labels (N,)."""

    pixels: Float32
    label: Int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Digits:
    """The two parts of the set: 1,257 and 540 images."""

    train: Images
    test: Images


@cache
def load() -> Digits:
    """Return the digits, the same arrays at every call: copy what you change.

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("scikit-learn", extra="neural") from None
    whole = load_digits()
    pixels = (whole.images[:, None] / LEVELS).astype(np.float32)
    parts = train_test_split(
        pixels,
        whole.target.astype(np.int64),
        test_size=TEST_SHARE,
        stratify=whole.target,
        random_state=SPLIT_SEED,
    )
    return Digits(
        train=Images(pixels=parts[0], label=parts[2]),
        test=Images(pixels=parts[1], label=parts[3]),
    )


def patch_sums(pixels: Float32, patch: int = 2) -> Int64:
    """Return the sum of the raw pixel counts of every patch, row-major, (N, T).

    What a hash router takes for token ids: images have none of their own. Raises InputError
    for other axes, and where patches do not tile the images.
    """
    if pixels.ndim != 4:
        raise InputError(f"pixels: expected (N, C, height, width), got {pixels.shape}")
    num, channels, height, width = pixels.shape
    if height % patch or width % patch:
        raise InputError(f"patch: expected a divisor of {height} and {width}, got {patch}")
    raw = np.rint(pixels * LEVELS).astype(np.int64)
    cut = raw.reshape(num, channels, height // patch, patch, width // patch, patch)
    sums: Int64 = cut.sum(axis=(1, 3, 5)).reshape(num, -1)
    return sums


def to_signed(pixels: Float32) -> Float32:
    """Return pixels in [-1, 1], as diffusion models see them."""
    return 2 * pixels - 1


def from_signed(pixels: Float32) -> Float32:
    """Return pixels in [0, 1]; values beyond the range of real images are clipped."""
    return np.clip((pixels + 1) / 2, 0, 1)
