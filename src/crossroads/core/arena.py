"""The arena: tasks x routers x seeds under one contract, one leaderboard.

A task knows its routers by name and can run one of them with one seed; the arena runs the grid in
parallel, keeps every finished cell on disk (a killed arena continues), and summarises the seeds.
Seeds are paired: every router meets the same splits, so differences between routers are compared
seed by seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crossroads import __version__
from crossroads.core.errors import (
    CrossroadsError,
    MissingExtraError,
    UsageError,
    unknown_name,
)
from crossroads.core.files import write_atomically
from crossroads.core.processes import unordered
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine
from crossroads.core.statistics import Summary, paired_difference, summarise

if TYPE_CHECKING:
    from crossroads.core.report import Plot

ENGINES = ("local", "ray")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """How a measured figure is called, shown and ordered.

    ``higher_is_better`` is None for a figure that describes and is no contest; the first metric of
    a task, which orders its rows, has a direction.
    ``headline`` metrics are the columns of a narrow table; all of them are in the JSON and in the
    report, where ``help`` explains the column.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool | None = True
    digits: int = 3
    headline: bool = True
    help: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one router did on one seed: plain data, so that it can be kept as JSON.

    A metric that is undefined or never reached is NaN or infinite, and null in JSON.
    """

    metrics: Mapping[str, float]
    fit_seconds: float
    decide_seconds: float | None  # mean seconds per routed item; None where none was timed
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What a family offers to the arena. Must be picklable."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """The first one orders the leaderboard."""
        ...

    @property
    def baselines(self) -> Sequence[str]:
        """Routers that are always run, and marked in the report."""
        ...

    @property
    def description(self) -> str:
        """One line: data, size, split."""
        ...

    @property
    def evidence(self) -> str:
        """What the figures rest on, shown as a label: ``replayed outcomes``, ``simulated``."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the figures must know: left out prompts, declared prices."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; changes whenever an old cell would no longer be valid."""
        ...

    def identify(self, router: str) -> str:
        """Return a text that changes with the router's code and settings; UsageError if unknown."""
        ...

    def run(self, router: str, seed: int) -> Cell:
        """Fit and judge one router. Same arguments, same figures (timings aside)."""
        ...

    def plots(self, board: Leaderboard) -> Sequence[Plot]:
        """Return the plots of the family's report."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One router over all seeds. With ``error`` it has no metrics: seeds must stay paired."""

    router: str
    baseline: bool
    metrics: Mapping[str, Summary] = field(default_factory=dict)
    fit_seconds: float | None = None
    decide_seconds: float | None = None
    error: str | None = None
    cells: tuple[Cell, ...] = ()  # in the order of the seeds

    @property
    def facts(self) -> dict[str, Any]:
        """The group of rivals it stands in and the axes it declares, where the family tells."""
        notes = self.cells[0].notes if self.cells else {}
        return {name: notes[name] for name in ("group", "axes") if name in notes}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON (the cells stay on disk)."""
        return {
            "router": self.router,
            "metrics": {name: summary.to_dict() for name, summary in self.metrics.items()},
            "fit_seconds": self.fit_seconds,
            "decide_seconds": self.decide_seconds,
            "baseline": self.baseline,
            "error": self.error,
            **self.facts,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaderboard:
    """The rows of an arena, best first by the first metric; rows with an error last."""

    family: str
    task: str
    description: str
    evidence: str
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    baselines: tuple[str, ...]
    rows: tuple[Row, ...]
    version: str
    machine: Mapping[str, Any]
    created: str
    reused: int = 0  # cells taken from an earlier run

    def __getitem__(self, router: str) -> Row:
        for row in self.rows:
            if row.router == router:
                return row
        raise unknown_name("router", router, [row.router for row in self.rows])

    def difference(self, first: str, second: str, metric: str) -> Summary:
        """Return ``first - second`` in a metric, seed by seed, with its interval."""
        pair = [self[router].metrics[metric].per_seed for router in (first, second)]
        return paired_difference(*pair)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that fits ``leaderboard_schema``."""
        return {
            "family": self.family,
            "task": self.task,
            "description": self.description,
            "evidence": self.evidence,
            "notes": list(self.notes),
            "seeds": list(self.seeds),
            "metrics": [asdict(metric) for metric in self.metrics],
            "baselines": list(self.baselines),
            "rows": [row.to_dict() for row in self.rows],
            "version": self.version,
            "machine": dict(self.machine),
            "created": self.created,
        }

    def to_json(self) -> str:
        """Return the leaderboard as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def leaderboard_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a leaderboard."""
    from importlib import resources

    text = resources.files("crossroads.core").joinpath("leaderboard.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def run_arena(
    task: Task,
    routers: Sequence[str],
    *,
    seeds: int | Sequence[int] = 3,
    out: str | Path | None = None,
    engine: str = "local",
    jobs: int | None = None,
    progress: bool | None = None,
) -> Leaderboard:
    """Run every router, and the task's baselines, on every seed.

    A router that raises a CrossroadsError becomes a row with ``error``. Any other exception is a
    defect and stops the arena as a CellError naming router and seed; what was finished is kept.
    Raises UsageError for an unknown router or engine before anything runs.

    Parameters
    ----------
    seeds : how many (0, 1, ...) or which
    out : folder that keeps finished cells as ``cells/<task>/<router>/<seed>.json``; cells found
        there for the same task and the same router code are not run again
    engine : ``local`` (joblib processes, one BLAS thread each) or ``ray``
    jobs : processes; default one per core, 1 runs in this process
    progress : show a bar on stderr; default a bar on a terminal, else a line a minute
    """
    chosen_seeds = _check_seeds(seeds)
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs: expected at least 1, got {jobs}")
    names = list(dict.fromkeys([*task.baselines, *routers]))
    identity = {name: task.identify(name) for name in names}
    store = CellStore(Path(out) / "cells" / task.fingerprint) if out is not None else None

    grid = [(name, seed) for name in names for seed in chosen_seeds]
    done: dict[tuple[str, int], Attempt] = {}
    if store is not None:
        store.describe(task)
        for name, seed in grid:
            if (cell := store.read(name, seed, identity[name])) is not None:
                done[name, seed] = Attempt(router=name, seed=seed, cell=cell)
    reused = len(done)
    todo = [place for place in grid if place not in done]
    with progress_bar(f"arena {task.name}", show=progress) as report:
        report(reused, len(grid))
        for attempt in _execute(task, todo, engine=engine, jobs=jobs):
            done[attempt.router, attempt.seed] = attempt
            if store is not None and attempt.cell is not None:
                store.write(attempt.router, attempt.seed, identity[attempt.router], attempt.cell)
            report(len(done), len(grid))
    return _leaderboard(task, names, chosen_seeds, done, reused)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A run of one cell: its result, or the error a user can act on."""

    router: str
    seed: int
    cell: Cell | None = None
    error: str | None = None


class CellError(RuntimeError):
    """A router failed in a way that is no user's error."""


