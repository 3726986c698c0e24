"""``adapter_config.json`` of PEFT: every setting that changes what an adapter computes.

A setting is read, or known to be without effect once training is over, or refused by name: what
would be computed wrongly is never loaded. Settings nobody knows are ignored where they hold
nothing (null, false, 0, empty) and refused elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossroads.core.errors import InputError

CONFIG_FILE = "adapter_config.json"
MOE_PEFT = frozenset({"MIXLORA", "MOLA", "LORAMOE", "DYNMOLE"})  # kinds of one layout
Kind = Literal["adapter", "setting", "tensor", "missing", "shape", "size"]

_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "base_model_name_or_path"),
    }
)
# Of training, of quantisation, of how the base weight is stored: factors compute the same.
_NO_EFFECT = frozenset(
    {
        *("auto_mapping", "peft_version", "revision", "inference_mode", "task_type"),
        *("lora_dropout", "velora_config", "monteclora_config", "megatron_config", "megatron_core"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("qalora_group_size", "fan_in_fan_out"),
    }
)
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
# The adapter is another function of its factors, or of another base model: nothing can be loaded.
_WHOLE: Mapping[str, str] = {
    "use_dora": "DoRA rescales whole weights by a magnitude",
    "lora_bias": "the factors B have biases",
    "layer_replication": "the base model's layers were replicated",
    "kasa_config": "KaSA changes the base weights and has a diagonal between the factors",
    "alora_invocation_tokens": "aLoRA acts on the tokens after its invocation alone",
    "use_qalora": "QA-LoRA pools the inputs of quantised layers",
    "use_bdlora": "the factors are block-diagonal",
    "arrow_config": "it is a router of other adapters, not an expert",
    "lora_nums": "HydraLoRA routes among several B; read it with read_hydralora",
}
# Something beside the factors was trained: partial loading may leave it out.
_BESIDE: Mapping[str, str] = {
    "bias": "biases of the base model were trained",
    "modules_to_save": "whole modules were trained",
    "target_parameters": "parameters other than linear weights have factors",
    "trainable_token_indices": "embeddings of tokens were trained",
    "ensure_weight_tying": "adapted weights are tied to others",
}
KNOWN = _READ | _NO_EFFECT | _WHOLE.keys() | _BESIDE.keys()
_REMEDY = "merge the adapter into its base model with PEFT, or train plain LoRA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """One thing that was not loaded.

    Attributes
    ----------
    kind : a "setting", a "tensor", a layer "missing" in the model, a tensor of wrong "shape" or
        of another "size" than the model's layer, or in a folder of many a whole "adapter"
    what, why : its name; what was expected and found
    """

    kind: Kind
    what: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """What the settings say of a plain LoRA adapter.

    Attributes
    ----------
    rank : of layers no pattern names; None = not said, the tensors tell
    alpha : of layers no pattern names; the scale is alpha / r, or alpha / sqrt(r) with ``rslora``
    rank_pattern, alpha_pattern : regular expression on the end of a layer's name -> value; the
        first that matches counts, in the order of the file; ranks are checked against the tensors'
    beside : what was trained besides the factors
    written : the file's content
    """

    file: Path
    rank: int | None
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    beside: tuple[Left, ...]
    written: Mapping[str, Any]

    @property
    def base_model(self) -> str:
        """Name of the model it was trained on, or nothing."""
        return str(self.written.get("base_model_name_or_path") or "")

    def ranks_of(self, layer: str) -> tuple[int, ...]:
        """Return the ranks a layer may have, the likeliest first; none where nothing is said.

        PEFT takes the first key that matches, but sorts keys when it writes: any may have been it.
        ``r`` is of layers that no key matches.
        """
        given = (self.rank,) if self.rank is not None else ()
        return _matches(self.rank_pattern, layer) or given

    def names_rank(self, layer: str) -> bool:
        """Return whether a key of ``rank_pattern`` matches a layer."""
        return bool(_matches(self.rank_pattern, layer))

    def scale_of(self, layer: str, rank: int) -> float:
        """Return the scale of a layer's delta at the rank its tensors have."""
        alpha = next(iter(_matches(self.alpha_pattern, layer)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def is_ambiguous(self, layer: str) -> bool:
        """Return whether keys of different alphas match a layer, so that their order counts."""
        return len(set(_matches(self.alpha_pattern, layer))) > 1

    def covers(self, layer: str) -> bool:
        """Return whether PEFT would adapt the layer; it drops the factors of all others."""
        if _named(self.written.get("exclude_modules") or (), layer):
            return False
        targets = self.written.get("target_modules")
        if not targets or (isinstance(targets, str) and targets.lower() == "all-linear"):
            return True  # by the kind of model, or by the kind of layer
        if isinstance(targets, str) or layer in targets:
            return _named(targets, layer)
        return _named(targets, layer) and self._in_layers(layer)

    def _in_layers(self, layer: str) -> bool:
        numbers = self.written.get("layers_to_transform")
        if numbers is None or numbers == []:
            return True
        wanted = [numbers] if isinstance(numbers, int) else numbers
        patterns = self.written.get("layers_pattern") or ()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", layer)
            if found:
                return int(found["number"]) in wanted
        found = None if patterns else re.match(r".*?\.[^.]*\.(\d+)\.", layer)
        return found is not None and int(found.group(1)) in wanted


def read_configuration(folder: Path) -> Configuration:
    """Read and check a folder's ``adapter_config.json``.

    Raises InputError for a file that is missing or no JSON object, for a value of the wrong type,
    and for settings under which the factors alone are not what was trained.
    """
    file = folder / CONFIG_FILE
    written = read_json(file)
    kind = str(written.get("peft_type") or "LORA").upper()  # PEFT itself takes capitals alone
    if kind != "LORA":
        raise InputError(f"{file}: peft_type: {_other_kind(kind)}")
    _refuse_other_functions(file, written)
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        _check_names(file, name, written.get(name))
    _check_numbers(file, "layers_to_transform", written.get("layers_to_transform"))
    return Configuration(
        file=file,
        rank=_whole(file, "r", written["r"]) if written.get("r") is not None else None,
        alpha=_number(file, "lora_alpha", written.get("lora_alpha", 8)),  # 8: PEFT's default
        rslora=bool(written.get("use_rslora")),
        rank_pattern={key: _whole(file, f"rank_pattern {key!r}", value)
                      for key, value in _pattern(file, "rank_pattern", written).items()},
        alpha_pattern={key: _number(file, f"alpha_pattern {key!r}", value)
                       for key, value in _pattern(file, "alpha_pattern", written).items()},
        beside=_beside(written),
        written=written,
    )  # fmt: skip


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object. Raises InputError naming the file."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; is it an adapter?") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not JSON: {error}; fetch it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


def _other_kind(kind: str) -> str:
    reader = "read_poly" if kind == "POLY" else "read_mixlora" if kind in MOE_PEFT else ""
    if reader:
        return f"{kind} is a mixture of experts; read it with {reader}"
    return f"expected LORA, got {kind}; adapters of other kinds cannot be routed"


def _refuse_other_functions(file: Path, written: Mapping[str, Any]) -> None:
    for name, why in _WHOLE.items():
        if _says_something(written.get(name)):
            raise InputError(f"{file}: {name}: {why}, which is not supported; {_REMEDY}")
    start = written.get("init_lora_weights", True)
    is_plain = start is None or isinstance(start, bool) or str(start).lower() in _PLAIN_STARTS
    if not is_plain:
        raise InputError(
            f"{file}: init_lora_weights: {start!r} altered the base weights at the start of the "
            "training, so the adapter fits no plain base model; convert it to plain LoRA with PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _beside(written: Mapping[str, Any]) -> tuple[Left, ...]:
    found = []
    for name, value in written.items():
        if name in _READ | _NO_EFFECT | _WHOLE.keys() or not _says_something(value):
            continue
        if name == "bias" and value == "none":
            continue
        why = _BESIDE.get(name, "an unknown setting, which may change what the adapter computes")
        found.append(Left(kind="setting", what=name, why=f"{why} ({value!r})"))
    return tuple(found)


def _says_something(value: Any) -> bool:
    return value is not None and value not in (False, 0, "", [], {})


def _named(targets: Any, layer: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _matches(pattern: Mapping[str, Any], layer: str) -> tuple[Any, ...]:
    """Return the values of all keys that match the end of a layer's name, in their order."""
    return tuple(v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", layer))


def _whole(file: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{file}: {name}: expected a whole number above 0, got {value!r}")
    return value


def _number(file: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise InputError(f"{file}: {name}: expected a number, got {value!r}")
    return float(value)


def _pattern(file: Path, name: str, written: Mapping[str, Any]) -> Mapping[str, Any]:
    found = written.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{file}: {name}: expected an object, got {found!r}")
    for key in found:
        _check_expression(file, name, key)
    return found


def _check_names(file: Path, name: str, value: Any) -> None:
    """Refuse what is neither a list of names nor an expression; patterns of lists are both."""
    names = value if isinstance(value, list) else []
    if not (value is None or isinstance(value, str | list)) or not all(
        isinstance(one, str) for one in names
    ):
        raise InputError(f"{file}: {name}: expected names or one expression, got {value!r}")
    for one in [value] if isinstance(value, str) else names if name == "layers_pattern" else []:
        _check_expression(file, name, one)


def _check_numbers(file: Path, name: str, value: Any) -> None:
    numbers = value if isinstance(value, list) else [value] if value is not None else []
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise InputError(f"{file}: {name}: expected whole numbers, got {value!r}")


def _check_expression(file: Path, name: str, expression: str) -> None:
    try:
        re.compile(f"({expression})")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{file}: {name}: {expression!r} is no expression: {error}") from error
