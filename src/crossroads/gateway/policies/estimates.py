"""Estimates of a fitted router for prompts as they come: remembered, batched, never in the way.

A prompt seen before costs a look-up. Short ones are estimated on the event loop: what one turn of
the loop brings, together with what the next few turns bring while each brings more, as far as that
blocks the loop for about a millisecond. Sixteen together take about 0.6 of the time of sixteen
alone: much of a single one is fetching the router's weights. Where prompts come one by one, they
are estimated at once, while the caller waits, without a turn of the loop in between.

Long ones, and those of a router whose measured time for one prompt is above ``_LOOP_SECONDS``, go
to one thread. Handing every prompt to a thread is slower (the interpreter runs one of the two at a
time) and makes the loop wait for the interpreter's lock. The time is measured on and on: a router
that becomes slow leaves the loop after a few late prompts (three, where each takes as long as
``_LONGEST_COUNTED``), and comes back when it is fast again.

A prompt gets the same numbers whatever it is batched with, as its embedding does. A router in
double precision differs from batch to batch in the last bits only, and estimates are rounded to
``_DIGITS`` digits. One in single precision differs more (``knn``): that is measured when it is
loaded, and such routers and verifiers estimate a batch row by row.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import CrossroadsError
from crossroads.models.encoders import LONGEST_TEXT, get_encoder
from crossroads.prompts.checking import unicode_text
from crossroads.prompts.decide import EXCLUDED
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.router import Queries
from crossroads.prompts.verification import Verification

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_DIGITS = 6
_LOOP_SECONDS = 0.001  # work on the loop in one turn; beyond it a thread is the lesser evil
_LONGEST_COUNTED = 8 * _LOOP_SECONDS  # of one prompt: a single pause of the machine moves nothing
_MOST_TURNS = 4  # of the loop that a batch may grow for: each brings others, so none is idle
_SINGLES = 8  # batches of one prompt in a row: the next one need not wait for company
_TEXTS_A_TURN = 4  # of the longest kind: small batches cost more than the loop gains
_LEAST_HASHED = 1024  # characters: shorter texts are their own key
_WEIGHT = 0.05  # of the last batch in the moving average of times
_SAME = 1e-12  # difference between batches that rounding hides
_PROBES = (
    "hello",
    "what is 12 times 12?",
    "write a poem about the sea " * 20,
    "def add(a, b):\n    return a + b\n# what does this return for a list?",
    "Summarise the history of the printing press in three sentences.",
    "how many feet are 3.5 metres",
    "Who wrote it, when, and why does that matter to us today?",
)


class RouterFailedError(CrossroadsError):
    """The router raised while deciding; the cause is chained."""


@dataclass(slots=True)
class Estimate:
    """What the router makes of one prompt.

    Attributes
    ----------
    quality : of K models, rounded
    is_open : whether the router does not rule them out; None where it rules out none
    embedding : float32 (D,), zeros where the router needs none; None once it is remembered
    features : the same as little-endian float16, where somebody asked for it
    seconds : spent on it
    verification : whether the router's choice will be right, where it has a verifier
    kept : what policies made of it, by their own keys; None until the prompt comes a second time,
        which most never do: what policies make of those would be most of the memory
    era : of the ``Estimates`` whose policies those are
    """

    quality: Sequence[float]
    is_open: Sequence[bool] | None
    embedding: Float32 | None
    features: bytes | None = None
    seconds: float = 0.0
    verification: Verification | None = None
    kept: dict[Any, Any] | None = None
    era: object = None


Waiter = asyncio.Future["Estimate | None"]
Seen = Callable[[Sequence[Estimate]], None]


@dataclass(slots=True)
class _Pending:
    key: str | bytes
    text: str
    waiters: list[Waiter]


class Estimates:
    """The estimates of one fitted router, shared by all policies that use it.

    Parameters
    ----------
    fitted : the router
    cache : prompts remembered, the least recently used go first
    max_batch : prompts estimated at once
    inline_chars : texts up to this length may be estimated on the event loop, and no more than
        four times as many characters in one of its turns
    """

    def __init__(
        self,
        fitted: FittedRouter,
        *,
        cache: int = 4096,
        max_batch: int = 16,
        inline_chars: int = 4000,
    ) -> None:
        self.fitted = fitted
        self._needs_embeddings = fitted.router.needs_embeddings or fitted.verifier is not None
        self._encoder = get_encoder(fitted.encoder) if self._needs_embeddings else None
        self._cache: OrderedDict[str | bytes, Estimate] = OrderedDict()
        self._cache_size = cache
        self._era = object()
        self.keep_features = False
        self._max_batch = max_batch
        self._inline_chars = inline_chars
        self._pending: dict[str | bytes, _Pending] = {}
        self._queue: deque[_Pending] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_single = 0  # batches of one prompt, since the last larger one
        self._is_turn_used = False  # whether a prompt was estimated at once in this turn
        self._work: SimpleQueue[tuple[asyncio.AbstractEventLoop, list[_Pending]] | None] = (
            SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._watchers: list[Seen] = []
        self.num_hits = self.num_misses = self.num_batches = self.num_failures = 0
        self.num_inline = 0
        self.last_failure = ""
        self.is_batched = self._is_same_in_batches()
        self.seconds = self._probe()  # of one prompt, moving average
        self._pace = self.seconds  # the same of short ones, each cut off at ``_LONGEST_COUNTED``
        self.is_inline = self.seconds <= _LOOP_SECONDS

    def watch(self, seen: Seen) -> None:
        """Have every new batch of estimates shown to ``seen``, on the event loop."""
        self._watchers.append(seen)

    def ask(self, text: str) -> Estimate | Waiter:
        """Return what is remembered of a prompt, else what its estimate will come by.

        On the event loop only. What is awaited raises RouterFailedError.
        """
        text = text[:LONGEST_TEXT]  # more is never read
        key = _key(text)
        found = self._recall(key)
        if found is not None:
            return found
        self.num_misses += 1
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._enter(loop)
        if self._is_turn_used:  # this prompt has company
            self._num_single = 0
        elif self._num_single >= _SINGLES and not self._pending and self._is_short(text):
            return self._at_once(key, text, loop)
        return self._enqueue(key, text, loop)

    def estimate(self, texts: Sequence[str]) -> list[Estimate]:
        """Estimate now, remembering nothing. Raises what the router raises."""
        started = time.perf_counter()
        cleaned = [text if text.isascii() else unicode_text(text) for text in texts]
        embeddings = self._embed(cleaned)
        quality = self._predict(embeddings, cleaned)
        quality = quality.round(_DIGITS)
        quality += 0.0  # no negative zeros
        if not np.isfinite(quality).all():
            raise RouterFailedError(f"router {self.fitted.router.name!r} estimates no number")
        rows: list[list[float]] = quality.tolist()
        pairs = zip(rows, embeddings, strict=True)
        found = [Estimate(row, None, embedding) for row, embedding in pairs]
        is_open = quality > EXCLUDED
        if not is_open.all():
            for estimate, row in zip(found, is_open, strict=True):
                estimate.is_open = None if row.all() else row.tolist()
        if self.keep_features:
            for n, row in enumerate(embeddings.astype("<f2")):
                found[n].features = row.tobytes()
        if self.fitted.verifier is not None:
            for estimate, answer in zip(found, self._verify(embeddings), strict=True):
                estimate.verification = answer
        seconds = (time.perf_counter() - started) / len(found)
        for estimate in found:
            estimate.seconds = seconds
        return found

    def adopt(self, before: Estimates) -> None:
        """Remember what the same router estimated before a reload; decisions are made anew.

        Both share what they remember from now on. Each estimate is copied when it is asked for by
        the others (see ``_recall``), with decisions of its own: the policies before may decide on
        for a while, by other fallbacks perhaps. A second call changes nothing.
        """
        if self._cache or not self._cache_size:
            return
        self._cache = before._cache
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    def close(self) -> None:
        """End the thread, if there is one; what waits for it still gets its answer."""
        if self._thread is not None:
            self._work.put(None)
            self._thread = None

    def _embed(self, texts: Sequence[str]) -> Float32:
        if self._encoder is None:
            return np.zeros((len(texts), 1), dtype=np.float32)
        return self._encoder.encode(texts)

    def _predict(self, embeddings: Float32, texts: Sequence[str]) -> Float64:
        column = np.array(texts, dtype=object)
        if self.is_batched or len(texts) == 1:
            return self.fitted.router.predict(Queries(embeddings=embeddings, texts=column))
        rows = [
            Queries(embeddings=embeddings, texts=column).take(slice(n, n + 1))
            for n in range(len(texts))
        ]
        return np.concatenate([self.fitted.router.predict(row) for row in rows])

    def _verify(self, embeddings: Float32) -> list[Verification]:
        assert self.fitted.verifier is not None
        verify = self.fitted.verifier.verifier.verify
        if self.is_batched:
            return verify(embeddings, num_exemplars=0)
        rows = range(len(embeddings))
        return [verify(embeddings[n : n + 1], num_exemplars=0)[0] for n in rows]

    def _is_same_in_batches(self) -> bool:
        """Whether batches differ from single prompts by nothing that rounding does not hide."""
        self.is_batched = True
        together = self.estimate(_PROBES)
        embeddings = np.stack([e.embedding for e in together if e.embedding is not None])
        whole = self._predict(embeddings, _PROBES)
        self.is_batched = False
        alone = self._predict(embeddings, _PROBES)
        if np.abs(whole - alone).max() > _SAME:
            return False
        return self.fitted.verifier is None or [
            estimate.verification for estimate in together
        ] == self._verify(embeddings)

    def _probe(self) -> float:
        """Return the seconds of one prompt once warm. A router that cannot decide raises here."""
        started = time.perf_counter()
        for text in _PROBES:
            self.estimate([text])
        return (time.perf_counter() - started) / len(_PROBES)

    # --- on the event loop ---

    def _recall(self, key: str | bytes) -> Estimate | None:
        found = self._cache.get(key)
        if found is not None and self.keep_features and found.features is None:
            found = None  # of before a reload that asks for them
        if found is not None:
            if found.era is not self._era:  # of before a reload, or still used by those before
                found = self._cache[key] = replace(found, kept=None, era=self._era)
            self._cache.move_to_end(key)
            self.num_hits += 1
            if found.kept is None:
                found.kept = {}
        return found

    def _enqueue(self, key: str | bytes, text: str, loop: asyncio.AbstractEventLoop) -> Waiter:
        waiter: Waiter = loop.create_future()
        pending = self._pending.get(key)
        if pending is not None:
            pending.waiters.append(waiter)
            return waiter
        pending = self._pending[key] = _Pending(key, text, [waiter])
        if not self._is_short(text):
            self._hand_over([pending], loop)
            return waiter
        if not self._queue:
            loop.call_soon(self._gather, loop)
        self._queue.append(pending)
        return waiter

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what was under way in a loop before: of a gateway that ended, nobody waits."""
        self._loop = loop
        self._pending.clear()
        self._queue.clear()
        self._is_turn_used = False

    def _is_short(self, text: str) -> bool:
        """Whether a prompt may be estimated on the event loop."""
        return self.is_inline and len(text) <= self._inline_chars

    def _at_once(self, key: str | bytes, text: str, loop: asyncio.AbstractEventLoop) -> Estimate:
        """Estimate a prompt while its caller waits, once in a turn of the loop."""
        self._is_turn_used = True
        loop.call_soon(self._end_turn)
        self.num_inline += 1
        results = self._work_on([_Pending(key, text, [])])
        self._deliver(results)
        found = results[0][1]
        if isinstance(found, RouterFailedError):
            raise found
        return found

    def _end_turn(self) -> None:
        self._is_turn_used = False

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int = 1, turns: int = 0) -> None:
        """Go on waiting while every turn of the loop brings more, then estimate all of it."""
        count = len(self._queue)
        if before < count < self._max_batch and turns < _MOST_TURNS:
            loop.call_soon(self._gather, loop, count, turns + 1)
        else:
            self._flush(loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Estimate what waits, as much as one turn of the loop may take."""
        if not self.is_inline:  # no longer, since these began to wait
            waiting, self._queue = [[pending] for pending in self._queue], deque()
            for alone in waiting:
                self._hand_over(alone, loop)
            return
        batch: list[_Pending] = []
        room = _TEXTS_A_TURN * self._inline_chars
        while self._queue and len(batch) < self._max_batch and (room > 0 or not batch):
            pending = self._queue.popleft()
            room -= len(pending.text)
            batch.append(pending)
        if self._queue:
            loop.call_soon(self._flush, loop)
        self.num_inline += len(batch)
        self._num_single = self._num_single + 1 if len(batch) == 1 else 0
        self._deliver(self._work_on(batch))

    def _hand_over(self, batch: list[_Pending], loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="router", daemon=True)
            self._thread.start()
        self._work.put((loop, batch))

    def _deliver(self, results: list[tuple[_Pending, Estimate | RouterFailedError]]) -> None:
        fresh: list[Estimate] = []
        self.num_batches += 1
        for pending, found in results:
            self._pending.pop(pending.key, None)
            if isinstance(found, Estimate):
                self._remember(pending.key, found)
                fresh.append(found)
            else:
                self.num_failures += 1
                self.last_failure = str(found)
            for waiter in pending.waiters:
                if not waiter.done():
                    if isinstance(found, Estimate):
                        waiter.set_result(found)
                    else:
                        waiter.set_exception(found)
        if fresh:
            for seen in self._watchers:
                seen(fresh)
        for found in fresh:  # nobody looks at it again, and it is most of the memory
            found.embedding = None

    def _remember(self, key: str | bytes, found: Estimate) -> None:
        if self._cache_size:
            found.era = self._era
            self._cache[key] = found
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    # --- anywhere ---

    def _work_on(
        self, batch: list[_Pending]
    ) -> list[tuple[_Pending, Estimate | RouterFailedError]]:
        started = time.perf_counter()
        found: Sequence[Estimate | RouterFailedError]
        try:
            found = self.estimate([pending.text for pending in batch])
        except Exception as error:  # noqa: BLE001 - one prompt must not fail the others of its batch
            found = [self._one(p.text) for p in batch] if len(batch) > 1 else [_failed(error)]
        took = (time.perf_counter() - started) / len(batch)
        self._weigh(took, is_short=all(len(p.text) <= self._inline_chars for p in batch))
        return list(zip(batch, found, strict=True))

    def _weigh(self, took: float, *, is_short: bool) -> None:
        """Note the seconds of a prompt; those of short ones decide where the next are estimated."""
        self.seconds += _WEIGHT * (took - self.seconds)
        if not is_short:
            return
        self._pace += _WEIGHT * (min(took, _LONGEST_COUNTED) - self._pace)
        if self._pace > _LOOP_SECONDS:
            self.is_inline = False
        elif self._pace < _LOOP_SECONDS / 2:
            self.is_inline = True

    def _one(self, text: str) -> Estimate | RouterFailedError:
        try:
            return self.estimate([text])[0]
        except Exception as error:  # noqa: BLE001 - whatever a router may raise
            return _failed(error)

    def _run(self) -> None:
        """Estimate what is handed over, all that waits at once, until told to stop."""
        while True:
            item = self._work.get()
            if item is None:
                return
            loop, batch = item
            is_last = False
            while len(batch) < self._max_batch and not self._work.empty():
                more = self._work.get()
                if more is None:
                    is_last = True
                    break
                batch += more[1]
            results = self._work_on(batch)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._deliver, results)
            if is_last:
                return
            time.sleep(0)  # lets the event loop have the interpreter between two batches


async def within(waiter: Waiter, budget_s: float | None) -> Estimate | None:
    """Return what ``Estimates.ask`` promised; None where it takes longer than the budget.

    A late estimate is remembered all the same. The budget is as fine as the event loop's timers, a
    millisecond. Raises RouterFailedError.
    """
    if budget_s is None:
        return await waiter
    timer = asyncio.get_running_loop().call_later(budget_s, _expire, waiter)
    try:
        return await waiter
    finally:
        timer.cancel()


def _key(text: str) -> str | bytes:
    if len(text) <= _LEAST_HASHED:
        return text
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _failed(error: Exception) -> RouterFailedError:
    if isinstance(error, RouterFailedError):
        return error
    failed = RouterFailedError(f"{type(error).__name__}: {error}"[:200])
    failed.__cause__ = error
    return failed


def _expire(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
