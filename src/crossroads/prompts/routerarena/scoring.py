"""How right an answer is, from 0 to 1, by the metric its row names.

=====================  =============================================================================
metric                 an answer scores
=====================  =============================================================================
mcq_accuracy           1 if the letter in its last ``\\boxed{}`` is the right option
math_metric            1 if the boxed result equals the right one as text, number or expression
exact_match            1 if the boxed text equals the answer, case, articles and punctuation aside
meteor_score           the unigram METEOR of the boxed text (of all of it where nothing is boxed)
chess_accuracy         1 if the boxed move, letters and digits alone, is the right one
superglue_exact_match  1 if the boxed judgement (1, true, yes; 0, false, no; a label) is right
superglue_clozetest    1 if the boxed option is the right one, with or without its letter
code_accuracy          what a runner of programs says: in RouterArena the share of hidden tests that
                       pass; the runner ``code`` says 1 if all of them pass, else 0
=====================  =============================================================================

The scorers of ``crossroads.prompts.scorers`` (``numeric``, ``contains``, ...) may be named as well.
Differences from the reference code, on purpose: an answer that boxes nothing is wrong (there it is
searched for a letter); letters do not stand for yes and no; METEOR is the published formula.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.prompts.routerarena.mathematics import same_result
from crossroads.prompts.routerarena.meteor import meteor
from crossroads.prompts.scorers import normalise_answer, parse_scorer

CodeRunner = Callable[[str, str], float]
"""Runs a program against tests, given as the row's answer, and returns a score in [0, 1]."""

_MOST_BOXES = 20  # left open one after the other: an answer must not be able to hold the scorer up
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OPENING = re.compile(r"([ \t]*)```([a-zA-Z0-9]*)[ \t]*")
_FENCE = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)```", re.DOTALL)  # not on lines of their own
_LETTER = re.compile(r"\W*([A-Za-z])(?:[).:\]\s]|$)")
_YES = frozenset({"1", "1.0", "true", "yes"})
_NO = frozenset({"0", "0.0", "false", "no"})


def score_answer(
    metric: str, answer: str, references: Sequence[str], *, run_code: CodeRunner | None = None
) -> float:
    """Return the score in [0, 1] of an answer; any of the references will do.

    Raises UsageError for an unknown metric, InputError for hidden references (none given) and for
    programs without a runner.
    """
    if metric not in METRICS:
        try:
            scorer = parse_scorer(metric)
        except UsageError:
            raise unknown_name("metric", metric, METRICS) from None
        return scorer(boxed(answer) or answer, _known(metric, references))
    if metric == "code_accuracy":
        if run_code is None:
            raise InputError(
                "metric 'code_accuracy' needs something that runs programs; name one with "
                "--code-runner MODULE:FUNCTION"
            )
        return _share(run_code(program_of(answer), _known(metric, references)[0]))
    judge = _JUDGES[metric]
    return max(judge(answer, reference) for reference in _known(metric, references))


def boxed(text: str) -> str | None:
    """Return what the last ``\\boxed{}`` of a text holds, braces balanced; None where none is."""
    end = len(text)
    for _ in range(_MOST_BOXES):
        start = text.rfind("\\boxed", 0, end)
        if start < 0:
            return None
        content = _braced(text, start + len("\\boxed"))
        if content is not None:
            return content
        end = start
    return None


def program_of(text: str) -> str:
    """Return the last fenced block of an answer, all of it where there is none.

    Fences are lines of their own, as far indented as each other, so that a program may hold some in
    its texts; only where no such pair is found any others count.
    """
    blocks = _blocks(text) or _FENCE.findall(text)
    return blocks[-1] if blocks else text


def _blocks(text: str) -> list[str]:
    """Return what stands between pairs of fence lines; an opening with a language starts anew."""
    found = []
    indent: str | None = None
    body: list[str] = []
    for line in text.split("\n"):
        opening = _OPENING.fullmatch(line.rstrip("\r"))
        if opening is not None and opening[1] == indent and not opening[2]:
            found.append("".join(f"{kept}\n" for kept in body))
            indent = None
        elif opening is not None and (indent is None or (opening[1] == indent and opening[2])):
            indent, body = opening[1], []
        elif indent is not None:
            body.append(line.removeprefix(indent))
    return found


def option_of(key: str) -> str:
    """Return the option letter of an answer key: ``b``, ``B``, or a number counted from 0."""
    text = key.strip()
    if re.fullmatch(r"\d{1,2}(?:\.0)?", text) and int(float(text)) < 26:
        return chr(ord("A") + int(float(text)))
    return text.upper()


def _known(metric: str, references: Sequence[str]) -> Sequence[str]:
    if not references:
        raise InputError(
            f"metric {metric!r}: the right answer is hidden; score on a split with answers"
        )
    return references


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"code runner: expected a share in [0, 1], got {value!r}")
    return float(value)


def _braced(text: str, start: int) -> str | None:
    rest = text[start:].lstrip()
    if not rest.startswith("{"):
        return None
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return _unwrapped(rest[1:place])
    return None


def _unwrapped(text: str) -> str:
    """Strip doubled braces and text commands around a boxed answer."""
    text = text.strip()
    while (
        inner := re.fullmatch(r"(?:\\(?:text|mathrm|textbf|mathbf))?\{([^{}]*)\}", text)
    ) is not None:
        text = inner[1].strip()
    return text


def _choice(answer: str, reference: str) -> float:
    found = _LETTER.match(boxed(answer) or "")
    return float(found is not None and found[1].upper() == option_of(reference))


def _mathematics(answer: str, reference: str) -> float:
    return float(same_result(boxed(answer) or "", reference))


def _exact(answer: str, reference: str) -> float:
    wanted = _plain(reference)
    return float(bool(wanted) and _plain(boxed(answer) or "") == wanted)


def _meteor(answer: str, reference: str) -> float:
    found = boxed(answer)
    return meteor(answer if found is None else found, reference)


def _chess(answer: str, reference: str) -> float:
    wanted = _move(reference)
    if wanted.isdigit():  # the result of a game, put as options
        return _choice(answer, wanted)
    return float(bool(wanted) and _move(boxed(answer) or "") == wanted)


def _judgement(answer: str, reference: str) -> float:
    found, wanted = (boxed(answer) or "").strip().casefold(), reference.strip().casefold()
    for same in (_YES, _NO):
        if wanted in same:
            return float(found in same)
    return float(bool(wanted) and found == wanted)


def _cloze(answer: str, reference: str) -> float:
    found = boxed(answer) or ""
    without_letter = re.sub(r"^\s*[A-Z][.):]\s+", "", found)
    wanted = _plain(reference)
    return float(bool(wanted) and wanted in {_plain(found), _plain(without_letter)})


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", normalise_answer(text)).split())


def _move(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


_JUDGES: dict[str, Callable[[str, str], float]] = {
    "mcq_accuracy": _choice,
    "math_metric": _mathematics,
    "exact_match": _exact,
    "meteor_score": _meteor,
    "chess_accuracy": _chess,
    "superglue_exact_match": _judgement,
    "superglue_clozetest": _cloze,
}
METRICS = (*_JUDGES, "code_accuracy")
