"""``crossroads ledger``: look into a ledger, export it, judge its calls, delete old ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.words import counted
from crossroads.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from crossroads.gateway.ledger.feedback import Feedback
    from crossroads.gateway.ledger.reading import LedgerReader

_DAY_S = 86_400.0
_BATCH = 500  # judgements of one commit

_source = click.option(
    "--ledger",
    metavar="URL",
    required=True,
    help="sqlite:PATH, postgresql://..., or the path of an SQLite file.",
)
_since = click.option("--since", metavar="T", help="A date (2026-05-01), or a time ago (7d, 12h).")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look into a ledger, export it, judge its calls, delete old ones."""


@command.command()
@_source
@_since
@click.option("--out", metavar="F", type=click.Path(path_type=Path), required=True)
@click.option(
    "--what",
    type=click.Choice(["outcomes", "calls"]),
    default="outcomes",
    show_default=True,
    help="An outcome table for arena and fit, or every call as recorded.",
)
@click.option("--all", "keep_unjudged", is_flag=True, help="Outcomes: calls nobody judged, too.")
@click.option("--overwrite", is_flag=True, help="Replace F if it exists.")
def export(
    *,
    ledger: str,
    since: str | None,
    out: Path,
    what: str,
    keep_unjudged: bool,
    overwrite: bool,
) -> None:
    """Write F: outcomes to .parquet, .csv or .jsonl, calls to .parquet or .jsonl.

    Outcomes are read back by: crossroads fit auto --outcomes F. The arena compares models on
    prompts that all of them answered: those that came often while the policy explored.
    """
    from crossroads.gateway.evaluation.log import rewards_of
    from crossroads.gateway.evaluation.source import parse_since
    from crossroads.gateway.ledger.export import write_calls, write_outcome_table
    from crossroads.gateway.ledger.reading import Filters
    from crossroads.gateway.redaction import safe_url

    start = parse_since(since)
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or correct --out")
    if out.exists() and not overwrite:
        raise InputError(f"out {str(out)!r} exists; choose another name or pass --overwrite")
    with _open(ledger) as reader:
        records, feedback = reader.records(Filters(since=start)), reader.feedback(start)
        if what == "calls":
            click.echo(f"{counted(write_calls(records, feedback, out), 'call')} in {out}")
            return
        found = write_outcome_table(
            records, rewards_of(feedback), out, only_judged=not keep_unjudged
        )
    click.echo(
        f"{counted(found.rows, 'row')} of {counted(found.prompts, 'prompt')} and "
        f"{counted(found.models, 'model')}, made of {counted(found.calls, 'call')}, in {out}"
    )
    for reason, count in found.left_out.items():
        click.echo(f"left out: {count} {reason}")
    if found.rows == found.prompts:
        click.echo(
            "no prompt was answered by several models, so the arena cannot compare them on it; "
            f"fit a router on it (crossroads fit auto --outcomes {out} --out DIR) and judge that "
            f"by the ledger (crossroads evaluate --ledger {safe_url(ledger)} --router DIR)"
        )


@command.command()
@_source
@click.argument("decision_id")
def show(*, ledger: str, decision_id: str) -> None:
    """Print one call and what was said about it, as JSON."""
    with _open(ledger) as reader:
        entry = reader.get(decision_id)
    if entry is None:
        raise InputError(
            f"ledger: no decision {decision_id!r}; give one of x-crossroads-decision-id"
        )
    record = asdict(entry.record)
    record["features"] = None if record["features"] is None else f"{len(record['features'])} bytes"
    facts = {**record, "feedback": [asdict(each) for each in entry.feedback]}
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False))


@command.command()
@_source
@_since
@click.option("--best-model", metavar="M", help="Compare costs with always asking this model.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def summary(*, ledger: str, since: str | None, best_model: str | None, as_json: bool) -> None:
    """Print traffic, cost, errors, latency and savings.

    JSON: as the dashboard's, `since` in Unix seconds.
    """
    from crossroads.cli.summary import show_summary
    from crossroads.gateway.evaluation.source import parse_since

    start = parse_since(since)
    with _open(ledger) as reader:
        if best_model is not None:
            _check_costs(reader, best_model, start)
        found = reader.summary(start, best_model=best_model)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show_summary(found)


def _check_costs(reader: LedgerReader, model: str, since: float | None) -> None:
    """Refuse to compare with a model whose cost no decision knew."""
    known = reader.models_with_costs(since)
    if model not in known:
        problem = (
            unknown_name("model with costs in the ledger", model, known)
            if known
            else f"no decision knew the cost of {model!r}, or of any model; leave it out"
        )
        raise InputError(f"--best-model: {problem}")


@command.command()
@_source
@click.option("--days", type=click.FloatRange(0), required=True, help="Keep this many days.")
def prune(*, ledger: str, days: float) -> None:
    """Delete calls and feedback older than so many days."""
    import time

    with _open(ledger) as reader:
        gone = reader.prune(time.time() - _DAY_S * days)
    click.echo(f"{counted(gone, 'row')} deleted")


@command.command()
@_source
@click.argument("file", type=click.File("rb"))
def feedback(*, ledger: str, file: Any) -> None:
    """Add judgements from FILE (- for standard input): one JSON object a line.

    Fields as in POST /v1/feedback: decision_id, score or preference, source, comment. Nothing is
    added where a line is wrong or names a decision that is not in the ledger.
    """
    with _open(ledger) as reader:
        judged = [_judgement(reader, line, n) for n, line in enumerate(file, 1) if line.strip()]
        for start in range(0, len(judged), _BATCH):
            reader.add_feedback(judged[start : start + _BATCH])
    click.echo(f"{counted(len(judged), 'judgement')} added")


def _judgement(reader: LedgerReader, line: bytes, number: int) -> Feedback:
    from crossroads.gateway.errors import ApiError
    from crossroads.gateway.ledger.feedback import is_decision, parse_feedback

    try:
        found = parse_feedback(json.loads(line))
    except ApiError as error:
        raise InputError(f"feedback, line {number}: {error}") from error
    except ValueError:
        raise InputError(
            f"feedback, line {number}: no JSON; expected one object a line, such as "
            '{"decision_id": "dec_...", "score": 1}'
        ) from None
    for named in (found.decision_id, *([found.other] if is_decision(found.other) else [])):
        if reader.key_of(named) is None:
            raise InputError(
                f"feedback, line {number}: no decision {named!r} in the ledger; remove it"
            )
    return found


def _open(ledger: str) -> LedgerReader:
    from crossroads.gateway.evaluation.source import ledger_url
    from crossroads.gateway.ledger.reading import LedgerReader

    return LedgerReader(ledger_url(ledger))
