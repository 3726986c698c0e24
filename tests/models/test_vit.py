from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.models.inputs import to_patches
from crossroads.models.vit import ViT, ViTConfig
from tests.models.routed_toy import toy_mixtures


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_digits_model_has_its_stated_shapes() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig())
    assert model(images()).out.shape == (3, 10)
    assert model.patches.weight.shape == (64, 4)
    assert model.positions.shape == (16, 64)
    assert float(model.positions.detach().std()) == pytest.approx(0.5, rel=0.1)
    ffn = model.blocks[0].ffn.ffn
    assert [tuple(p.shape) for p in ffn.parameters()] == [(128, 64), (128,), (64, 128), (64,)]


def test_positions_are_what_tells_patches_apart() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(width=16, num_heads=2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    patches_BTV = to_patches(images(), 2)
    shuffled = patches_BTV[:, order].view(3, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(3, 1, 8, 8)
    before = model(images()).out
    assert not torch.allclose(model(shuffled).out, before, atol=1e-4)
    with torch.no_grad():
        model.positions.copy_(model.positions[order])
    torch.testing.assert_close(model(shuffled).out, before, atol=1e-5, rtol=1e-5)


def test_masked_patches_are_not_seen() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(width=16, num_heads=2), toy_mixtures()).eval()
    mask_BT = torch.ones(3, 16, dtype=torch.bool)
    mask_BT[:, 4:8] = False  # rows 2 and 3 of the image
    changed = images()
    changed[:, :, 2:4] = 9.0
    context = RouteContext(mask_BT=mask_BT)
    torch.testing.assert_close(model(changed, context=context).out,
                               model(images(), context=context).out)  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 1, 8, 10), (2, 3, 8, 8), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"image: expected shape \(B, 1, 8, 8\)"):
        ViT(ViTConfig())(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"patch": 3}, {"num_heads": 5}, {"num_layers": 0}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        ViTConfig(**wrong)
