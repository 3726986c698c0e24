from __future__ import annotations

from collections.abc import Callable

import pytest

from crossroads.adapters.collection import tasks as module
from crossroads.adapters.collection.rows import place
from crossroads.adapters.collection.tasks import Task, get_task, task_names, tasks
from crossroads.core.errors import UnavailableError, UsageError
from crossroads.datasets import tatoeba

SHARED = {"bbh-logic", "bbh-deduction", "gsm8k", "medqa-fr"}


@pytest.fixture(scope="module")
def all_tasks() -> list[Task]:
    try:
        return tasks()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def found(all_tasks: list[Task]) -> Callable[[str], Task]:
    return {task.name: task for task in all_tasks}.__getitem__


def test_there_are_twelve_experts_and_nine_tasks_without_one() -> None:
    assert len(task_names(held_in=True)) == 12
    assert len(task_names(held_in=False)) == 9
    assert task_names() == [*task_names(held_in=True), *task_names(held_in=False)]


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        get_task("gsm8")


def test_four_experts_share_a_frame_with_the_held_out_tasks_of_bbh(
    all_tasks: list[Task],
) -> None:
    framed = {task.name for task in all_tasks if task.frame == module.QUESTION}
    unseen = {name for name in task_names(held_in=False) if name.startswith("bbh")}
    assert framed == SHARED | unseen
    assert len(unseen) == 4


def test_no_prompt_lies_on_two_sides(all_tasks: list[Task]) -> None:
    for task in all_tasks:
        places = [{place(row.prompt) for row in part} for part in task.rows.values()]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert not places[first] & places[second], task.name


def test_a_training_batch_is_about_512_tokens(all_tasks: list[Task]) -> None:
    assert all(460 <= task.length * task.batch <= 560 for task in all_tasks)


def test_every_answer_is_one_of_its_options(all_tasks: list[Task]) -> None:
    for task in all_tasks:
        for row in task.rows["test"][:100]:
            assert row.options is None or len(set(row.options)) == len(row.options)
            assert (row.right >= 0) is task.has_options
            assert row.answer.startswith(" ") or task.frame == module.PLAIN


def test_no_english_sentence_of_a_held_out_language_was_trained_on(
    found: Callable[[str], Task],
) -> None:
    trained = {pair.english for pair in tatoeba.load(languages=["deu", "fra", "spa"])}
    for code in ("nld", "por", "ita"):
        answers = {row.answer.strip() for row in found(f"tatoeba-{code}").rows["test"]}
        assert len(answers) > 500 and not answers & trained


def test_an_english_sentence_of_two_languages_lies_on_one_side(
    found: Callable[[str], Task],
) -> None:
    german, french = (found(f"tatoeba-{code}").rows for code in ("deu", "fra"))

    def answers(rows: module.Rows, split: str) -> set[str]:
        return {row.answer for part, kept in rows.items() if part == split for row in kept}

    assert not answers(german, "train") & answers(french, "test")
    assert not answers(french, "train") & answers(german, "test")
    assert answers(german, "train") & answers(french, "train")


def test_intents_kept_aside_are_never_answers_or_options_of_training(
    found: Callable[[str], Task],
) -> None:
    for half in ("clinc-a", "clinc-b"):
        aside = {row.answer for row in found(f"{half}-unseen").rows["test"]}
        assert len(aside) == 15  # three of each of five domains
        for row in found(half).rows["train"]:
            assert not aside & {row.answer, *(row.options or ())}


def test_plain_text_is_cut_at_line_ends_and_nothing_is_lost_but_the_rest() -> None:
    text = "".join(f"line {n} of a text\n" for n in range(200))
    rows = list(module._blocks(text))
    assert text.startswith("".join(row.prompt + row.answer for row in rows))
    assert all(row.prompt.endswith("\n") and row.answer.endswith("\n") for row in rows)
    assert len(text) - sum(len(row.prompt + row.answer) for row in rows) < module._BLOCK + 20
