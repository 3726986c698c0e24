from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.core.routed import RouteContext
from crossroads.models.encoder import EncoderClassifier, EncoderConfig
from tests.models.routed_toy import toy_mixtures

SMALL = EncoderConfig(width=16, num_layers=2, num_heads=2, hidden=32, max_length=12)


def tokens(length: int = 7) -> Tensor:
    return torch.randint(256, (3, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"attn"})])
def test_padding_changes_no_logit(needs: frozenset[str]) -> None:
    torch.manual_seed(0)
    model = EncoderClassifier(SMALL, toy_mixtures(needs=needs)).eval()
    padded_BT = torch.nn.functional.pad(tokens(), (0, 4), value=99)
    context = RouteContext(mask_BT=(torch.arange(11) < 7).expand(3, -1))
    torch.testing.assert_close(
        model(padded_BT, context=context).out, model(tokens()).out, atol=1e-5, rtol=1e-5
    )


def test_attention_looks_both_ways() -> None:
    torch.manual_seed(0)
    model = EncoderClassifier(SMALL)
    changed_BT = tokens()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % 256
    before, after = model(tokens()).hidden_BTD, model(changed_BT).hidden_BTD
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-6)


def test_order_matters() -> None:
    torch.manual_seed(0)
    model = EncoderClassifier(SMALL)
    assert not torch.allclose(model(tokens()).out, model(tokens().flip(1)).out, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens_BT", "words"),
    [(torch.tensor([[256]]), "got 256"), (tokens(13), "at most 12 positions, got 13")],
)
def test_bad_tokens_are_refused(tokens_BT: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        EncoderClassifier(SMALL)(tokens_BT)