def _attempt(task: Task, router: str, seed: int) -> Attempt:
    try:
        return Attempt(router=router, seed=seed, cell=task.run(router, seed))
    except CrossroadsError as error:
        # As text: not every exception survives the way back from another process.
        return Attempt(router=router, seed=seed, error=" ".join(str(error).split()))
    except Exception as error:
        raise CellError(
            f"router {router!r}, seed {seed}: {type(error).__name__}: {error}"
        ) from error


def _execute(
    task: Task, places: Sequence[tuple[str, int]], *, engine: str, jobs: int | None
) -> Iterator[Attempt]:
    """Yield attempts as they finish, in any order."""
    if engine == "ray":
        yield from _execute_on_ray(task, places, jobs)
        return
    yield from unordered(_attempt, [(task, *place) for place in places], jobs)


def _execute_on_ray(
    task: Task, places: Sequence[tuple[str, int]], jobs: int | None
) -> Iterator[Attempt]:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("Ray", extra="ray") from None
    started_here = not ray.is_initialized()
    if started_here:
        # An existing cluster (RAY_ADDRESS) decides itself how many cells it runs at a time.
        size = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": jobs, "include_dashboard": False}
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(runtime_env={"env_vars": _ONE_THREAD}, **quiet, **size)
    try:
        attempt = ray.remote(num_cpus=1)(_attempt)
        shared_task = ray.put(task)
        waiting = [attempt.remote(shared_task, *place) for place in places]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        if started_here:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class CellStore:
    """Finished cells of one task, one JSON file each."""

    folder: Path

    def describe(self, task: Task) -> None:
        """Say in the folder what its cells are of; an unwritable folder fails here, at once."""
        about = {"family": task.family, "task": task.name, "description": task.description}
        write_atomically(self.folder / "task.json", json.dumps(about, indent=2) + "\n")

    def path(self, router: str, seed: int) -> Path:
        """Return where a cell is kept."""
        return self.folder / slug(router) / f"{seed}.json"

    def read(self, router: str, seed: int, identity: str) -> Cell | None:
        """Return a kept cell; None if there is none, it is damaged, or the router has changed."""
        try:
            kept = json.loads(self.path(router, seed).read_text("utf-8"))
            if (kept["router"], kept["seed"], kept["identity"]) != (router, seed, identity):
                return None
            cell = kept["cell"]
            metrics = {k: math.nan if v is None else float(v) for k, v in cell["metrics"].items()}
            return Cell(**{**cell, "metrics": metrics})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, router: str, seed: int, identity: str, cell: Cell) -> None:
        """Keep a cell. Raises InputError when the folder cannot be written."""
        plain = asdict(cell)
        plain["metrics"] = {k: v if math.isfinite(v) else None for k, v in cell.metrics.items()}
        kept = {"router": router, "seed": seed, "identity": identity, "cell": plain}
        write_atomically(self.path(router, seed), json.dumps(kept, allow_nan=False))


