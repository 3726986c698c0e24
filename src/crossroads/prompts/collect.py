"""Build an outcome table: run every prompt through every model of a pool and score the answers.

Each finished cell is appended to ``OUT.partial.jsonl`` and synced to the disk before it counts, so
a collection that is killed loses nothing that was answered, and running the same command again
continues it. A cell whose expert fails stays missing (a failure is not a wrong answer) and is asked
again next time. The table itself is written once, at the end, in the outcome contract of
``crossroads.prompts.outcomes``; scores and costs are computed then, from the kept answers.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import replacing
from crossroads.core.progress import Progress
from crossroads.prompts.experts.base import Completion, Expert, ExpertError, content_text
from crossroads.prompts.experts.http import Timeouts
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.formats import FORMATS, write_long
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.scorers import DEFAULT_SCORER, parse_scorer

_ALTERNATIVES = " | "
_LONGEST_WAIT = 60.0  # seconds between two attempts, whatever an upstream asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptItem:
    """One prompt with what a right answer looks like.

    Attributes
    ----------
    prompt_id, prompt : as in the outcome table
    references : right answers; any of them will do
    scorer : how answers are compared with them (``crossroads.prompts.scorers``)
    domain, split : carried over to the outcome table
    """

    prompt_id: str
    prompt: str
    references: tuple[str, ...]
    scorer: str = DEFAULT_SCORER
    domain: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """How experts are asked.

    Attributes
    ----------
    system : system message, None for the expert's own default
    max_tokens : bound on each answer
    temperature : 0 for the most likely answer
    concurrency : calls in flight per model; latencies of a local model mean most at 1
    num_retries : further attempts after a failure that may pass
    backoff : seconds before the first further attempt, doubled each time
    timeouts : of each call to an HTTP endpoint
    keep_responses : whether the table gets the answers' text
    """

    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    concurrency: int = 4
    num_retries: int = 2
    backoff: float = 0.5
    timeouts: Timeouts = field(default_factory=Timeouts)
    keep_responses: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UsageError(f"concurrency: expected at least 1, got {self.concurrency}")
        if self.max_tokens < 1:
            raise UsageError(f"max tokens: expected at least 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A cell that stayed missing, and why."""

    prompt_id: str
    model: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectReport:
    """What a collection did.

    Attributes
    ----------
    num_cells : prompts x models
    num_reused : cells an earlier run had finished
    failures : cells that are missing from the table
    models : per model its mean score, total cost (USD, None if unknown) and mean latency (s)
    seconds : wall time
    out : the table's path, None where no cell finished
    """

    num_prompts: int
    num_cells: int
    num_reused: int
    failures: tuple[Failure, ...]
    models: Mapping[str, Mapping[str, float | None]]
    seconds: float
    out: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, under the attributes' names."""
        return {**asdict(self), "failures": [asdict(failure) for failure in self.failures]}


