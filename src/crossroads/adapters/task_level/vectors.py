"""What a task is, as a vector: the start of what routers by task read.

``text_vectors`` are centroids of a sentence encoder's embeddings of a task's texts, known also for
a task nobody trained on; ``fisher_vectors`` say which numbers of a model a task's loss depends on;
``random_vectors`` say nothing and are learnt. Source: Eliciting and Understanding Cross-Task Skills
with Task-Level Mixture-of-Experts (Ye et al. 2022), section 3.2, after Task2Vec (2019).

Axes: T tasks, D width of a vector, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crossroads.adapters.embedding import embed, unit
from crossroads.core.errors import InputError


def random_vectors(tasks: int, width: int, *, seed: int = 0) -> Tensor:
    """Return normally distributed vectors (T, D) of a length of about 1, as embeddings have."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, width, generator=draw) * width**-0.5


def text_vectors(texts: Sequence[Sequence[str]], *, encoder: str | None = None) -> Tensor:
    """Return the centroid of the embeddings of every task's texts, (T, D), unit norm.

    Raises InputError for a task without texts.

    Parameters
    ----------
    texts : of each task: its instruction, or prompts of some examples
    encoder : None = ``embedding.default_encoder``; texts to route by must use the same one
    """
    found = []
    for task, own in enumerate(texts):
        if not own:
            raise InputError(f"task vectors: task {task} has no texts; give some of its prompts")
        found.append(unit(embed(own, encoder).mean(0)))
    return torch.stack(found)


def fisher_vectors(
    losses: Sequence[Iterable[Callable[[], Tensor]]], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Return the diagonal of the empirical Fisher information of every task, (T, P), unit norm.

    Mean over a task's batches of the squared gradient of its loss; take the last layer's or one
    adapter's parameters, and ``reduced`` afterwards.

    Raises InputError for a task without batches.

    Parameters
    ----------
    losses : of each task, functions that each compute the mean loss of one batch
    parameters : whose gradients; they are frozen again afterwards where they were
    """
    found = []
    with _learning(parameters):
        for task, batches in enumerate(losses):
            squares = [_squared_gradient(loss(), parameters) for loss in batches]
            if not squares:
                raise InputError(f"task vectors: task {task} has no batches")
            found.append(unit(torch.stack(squares).mean(0)))
    return torch.stack(found)


def reduced(vectors_TP: Tensor, width: int) -> Tensor:
    """Return the first ``width`` principal components of the vectors, (T, width).

    T tasks span T - 1 directions around their mean: components beyond those are 0. Signs are such
    that the largest entry of every direction is positive.
    """
    centred_TP = (vectors_TP - vectors_TP.mean(0)).double()
    _, _, rows_KP = torch.linalg.svd(centred_TP, full_matrices=False)
    largest = rows_KP.abs().argmax(1, keepdim=True)
    rows_KP = rows_KP * rows_KP.gather(1, largest).sign()
    kept_TK = (centred_TP @ rows_KP[:width].T).to(vectors_TP.dtype)
    return nn.functional.pad(kept_TK, (0, width - kept_TK.shape[1]))


def _squared_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(parameters))
    return torch.cat([g.flatten() for g in gradients]).square()


@contextmanager
def _learning(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, was in zip(parameters, before, strict=True):
            p.requires_grad_(was)
