from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.datasets.routerarena import ArenaRow
from crossroads.prompts.routerarena.scoring import METRICS
from crossroads.prompts.routerarena.templates import option_letter, render_prompt, shorten


def test_a_long_prompt_keeps_its_first_and_last_five_thousand_characters() -> None:
    text = "a" * 5000 + "b" * 5 + "c" * 5000
    assert shorten(text) == "a" * 5000 + "..." + "c" * 5000
    assert shorten("x" * 10_000) == "x" * 10_000


@given(st.integers(9_990, 12_000))
def test_shortening_again_changes_nothing(length: int) -> None:
    once = shorten("".join(chr(97 + n % 26) for n in range(length)))
    assert shorten(once) == once
    assert len(once) <= 10_003


def test_multiple_choice_lists_the_options_and_asks_for_a_box() -> None:
    row = ArenaRow(
        global_index="MMLU_1", source="MMLU", question="Which?", context="Some facts.",
        options=("red", "blue"),
    )  # fmt: skip
    prompt = render_prompt(row)
    assert "Context:\nSome facts." in prompt
    assert "A. red\nB. blue" in prompt
    assert "\\boxed{X}" in prompt


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_template_that_says_how_to_answer(metric: str) -> None:
    row = ArenaRow(global_index="X_1", source="X", question="Which?", metric=metric)
    asked = "```python" if metric == "code_accuracy" else "\\boxed{"
    assert asked in render_prompt(row)
    assert "Context" not in render_prompt(row)


def test_translations_are_asked_for_as_such_and_given_prompts_are_kept() -> None:
    row = ArenaRow(global_index="WMT19-de-en_1", source="WMT19-de-en", question="Hallo",
                   metric="meteor_score")  # fmt: skip
    assert "Translate" in render_prompt(row)
    given = ArenaRow(global_index="X_1", source="X", prompt="as published")
    assert render_prompt(given) == "as published"


def test_options_after_z_have_no_letter() -> None:
    assert [option_letter(n) for n in (0, 25, 26)] == ["A", "Z", "-"]
