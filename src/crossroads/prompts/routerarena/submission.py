"""A submission: a folder with what a router is called, what it may use, and what it chose.

::

    config.json       {"router_name": "my-router", "models": ["small", "large"],
                       "decision_ms": 0.8, "remarks": ["..."]}     the last two are optional
    predictions.json  [{"global index": "MMLU_12", "prompt": "...", "prediction": "small",
                        "generated_result": null, "cost": null, "accuracy": null,
                        "for_optimality": false}, ...]        one entry per row
    robustness.json   [{"global index": "MMLU_12", "kind": "typo", "prediction": "small"}, ...]
                                                              optional: choices when reworded

Entries marked ``for_optimality`` are further answers of other models of the pool to the same row:
they count for optimality only. Costs and accuracies in the file are never believed, nor are token
counts below what the texts make likely.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically

CONFIG, PREDICTIONS, ROBUSTNESS = "config.json", "predictions.json", "robustness.json"
INDEX = "global index"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission as it was read: entries are plain data, not yet checked."""

    config: Mapping[str, Any]
    predictions: Sequence[Any]
    robustness: Sequence[Any] | None = None

    @property
    def router_name(self) -> str:
        return str(self.config.get("router_name", ""))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.config.get("models", ()))

    @property
    def decision_ms(self) -> float | None:
        value = self.config.get("decision_ms")
        return None if value is None else float(value)

    @property
    def remarks(self) -> list[str]:
        """What the submitter says readers must know."""
        return list(self.config.get("remarks", []))

    @property
    def digest(self) -> str:
        """Hexadecimal; two submissions with the same content have the same."""
        content = [dict(self.config), list(self.predictions), self.robustness]
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_submission(folder: str | Path) -> Submission:
    """Read a folder. Raises InputError where a file is missing or is no JSON of the right kind."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"submission {str(folder)!r}: no such folder; make one with --prepare ROUTER"
        )
    config = _read(folder / CONFIG, dict)
    config = config.get("pipeline_params", config)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: 'pipeline_params' is no object; give router_name")
    has_robustness = (folder / ROBUSTNESS).is_file()
    return Submission(
        config=config,
        predictions=_read(folder / PREDICTIONS, list),
        robustness=_read(folder / ROBUSTNESS, list) if has_robustness else None,
    )


def write_submission(submission: Submission, folder: str | Path) -> None:
    """Write a submission's files. Raises InputError where the folder holds predictions already."""
    folder = Path(folder)
    if (folder / PREDICTIONS).exists():
        raise InputError(
            f"{folder / PREDICTIONS} exists; choose another folder, or submit it without --prepare"
        )
    write_atomically(folder / CONFIG, _text(dict(submission.config)))
    if submission.robustness is not None:
        write_atomically(folder / ROBUSTNESS, _text(list(submission.robustness)))
    write_atomically(folder / PREDICTIONS, _text(list(submission.predictions)))


def _text(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; a submission needs it") from error
    except (OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({problem:.100}); give JSON in UTF-8") from error
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise InputError(f"{path}: expected {expected}, got {type(content).__name__}")
    return content


def token_counts(result: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the tokens read and written of a generated result, None where either is no count."""
    usage = result.get("token_usage")
    if not isinstance(usage, Mapping):
        return None
    read, written = usage.get("input_tokens"), usage.get("output_tokens")
    if is_number(read) and is_number(written) and min(read, written) >= 0:
        return float(read), float(written)
    return None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether plain data is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max
