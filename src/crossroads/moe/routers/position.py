"""Position routing: the expert of a token is its position mod E.

A baseline of its own and not a weak one: where content is aligned (centred images), a fixed
expert per place is a strong prior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.moe.contract import RouterInput
from crossroads.moe.routers.hash import Hash


class Position(Hash):
    """Expert (position + place) mod E, each of the k places with weight 1/k.

    The position is ``cond["pos"]`` (B, T) where given, else the index in the sequence.
    """

    name = "position"
    needs = frozenset()

    def key(self, inp: RouterInput) -> Tensor:
        if "pos" in inp.cond:
            return inp.cond["pos"].long().expand(inp.mask_BT.shape)
        length = inp.mask_BT.shape[1]
        return torch.arange(length, device=inp.x_BTD.device).expand(inp.mask_BT.shape)
