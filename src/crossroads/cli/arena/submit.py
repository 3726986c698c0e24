"""``crossroads arena submit``: check, answer, score and rank a submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import UsageError
from crossroads.core.progress import progress_bar

if TYPE_CHECKING:
    from crossroads.prompts.routerarena.board import Board
    from crossroads.prompts.routerarena.submission import Submission
    from crossroads.prompts.routerarena.submitting import Outcome

DEFAULT_BOARD = Path("runs/routerarena")


@click.command("submit")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--board",
    "board_folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEFAULT_BOARD,
    show_default=True,
    help="The leaderboard's folder; made on first use.",
)
@click.option(
    "--outcomes",
    metavar="F",
    help="A new board replays this table: a file, a data set folder or a shipped one.  "
    "[default: local]",
)
@click.option("--rows", metavar="F", help="A new board asks models these published rows.")
@click.option("--split", metavar="S", help="Size to demand of --rows: full, sub_10, robustness.")
@click.option("--reworded", metavar="F", help="The robustness split that belongs to --rows.")
@click.option("--pool", metavar="P", help="Prices (and endpoints) for a new board.")
@click.option(
    "--code-runner",
    metavar="R",
    default="",
    help="What runs programs on a new board: code, code:SECONDS or MODULE:FUNCTION.",
)
@click.option(
    "--prepare",
    metavar="R",
    help="First make DIR: a folder that crossroads fit wrote, always:MODEL, or random.",
)
@click.option("--name", metavar="N", help="With --prepare: the router's name on the board.")
@click.option("--rule", metavar="R", help="With --prepare: the decision rule.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--check", is_flag=True, help="Only say what is wrong with DIR.")
@click.option("--force", is_flag=True, help="Judge again what was judged before.")
@click.option("--jobs", type=click.IntRange(1), help="Scoring processes; one per core.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Bound on an answer, where models are asked.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON only.")
def command(
    *,
    folder: Path,
    board_folder: Path,
    outcomes: str | None,
    rows: str | None,
    split: str | None,
    reworded: str | None,
    pool: str | None,
    code_runner: str,
    prepare: str | None,
    name: str | None,
    rule: str | None,
    seed: int,
    check: bool,
    force: bool,
    jobs: int | None,
    max_tokens: int,
    as_json: bool,
) -> int:
    """Judge the submission in DIR and put it on a leaderboard.

    DIR holds config.json {router_name, models} and predictions.json, one entry per row with
    "global index", prompt and prediction. Missing answers are replayed, taken from the board's
    cache, or asked of the pool's models; scoring runs in a process of its own. Exit code 1 where
    the submission is refused, every problem listed, and where models did not answer for reasons
    that may pass: nothing is published then, and running it again asks for what is missing.

    JSON: {figures: {router_name, arena_score, accuracy, cost_per_1k_usd, num_rows, num_failed,
    optimality, robustness, latency, breakdown, remarks, notes, ...}, rank, is_new, is_changed,
    num_reused}; refused or with --check: {problems: [text]}.
    """
    from crossroads.prompts.routerarena.board import DataSource, open_board
    from crossroads.prompts.routerarena.submission import read_submission
    from crossroads.prompts.routerarena.validate import SubmissionError, check_submission

    if prepare is None and (name is not None or rule is not None):
        raise UsageError("--name and --rule go with --prepare: they say what to put in DIR")
    source = DataSource(
        outcomes=outcomes,
        rows=rows,
        pool=pool,
        split=split,
        reworded=reworded,
        code_runner=code_runner,
    )
    board = open_board(board_folder, source)
    if prepare is not None:
        _prepare(prepare, board, folder, name=name, rule=rule, seed=seed)
    submission = read_submission(folder)
    try:
        if check:
            check_submission(submission, board.evaluation)
            _tell([], as_json=as_json)
            return 0
        outcome = _submit(board, submission, force=force, jobs=jobs, max_tokens=max_tokens)
    except SubmissionError as error:
        _tell(error.problems, as_json=as_json)
        return 1
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=2))
    else:
        _show(outcome, board)
    return 0


def _prepare(
    spec: str, board: Board, folder: Path, *, name: str | None, rule: str | None, seed: int
) -> None:
    from crossroads.prompts.routerarena.prepare import chooser_of, prepare_submission
    from crossroads.prompts.routerarena.submission import write_submission

    chooser = chooser_of(spec, board.evaluation, rule=rule, seed=seed)
    write_submission(prepare_submission(chooser, board.evaluation, name=name), folder)


def _submit(
    board: Board, submission: Submission, *, force: bool, jobs: int | None, max_tokens: int
) -> Outcome:
    from crossroads.prompts.routerarena.inference import InferenceSettings
    from crossroads.prompts.routerarena.submitting import submit

    with progress_bar("answers") as progress:
        return submit(
            board,
            submission,
            force=force,
            num_processes=jobs,
            settings=InferenceSettings(max_tokens=max_tokens),
            progress=progress,
        )


def _tell(problems: list[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"problems": problems}, indent=2))
        return
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        click.echo(f"error: submission refused: {many}", err=True)
    else:
        click.echo("nothing is wrong with the submission")


def _show(outcome: Outcome, board: Board) -> None:
    figures: dict[str, Any] = dict(outcome.figures)
    if not outcome.is_new:
        change = "its figures changed" if outcome.is_changed else "nothing changed"
        click.echo(f"{figures['router_name']} was on the board already; {change}")
    click.echo(
        f"{figures['router_name']}: rank {outcome.rank} of {len(board.results())}, "
        f"arena score {figures['arena_score']:.2f} (accuracy {figures['accuracy']:.2f} %, "
        f"{figures['cost_per_1k_usd']:.4g} USD per 1,000) on {figures['num_rows']} rows of "
        f"{board.evaluation.name} ({board.evaluation.evidence})"
    )
    for note in figures["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"leaderboard {board.folder / 'leaderboard.html'}")
