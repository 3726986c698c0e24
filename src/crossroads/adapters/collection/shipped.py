"""The collection as files: a bank in PEFT's layout, a manifest, and the attributions.

The manifest holds the recipe, where it was run, what training took and reached, and the hash of
every other file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.making import Made
from crossroads.adapters.collection.recipe import Recipe
from crossroads.adapters.collection.tasks import get_task
from crossroads.adapters.embedding import default_encoder, embed_experts
from crossroads.adapters.layout import save_bank
from crossroads.core.errors import InputError, UnavailableError
from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine

MANIFEST = "manifest.json"
ATTRIBUTIONS = "ATTRIBUTIONS.md"
SCHEMA = 1
_ENDS = 5  # steps whose losses are averaged at the beginning and at the end
_EXAMPLES = 32  # prompts of an expert that are embedded
_REMEDY = "make the collection with: crossroads adapters train-collection"


def shipped_folder() -> Path:
    """Return the folder of the packaged collection; ``crossroads.adapters.layout`` loads it.

    Raises UnavailableError where this installation has none.
    """
    folder = Path(str(files(__package__))) / "data"
    if not (folder / MANIFEST).is_file():
        raise UnavailableError(f"no experts in {folder}; reinstall crossroads, or {_REMEDY}")
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest. Raises InputError where there is none that can be read."""
    path = folder / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; {_REMEDY}") from error
    return found


def check_files(folder: Path) -> int:
    """Return the size of the collection in bytes after comparing every file with the manifest.

    Raises InputError naming the first file that is missing, changed or not listed.
    """
    listed = read_manifest(folder)["files"]
    found = _hashes(folder)
    for name in sorted({*listed, *found}):
        if listed.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not the one that was made"
            raise InputError(f"{folder / name}: {what}; reinstall crossroads, or {_REMEDY}")
    return sum((folder / name).stat().st_size for name in (*listed, MANIFEST))


def write_collection(folder: Path, made: Sequence[Made], recipe: Recipe) -> None:
    """Write the experts in float16 with manifest and attributions.

    Every expert also gets the embeddings of its first training prompts, for routers that read
    sentences. An earlier collection in the folder is replaced.
    """
    bank = AdapterBank([one.expert for one in made])
    prompts = {
        name: [row.prompt for row in get_task(name).rows["train"][:_EXAMPLES]]
        for name in bank.names
    }
    encoder = default_encoder()
    embed_experts(bank, prompts, encoder=encoder)
    save_bank(folder, bank, dtype=torch.float16, overwrite=True)
    attributions = (files(__package__) / ATTRIBUTIONS).read_text("utf-8")
    write_atomically(folder / ATTRIBUTIONS, attributions)
    manifest = {
        "schema": SCHEMA,
        "recipe": recipe.facts(),
        "encoder": encoder,
        "machine": machine(("crossroads", "torch", "transformers", "tokenizers")),
        "experts": summary(made),
        "files": _hashes(folder),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def summary(made: Sequence[Made]) -> dict[str, dict[str, Any]]:
    """Return what training took and reached, by expert."""
    return {one.expert.name: _told(one) for one in made}


def _told(one: Made) -> dict[str, Any]:
    ends = min(len(one.losses), _ENDS)
    return {
        "about": one.expert.description,
        "parameters": one.expert.n_parameters,
        "first_loss": sum(one.losses[:ends]) / ends,
        "last_loss": sum(one.losses[-ends:]) / ends,
        "gate_spread": one.gate_spread,
        "cpu_seconds": round(one.seconds, 1),
    }


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the manifest, by path inside the folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }
