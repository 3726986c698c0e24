"""What is wrong with a submission: every problem, not only the first.

A model counts as known only when its canonical name is spelt out in the board's pool; a name that
contains a known one is unknown, whatever it would be billed as.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.submission import INDEX, Submission, is_number, token_counts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")  # it becomes a file's name
_FIELDS = (INDEX, "prompt", "prediction")


class SubmissionError(InputError):
    """A submission that cannot be judged; ``problems`` lists everything found, one line each."""

    def __init__(self, problems: list[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"submission refused: {problems[0]}{more}")
        self.problems = problems


def problems_of(
    submission: Submission, evaluation: EvaluationSet, *, results: bool = False
) -> list[str]:
    """Return every problem of a submission, in a fixed order; empty when there is none.

    ``results`` demands generated results, as before scoring; a replay brings its own.
    """
    problems = [*_config_problems(submission, evaluation)]
    allowed = _allowed(submission)
    problems += _size_problems(submission, evaluation)
    for number, entry in enumerate(submission.predictions, start=1):
        where = f"prediction {number}"
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: expected an object, got {type(entry).__name__}")
            continue
        problems += (f"{where}{told}" for told in _entry_problems(entry, evaluation, allowed))
        if results and evaluation.replay is None:
            problems += (f"{where}{told}" for told in _result_problems(entry))
    problems += _robustness_problems(submission, evaluation, allowed)
    return problems


def check_submission(
    submission: Submission, evaluation: EvaluationSet, *, results: bool = False
) -> None:
    """Raise SubmissionError where there is any problem."""
    problems = problems_of(submission, evaluation, results=results)
    if problems:
        raise SubmissionError(problems)


def _config_problems(submission: Submission, evaluation: EvaluationSet) -> Iterator[str]:
    name = submission.config.get("router_name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield (
            f"config: router_name {name!r:.60} is no plain name; use up to 80 letters, digits, "
            "dots, dashes or underscores"
        )
    models = submission.config.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        yield f"config: models: expected a list of names, got {models!r:.60}"
    else:
        known = evaluation.model_by_canonical
        for model, times in Counter(map(canonical_name, models)).items():
            if times > 1:
                yield f"config: model {model!r} is named {times} times"
            if model not in known:
                yield (
                    f"config: no price is known for model {model!r}; the board's pool has "
                    f"{', '.join(sorted(known))}, to be spelt in full"
                )
    decision_ms = submission.config.get("decision_ms")
    if decision_ms is not None and not (is_number(decision_ms) and decision_ms > 0):
        yield f"config: decision_ms: expected milliseconds above 0, got {decision_ms!r:.40}"
    remarks = submission.config.get("remarks", [])
    if not isinstance(remarks, list) or not all(isinstance(text, str) for text in remarks):
        yield f"config: remarks: expected a list of texts, got {remarks!r:.40}"


def _allowed(submission: Submission) -> set[str]:
    models = submission.config.get("models")
    if not isinstance(models, list):
        return set()
    return {canonical_name(model) for model in models if isinstance(model, str)}


def _size_problems(submission: Submission, evaluation: EvaluationSet) -> Iterator[str]:
    entries = [e for e in submission.predictions if isinstance(e, Mapping)]
    main = [str(e.get(INDEX)) for e in entries if e.get("for_optimality") is not True]
    further = [
        (str(e.get(INDEX)), canonical_name(str(e.get("prediction"))))
        for e in entries
        if e.get("for_optimality") is True
    ]
    if len(main) != len(evaluation.rows):
        yield f"predictions: expected {len(evaluation.rows)} rows, got {len(main)}"
    for index, times in Counter(main).items():
        if times > 1:
            yield f"predictions: row {index!r} is predicted {times} times"
    for (index, model), times in Counter(further).items():
        if times > 1:
            yield f"predictions: row {index!r} for optimality by {model!r} is given {times} times"
    given = set(main)
    for row in evaluation.rows:
        if row.global_index not in given:
            yield f"predictions: row {row.global_index!r} is missing"


def _entry_problems(
    entry: Mapping[str, Any], evaluation: EvaluationSet, allowed: set[str]
) -> Iterator[str]:
    """Yield problems to be put behind the entry's place."""
    for field in _FIELDS:
        if not isinstance(entry.get(field), str):
            yield f": field {field!r}: expected text, got {entry.get(field)!r:.40}"
    index, prompt = entry.get(INDEX), entry.get("prompt")
    if isinstance(index, str):
        place = evaluation.by_index.get(index)
        if place is None:
            yield f": no row {index!r} in the data set"
        elif isinstance(prompt, str) and prompt != evaluation.rows[place].prompt:
            yield f" ({index}): the prompt is not the data set's"
    model = entry.get("prediction")
    if isinstance(model, str) and canonical_name(model) not in allowed:
        yield f" ({index}): model {model!r} is not among the config's models"
    if not isinstance(entry.get("for_optimality", False), bool):
        yield f" ({index}): for_optimality: expected true or false"
    cost = entry.get("cost")
    if cost is not None and not (is_number(cost) and cost >= 0):
        yield f" ({index}): cost: expected USD, 0 or more, got {cost!r:.40}"


def _result_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    result, index = entry.get("generated_result"), entry.get(INDEX)
    if not isinstance(result, Mapping):
        yield f" ({index}): no generated result"
        return
    if result.get("success") is False:
        return  # a failure is a result: it scores 0
    if not isinstance(result.get("generated_answer"), str):
        yield f" ({index}): the generated result holds no answer"
    if token_counts(result) is None:
        yield f" ({index}): the generated result holds no token counts, its price is unknown"


def _robustness_problems(
    submission: Submission, evaluation: EvaluationSet, allowed: set[str]
) -> Iterator[str]:
    if submission.robustness is None:
        return
    expected = {(pair.global_index, pair.kind) for pair in evaluation.reworded}
    given: Counter[tuple[str, str]] = Counter()
    for number, entry in enumerate(submission.robustness, start=1):
        if not isinstance(entry, Mapping):
            yield f"robustness {number}: expected an object, got {type(entry).__name__}"
            continue
        place = (str(entry.get(INDEX)), str(entry.get("kind")))
        given[place] += 1
        if place not in expected:
            yield f"robustness {number}: the board has no {place[1]!r} wording of row {place[0]!r}"
        model = entry.get("prediction")
        if not isinstance(model, str) or canonical_name(model) not in allowed:
            yield f"robustness {number}: model {model!r:.60} is not among the config's models"
    for (index, kind), times in given.items():
        if times > 1:
            yield f"robustness: the {kind!r} wording of row {index!r} is given {times} times"
    num_missing = len(expected - set(given))
    if num_missing:
        yield f"robustness: {num_missing} of {len(expected)} reworded prompts have no choice"
