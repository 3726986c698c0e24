"""Which router a command uses, and what it has to be told about a prompt.

Of a folder without a choice: the router that was saved with it; else PHATGOOSE where every adapter
brings its gates, which needs nothing more; else Arrow, which reads weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Router
from crossroads.adapters.embedding import embed
from crossroads.adapters.layout import has_router, load_router
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError, UsageError

SAVED = "saved"
_MAKERS = {
    "gate": "crossroads.adapters.gates.train_gate",
    "activation": "crossroads.adapters.activations.record_activation",
}  # of side data, from an expert's own texts


def choose_router(spec: str | None, bank: AdapterBank, folder: Path | None = None) -> Router:
    """Return the router of a text such as "phatgoose:k=1", prepared for ``bank``.

    Raises UsageError for an unknown router or setting, and for one that has to be trained first;
    InputError where the bank lacks what it needs.

    Parameters
    ----------
    spec : "saved" = the one in the folder; None = the best that the bank has all data for
    folder : where the bank was read from
    """
    is_saved = folder is not None and has_router(folder)
    if spec == SAVED and not is_saved:
        raise UsageError(f"router saved: {folder} holds none; name one")
    if folder is not None and is_saved and spec in {None, SAVED}:
        return load_router(folder, bank)
    router = build_router(spec or _default(bank))
    for kind in sorted(router.artifacts):
        _check_side_data(router, bank, kind)
    router.prepare(bank)
    check_trained(router)
    return router


def _default(bank: AdapterBank) -> str:
    return "arrow" if _without(bank, "gate") else "phatgoose"


def _check_side_data(router: Router, bank: AdapterBank, kind: str) -> None:
    if without := _without(bank, kind):
        maker = f" with {_MAKERS[kind]}" if kind in _MAKERS else ""
        raise InputError(
            f"router {router.name}: needs {kind!r} of every adapter, {', '.join(without)} "
            f"{'has' if len(without) == 1 else 'have'} none; make it from the adapter's own "
            f"texts{maker}, or choose a router that reads weights alone, as arrow"
        )


def _without(bank: AdapterBank, kind: str) -> list[str]:
    """Return the experts that have no such side data at some layer they adapt."""
    lacking_E = torch.zeros(bank.n_experts, dtype=torch.bool)
    for layer in bank.layers.values():
        found_EI = getattr(layer.artifacts, kind, None)
        alive_E = layer.alive_E.cpu()
        lacking_E |= alive_E if found_EI is None else alive_E & found_EI.isnan().any(1).cpu()
    return [name for name, is_lacking in zip(bank.names, lacking_E, strict=True) if is_lacking]


def check_trained(router: Router) -> None:
    """Raise UsageError for a router that has numbers of its own, which nobody trained."""
    if any(values.numel() for values in router.state_dict().values()):
        raise UsageError(
            f"router {router.name}: nobody trained its numbers; crossroads adapters teach does it, "
            "and writes a folder whose router is 'saved'"
        )


def told(
    router: Router,
    bank: AdapterBank,
    prompts: Sequence[str],
    *,
    expert: str | None = None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Return the arguments of ``calling`` that ``router`` asks for about prompts.

    ``expert`` is the one every prompt belongs to, for routers that must be told it.

    Raises UsageError where it was not said, or cannot be said about a prompt.
    """
    asked = router.call_data
    found: dict[str, Any] = {}
    if asked & {"experts", "labels_B"}:
        if expert is None:
            raise UsageError(
                f"router {router.name}: does not choose, it is told the prompt's own expert (route "
                f"--expert); there is: {', '.join(bank.names)}"
            )
        place = bank.position(expert)
        if "experts" in asked:
            found["experts"] = [expert] * len(prompts)
        if "labels_B" in asked:
            found["labels"] = torch.full((len(prompts),), place)
    if "task_ids_B" in asked:
        raise UsageError(
            f"router {router.name}: decides by the number of a task it was trained on, which a "
            "prompt does not tell; use it in Python, inside calling(task_ids=...)"
        )
    if "embedding_BG" in asked:
        found["embedding"] = embed(prompts, encoder)
    return found
