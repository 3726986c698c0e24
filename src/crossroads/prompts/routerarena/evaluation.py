"""What submissions are judged on: rows with prompts, prices, and recorded outcomes or answers.

Two kinds of board exist. A *replay* takes score, tokens and cost of every (row, model) from an
outcome table: no model is asked, the table is the answer key. A *live* one has rows with right
answers; models of its pool answer, and the answers are scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from crossroads.core.errors import InputError
from crossroads.datasets.routerarena import ArenaRow, read_rows
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool, read_pool
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.routerarena.difficulty import CutOffs, difficulty_levels
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.perturb import GENERATORS, perturb
from crossroads.prompts.routerarena.templates import render_prompt

ROBUSTNESS_PAIRS = 420  # as many as the arena's own split once had
_SEED = 0  # every submission meets the same wordings


@dataclass(frozen=True, kw_only=True, slots=True)
class Reworded:
    """A prompt of the set in other words."""

    global_index: str
    kind: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Rows, prices and answer key of a board.

    Attributes
    ----------
    name : shown on the board
    rows : every prompt rendered, indices unique
    pool : prices (and, on a live board, endpoints) of the models that may be named
    replay : outcomes by row, in the rows' order; None on a live board
    reworded : what robustness is judged on
    cut_offs : how the difficulty of a replay was told
    notes : what a reader of the figures must know
    """

    name: str
    rows: tuple[ArenaRow, ...]
    pool: Pool
    replay: OutcomeTable | None = None
    reworded: tuple[Reworded, ...] = ()
    cut_offs: CutOffs | None = None
    notes: tuple[str, ...] = ()

    @property
    def evidence(self) -> str:
        return "live answers" if self.replay is None else "replayed outcomes"

    @cached_property
    def by_index(self) -> dict[str, int]:
        """Position of each row by its global index."""
        return {row.global_index: n for n, row in enumerate(self.rows)}

    @cached_property
    def model_by_canonical(self) -> dict[str, str]:
        """The pool's spelling of each canonical name."""
        return {canonical_name(name): name for name in self.pool.names}

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; changes with any row, answer, rewording, price or recorded outcome."""
        digest = hashlib.blake2b(digest_size=8)
        for row in self.rows:
            digest.update(repr((row.global_index, row.prompt, row.metric, row.answers)).encode())
        for pair in self.reworded:
            digest.update(repr((pair.global_index, pair.kind, pair.prompt)).encode())
        prices = [(c.name, c.price_in, c.price_out, c.price_per_call) for c in self.pool]
        digest.update(repr(prices).encode())
        if self.replay is not None:
            digest.update(np.ascontiguousarray(self.replay.score).tobytes())
            digest.update(np.ascontiguousarray(self.replay.cost).tobytes())
        return digest.hexdigest()


def replay_set(
    table: OutcomeTable,
    *,
    pool: Pool | None = None,
    name: str = "",
    cut_offs: CutOffs | None = None,
) -> EvaluationSet:
    """Return the set of an outcome table: rows with a text that every model answered at a cost.

    Where the table has a ``split`` column only its ``test`` rows are judged, so that routers may be
    fitted on the others. Difficulty is told by the table's own models where it has no such column.
    Raises InputError for a table without costs or where no row is left.
    """
    if table.cost is None:
        raise InputError(
            f"table {table.source!r} has no costs; give a pool with prices and token counts"
        )
    if table.cost_unit != "USD":
        raise InputError(
            f"table {table.source!r} counts costs in {table.cost_unit}, the arena score is defined "
            "in USD; give a pool with prices in USD"
        )
    usable = table.complete & np.isfinite(table.cost).all(axis=1)
    texts = table.texts if table.texts is not None else np.full(len(table), "", dtype=object)
    has_text = np.array([bool(text) for text in texts])
    is_judged = np.ones(len(table), bool) if table.split is None else table.split != "train"
    rows = np.flatnonzero(usable & has_text & is_judged)
    if len(rows) == 0:
        raise InputError(
            f"table {table.source!r}: no prompt to judge on has a text and all its outcomes"
        )
    kept = table.take(rows)
    cut = cut_offs or CutOffs()
    notes = [kept.source] if kept.source else []
    if table.split is not None:
        notes.append(f"judged on the {int(is_judged.sum())} of {len(table)} prompts marked test")
    left_out = int(is_judged.sum()) - len(kept)
    if left_out:
        notes.append(f"{left_out} prompts have no text or not all outcomes: left out")
    return _finished(
        EvaluationSet(
            name=name or table.source,
            rows=tuple(_table_rows(kept, cut)),
            pool=(pool or Pool.of(kept.models)).subset(kept.models),
            replay=kept,
            cut_offs=cut,
            notes=tuple(notes),
        )
    )


def live_set(
    rows: Sequence[ArenaRow],
    pool: Pool,
    *,
    name: str,
    reworded: Sequence[ArenaRow] = (),
) -> EvaluationSet:
    """Return the set of published rows, to be answered by the pool's models.

    ``reworded`` are rows of the robustness split; their global indices name the rows they reword.
    Raises InputError where an answer is hidden, or no reworded row has its original in ``rows``.
    """
    hidden = [row.global_index for row in rows if not row.answers]
    if hidden:
        raise InputError(
            f"{name}: the answers of {len(hidden)} rows are hidden (first: {hidden[0]!r}); "
            "give a split with answers, such as sub_10"
        )
    evaluation = EvaluationSet(
        name=name,
        rows=tuple(replace(row, prompt=render_prompt(row)) for row in rows),
        pool=pool,
    )
    if not reworded:
        return _finished(evaluation)
    pairs = tuple(
        Reworded(global_index=row.global_index, kind="published", prompt=render_prompt(row))
        for row in reworded
        if row.global_index in evaluation.by_index
    )
    if not pairs:
        raise InputError(
            f"{name}: no row of the robustness split has its original among the rows; "
            "give the split that belongs to them"
        )
    return replace(evaluation, reworded=pairs)


def open_replay(outcomes: str, pool: str | None = None) -> EvaluationSet:
    """Return the set of a file, folder or shipped table, as ``read_outcomes`` reads it."""
    cards = None if pool is None else read_pool(pool)
    table = read_outcomes(outcomes, pool=cards)
    return replay_set(table, pool=cards, name=Path(outcomes).name or outcomes)


def open_live(
    rows: str, pool: str, *, split: str | None = None, reworded: str | None = None
) -> EvaluationSet:
    """Return the set of a file of published rows; see ``read_rows`` and ``live_set``."""
    other_words = [] if reworded is None else read_rows(reworded)
    return live_set(
        read_rows(rows, split=split),
        read_pool(pool),
        name=Path(rows).stem,
        reworded=other_words,
    )


def _table_rows(table: OutcomeTable, cut_offs: CutOffs) -> list[ArenaRow]:
    levels = difficulty_levels(table.score, cut_offs)
    given = table.difficulty if table.difficulty is not None else levels
    domain = table.domain if table.domain is not None else [""] * len(table)
    texts = table.texts if table.texts is not None else [""] * len(table)
    return [
        ArenaRow(
            global_index=str(table.prompt_ids[n]),
            source=str(domain[n] or ""),
            domain=str(domain[n] or ""),
            difficulty=str(given[n] or ""),
            prompt=str(texts[n]),
            metric="recorded",
        )
        for n in range(len(table))
    ]


def _finished(evaluation: EvaluationSet) -> EvaluationSet:
    """Add the reworded prompts: an even sample of the rows, all kinds in turn."""
    kinds = list(GENERATORS)
    num_rows = min(len(evaluation.rows), -(-ROBUSTNESS_PAIRS // len(kinds)))
    chosen = np.linspace(0, len(evaluation.rows) - 1, num_rows).round().astype(int)
    pairs = tuple(
        Reworded(
            global_index=evaluation.rows[n].global_index,
            kind=kind,
            prompt=perturb(evaluation.rows[n].prompt, kind, seed=_SEED),
        )
        for n in chosen
        for kind in kinds
    )
    return replace(evaluation, reworded=pairs)
