from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UnavailableError
from crossroads.prompts.experts.base import Completion, ExpertError, Request
from crossroads.prompts.readers import write_outcomes
from crossroads.prompts.routerarena import page, submitting
from crossroads.prompts.routerarena.board import Board, DataSource, open_board
from crossroads.prompts.routerarena.brought import estimated_tokens
from crossroads.prompts.routerarena.inference import InferenceSettings
from crossroads.prompts.routerarena.page import read_leaderboard
from crossroads.prompts.routerarena.submission import Submission
from crossroads.prompts.routerarena.submitting import submit
from crossroads.prompts.routerarena.validate import SubmissionError
from tests.prompts.routerarena.toy import ToyExpert, toy_live, toy_submission, toy_table


@pytest.fixture(autouse=True)
def _light_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real page is 5 MB; test_page looks at it."""
    monkeypatch.setattr(page, "render_report", lambda board, plots: f"{board.rows} {len(plots)}")
    return


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    write_outcomes(toy_table(), tmp_path / "outcomes.csv")
    return DataSource(outcomes=str(tmp_path / "outcomes.csv"))


@pytest.fixture
def board(tmp_path: Path, source: DataSource) -> Board:
    return open_board(tmp_path / "board", source)


def one(board: Board, name: str, *models: str) -> Submission:
    return toy_submission(board.evaluation, models=models, router_name=name)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_better_and_cheaper_of_two_is_ahead(board: Board) -> None:
    small = submit(board, one(board, "always-small", "small"))
    large = submit(board, one(board, "always-large", "large"))
    assert (small.rank, large.rank) == (1, 1)  # large came second and took the first place
    rows = read_leaderboard(board.folder)["rows"]
    assert [(row["rank"], row["router_name"]) for row in rows] == [
        (1, "always-large"), (2, "always-small"),
    ]  # fmt: skip
    assert rows[0]["arena_score"] > rows[1]["arena_score"]


def test_each_submission_leaves_a_summary_and_an_archived_file(board: Board) -> None:
    submit(board, one(board, "toy", "small", "large"))
    (summary,) = (board.folder / "results").iterdir()
    assert summary.name.endswith("-toy.json")
    archived = json.loads((board.folder / "submissions" / "toy.json").read_text())
    assert [entry["accuracy"] for entry in archived["predictions"]] == [1, 0, 0, 1, 0.5, 0.25]
    assert archived["predictions"][1]["cost"] == 0.01
    assert not list(board.folder.rglob("*.tmp"))


def test_submitting_again_changes_nothing(board: Board) -> None:
    submission = one(board, "toy", "small", "large")
    first = submit(board, submission)
    before = content(board.folder)
    again = submit(board, submission)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.figures == first.figures
    assert content(board.folder) == before


def test_forcing_scores_again_with_the_same_result(board: Board) -> None:
    submission = one(board, "toy", "small", "large")
    submit(board, submission)
    before = content(board.folder)
    forced = submit(board, submission, force=True)
    assert forced.num_reused == 0 and not forced.is_new and not forced.is_changed
    assert content(board.folder) == before


@pytest.mark.parametrize("place", ["submissions", "results"])
@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_file_is_named_with_its_remedy_which_works(
    board: Board, place: str, text: str
) -> None:
    submission = one(board, "toy", "small", "large")
    first = submit(board, submission)
    (path,) = (board.folder / place).iterdir()
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{place}/.*toy\.json: damaged .*delete it and submit"):
        submit(board, submission)
    path.unlink()
    again = submit(board, submission)
    assert again.figures["arena_score"] == first.figures["arena_score"]
    assert len(board.results()) == 1
    assert len(list((board.folder / place).iterdir())) == 1


def test_a_name_stays_taken_when_its_archived_file_is_gone(board: Board) -> None:
    submit(board, one(board, "toy", "small"))
    board.archive("toy").unlink()
    with pytest.raises(InputError, match="another submission named 'toy'"):
        submit(board, one(board, "toy", "large"))


def test_a_second_file_of_the_same_name_is_refused(board: Board) -> None:
    submit(board, one(board, "toy", "small"))
    before = content(board.folder)
    with pytest.raises(InputError, match="another submission named 'toy'"):
        submit(board, one(board, "toy", "large"))
    assert content(board.folder) == before


def test_a_submission_stopped_before_its_figures_is_judged_again(board: Board) -> None:
    submission = one(board, "toy", "small")
    submit(board, submission)
    for path in (board.folder / "results").iterdir():
        path.unlink()
    assert submit(board, submission).is_new
    assert len(list((board.folder / "results").iterdir())) == 1


def test_a_leaderboard_that_was_not_written_any_more_is_made_up_for(board: Board) -> None:
    submission = one(board, "toy", "small")
    submit(board, submission)
    (board.folder / "leaderboard.json").unlink()
    assert not submit(board, submission).is_new
    assert len(read_leaderboard(board.folder)["rows"]) == 1


def test_a_wrong_submission_leaves_no_trace(board: Board) -> None:
    before = content(board.folder)
    with pytest.raises(SubmissionError):
        submit(board, replace(one(board, "toy", "small"), predictions=[]))
    assert content(board.folder) == before


def test_a_live_board_asks_scores_and_counts_failures(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    experts: list[ToyExpert] = []

    def build(card: object) -> ToyExpert:
        experts.append(ToyExpert("small", fails_on="France"))
        return experts[-1]

    outcome = submit(board, one(board, "toy", "small"), build=build)
    # "A" is right on rows 0, 2 and 4; row 0 fails.
    assert outcome.figures["accuracy"] == pytest.approx(100 * 2 / 6)
    assert outcome.figures["num_failed"] == 1
    assert outcome.figures["cost_per_1k_usd"] == pytest.approx(1000 * (100 + 2 * 10) / 1e6)
    second = submit(board, one(board, "again", "small"), build=build)
    assert len(experts[1].asked) == 1  # only what failed
    assert second.num_reused == 5


class Down(ToyExpert):
    """Has an outage from the third question on."""

    async def complete(self, request: Request) -> Completion:
        if len(self.asked) >= 2:
            raise ExpertError("no connection", status=503)
        return await super().complete(request)


ONCE = InferenceSettings(num_retries=0, concurrency=1)


def test_an_outage_publishes_nothing_and_the_next_run_continues(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    submission = one(board, "toy", "small")
    with pytest.raises(UnavailableError) as caught:
        submit(board, submission, build=lambda card: Down("small"), settings=ONCE)
    told = str(caught.value)
    assert told.startswith("4 of 6 calls have no answer yet (small: 4; no connection)")
    assert "run this again" in told and len(told.splitlines()) == 1
    assert set(content(board.folder)) == {"cache/small.jsonl"}
    working = ToyExpert("small")
    outcome = submit(board, submission, build=lambda card: working)
    assert len(working.asked) == 4
    assert outcome.is_new and outcome.figures["num_failed"] == 0
    assert outcome.figures["accuracy"] == 50


def test_forcing_rewrites_all_that_is_stored_of_a_submission(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    submission = one(board, "toy", "small")
    refusing = ToyExpert("small", fails_on="France")
    submit(board, submission, build=lambda card: refusing)
    forced = submit(board, submission, force=True, build=lambda card: ToyExpert("small"))
    assert not forced.is_new and forced.is_changed
    assert forced.figures["num_failed"] == 0 and forced.figures["notes"] == []
    assert [figures["num_failed"] for figures in board.results()] == [0]
    assert read_leaderboard(board.folder)["rows"][0]["num_failed"] == 0
    archived = json.loads(board.archive("toy").read_text())["predictions"][0]
    assert archived["generated_result"]["success"] is True and archived["accuracy"] == 1
    assert not list(board.folder.rglob("*.tmp"))


def test_an_outage_while_forcing_changes_nothing(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    submission = one(board, "toy", "small")
    submit(board, submission, build=lambda card: ToyExpert("small", fails_on="France"))
    before = content(board.folder)
    with pytest.raises(UnavailableError, match="1 of 6 calls"):
        submit(
            board, submission, force=True, settings=ONCE,
            build=lambda card: Down("small", asked=["", ""]),
        )  # fmt: skip
    assert content(board.folder) == before


def test_claimed_tokens_do_not_lower_the_cost(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    honest = submit(board, one(board, "toy", "small"), build=lambda card: ToyExpert("small"))
    assert honest.figures["notes"] == []
    bold = one(board, "bold", "large")
    result = {
        "generated_answer": "\\boxed{A}",
        "success": True,
        "token_usage": {"input_tokens": 0, "output_tokens": 0},
    }
    entries = [{**entry, "generated_result": result} for entry in bold.predictions]
    outcome = submit(board, replace(bold, predictions=entries))
    tokens = [estimated_tokens(row.prompt) for row in board.evaluation.rows]
    usd = sum(10.0 * read + 20.0 * estimated_tokens("\\boxed{A}") for read in tokens) / 1e6
    assert outcome.figures["cost_per_1k_usd"] == pytest.approx(1000 * usd / 6)
    assert outcome.figures["notes"][0].startswith("6 answers came with the submission: their tok")
    archived = json.loads(board.archive("bold").read_text())["predictions"][0]
    assert archived["cost"] > 0 and archived["generated_result"]["token_usage"]["estimated"] is True


def test_of_two_submissions_at_the_same_moment_one_gets_the_name(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = submitting.judge_calls

    def overtaken(*arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(submitting, "judge_calls", judge)
        submit(board, one(board, "toy", "large"))
        return judge(*arguments, **settings)

    monkeypatch.setattr(submitting, "judge_calls", overtaken)
    with pytest.raises(InputError, match="another submission named 'toy'"):
        submit(board, one(board, "toy", "small"))
    assert [f["models"] for f in board.results()] == [["large"]]


def test_half_characters_in_an_answer_do_not_stop_the_scoring(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    submission = one(board, "toy", "small")
    result = {
        "generated_answer": "\ud83d \\boxed{A}",
        "success": True,
        "token_usage": {"input_tokens": 1, "output_tokens": 1},
    }
    entries = [{**entry, "generated_result": result} for entry in submission.predictions]
    outcome = submit(board, replace(submission, predictions=entries))
    assert outcome.figures["accuracy"] == 50


def test_further_answers_give_optimality_on_a_live_board(tmp_path: Path) -> None:
    board = Board(folder=tmp_path / "live", source=DataSource(), evaluation=toy_live())
    submission = one(board, "toy", "large", "small")  # large on rows 0, 2 and 4
    further = [
        {**entry, "prediction": other, "for_optimality": True}
        for entry, other in zip(submission.predictions[:4], ("small", "large") * 2, strict=True)
    ]
    both = replace(submission, predictions=[*submission.predictions, *further])
    outcome = submit(board, both, build=lambda card: ToyExpert(card.name))
    # Rows 0 to 3 are known for both models; "A" is right on rows 0 and 2, small is the cheaper.
    assert outcome.figures["num_rows"] == 6
    assert outcome.figures["optimality"]["all_solvable"] == {
        "selection": 0.0, "cost": pytest.approx(10.0), "accuracy": 100.0, "num_rows": 2,
    }  # fmt: skip
