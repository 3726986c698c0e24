"""Configurations for tests of the whole gateway, and what their ledgers say afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from crossroads.gateway.config import read_config
from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger import LedgerReader
from crossroads.gateway.runtime import Runtime
from crossroads.prompts import fit_router, read_outcomes, save_router
from crossroads.prompts.pool import ModelCard, Pool
from tests.gateway.serving import serving_runtime

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "hello there"}]
KEY = "sk-test-0123456789abcdef"
FLUSH_MS = 20


def card(name: str, endpoint: str, behaviour: str = "", **fields: Any) -> dict[str, Any]:
    """A model of the pool at one USD a million tokens in and two out."""
    given = {"name": name, "endpoint": endpoint, "price_in": 1.0, "price_out": 2.0, **fields}
    return {**given, "upstream_model": behaviour} if behaviour else given


def write(folder: Path, models: Sequence[dict[str, Any]], **fields: Any) -> Path:
    """Write pool and configuration; ``fields`` replace sections of it."""
    pool = folder / "pool.json"
    pool.write_text(json.dumps({"name": "fake", "models": list(models)}), "utf-8")
    settings = {
        "pool": str(pool),
        "ledger": {"url": ledger_url(folder), "flush_ms": FLUSH_MS},
        "telemetry": {"logs": None},
        "admin": None,
        "watch_s": None,
        **fields,
    }
    path = folder / "gateway.json"
    path.write_text(json.dumps(settings), "utf-8")  # JSON is YAML, too
    return path


def ledger_url(folder: Path) -> str:
    return f"sqlite:{folder / 'ledger.db'}"


def fit_small_router(folder: Path, names: Sequence[str]) -> str:
    """Fit a router over models that are good at sums, poems, code; return its folder."""
    words = ("sum", "poem", "code")
    rows = [
        {
            "prompt_id": str(n),
            "prompt": f"{words[n % 3]} number {n}",
            "model": name,
            "score": float(n % 3 == k),
            "cost": 0.001 * (k + 1),
        }
        for n in range(90)
        for k, name in enumerate(names)
    ]
    (folder / "outcomes.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    pool = Pool(models=tuple(ModelCard(name=name, endpoint="local:units") for name in names))
    fitted = fit_router("ridge", read_outcomes(str(folder / "outcomes.jsonl")), pool=pool)
    save_router(fitted, folder / "fitted")
    return str(folder / "fitted")


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` from the repository's root to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,  # of what hangs; a busy machine takes minutes for some
        **options,
    )


def runtime_of(path: Path) -> Runtime:
    """The gateway of a configuration, for ``serving_runtime``."""
    return Runtime(read_config(path), read=partial(read_config, path), path=path)


@contextmanager
def serving_config(path: Path) -> Iterator[str]:
    """Serve a configuration in this process; yield the URL."""
    with serving_runtime(runtime_of(path)) as url:
        yield url


def records(where: Path | str) -> list[Record]:
    """Return all rows of a ledger: of a folder, or at a URL."""
    url = ledger_url(where) if isinstance(where, Path) else where
    with LedgerReader(url) as reader:
        return list(reader.records())


def records_of(where: Path | str, decision_ids: Iterable[str]) -> dict[str, list[Record]]:
    """Return the rows of these calls, once there is one of each."""
    wanted = set(decision_ids)

    def found() -> dict[str, list[Record]]:
        by_id: dict[str, list[Record]] = {}
        for record in records(where):
            if record.decision_id in wanted:
                by_id.setdefault(record.decision_id, []).append(record)
        return by_id

    return until(found, lambda by_id: by_id.keys() == wanted, seconds=30)


def record_of(where: Path | str, decision_id: str) -> Record:
    """Return the one row of a call, once it is there."""
    (record,) = records_of(where, [decision_id])[decision_id]
    return record


def until(look: Callable[[], T], holds: Callable[[T], bool] = bool, *, seconds: float = 8.0) -> T:
    """Look until what is seen holds, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if holds(seen):
            return seen
        assert time.monotonic() < deadline, f"it did not come to pass; last seen: {seen!r:.500}"
        time.sleep(0.02)
