"""A bank on disk: one adapter in PEFT's layout per expert, side data, and a router.

::

    bank.json                      schema, names, descriptions, which side data there is
    router.json                    the router's name and settings; the experts and layers it knows
    router.safetensors             what the router learnt
    <expert>/adapter_config.json, adapter_model.safetensors
    artifacts/<expert>.safetensors gates and other side data, by kind and layer; embeddings

Any folder whose sub-folders are adapters is a bank too: names are the folders'.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints
from urllib.parse import quote

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.contract import Router
from crossroads.adapters.layout.configuration import CONFIG_FILE, Left, read_json
from crossroads.adapters.layout.folders import replacing_folder
from crossroads.adapters.layout.reading import Dtype, Report, open_adapter
from crossroads.adapters.layout.tensors import WEIGHTS_FILES, TensorFile, save_tensors
from crossroads.adapters.layout.writing import write_expert
from crossroads.adapters.routers import GROUP, known_settings, router_class, router_names
from crossroads.core.errors import InputError, UsageError
from crossroads.core.progress import progress_bar

_LOG = logging.getLogger(__name__)
BANK_FILE, ROUTER_FILE, ROUTER_WEIGHTS = "bank.json", "router.json", "router.safetensors"
ARTIFACTS = "artifacts"
SCHEMA = 1
_NOT_SAVED = {"source", "configuration"}  # of where it was read; the adapter's folder says it
_PLAIN: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    NoneType: "null",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """One adapter's folder and what bank.json says of it."""

    name: str
    folder: Path
    card: Mapping[str, Any]


