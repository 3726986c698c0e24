"""How the experts of the collection were trained: plain data, of which the files keep a hash."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BASE_MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and optimisation, the same for every expert.

    Attributes
    ----------
    targets, rank, alpha : layers of every block, and the adapter's size; scale = alpha / rank
    steps, lr : of the factors: AdamW without weight decay, ``warmup`` steps up, linear decay
    gate_steps, gate_lr : of the gates, factors frozen, with the same ``warmup`` and decay, on the
        factors' batches from the first one again and, beyond ``steps``, on those that would follow
    clip : largest norm of a gradient
    seed : of initial factors and of the order of rows
    """

    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    rank: int = 2
    alpha: float = 4.0
    steps: int = 80
    lr: float = 3e-3
    gate_steps: int = 100
    gate_lr: float = 1e-2
    warmup: int = 5
    clip: float = 1.0
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the recipe as plain data, with the name of the base model."""
        facts = asdict(self)
        return {"base_model": BASE_MODEL, **facts, "targets": list(self.targets)}


RECIPE = Recipe()
