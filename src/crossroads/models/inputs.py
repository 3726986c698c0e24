"""Checks of sizes and of what backbones are given, and images cut into patches.

Axes: B images or sequences, T positions or patches, C channels, Y and X patches per side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.errors import InputError, UsageError


def check_sizes(**sizes: int) -> None:
    """Raise UsageError for the first size that is not a positive whole number."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"{name}: expected a whole number of at least 1, got {size!r}")


def check_heads(width: int, num_heads: int, *, rotary: bool = False) -> None:
    """Raise UsageError unless ``width`` divides into heads, of even width where they rotate."""
    check_sizes(width=width, num_heads=num_heads)
    if width % num_heads:
        raise UsageError(f"num_heads: expected a divisor of width {width}, got {num_heads}")
    if rotary and (width // num_heads) % 2:
        raise UsageError(
            f"num_heads: rotary positions need heads of even width, got {width // num_heads}; "
            "change width or num_heads"
        )


def check_patches(image_size: int, channels: int, patch: int) -> None:
    """Raise UsageError unless square patches tile the image."""
    check_sizes(image_size=image_size, channels=channels, patch=patch)
    if image_size % patch:
        raise UsageError(f"patch: expected a divisor of image_size {image_size}, got {patch}")


def check_tokens(tokens_BT: Tensor, vocab_size: int) -> None:
    """Raise InputError unless these are int64 ids (B, T) inside the vocabulary."""
    if tokens_BT.dim() != 2 or tokens_BT.dtype != torch.int64:
        raise InputError(
            f"tokens: expected int64 of shape (B, T), got {tokens_BT.dtype} of shape "
            f"{tuple(tokens_BT.shape)}"
        )
    if tokens_BT.numel() == 0:
        return
    low, high = (int(edge) for edge in tokens_BT.aminmax())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"tokens: ids must be in [0, {vocab_size}), got {low if low < 0 else high}; "
            "check the tokenizer against vocab_size"
        )


def check_labels(label_B: Tensor, batch_size: int, num_labels: int) -> None:
    """Raise InputError unless these are int64 labels (B,) in [0, num_labels)."""
    if label_B.shape != (batch_size,) or label_B.dtype != torch.int64:
        raise InputError(
            f"label: expected int64 of shape ({batch_size},), got {label_B.dtype} of shape "
            f"{tuple(label_B.shape)}"
        )
    if batch_size and (int(label_B.min()) < 0 or int(label_B.max()) >= num_labels):
        wrong = label_B[(label_B < 0) | (label_B >= num_labels)][0]
        raise InputError(f"label: expected values in [0, {num_labels}), got {int(wrong)}")


def check_images(image_BCHW: Tensor, channels: int, size: int) -> None:
    """Raise InputError unless these are floating images (B, channels, size, size)."""
    if image_BCHW.dim() != 4 or image_BCHW.shape[1:] != (channels, size, size):
        raise InputError(
            f"image: expected shape (B, {channels}, {size}, {size}), got "
            f"{tuple(image_BCHW.shape)}; resize the images or change image_size"
        )
    if not image_BCHW.is_floating_point():
        raise InputError(f"image: expected floating-point pixels, got {image_BCHW.dtype}")


def to_patches(image_BCHW: Tensor, patch: int) -> Tensor:
    """Return square patches in row-major order, (B, T, C * patch * patch)."""
    B, C, height, width = image_BCHW.shape
    rows, columns = height // patch, width // patch
    cut = image_BCHW.reshape(B, C, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * patch * patch)


def from_patches(patch_BTV: Tensor, channels: int, patch: int) -> Tensor:
    """Return the square images (B, C, H, W) that ``to_patches`` cuts into these patches."""
    B, T, _ = patch_BTV.shape
    side = int(T**0.5 + 0.5)
    laid = patch_BTV.reshape(B, side, side, channels, patch, patch)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(B, channels, side * patch, side * patch)
