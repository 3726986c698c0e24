"""One training run as a YAML file: the test bed, what stands in its feed-forwards, how to train.

    bed: lm
    bed_settings: {width: 128, length: 128}
    model: {router: "top-p:p=0.4", n_experts: 16}
    training: {steps: 2000, batch_size: 32, checkpoint_every: 200}

What is left out has the bed's own value. ``train_from(path, out)`` runs it, and continues it when
it was stopped; the ``config.yaml`` that it keeps is such a file too. The fields of ``model`` are
those of ``MoESpec``, of ``training`` those of ``TrainConfig``, of ``bed_settings`` those of the
bed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn

from crossroads.core.errors import CrossroadsError, InputError, UsageError, unknown_name
from crossroads.core.files import check_writable
from crossroads.core.problems import problems_of, yaml_problem
from crossroads.core.trace import RoutingTrace
from crossroads.moe.beds import ArenaBed, get_bed, without_ids
from crossroads.moe.beds.bed import Preset
from crossroads.moe.building import DENSE, MoESpec
from crossroads.moe.passes import recorded_passes
from crossroads.moe.recording import Recorder
from crossroads.moe.routers import parse_router
from crossroads.moe.training import TrainConfig, Trained, train

_FIXED = {"name", "causal"}  # what a bed is, not how it is sized
_Made = TypeVar("_Made")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """The sections of the file, as they are written.

    The ``config.yaml`` that a run keeps is such a file too. It names its ``data``; a bed that has
    other data is refused.
    """

    bed: str
    bed_settings: dict[str, Any] = field(default_factory=dict)
    preset: Preset = "quick"
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


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
        router = file.model.get("router", "switch")
        if not (isinstance(router, str) and router):
            raise InputError(f"model.router: expected the name of a router, got {router!r}")
        if router != DENSE:
            parse_router(router)
            if why := without_ids(router, bed):
                raise InputError(f"model.router: {router!r} {why}; choose another router")
        spec = _changed(bed.spec(router), file.model, "model")
        config = _changed(bed.config(file.preset), file.training, "training")
    except CrossroadsError as error:
        raise InputError(f"{path}: {error}") from error
    return Run(bed=bed, spec=spec, config=config)


def train_from(
    path: str | Path,
    out: str | Path,
    *,
    progress: bool | None = None,
    trace: str | Path | None = None,
) -> Trained:
    """Train what a file describes, keeping metrics and checkpoints in ``out``.

    ``trace`` (a file that ends in .npz) gets the decisions of the trained model on the bed's fixed
    held-out batch, those of soft routing by all experts' combine weights (docs: traces). Raises
    InputError, with the file's name, also for sizes that do not fit each other: those show only
    when the model is built; UsageError for a trace that cannot be.
    """
    run = read_run(path)
    if trace is not None:
        trace = Path(trace)
        if run.spec.router == DENSE:
            raise UsageError("trace: a dense model decides nothing; leave it out")
        if trace.suffix != ".npz":
            raise UsageError(f"trace: expected a file that ends in .npz, got {trace}")
        check_writable(trace)
    try:
        done = train(run.bed, run.spec, run.config, out=out, progress=progress)
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error
    if trace is not None:
        held_out_trace(run, done.model).save(trace)
    return done


def held_out_trace(run: Run, model: nn.Module) -> RoutingTrace:
    """Return a trained model's decisions on the fixed held-out batch of the run's bed."""
    meta = {"bed": run.bed.name, "router": run.spec.router, "seed": run.config.seed}
    recorder = Recorder(meta=meta, approx_topk=run.spec.n_experts)
    with torch.no_grad(), recorded_passes(model.eval(), recorder):
        run.bed.probe(model)
    return recorder.trace()


def _bed(file: RunFile) -> ArenaBed:
    made: Any = get_bed(file.bed)
    own = {name: getattr(made, name) for name in _FIXED}
    given = {n: v for n, v in file.bed_settings.items() if n not in own or v != own[n]}
    bed: ArenaBed = _changed(made, given, "bed_settings") if given else made
    if file.data not in (None, bed.fingerprint):
        raise InputError(
            f"data: the run was of {file.data!r}, this bed is of {bed.fingerprint!r}; leave data "
            "out to train on what is here"
        )
    return bed


def _changed(made: _Made, fields: Mapping[str, Any], section: str) -> _Made:
    """Return a dataclass with some fields from the file, checked as if all had been."""
    cls: Any = type(made)
    plain = {name: getattr(made, name) for name in _fields(cls)}
    found: _Made = _checked(cls, {**plain, **fields}, f"{section}.")
    return found


def _checked(cls: type[_Made], values: Any, prefix: str = "") -> _Made:
    if not isinstance(values, Mapping):
        raise InputError(
            f"expected fields and values ({', '.join(_fields(RunFile))}), got {values!r}"
        )
    known = _fields(cls)
    for name in values:
        if name not in known:
            raise InputError(f"{prefix}{name}: {unknown_name('field', str(name), known)}")
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = problems_of(error, cls, may_tell=lambda place: True)[0]
        place = _place(error.errors()[0]["loc"])
        raise InputError(
            f"{prefix}{place}: {first.message}" if place else f"{prefix}{first}"
        ) from (error)


def _fields(cls: Any) -> list[str]:
    """Return the fields a file may set; which bed it is stands in ``bed``."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in _FIXED]


def _place(loc: Sequence[int | str]) -> str:
    """Return a place as one writes it; a validator also names the member of a union it tried."""
    parts = [part for part in loc if isinstance(part, int) or part.isidentifier()]
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
