"""Task vectors: random, of texts, of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossroads.adapters.embedding import embed
from crossroads.adapters.task_level.vectors import (
    fisher_vectors,
    random_vectors,
    reduced,
    text_vectors,
)
from crossroads.core.errors import InputError
from tests.adapters import toys


def test_random_vectors_are_of_about_unit_length_and_a_function_of_the_seed() -> None:
    vectors_TD = random_vectors(20, 400, seed=3)
    assert torch.equal(vectors_TD, random_vectors(20, 400, seed=3))
    assert not torch.equal(vectors_TD, random_vectors(20, 400, seed=4))
    assert (vectors_TD.norm(dim=-1) - 1).abs().max() < 0.2


def test_text_vectors_are_unit_centroids_and_kin_tasks_lie_nearer() -> None:
    texts = [
        ["Translate to English: Guten Morgen", "Translate to English: Danke"],
        ["Translate to English: Bonjour", "Translate to English: Merci"],
        ["def add(a, b): return a + b", "import os; print(os.sep)"],
    ]
    vectors_TD = text_vectors(texts, encoder="static")
    assert (vectors_TD.norm(dim=-1) - 1).abs().max() < 1e-5
    centroid_D = embed(texts[0], "static").mean(0)
    torch.testing.assert_close(vectors_TD[0], centroid_D / centroid_D.norm())
    near, far = vectors_TD[0] @ vectors_TD[1], vectors_TD[0] @ vectors_TD[2]
    assert near > far
    with pytest.raises(InputError, match="task 1 has no texts"):
        text_vectors([["a"], []], encoder="static")


def test_fisher_vectors_are_mean_squared_gradients_scaled_to_length_one() -> None:
    layer = nn.Linear(3, 1, bias=False).requires_grad_(False)
    x_NI = torch.randn(4, 3, generator=toys.rng(0))

    def loss(row: int) -> torch.Tensor:
        return layer(x_NI[row]).sum()  # its gradient is the input

    vectors_TP = fisher_vectors(
        [[lambda: loss(0), lambda: loss(1)], [lambda: loss(2)]], [layer.weight]
    )
    wanted_P = (x_NI[0] ** 2 + x_NI[1] ** 2) / 2
    torch.testing.assert_close(vectors_TP[0], wanted_P / wanted_P.norm())
    torch.testing.assert_close(vectors_TP[1], x_NI[2] ** 2 / (x_NI[2] ** 2).norm())
    assert not layer.weight.requires_grad
    with pytest.raises(InputError, match="task 0 has no batches"):
        fisher_vectors([[]], [layer.weight])


def test_reduced_vectors_keep_distances_of_few_tasks_and_pad_with_zeros() -> None:
    vectors_TP = torch.randn(4, 50, generator=toys.rng(0))
    small_TD = reduced(vectors_TP, 6)
    assert small_TD.shape == (4, 6)
    torch.testing.assert_close(torch.cdist(small_TD, small_TD), torch.cdist(vectors_TP, vectors_TP))
    assert small_TD[:, 3:].abs().max() < 1e-5
    torch.testing.assert_close(reduced(vectors_TP, 2), small_TD[:, :2])
