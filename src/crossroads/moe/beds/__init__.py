"""Test beds: one task each, small enough for two cores, on real data.

=============  ==========================================================  ======================
``lm``         next byte of a text, decoder                                bits per byte
``vision``     handwritten digits, vision transformer                      accuracy
``diffusion``  drawing digits by rectified flow, diffusion transformer     velocity error, Frechet
``speech``     spoken digit strings, CTC encoder                           word error rate
=============  ==========================================================  ======================
"""

from __future__ import annotations

import importlib
from typing import Any

from crossroads.core.errors import unknown_name
from crossroads.moe.beds.bed import ArenaBed, Preset
from crossroads.moe.routers import build_router

__all__ = ["BEDS", "ArenaBed", "Preset", "get_bed", "without_ids"]

BEDS = {
    "lm": "crossroads.moe.beds.lm:LanguageBed",
    "vision": "crossroads.moe.beds.vision:VisionBed",
    "diffusion": "crossroads.moe.beds.diffusion:DiffusionBed",
    "speech": "crossroads.moe.beds.speech:SpeechBed",
}
# Beds whose tokens have nothing to hash: frames of speech have no id, and what a patch will show is
# not known while it is drawn (its hash would tell training what drawing cannot know).
WITHOUT_IDS = ("speech", "diffusion")


def get_bed(name: str, **settings: Any) -> ArenaBed:
    """Return a bed by name. Raises UsageError with the nearest spelling."""
    if name not in BEDS:
        raise unknown_name("task", name, BEDS)
    module, _, cls = BEDS[name].partition(":")
    made: ArenaBed = getattr(importlib.import_module(module), cls)(**settings)
    return made


def without_ids(router: str, bed: ArenaBed) -> str:
    """Return why a router by name cannot tell a bed's tokens apart, or nothing where it can."""
    if bed.name not in WITHOUT_IDS or "cond:token_id" not in build_router(router, 8, 8).needs:
        return ""
    return f"reads the ids of tokens, which those of {bed.name} have not"
