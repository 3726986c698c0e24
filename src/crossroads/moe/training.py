"""A small trainer: paired seeds, exact resumption, metrics as JSON lines.

A ``Bed`` is what is trained on what: it builds a model for a ``MoESpec``, draws batches as a
function of (seed, step), and judges. The trainer sums losses over micro-batches, commits router
state once per optimiser step, and keeps the last good checkpoint when a loss stops being finite.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import yaml
from torch import Tensor, nn

from crossroads.core.errors import DivergedError, InputError, UsageError
from crossroads.core.files import replacing, write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.moe.building import MoESpec
from crossroads.moe.commits import Commits
from crossroads.moe.divergence import broken_gradients, broken_weights
from crossroads.moe.hardware import Hardware
from crossroads.moe.logs import loads, routing_figures
from crossroads.moe.passes import recorded_passes
from crossroads.moe.ranks import Ranks
from crossroads.moe.recording import Recorder, kinds_of

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train.

    Attributes
    ----------
    steps : optimiser steps
    batch_size : sequences (images, recordings) per micro-batch
    micro_batches : batches whose gradients are added up before a step; several processes share
        them out (``crossroads.moe.ranks``)
    lr, betas, weight_decay, clip : of AdamW; ``clip`` is the largest norm of the gradient
    warmup : steps of linear warm-up; then ``schedule``: cosine to zero, or constant
    seed : of initialisation, data order and routers
    log_every, eval_every, checkpoint_every : in steps; None = only at the end
    dtype : ``float32``, or ``bfloat16`` for automatic mixed precision
    ema : decay of averaged weights used for judging; None = the weights themselves
    """

    steps: int = 200
    batch_size: int = 64
    micro_batches: int = 1
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    seed: int = 0
    log_every: int = 20
    eval_every: int | None = None
    checkpoint_every: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("eval_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected at least 1 or nothing, got {value}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name}: expected a positive number, got {value}")
        for name in ("warmup", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema: expected a number between 0 and 1 or nothing, got {self.ema}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        warm = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * warm
        past = max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(past, 1.0)))


Watch = Callable[[int, nn.Module], None]