def save_bank(
    folder: Path | str,
    bank: AdapterBank,
    router: Router | None = None,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bank and, if given, its router; the folder appears whole or not at all.

    Raises InputError where the folder exists and is not to be overwritten.

    Parameters
    ----------
    dtype : of the factors and gates in the files; None = the bank's
    """
    with replacing_folder(Path(folder), mark=BANK_FILE, overwrite=overwrite) as new:
        (new / ARTIFACTS).mkdir()
        cards = []
        with progress_bar("Writing experts") as moved:
            for done, name in enumerate(bank.names, start=1):
                cards.append(_write_card(new, bank.expert(name), dtype))
                moved(done, bank.n_experts)
        _write_json(new / BANK_FILE, {"schema": SCHEMA, "heads": bank.heads, "experts": cards})
        if router is not None:
            _write_router(new, bank, router)


def load_bank(
    folder: Path | str | Sequence[Path | str],
    *,
    model: nn.Module | None = None,
    dtype: Dtype = torch.float32,
    partial: bool = False,
) -> AdapterBank:
    """Load a bank: what ``save_bank`` wrote, any folder of adapters, or several such folders.

    Parameters are those of ``read_adapter``. What partial loading left out is logged;
    ``read_bank`` returns it.

    Raises InputError naming file, tensor, expected and found; also for two experts of one name.
    """
    bank, reports = read_bank(folder, model=model, dtype=dtype, partial=partial)
    for report in reports:
        for left in report.left:
            _LOG.warning("expert %s: left out %s: %s", report.expert, left.what, left.why)
        for warning in report.warnings:
            _LOG.warning("expert %s: %s", report.expert, warning)
    return bank


def read_bank(
    folder: Path | str | Sequence[Path | str],
    *,
    model: nn.Module | None = None,
    dtype: Dtype = torch.float32,
    partial: bool = False,
) -> tuple[AdapterBank, list[Report]]:
    """Do as ``load_bank`` and return what was loaded of every adapter, and what was not."""
    folders = [folder] if isinstance(folder, Path | str) else list(folder)
    found = [adapter for one in folders for adapter in _adapters(Path(one))]
    _check_names(found)
    experts: list[Expert] = []
    reports: list[Report] = []
    with progress_bar("Opening adapters") as moved:
        for done, adapter in enumerate(found, start=1):
            expert, report = _open(adapter, model, dtype, partial)
            reports.append(report)
            if expert is not None:
                experts.append(expert)
            moved(done, len(found))
    if not experts:
        raise InputError(f"{folders[0]}: no adapter can be loaded: {reports[0].left[0].why}")
    return AdapterBank(experts, heads=_heads(folders)), reports


def has_router(folder: Path | str) -> bool:
    """Return whether a bank was saved with a router."""
    return (Path(folder) / ROUTER_FILE).is_file()


def load_router(folder: Path | str, bank: AdapterBank) -> Router:
    """Return the router a bank was saved with, prepared for ``bank`` and with what it learnt.

    The file imports nothing: a router that is neither ours nor an entry point is taken only where
    its module is imported already.

    Raises InputError where there is none, where it is of a module that is not imported, and where
    it learnt of other experts; UsageError for a name that is not installed.
    """
    file = Path(folder) / ROUTER_FILE
    written = _of_schema(file)
    experts = _texts(file, "experts", written.get("experts"))
    layers = _texts(file, "layers", written.get("layers", list(bank.layers)))
    router = _built(file, written.get("router"), written.get("settings", {}))
    weights = file.with_name(ROUTER_WEIGHTS)
    state = dict(TensorFile(weights)) if weights.is_file() else {}
    if state and tuple(experts) != bank.names:
        raise InputError(
            f"{weights}: learnt of the experts {', '.join(experts)}, the bank has "
            f"{', '.join(bank.names)}; load it with its own bank, or train it again"
        )
    if state and set(layers) != set(bank.layers):
        other = sorted(set(layers) ^ set(bank.layers))[0]
        raise InputError(
            f"{weights}: learnt of other layers than the bank has, such as {other}; load it with "
            "its own bank, or train it again"
        )
    # Files have their layers in an order of their own: the router learns it, then follows.
    router.prepare(bank.arranged(layers) if state else bank)
    wanted = {name: tuple(values.shape) for name, values in router.state_dict().items()}
    given = {name: tuple(values.shape) for name, values in state.items()}
    for name in sorted({*wanted, *given}):
        if wanted.get(name) != given.get(name):
            raise InputError(
                f"{weights}: {name}: expected shape {wanted.get(name)}, found {given.get(name)}; "
                "it is of another version or another bank"
            )
    if state:
        router.load_state_dict(state)
        router.prepare(bank)
    return router


def _write_card(folder: Path, expert: Expert, dtype: torch.dtype | None) -> dict[str, Any]:
    place = quote(expert.name, safe=" ()+,=@").replace(".", "%2E", expert.name.startswith("."))
    if place in {ARTIFACTS, ""}:
        raise InputError(f"bank: an expert cannot be called {expert.name!r} on disk; rename it")
    (folder / place).mkdir()
    write_expert(expert, folder / place, dtype=dtype)
    tensors = {
        f"{kind}:{layer}": values_I.to(dtype or torch.float32)
        for kind, rows in expert.artifacts.items()
        for layer, values_I in rows.items()
    }
    if expert.embedding_G is not None:
        tensors["embedding"] = expert.embedding_G.float()
    if expert.examples_JG is not None:
        tensors["examples"] = expert.examples_JG.float()
    if tensors:
        save_tensors(folder / ARTIFACTS / f"{place}.safetensors", tensors)
    return {
        "name": expert.name,
        "folder": place,
        "description": expert.description,
        "artifacts": sorted({name.partition(":")[0] for name in tensors}),
        "info": {key: value for key, value in expert.info.items() if key not in _NOT_SAVED},
    }


def _write_router(folder: Path, bank: AdapterBank, router: Router) -> None:
    cls = type(router)
    is_listed = router.name in router_names() and router_class(router.name) is cls
    written = {
        "schema": SCHEMA,
        "router": router.name if is_listed else f"{cls.__module__}.{cls.__qualname__}",
        "settings": dict(router.settings()),
        "experts": list(bank.names),
        "layers": list(bank.layers),
    }
    _write_json(folder / ROUTER_FILE, written)
    router.prepare(bank)  # what it learnt stands in the order of these experts and layers
    if state := router.state_dict():
        save_tensors(folder / ROUTER_WEIGHTS, state)


def _built(file: Path, name: Any, settings: Any) -> Router:
    """Return the router that a file names, with the settings it holds."""
    if not isinstance(name, str):
        raise _unexpected(file, "router", "a name", name)
    if not isinstance(settings, dict):
        raise _unexpected(file, "settings", "an object", settings)
    cls = _class_of(file, name)
    hints = _hints(cls)
    for key, value in settings.items():
        if wanted := _wanted(value, hints.get(key)):
            raise _unexpected(file, f"settings: {key}", wanted, value)
    known = ", ".join(known_settings(cls)) or "none"
    try:
        inspect.signature(cls).bind(**settings)
    except TypeError as error:
        raise InputError(
            f"{file}: settings: expected those of router {name} ({known}), found "
            f"{', '.join(settings) or 'none'}: {error}"
        ) from error
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: settings: {error}") from error


def _class_of(file: Path, name: str) -> type[Router]:
    if "." not in name:
        return router_class(name)
    module = name.rpartition(".")[0]
    if module not in sys.modules:
        raise InputError(
            f"{file}: router: expected the name of one that is installed, found {name!r}, and no "
            f"file has a module imported; where you trust it, import {module!r} first, or add it "
            f"to the entry points {GROUP}"
        )
    try:
        return router_class(name)
    except UsageError as error:
        raise InputError(f"{file}: router: {error}") from error


def _hints(cls: type[Router]) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)
    except NameError:  # of names that type checkers alone see
        return {}


def _wanted(value: Any, hint: Any) -> str:
    """Return what a setting should be where it is of another type than its hint, or nothing."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if fits or not _PLAIN.keys() >= set(kinds):
        return ""
    return " or ".join(_PLAIN[kind] for kind in kinds)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    except TypeError as error:
        raise InputError(f"{file.name}: holds something that is no plain data: {error}") from error


def _of_schema(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if "schema" not in found:
        other = "remove it, or name a router" if file.name == ROUTER_FILE else "write the bank anew"
        raise InputError(f"{file}: has no schema, so crossroads did not write it; {other}")
    if found["schema"] != SCHEMA:
        raise InputError(
            f"{file}: expected schema {SCHEMA}, found {found['schema']!r}; it was written by "
            "another version of crossroads"
        )
    return found


def _adapters(folder: Path) -> Iterable[_Found]:
    if (folder / BANK_FILE).is_file():
        return _listed(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; give a folder of adapters")
    # Weights alone are an adapter that lost its configuration: named when it is opened.
    marks = (CONFIG_FILE, *WEIGHTS_FILES)
    inside = sorted({file.parent for mark in marks for file in folder.glob(f"*/{mark}")})
    found = [_Found(name=one.name, folder=one, card={}) for one in inside]
    if (folder / CONFIG_FILE).is_file():  # PEFT puts its adapter "default" beside others' folders
        name = "default" if inside else folder.resolve().name
        found.insert(0, _Found(name=name, folder=folder, card={}))
    if not found:
        deeper = sorted({file.parent for mark in marks for file in folder.glob(f"*/*/{mark}")})
        if deeper:
            raise InputError(
                f"{folder}: holds no adapters; they are one level deeper, such as {deeper[0]}: "
                f"give {deeper[0].parent}"
            )
        raise InputError(
            f"{folder}: holds no adapters; expected sub-folders with {CONFIG_FILE}, as PEFT's "
            "save_pretrained writes them"
        )
    return found


def _listed(folder: Path) -> Iterable[_Found]:
    file = folder / BANK_FILE
    cards = _of_schema(file).get("experts")
    if not isinstance(cards, list) or not cards:
        raise InputError(f"{file}: experts: expected a list, got {cards!r}")
    for card in cards:
        place = card.get("folder") if isinstance(card, dict) else None
        if not isinstance(place, str) or Path(place).name != place or place == "..":
            raise InputError(f"{file}: experts: expected a name and a folder in it, got {card!r}")
        name = card.get("name")
        if not isinstance(name, str) or not name:
            raise _unexpected(file, f"experts: {place}: name", "a text", name)
        _check_card(file, card)
        yield _Found(name=name, folder=folder / place, card=card)


def _check_card(file: Path, card: Mapping[str, Any]) -> None:
    where = f"experts: {card['name']}"
    if not isinstance(description := card.get("description", ""), str):
        raise _unexpected(file, f"{where}: description", "a text", description)
    if not isinstance(info := card.get("info", {}), dict):
        raise _unexpected(file, f"{where}: info", "an object", info)
    _texts(file, f"{where}: artifacts", card.get("artifacts", []))


def _heads(folders: Sequence[Path | str]) -> int:
    found = {_heads_of(Path(folder) / BANK_FILE) for folder in folders}
    if len(found) > 1:
        raise InputError("bank: folders of different numbers of heads; load them one by one")
    return found.pop()


def _heads_of(file: Path) -> int:
    heads = _of_schema(file).get("heads", 1) if file.is_file() else 1
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise _unexpected(file, "heads", "a whole number above 0", heads)
    return heads


def _texts(file: Path, field: str, found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _unexpected(file, field, "a list of texts", found)
    return found


def _unexpected(file: Path, field: str, wanted: str, found: Any) -> InputError:
    return InputError(f"{file}: {field}: expected {wanted}, found {found!r}; fetch the file again")


def _check_names(found: Sequence[_Found]) -> None:
    seen: dict[str, Path] = {}
    for adapter in found:
        if adapter.name in seen:
            raise InputError(
                f"bank: two experts are called {adapter.name!r}: {seen[adapter.name]} and "
                f"{adapter.folder}; rename one of the folders"
            )
        seen[adapter.name] = adapter.folder


def _open(
    found: _Found, model: nn.Module | None, dtype: Dtype, partial: bool
) -> tuple[Expert | None, Report]:
    try:
        expert, report = open_adapter(
            found.folder, name=found.name, model=model, dtype=dtype, partial=partial
        )
        return _with_side_data(found, expert, partial), report
    except InputError as error:
        if not partial:
            raise
        left = Left(kind="adapter", what=found.name, why=str(error))
        return None, Report(
            expert=found.name, folder=found.folder, loaded=(), left=(left,), warnings=()
        )


def _with_side_data(found: _Found, expert: Expert, partial: bool) -> Expert:
    card = found.card
    expert = replace(
        expert,
        description=str(card.get("description", "")),
        info={**card.get("info", {}), **expert.info},
    )
    file = found.folder.parent / ARTIFACTS / f"{found.folder.name}.safetensors"
    if not file.is_file():
        if card.get("artifacts"):
            raise InputError(f"{file}: is missing; {BANK_FILE} says it holds {card['artifacts']}")
        return expert
    tensors = TensorFile(file)
    artifacts: dict[str, dict[str, Tensor]] = {}
    for name in tensors:
        kind, colon, layer = name.partition(":")
        if not colon:
            continue
        _check_kind(file, kind)
        if layer in expert.modules:
            artifacts.setdefault(kind, {})[layer] = tensors[name].float()
        elif not partial:
            raise InputError(f"{file}: {name}: the adapter has no layer {layer}")
    return replace(
        expert,
        artifacts=artifacts,
        embedding_G=tensors["embedding"].clone() if "embedding" in tensors else None,
        examples_JG=tensors["examples"].clone() if "examples" in tensors else None,
    )


def _check_kind(file: Path, kind: str) -> None:
    if not kind.isidentifier() or hasattr(nn.Module(), kind):
        raise InputError(f"{file}: {kind!r} cannot be the name of side data")
