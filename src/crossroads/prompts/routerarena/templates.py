"""Zero-shot prompts: how a row of the data set is put to a model.

The wording is ours; what it asks for is what the metrics read: the final answer in ``\\boxed{}``
(a program in a fenced block for code). A prompt of more than 10,000 characters becomes its first
and last 5,000 with ``...`` between.
"""

from __future__ import annotations

from string import ascii_uppercase

from crossroads.datasets.routerarena import ArenaRow

LONGEST_PROMPT = 10_000
_HALF = LONGEST_PROMPT // 2

_TASK = {
    "mcq_accuracy": "Choose the one option that answers the question best.",
    "math_metric": "Solve the problem.",
    "exact_match": "Answer the question with the usual name of the person, place or thing meant.",
    "meteor_score": "Answer from the text given, in one sentence.",
    "translation": "Translate the text; write nothing but the translation.",
    "code_accuracy": "Write a complete Python program that solves the problem.",
    "chess_accuracy": "Find the move asked for.",
    "superglue_exact_match": "Judge the statement or pair below.",
    "superglue_clozetest": "Choose the option that fills the gap in the passage.",
    "numeric": "Work out the number asked for.",
}
_ANSWER = {
    "mcq_accuracy": "End with the letter of your choice as \\boxed{X}, X being that letter.",
    "math_metric": "End with the exact result, a number or an expression, as \\boxed{RESULT}.",
    "exact_match": "End with the answer as \\boxed{ANSWER}.",
    "meteor_score": "End with the answer as \\boxed{ANSWER}.",
    "translation": "Give the translation as \\boxed{TRANSLATION}.",
    "code_accuracy": "Give the program in one block fenced by ```python and ```.",
    "chess_accuracy": "End with the move in coordinates, such as \\boxed{a2a3}.",
    "superglue_exact_match": "End with \\boxed{1} for yes or true, \\boxed{0} for no or false.",
    "superglue_clozetest": "End with the text of your choice as \\boxed{TEXT}.",
    "numeric": "End with the number as \\boxed{NUMBER}.",
}


def render_prompt(row: ArenaRow) -> str:
    """Return the prompt of a row: its own where the data set gives one, else the template's."""
    if row.prompt:
        return shorten(row.prompt)
    kind = "translation" if row.source.startswith("WMT19") else row.metric
    parts = [_TASK.get(kind, "Answer the question.")]
    if row.context:
        parts.append(f"Context:\n{row.context}")
    parts.append(f"Question:\n{row.question}")
    if row.options:
        lines = (f"{option_letter(n)}. {text}" for n, text in enumerate(row.options))
        parts.append("Options:\n" + "\n".join(lines))
    parts.append(_ANSWER.get(kind, "End with the answer as \\boxed{ANSWER}."))
    return shorten("\n\n".join(parts))


def shorten(text: str) -> str:
    """Return the text, its middle replaced by ``...`` where it is longer than allowed."""
    if len(text) <= LONGEST_PROMPT:
        return text
    return f"{text[:_HALF]}...{text[-_HALF:]}"


def option_letter(number: int) -> str:
    """Return the letter of an option counted from 0; ``-`` after Z."""
    return ascii_uppercase[number] if number < len(ascii_uppercase) else "-"