class Bed(Protocol):
    """A test bed: data, backbone and judgement of one task. Must be picklable."""

    @property
    def name(self) -> str: ...

    def build(self, spec: MoESpec) -> nn.Module:
        """Return a new model; the global torch seed has been set."""
        ...

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Any:
        """Return the batch of a step, the same for the same arguments."""
        ...

    def loss(
        self, model: nn.Module, batch: Any, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        """Return the task's loss (a mean) and the model's answer."""
        ...

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        """Return figures on held-out data; the model is in evaluation mode."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What training gave.

    Attributes
    ----------
    model : in evaluation mode, with averaged weights where ``ema`` was asked for
    history : one mapping per logged step: ``step``, ``loss``, ``aux``, figures about routing ...
    figures : of the last evaluation
    seconds : wall time, of all runs that a resumed job took together
    steps, resumed_at : optimiser steps in all; how many of them a checkpoint already had
    """

    model: nn.Module
    history: tuple[Mapping[str, Any], ...]
    figures: Mapping[str, float]
    seconds: float
    steps: int = 0
    resumed_at: int = 0


def train(
    bed: Bed,
    spec: MoESpec,
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    progress: bool | None = None,
    watch: Watch | None = None,
    recorder: Recorder | None = None,
    record_every: int = 1,
    accelerator: Any = None,
) -> Trained:
    """Train a model and return it with its figures.

    With ``out``, metrics, configuration and checkpoints go there, and a job that was stopped
    continues from the last checkpoint: the same numbers as without the stop. ``watch`` is called
    after every step with the number of steps done and the model. ``recorder`` takes the training
    passes of steps 0, n, 2n, ... of ``record_every`` n, those that this process runs.
    ``accelerator`` is an ``accelerate.Accelerator`` whose device, precision and processes are used
    (``crossroads.moe.hardware``). Raises InputError where the folder belongs to another
    configuration, DivergedError when a loss is not finite.
    """
    if record_every < 1:
        raise UsageError(f"record_every: expected at least 1, got {record_every}")
    hardware = Hardware(config.dtype, accelerator)
    run = _Run(bed, spec, config, hardware, Path(out) if out is not None else None)
    shown = progress if run.ranks.leads else False
    with (
        progress_bar(f"train {bed.name} {spec.router}", show=shown) as report,
        nullcontext()
        if recorder is None
        else recorded_passes(
            run.model, recorder, wanted=lambda c: c.training and c.step % record_every == 0
        ),
    ):
        for step in run.steps():
            run.advance(step)
            if watch is not None:
                watch(step + 1, run.model)
            report(step + 1, config.steps)
    return run.finish()


class _Run:
    """One job: the model, its optimiser, and where it stands."""

    def __init__(
        self, bed: Bed, spec: MoESpec, config: TrainConfig, hardware: Hardware, out: Path | None
    ) -> None:
        self.bed, self.spec, self.config, self.out = bed, spec, config, out
        self.hardware = hardware
        self.ranks = Ranks.here()
        self.mine = self.ranks.share(config.micro_batches)
        torch.manual_seed(config.seed)
        self.model = bed.build(spec).to(hardware.device)
        self.kinds = kinds_of(self.model)
        self.average = _average(self.model, config.ema)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the weights: a tenth of a step of small models
        )
        self.history: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}
        self.done = self.resumed_at = 0
        self.earlier_seconds = 0.0
        self.started = time.perf_counter()
        if out is not None:
            if self.ranks.leads:
                self._claim(out)
            self.ranks.wait()
            self._check_claim(out)
            self._resume(out / CHECKPOINT)
            self.ranks.wait()

    def steps(self) -> Iterator[int]:
        return iter(range(self.done, self.config.steps))

    def advance(self, step: int) -> None:
        """Do one optimiser step, and what is due after it."""
        config = self.config
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        commits = Commits(self.model, self.ranks)
        failure: DivergedError | None = None
        loss, aux, output = 0.0, 0.0, ModelOutput(out=torch.zeros(0))
        try:
            loss, aux, output = self._backward(step, commits)
        except DivergedError as error:
            failure = error
        self._stop_together(failure)
        loss, aux = self.ranks.total(loss, aux)
        self.ranks.sum_gradients(self.model)
        used = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in used if p.grad is not None])
        if not bool(torch.isfinite(norm)):
            where = broken_gradients(self.model)
            what = f"the gradient's norm is {float(norm)}" + (f" ({where})" if where else "")
            raise self._diverged(step, what)
        nn.utils.clip_grads_with_norm_(used, config.clip, norm)
        self.optimiser.step()
        commits.apply()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.done = step + 1
        self._after(step, output, loss=loss, aux=aux, norm=float(norm))

    def finish(self) -> Trained:
        self.ranks.wait()
        if not self.figures or self.config.eval_every is None:
            self.figures = self._evaluate()
        model = self.average.module if self.average is not None else self.model
        return Trained(
            model=model.to("cpu").eval(),
            history=tuple(self.history),
            figures=self.figures,
            seconds=self._seconds(),
            steps=self.done,
            resumed_at=self.resumed_at,
        )

    # ------------------------------------------------------------------ one step

    def _backward(self, step: int, commits: Commits) -> tuple[float, float, ModelOutput]:
        """Add up this process's gradients; return its parts of both losses, the last answer."""
        config = self.config
        loss_sum = aux_sum = 0.0
        output: ModelOutput | None = None
        for micro_batch in self.mine:
            context = RouteContext(
                training=True,
                step=step,
                progress=step / config.steps,
                seed=config.seed,
                micro_batch=micro_batch,
            )
            loss, output = self._loss(step, micro_batch, context)
            aux = output.aux_loss()
            total = (loss + aux) / config.micro_batches
            self._check(total, output, step)
            self.hardware.backward(total)
            commits.add(output)
            loss_sum += float(loss.detach()) / config.micro_batches
            aux_sum += float(torch.as_tensor(aux).detach()) / config.micro_batches
        assert output is not None
        return loss_sum, aux_sum, output

    def _stop_together(self, failure: DivergedError | None) -> None:
        """Raise what this process or another one met: none may wait for one that has stopped."""
        messages = self.ranks.gathered(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, message in enumerate(messages):
            if message is not None:
                raise DivergedError(f"process {rank}: {message}")

    def _loss(
        self, step: int, micro_batch: int, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        batch = self.hardware.sent(self.bed.batch(self.config, step, micro_batch))
        try:
            with self.hardware.autocast():
                return self.bed.loss(self.model, batch, context)
        except InputError as error:
            if "NaN" in str(error):  # a router met what its layer could not have made
                raise self._diverged(step, str(error)) from error
            raise

    def _check(self, total: Tensor, output: ModelOutput, step: int) -> None:
        if bool(torch.isfinite(total.detach())):
            return
        for record in output.records:
            for name, term in record.aux.items():
                if not bool(torch.isfinite(term.value.detach())):
                    where = f"auxiliary loss {name!r} of layer {record.layer}"
                    raise self._diverged(step, f"{where} is {float(term.value.detach())}")
        raise self._diverged(step, f"the loss is {float(total.detach())}")

    def _diverged(self, step: int, what: str) -> DivergedError:
        cause = broken_weights(self.model)  # seldom where it was first met
        what = what if cause is None else f"{cause}; {what}"
        kept = "no checkpoint was written"
        if self.out is not None and (self.out / CHECKPOINT).exists():
            kept = f"the last good checkpoint is {self.out / CHECKPOINT}"
        return DivergedError(
            f"training {self.bed.name} with router {self.spec.router!r} diverged at step {step}: "
            f"{what}; {kept}; lower lr, or add z_loss"
        )

    def _after(
        self, step: int, output: ModelOutput, *, loss: float, aux: float, norm: float
    ) -> None:
        config = self.config
        last = step + 1 == config.steps

        def due(every: int | None) -> bool:
            return every is not None and ((step + 1) % every == 0 or last)

        is_kept = due(config.checkpoint_every) or last
        if is_kept or due(config.eval_every):
            is_broken = broken_weights(self.model) is not None
            what = "the update of this step broke them"
            self._stop_together(self._diverged(step, what) if is_broken else None)
        row: dict[str, Any] = {}
        if due(config.log_every) or step == 0:
            row = {"step": step + 1, "loss": loss, "aux": aux, "norm": norm}
            shown = {f"aux/{name}": value for name, value in output.aux_values().items()}
            routing = routing_figures(output, self.kinds)
            row |= self.ranks.gathered({**shown, **routing, **loads(output)})[-1]
        if due(config.eval_every):
            self.figures = self._evaluate()
            row |= {"step": step + 1, **{f"eval/{k}": v for k, v in self.figures.items()}}
        if row:
            self.history.append(row)
            if self.out is not None and self.ranks.leads:
                with (self.out / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        if self.out is not None and self.ranks.leads and is_kept:
            self._keep(self.out / CHECKPOINT)

    def _evaluate(self) -> dict[str, float]:
        model = self.average.module if self.average is not None else self.model
        model.eval()
        with torch.no_grad(), self.hardware.judging(model):
            return self.bed.evaluate(model, self.config)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    # ------------------------------------------------------------------ stopping and resuming

    def _claim(self, out: Path) -> None:
        """Write the configuration into a folder that holds no steps."""
        if (out / CONFIG).exists() and any((out / name).exists() for name in (CHECKPOINT, METRICS)):
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out {out}: {error.strerror}; choose another folder") from error
        write_atomically(out / CONFIG, self._configuration())

    def _check_claim(self, out: Path) -> None:
        path = out / CONFIG
        if path.read_text("utf-8") != self._configuration():
            raise InputError(
                f"out {path}: the folder holds a run of another configuration; choose another, "
                "or remove it"
            )

    def _configuration(self) -> str:
        return yaml.safe_dump(self._identity(), sort_keys=True)

    def _identity(self) -> dict[str, Any]:
        training = {**_plain(self.config), "dtype": self.hardware.precision}
        plain = {
            "bed": self.bed.name,
            "bed_settings": _plain(self.bed) if dataclasses.is_dataclass(self.bed) else {},
            "data": getattr(self.bed, "fingerprint", None),
            "model": _plain(self.spec),
            "training": training,
        }
        loaded: dict[str, Any] = json.loads(json.dumps(plain, default=str))
        return loaded

    def _keep(self, path: Path) -> None:
        state = {
            "step": self.done,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "figures": self.figures,
            "seconds": self._seconds(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def _resume(self, path: Path) -> None:
        if not path.exists():
            if self.ranks.leads:
                (path.parent / METRICS).unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in as many ways as it has bytes
            raise InputError(
                f"{path}: not a readable checkpoint ({type(error).__name__}); "
                "remove it to start anew"
            ) from error
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.done, self.figures = state["step"], state["figures"]
        self.resumed_at = self.done
        self.earlier_seconds = state["seconds"]
        self._rewind(path.parent / METRICS)

    def _rewind(self, path: Path) -> None:
        """Read the metrics back and drop what was logged after the checkpoint."""
        rows: list[dict[str, Any]] = []
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # the line a killed process was writing
        self.history = [row for row in rows if row["step"] <= self.done]
        if self.ranks.leads:
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.history))


def _average(model: nn.Module, decay: float | None) -> Any:
    if decay is None:
        return None
    moving = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)

    def update(averages: Any, values: Any, count: Any) -> None:
        if averages[0].is_floating_point():
            moving(averages, values, count)
            return
        for average, value in zip(averages, values, strict=True):
            average.copy_(value)  # a count of steps or a flag has no mean

    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _plain(config: Any) -> dict[str, Any]:
    return {f.name: _value(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
