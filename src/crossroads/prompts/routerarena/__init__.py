"""RouterArena: judge routers on one data set, keep a leaderboard (arXiv 2510.00202).

A board's folder knows what it judges on (``open_board``); a router of this library, or anybody's
prediction file, becomes a row of it (``prepare_submission``, ``submit``). The pieces work alone:
rows and prompts, scorers, difficulty, figures, rewordings.

Where this differs from the reference code:

- a failed answer scores 0 and is charged; there it is left out of the accuracy and free. While
  models are out of reach nothing is judged;
- tokens of answers that come with a submission are estimated from the texts, not believed;
- optimality counts every solvable row; the later reading, rows the router got right, is beside it;
- a model's name must be spelt in full; there, a name that contains a known one gets its price;
- METEOR is the published formula on exact words; unboxed answers are wrong;
- rewordings are generated offline; the map from milliseconds to a latency score is ours.

The public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossroads.prompts.routerarena.board import Board, DataSource, open_board
    from crossroads.prompts.routerarena.cache import ResponseCache
    from crossroads.prompts.routerarena.difficulty import CutOffs, difficulty_levels, solve_rates
    from crossroads.prompts.routerarena.evaluation import EvaluationSet, live_set, replay_set
    from crossroads.prompts.routerarena.figures import (
        breakdown,
        deferral_curve,
        headline,
        latency_score,
        optimality,
    )
    from crossroads.prompts.routerarena.inference import InferenceSettings, run_calls
    from crossroads.prompts.routerarena.isolation import ScoringJob, score_apart
    from crossroads.prompts.routerarena.names import canonical_name
    from crossroads.prompts.routerarena.perturb import (
        GENERATORS,
        Robustness,
        flip_share,
        perturb,
        robustness_of,
    )
    from crossroads.prompts.routerarena.prepare import (
        Chooser,
        chooser_of,
        chooser_of_fitted,
        prepare_submission,
    )
    from crossroads.prompts.routerarena.scoring import METRICS, score_answer
    from crossroads.prompts.routerarena.submission import (
        Submission,
        read_submission,
        write_submission,
    )
    from crossroads.prompts.routerarena.submitting import Outcome, submit
    from crossroads.prompts.routerarena.templates import render_prompt, shorten
    from crossroads.prompts.routerarena.validate import (
        SubmissionError,
        check_submission,
        problems_of,
    )

__all__ = [
    "GENERATORS",
    "METRICS",
    "Board",
    "Chooser",
    "CutOffs",
    "DataSource",
    "EvaluationSet",
    "InferenceSettings",
    "Outcome",
    "ResponseCache",
    "Robustness",
    "ScoringJob",
    "Submission",
    "SubmissionError",
    "breakdown",
    "canonical_name",
    "check_submission",
    "chooser_of",
    "chooser_of_fitted",
    "deferral_curve",
    "difficulty_levels",
    "flip_share",
    "headline",
    "latency_score",
    "live_set",
    "open_board",
    "optimality",
    "perturb",
    "prepare_submission",
    "problems_of",
    "read_submission",
    "render_prompt",
    "replay_set",
    "robustness_of",
    "run_calls",
    "score_answer",
    "score_apart",
    "shorten",
    "solve_rates",
    "submit",
    "write_submission",
]

_HOMES = {
    "board": ("Board", "DataSource", "open_board"),
    "cache": ("ResponseCache",),
    "difficulty": ("CutOffs", "difficulty_levels", "solve_rates"),
    "evaluation": ("EvaluationSet", "live_set", "replay_set"),
    "figures": ("breakdown", "deferral_curve", "headline", "latency_score", "optimality"),
    "inference": ("InferenceSettings", "run_calls"),
    "isolation": ("ScoringJob", "score_apart"),
    "names": ("canonical_name",),
    "perturb": ("GENERATORS", "Robustness", "flip_share", "perturb", "robustness_of"),
    "prepare": ("Chooser", "chooser_of", "chooser_of_fitted", "prepare_submission"),
    "scoring": ("METRICS", "score_answer"),
    "submission": ("Submission", "read_submission", "write_submission"),
    "submitting": ("Outcome", "submit"),
    "templates": ("render_prompt", "shorten"),
    "validate": ("SubmissionError", "check_submission", "problems_of"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
