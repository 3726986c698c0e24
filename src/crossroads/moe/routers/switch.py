"""Switch routing: the best expert of every token, weighted by its softmax probability.

Source: Switch Transformers (2021), eq. 1-4.
"""

from __future__ import annotations

from crossroads.moe.router import TokenChoiceRouter


class Switch(TokenChoiceRouter):
    """Top-1 of a softmax, weight not renormalised, balance loss 0.01."""

    name = "switch"