def read_prompts(path: str | Path) -> list[PromptItem]:
    """Read prompts from CSV or JSON lines with the columns ``prompt_id, prompt, reference`` and,
    if wished, ``scorer, domain, split``.

    Several references are a list in JSON, or parted by " | ". A domain is text; numbers become
    theirs. A split is ``train`` or ``test``, for every prompt or for none. Raises InputError naming
    file, row and column.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"prompts {str(path)!r}: no such file; give a .jsonl or .csv file")
    items: list[PromptItem] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(path), start=1):
        where = f"prompts {path}: row {number}"
        item = _prompt_item(row, where)
        if item.prompt_id in seen:
            raise InputError(f"{where}: prompt_id {item.prompt_id!r} occurs twice; rename one")
        seen.add(item.prompt_id)
        items.append(item)
    if not items:
        raise InputError(f"prompts {path}: the file holds no prompt")
    _check_split(items, path)
    return items


def _check_split(items: Sequence[PromptItem], path: Path) -> None:
    without = [number for number, item in enumerate(items, start=1) if item.split is None]
    if 0 < len(without) < len(items):
        raise InputError(
            f"prompts {path}: row {without[0]}: column 'split' is empty while other rows have one; "
            "mark every prompt, or none"
        )


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts {path}: not UTF-8 (byte {error.start}); convert it") from error
    if path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    if path.suffix != ".jsonl":
        raise InputError(f"prompts {path}: expected a .jsonl or .csv file")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"prompts {path}: row {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"prompts {path}: row {number}: expected an object, got {line[:40]!r}")
        yield row


def _prompt_item(row: Mapping[str, Any], where: str) -> PromptItem:
    for column in ("prompt_id", "prompt", "reference"):
        if row.get(column) in (None, "", []):
            raise InputError(f"{where}: column {column!r} is missing or empty")
    given = row["reference"]
    references = given if isinstance(given, list) else str(given).split(_ALTERNATIVES)
    scorer = str(row.get("scorer") or DEFAULT_SCORER)
    try:
        parse_scorer(scorer)
    except UsageError as error:
        raise InputError(f"{where}: column 'scorer': {error}") from error
    return PromptItem(
        prompt_id=str(row["prompt_id"]),
        prompt=str(row["prompt"]),
        references=tuple(str(reference).strip() for reference in references),
        scorer=scorer,
        domain=_domain(row.get("domain"), where),
        split=_split(row.get("split"), where),
    )


def _domain(given: Any, where: str) -> str | None:
    if given in (None, ""):
        return None
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise InputError(f"{where}: column 'domain': expected text, got {given!r:.40}")
    return str(given)


def _split(given: Any, where: str) -> str | None:
    if given in (None, ""):
        return None
    if given not in ("train", "test"):
        raise InputError(
            f"{where}: column 'split': expected 'train', 'test' or nothing, got {given!r:.40}"
        )
    return str(given)


def collect(
    pool: Pool,
    prompts: Sequence[PromptItem],
    out: str | Path,
    *,
    settings: CollectSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CollectReport:
    """Run prompts x models and write the outcome table to ``out``: Parquet, CSV or JSON lines.

    Raises UsageError for another suffix, and InputError when ``out`` exists and no interrupted
    collection is there to continue, unless ``overwrite``.
    """
    out = Path(out)
    if not out.name.lower().endswith(FORMATS):
        raise UsageError(f"out {str(out)!r}: expected a name ending in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise InputError(f"out {str(out)!r}: folder {str(out.parent)!r} does not exist; make it")
    partial = PartialFile(out.with_name(f"{out.name}.partial.jsonl"))
    if out.exists() and not partial.path.exists() and not overwrite:
        raise InputError(f"out {str(out)!r} exists; choose another name or pass --overwrite")
    run = _Run(pool, prompts, settings or CollectSettings(), partial, progress)
    started = time.perf_counter()
    asyncio.run(run.ask_all())
    rows = run.outcome_rows()
    if rows:
        write_rows(rows, out)
    if not run.failures:
        partial.remove()
    return CollectReport(
        num_prompts=len(prompts),
        num_cells=len(prompts) * len(pool),
        num_reused=run.num_reused,
        failures=tuple(run.failures),
        models={card.name: _summary(card.name, rows) for card in pool},
        seconds=time.perf_counter() - started,
        out=str(out) if rows else None,
    )


class PartialFile:
    """Finished cells, one JSON object a line, each on the disk before ``append`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the finished cells by key; a torn last line is cut off."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        cells = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                cell = orjson.loads(line)
                cells[cell["cell"]] = cell
            except (orjson.JSONDecodeError, TypeError, KeyError) as error:
                raise InputError(
                    f"{self.path}: line {number} is damaged; delete that line, or the file to "
                    "start again"
                ) from error
        return cells

    def append(self, cell: Mapping[str, Any]) -> None:
        """Add a finished cell. Raises InputError where the disk does not take it."""
        try:
            with self.path.open("ab") as file:
                file.write(orjson.dumps(cell) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class _Run:
    """One collection: the cells still to ask, and what came back."""

    def __init__(
        self,
        pool: Pool,
        prompts: Sequence[PromptItem],
        settings: CollectSettings,
        partial: PartialFile,
        progress: Progress | None,
    ) -> None:
        self._pool = pool
        self._prompts = prompts
        self._settings = settings
        self._partial = partial
        self._progress = progress
        self._cells = partial.read()
        self._writing = asyncio.Lock()
        self.failures: list[Failure] = []
        self.num_reused = sum(
            self._key(card, item) in self._cells for card in pool for item in prompts
        )
        self._num_over = self.num_reused

    async def ask_all(self) -> None:
        pending = {
            card: [item for item in self._prompts if self._key(card, item) not in self._cells]
            for card in self._pool
        }
        wanted = {card: items for card, items in pending.items() if items}
        experts = {card: build_expert(card, timeouts=self._settings.timeouts) for card in wanted}
        try:
            for expert in experts.values():
                await expert.start()
            async with asyncio.TaskGroup() as group:
                for card, expert in experts.items():
                    queue = deque(wanted[card])
                    for _ in range(min(self._settings.concurrency, len(queue))):
                        group.create_task(self._ask_some(card, expert, queue))
        except ExceptionGroup as group_of_errors:  # the tasks were stopped by the first of them
            raise group_of_errors.exceptions[0] from None
        finally:
            for expert in experts.values():
                await expert.close()

    async def _ask_some(self, card: ModelCard, expert: Expert, queue: deque[PromptItem]) -> None:
        while queue:
            item = queue.popleft()
            try:
                cell = await self._ask(card, expert, item)
            except ExpertError as error:
                failure = Failure(prompt_id=item.prompt_id, model=card.name, error=str(error))
                self.failures.append(failure)
            else:
                async with self._writing:
                    await asyncio.to_thread(self._partial.append, cell)
                self._cells[cell["cell"]] = cell
            self._num_over += 1
            if self._progress is not None:
                self._progress(self._num_over, len(self._prompts) * len(self._pool))

    async def _ask(self, card: ModelCard, expert: Expert, item: PromptItem) -> dict[str, Any]:
        """Ask one expert one prompt, again after failures that may pass."""
        for attempt in range(self._settings.num_retries + 1):
            started = time.perf_counter()
            try:
                answer = await expert.complete(self._request(item))
                break
            except ExpertError as error:
                if attempt == self._settings.num_retries or not error.can_be_retried:
                    raise
                wait = error.retry_after or self._settings.backoff * 2**attempt
                await asyncio.sleep(min(wait, _LONGEST_WAIT))
        usage = answer.get("usage") or {}
        return {
            "cell": self._key(card, item),
            "prompt_id": item.prompt_id,
            "model": card.name,
            "input_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
            "latency_s": round(time.perf_counter() - started, 6),
            "response": _answer_text(answer),
        }

    def _request(self, item: PromptItem) -> dict[str, Any]:
        messages = [{"role": "user", "content": item.prompt}]
        if self._settings.system is not None:
            messages.insert(0, {"role": "system", "content": self._settings.system})
        return {
            "model": "",  # the expert puts the name its endpoint knows
            "messages": messages,
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.temperature,
        }

    def _key(self, card: ModelCard, item: PromptItem) -> str:
        """Identify a cell by all that its answer depends on, so that nothing stale is reused."""
        asked = self._request(item)
        parts = [item.prompt_id, card.name, card.endpoint, card.upstream_model, asked]
        return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()

    def outcome_rows(self) -> list[dict[str, Any]]:
        """Return the finished cells as rows of the outcome table, prompt by prompt."""
        rows = []
        for item in self._prompts:
            score = parse_scorer(item.scorer)
            for card in self._pool:
                cell = self._cells.get(self._key(card, item))
                if cell is None:
                    continue
                row = {
                    "prompt_id": item.prompt_id,
                    "prompt": item.prompt,
                    "model": card.name,
                    "score": score(cell["response"], item.references),
                    "input_tokens": cell["input_tokens"],
                    "output_tokens": cell["output_tokens"],
                    "cost": _cost(card, cell),
                    "latency_s": cell["latency_s"],
                    "domain": item.domain,
                    "split": item.split,
                }
                if self._settings.keep_responses:
                    row["response"] = cell["response"]
                rows.append(row)
        return rows


def write_rows(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write rows of the long form to ``out``, whole or not at all, without empty columns."""
    import pyarrow as pa

    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = pa.table({name: [row[name] for row in rows] for name in columns})
    with replacing(out) as temporary:
        write_long(table, temporary, out.name.lower())


def _answer_text(answer: Completion) -> str:
    choices = answer.get("choices") or [{}]
    message = choices[0].get("message") or {}
    return content_text(message.get("content"))


def _cost(card: ModelCard, cell: Mapping[str, Any]) -> float | None:
    """Return the price of a cell in USD, None where it depends on tokens nobody counted."""
    tokens_in, tokens_out = cell["input_tokens"], cell["output_tokens"]
    unknown = (card.price_in and tokens_in is None) or (card.price_out and tokens_out is None)
    return None if unknown else round(float(card.price(tokens_in or 0, tokens_out or 0)), 12)


def _summary(model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    mine = [row for row in rows if row["model"] == model]
    costs = [row["cost"] for row in mine]
    return {
        "score": sum(row["score"] for row in mine) / len(mine) if mine else None,
        "cost_usd": None if None in costs else sum(costs),
        "latency_s": sum(row["latency_s"] for row in mine) / len(mine) if mine else None,
    }
