from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.models.speech_encoder import (
    SpeechConfig,
    SpeechEncoder,
    ctc_loss,
    greedy_labels,
)
from tests.models.routed_toy import toy_mixtures

SMALL = SpeechConfig(num_mels=5, width=16, num_layers=2, num_heads=2, hidden=32)


def frames(batch: int = 2, length: int = 18) -> Tensor:
    return torch.randn(batch, length, 5, generator=torch.Generator().manual_seed(0))


def test_four_frames_become_one_and_a_rest_counts_as_one() -> None:
    model = SpeechEncoder(SMALL)
    length_B = torch.tensor([16, 17])
    assert model(frames(), length_B).out.shape == (2, 5, 11)
    assert model.output_lengths(length_B).tolist() == [4, 5]


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"attn"})])
def test_what_lies_past_the_length_changes_nothing(needs: frozenset[str]) -> None:
    torch.manual_seed(0)
    model = SpeechEncoder(SMALL, toy_mixtures(needs=needs)).eval()
    length_B = torch.tensor([9, 18])
    changed = frames()
    changed[0, 9:] = 50.0
    one, other = model(frames(), length_B), model(changed, length_B)
    torch.testing.assert_close(one.out[0, :3], other.out[0, :3])
    torch.testing.assert_close(one.out[1], other.out[1])
    alone = model(frames()[:1, :9], length_B[:1])
    torch.testing.assert_close(one.out[:1, :3], alone.out, atol=1e-5, rtol=1e-5)


def test_best_paths_merge_repeats_and_drop_blanks() -> None:
    path_BT = torch.tensor([[0, 3, 3, 0, 3, 1], [2, 2, 2, 0, 1, 1]])
    logits = torch.nn.functional.one_hot(path_BT, 4).float()
    assert greedy_labels(logits, torch.tensor([6, 4])) == [[3, 3, 1], [2]]


def test_the_ctc_loss_sums_over_all_alignments() -> None:
    """Two frames, one label: paths (a, a), (a, blank), (blank, a)."""
    p = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    by_hand = -torch.log(torch.tensor(0.4 * 0.7 + 0.4 * 0.3 + 0.6 * 0.7))
    loss = ctc_loss(p.log()[None], torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]))
    torch.testing.assert_close(loss, by_hand)


def test_a_target_that_does_not_fit_adds_nothing() -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("given", "length_B", "words"),
    [
        (torch.zeros(2, 18, 6), torch.tensor([4, 4]), r"frames: expected shape \(B, frames, 5\)"),
        (frames(), torch.tensor([4]), "length: expected int64"),
        (frames(), torch.tensor([4.0, 4.0]), "length: expected int64"),
        (frames(), torch.tensor([0, 4]), r"length: expected values in \[1, 18\], got 0"),
        (frames(), torch.tensor([4, 19]), "to 19"),
    ],
)
def test_bad_recordings_are_refused(given: Tensor, length_B: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SpeechEncoder(SMALL)(given, length_B)