def slug(router: str) -> str:
    """Return a folder name for a router; different routers have different ones.

    >>> slug("best-single")
    'best-single'
    >>> slug("knn:k=20").startswith("knn-k=20-")
    True
    """
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", router).strip(".-")[:80]
    if safe == router:
        return safe
    return f"{safe}-{hashlib.blake2b(router.encode(), digest_size=6).hexdigest()}"


def _check_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise UsageError(f"seeds: expected at least one, none twice or negative, got {seeds!r}")
    return chosen


def _leaderboard(
    task: Task,
    names: Sequence[str],
    seeds: Sequence[int],
    done: Mapping[tuple[str, int], Attempt],
    reused: int,
) -> Leaderboard:
    first = task.metrics[0]
    rows = [_row(task, name, [done[name, seed] for seed in seeds]) for name in names]

    def rank(row: Row) -> tuple[bool, float, str]:
        mean = row.metrics[first.name].mean if first.name in row.metrics else None
        value = 0.0 if mean is None else mean
        return mean is None, -value if first.higher_is_better else value, row.router

    return Leaderboard(
        family=task.family,
        task=task.name,
        description=task.description,
        evidence=task.evidence,
        notes=tuple(task.notes),
        seeds=tuple(seeds),
        metrics=tuple(task.metrics),
        baselines=tuple(task.baselines),
        rows=tuple(sorted(rows, key=rank)),
        version=__version__,
        machine=machine(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reused=reused,
    )


def _row(task: Task, name: str, attempts: Sequence[Attempt]) -> Row:
    baseline = name in task.baselines
    for attempt in attempts:
        if attempt.error is not None:
            return Row(
                router=name, baseline=baseline, error=f"seed {attempt.seed}: {attempt.error}"
            )
    cells = tuple(attempt.cell for attempt in attempts if attempt.cell is not None)
    timed = [cell.decide_seconds for cell in cells if cell.decide_seconds is not None]
    return Row(
        router=name,
        baseline=baseline,
        metrics={
            m.name: summarise([cell.metrics[m.name] for cell in cells])
            for m in task.metrics
            if all(m.name in cell.metrics for cell in cells)
        },
        fit_seconds=sum(cell.fit_seconds for cell in cells) / len(cells),
        decide_seconds=sum(timed) / len(timed) if timed else None,
        cells=cells,
    )
