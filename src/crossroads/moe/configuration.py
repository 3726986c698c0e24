"""One training run as a YAML file: the test bed, what stands in its feed-forwards, how to train.

    bed: lm
    bed_settings: {width: 128, length: 128}
    model: {router: "top-p:p=0.4", n_experts: 16}
    training: {steps: 2000, batch_size: 32, checkpoint_every: 200}

What is left out has the bed's own value. ``train_from(path, out)`` runs it, and continues it when
it was stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.core.problems import problems_of, yaml_problem
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.beds.bed import Preset
from crossroads.moe.building import DENSE, MoESpec
from crossroads.moe.routers import parse_router
from crossroads.moe.training import TrainConfig, Trained, train

_Made = TypeVar("_Made")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """The sections of the file, as they are written."""

    bed: str
    bed_settings: dict[str, Any] = field(default_factory=dict)
    preset: Preset = "quick"
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run as it will be trained."""

    bed: ArenaBed
    spec: MoESpec
    config: TrainConfig


def read_run(path: str | Path) -> Run:
    """Read and check a run. Raises InputError naming file, field and remedy."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {yaml_problem(error)}") from error
    try:
        file = _checked(RunFile, raw if raw is not None else {})
        bed = _bed(file)
        router = str(file.model.get("router", "switch"))
        if router != DENSE:
            parse_router(router)
        spec = _changed(bed.spec(router), file.model, "model")
        config = _changed(bed.config(file.preset), file.training, "training")
    except CrossroadsError as error:
        raise InputError(f"{path}: {error}") from error
    return Run(bed=bed, spec=spec, config=config)


def train_from(path: str | Path, out: str | Path, *, progress: bool | None = None) -> Trained:
    """Train what a file describes, keeping metrics and checkpoints in ``out``."""
    run = read_run(path)
    return train(run.bed, run.spec, run.config, out=out, progress=progress)


def _bed(file: RunFile) -> ArenaBed:
    made: Any = get_bed(file.bed)
    return _changed(made, file.bed_settings, "bed_settings") if file.bed_settings else made


def _changed(made: _Made, fields: Mapping[str, Any], section: str) -> _Made:
    """Return a dataclass with some fields from the file, checked as if all had been."""
    cls: Any = type(made)
    plain = {f.name: getattr(made, f.name) for f in dataclasses.fields(cls)}
    found: _Made = _checked(cls, {**plain, **fields}, f"{section}.")
    return found


def _checked(cls: type[_Made], values: Any, prefix: str = "") -> _Made:
    strict = with_config(ConfigDict(extra="forbid"))(cls) if cls is not RunFile else cls
    try:
        return TypeAdapter(strict).validate_python(values)
    except ValidationError as error:
        first = problems_of(error, cls, may_tell=lambda place: True)[0]
        raise InputError(f"{prefix}{first}") from error
