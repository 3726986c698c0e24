from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.routerarena.scoring import (
    METRICS,
    boxed,
    option_of,
    program_of,
    score_answer,
)


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "expected"),
    [
        ("mcq_accuracy", "So it is \\boxed{B}.", "1", 1),
        ("mcq_accuracy", "So it is \\boxed{b}", "B", 1),
        ("mcq_accuracy", "\\boxed{\\text{C}}", "2.0", 1),
        ("mcq_accuracy", "\\boxed{(A)}", "a", 1),
        ("mcq_accuracy", "\\boxed{B. Paris}", "B", 1),
        ("mcq_accuracy", "\\boxed{A} no, \\boxed{B}", "B", 1),
        ("mcq_accuracy", "\\boxed{A}", "B", 0),
        ("mcq_accuracy", "\\boxed{Answer}", "A", 0),
        ("mcq_accuracy", "The answer is B.", "B", 0),
        ("math_metric", "\\boxed{0.5}", "\\frac{1}{2}", 1),
        ("math_metric", "no box: 42", "42", 0),
        ("exact_match", "\\boxed{The Bahamas}", "Bahamas", 1),
        ("exact_match", "\\boxed{David Hume}", "David_Hume", 1),
        ("exact_match", "\\boxed{Hume}", "David_Hume", 0),
        ("chess_accuracy", "\\boxed{A2-a3}", "a2a3", 1),
        ("chess_accuracy", "\\boxed{a2a4}", "a2a3", 0),
        ("chess_accuracy", "Black wins: \\boxed{B}", "1", 1),
        ("superglue_exact_match", "\\boxed{1}", "1.0", 1),
        ("superglue_exact_match", "\\boxed{False}", "0.0", 1),
        ("superglue_exact_match", "\\boxed{yes}", "Yes", 1),
        ("superglue_exact_match", "\\boxed{B}", "No", 0),
        ("superglue_exact_match", "\\boxed{entailment}", "Entailment", 1),
        ("superglue_clozetest", "\\boxed{A. Windows 10}", "Windows 10", 1),
        ("superglue_clozetest", "\\boxed{Windows 10}", "Microsoft", 0),
        ("numeric", "\\boxed{1,810}", "1810", 1),
        ("meteor_score", "\\boxed{the cat sat}", "the cat sat", 1),
        ("meteor_score", "the cat sat", "the cat sat", 1),
    ],
)
def test_answers_score_as_their_metric_says(
    metric: str, answer: str, reference: str, expected: float
) -> None:
    assert score_answer(metric, answer, [reference]) == expected


def test_any_of_several_references_will_do() -> None:
    assert score_answer("exact_match", "\\boxed{b}", ["a", "b"]) == 1


@pytest.mark.parametrize("metric", [m for m in METRICS if m != "code_accuracy"])
@given(answer=st.text(max_size=60), reference=st.text(min_size=1, max_size=20))
def test_scores_are_shares_whatever_a_model_writes(
    metric: str, answer: str, reference: str
) -> None:
    if metric == "math_metric":  # formulas go through another process: the plain ones suffice
        reference, answer = "7", f"\\boxed{{{abs(hash(answer)) % 9}}}"
    assert 0 <= score_answer(metric, answer, [reference]) <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{{42}}", "42"),
        ("a \\boxed{1} b \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed", None),
        ("nothing", None),
    ],
)
def test_the_last_whole_box_counts(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


def test_boxes_that_are_never_closed_do_not_hold_the_scorer_up() -> None:
    assert boxed("\\boxed{" * 200_000) is None


def test_keys_are_letters_or_numbers_counted_from_zero() -> None:
    assert [option_of(key) for key in ("0", "2", "1.0", "b", " D ")] == ["A", "C", "B", "B", "D"]


def test_programs_are_run_only_by_a_runner() -> None:
    answer = "First\n```python\nx = 1\n```\nthen\n```python\nprint(2)\n```"
    assert program_of(answer) == "print(2)\n"
    seen = []

    def run(program: str, tests: str) -> float:
        seen.append((program, tests))
        return 0.5

    assert score_answer("code_accuracy", answer, ["tests"], run_code=run) == 0.5
    assert seen == [("print(2)\n", "tests")]
    with pytest.raises(InputError, match="--code-runner"):
        score_answer("code_accuracy", answer, ["tests"])
    with pytest.raises(InputError, match="share in"):
        score_answer("code_accuracy", answer, ["tests"], run_code=lambda program, tests: 2.0)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("```python\ns = '```'\nprint(s)\n```\nDone.", "s = '```'\nprint(s)\n"),
        ("```py\ndef f():\n    '''\n    ```\n    x\n    ```\n    '''\n```",
         "def f():\n    '''\n    ```\n    x\n    ```\n    '''\n"),
        ("1.\n   ```\n   x = 1\n   ```\n", "x = 1\n"),
        ("```\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("Take ```python\nx = 1```", "x = 1"),
        ("```python\nx = 1```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("x = 3", "x = 3"),
    ],
)  # fmt: skip
def test_fences_are_lines_of_their_own_where_there_are_such(answer: str, program: str) -> None:
    assert program_of(answer) == program


def test_hidden_answers_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(InputError, match="hidden"):
        score_answer("mcq_accuracy", "\\boxed{A}", [])
    with pytest.raises(UsageError, match="did you mean 'mcq_accuracy'"):
        score_answer("mcq_acuracy", "\\boxed{A}", ["A"])
