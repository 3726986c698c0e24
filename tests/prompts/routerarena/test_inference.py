from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UnavailableError, UsageError
from crossroads.prompts.experts.base import Completion, ExpertError, Request
from crossroads.prompts.pool import ModelCard
from crossroads.prompts.routerarena.cache import ResponseCache
from crossroads.prompts.routerarena.inference import (
    InferenceSettings,
    require_answers,
    run_calls,
)
from tests.prompts.routerarena.toy import ToyExpert, toy_live, toy_replay

ROOT = Path(__file__).parents[3]


class Experts:
    """Builds one expert per model and remembers it."""

    def __init__(self, **experts: ToyExpert) -> None:
        self.by_name = experts

    def __call__(self, card: ModelCard) -> ToyExpert:
        return self.by_name.setdefault(card.name, ToyExpert(card.name))

    @property
    def num_asked(self) -> int:
        return sum(len(expert.asked) for expert in self.by_name.values())


def test_any_router_reuses_the_answers_of_another(tmp_path: Path) -> None:
    evaluation, experts = toy_live(), Experts()
    first = [("Toy_0", "small"), ("Toy_1", "small")]
    second = [("Toy_1", "small"), ("Toy_2", "large")]
    run_calls(evaluation, first, tmp_path, build=experts)
    assert experts.num_asked == 2
    results = run_calls(evaluation, second, tmp_path, build=experts)
    assert experts.num_asked == 3
    assert results["Toy_1", "small"]["generated_answer"] == "\\boxed{A}"
    assert results["Toy_2", "large"]["token_usage"] == {"input_tokens": 100, "output_tokens": 10}


def test_the_same_call_is_made_once(tmp_path: Path) -> None:
    experts = Experts()
    run_calls(toy_live(), [("Toy_0", "small")] * 3, tmp_path, build=experts)
    assert experts.num_asked == 1


def test_a_failure_is_a_result_and_is_asked_again_next_time(tmp_path: Path) -> None:
    evaluation = toy_live()
    calls = [("Toy_0", "small"), ("Toy_1", "small")]
    failing = Experts(small=ToyExpert("small", fails_on="France"))
    results = run_calls(evaluation, calls, tmp_path, build=failing)
    assert results["Toy_0", "small"]["success"] is False
    assert "refused" in results["Toy_0", "small"]["error"]
    require_answers(results)  # a refusal is final: it scores 0
    working = Experts()
    results = run_calls(evaluation, calls, tmp_path, build=working)
    assert results["Toy_0", "small"]["success"] is True
    assert working.num_asked == 1


def test_failures_that_may_pass_are_tried_again(tmp_path: Path) -> None:
    class Shaky(ToyExpert):
        async def complete(self, request: Request) -> Completion:
            answer = await super().complete(request)
            if len(self.asked) < 3:
                raise ExpertError("busy", status=503)
            return answer

    shaky = Shaky("small")
    settings = InferenceSettings(backoff=0.0)
    results = run_calls(
        toy_live(), [("Toy_0", "small")], tmp_path, settings=settings, build=Experts(small=shaky)
    )
    assert results["Toy_0", "small"]["success"] is True
    assert len(shaky.asked) == 3


@pytest.mark.parametrize(
    ("status", "may_pass"),
    [(500, True), (502, True), (503, True), (408, True), (429, True)]
    + [(status, False) for status in (400, 404, 413, 422)],
)
def test_only_failures_that_may_pass_stand_in_the_way(
    tmp_path: Path, status: int, may_pass: bool
) -> None:
    class Failing(ToyExpert):
        async def complete(self, request: Request) -> Completion:
            raise ExpertError("no\nluck", status=status)

    results = run_calls(
        toy_live(), [("Toy_0", "small"), ("Toy_0", "large")], tmp_path,
        settings=InferenceSettings(num_retries=0), build=lambda card: Failing(card.name),
    )  # fmt: skip
    assert [result["success"] for result in results.values()] == [False, False]
    if may_pass:
        told = r"^2 of 2 calls have no answer yet \(large: 1, small: 1; no luck\); nothing was pub"
        with pytest.raises(UnavailableError, match=told):
            require_answers(results)
    else:
        require_answers(results)


def test_half_characters_of_an_answer_can_be_kept(tmp_path: Path) -> None:
    call = ("Toy_0", "small")
    experts = Experts(small=ToyExpert("small", letter="\ud83d"))
    assert run_calls(toy_live(), [call], tmp_path, build=experts)[call]["success"] is True
    again = run_calls(toy_live(), [call], tmp_path, build=Experts())
    assert again[call]["generated_answer"] == "\\boxed{?}"


def test_a_replay_asks_nobody(tmp_path: Path) -> None:
    experts = Experts()
    results = run_calls(toy_replay(), [("Toy_0", "large")], tmp_path, build=experts)
    assert results["Toy_0", "large"]["replayed"] is True
    assert experts.num_asked == 0
    assert not list(tmp_path.iterdir())


def test_progress_and_settings(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    calls = [(f"Toy_{n}", "small") for n in range(6)]
    run_calls(
        toy_live(), calls, tmp_path, build=Experts(),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert sorted(seen) == [(n, 6) for n in range(1, 7)]
    with pytest.raises(UsageError, match="at least 1"):
        InferenceSettings(concurrency=0)


def test_a_model_without_an_endpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'small' has no endpoint"):
        run_calls(toy_live(), [("Toy_0", "small")], tmp_path)


def test_errors_of_the_cache_stop_the_run_as_themselves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run_calls(toy_live(), [("Toy_0", "small")], tmp_path / "file", build=Experts())


SLOW_RUN = """
import asyncio, sys
from pathlib import Path
from crossroads.prompts.routerarena.inference import InferenceSettings, run_calls
from tests.prompts.routerarena.toy import ToyExpert, toy_live

class Slow(ToyExpert):
    async def complete(self, request):
        if len(self.asked) == 3:
            await asyncio.sleep(600)
        return await super().complete(request)

calls = [(f"Toy_{n}", "small") for n in range(6)]
settings = InferenceSettings(concurrency=1)
run_calls(toy_live(), calls, Path(sys.argv[1]), settings=settings, build=lambda c: Slow(c.name))
"""


@pytest.mark.slow
def test_a_killed_run_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path)], cwd=ROOT)
    cache = tmp_path / "small.jsonl"
    deadline = time.monotonic() + 60
    while not (cache.exists() and cache.read_bytes().count(b"\n") == 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with cache.open("ab") as file:
        file.write(b'{"index": "Toy_3", "pro')  # as if it had been cut off while writing
    experts = Experts()
    results = run_calls(
        toy_live(), [(f"Toy_{n}", "small") for n in range(6)], tmp_path, build=experts
    )
    assert experts.num_asked == 3
    assert len(results) == len(ResponseCache(tmp_path, "small")) == 6
