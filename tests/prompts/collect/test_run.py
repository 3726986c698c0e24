from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.collect import (
    CollectReport,
    CollectSettings,
    PromptItem,
    collect,
)
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.readers import read_outcomes
from tests.gateway.fake_upstream import TEXT, FakeUpstream

TOOLS = Pool(
    models=(
        ModelCard(name="calculator", endpoint="local:calculator"),
        ModelCard(name="units", endpoint="local:units", price_per_call=0.5),
    )
)
SUM = PromptItem(prompt_id="s", prompt="2 + 3", references=("5",), scorer="numeric", domain="a")
LENGTH = PromptItem(
    prompt_id="l", prompt="2 km in m", references=("2000",), scorer="numeric", domain="u"
)
QUICK = CollectSettings(backoff=0.001)


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


def card(upstream: FakeUpstream, model: str, **fields: Any) -> ModelCard:
    return ModelCard(name=model, endpoint=upstream.url, **fields)


def numbered(count: int) -> list[PromptItem]:
    return [
        PromptItem(prompt_id=f"p{n}", prompt=f"question {n}", references=(TEXT,))
        for n in range(count)
    ]


def collect_quickly(pool: Pool, items: list[PromptItem], out: Path, **more: Any) -> CollectReport:
    return collect(pool, items, out, settings=more.pop("settings", QUICK), **more)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".csv.gz"])
def test_the_table_is_an_outcome_table(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    report = collect_quickly(TOOLS, [SUM, LENGTH], out)
    table = read_outcomes(out)
    assert table.models == ("calculator", "units")
    assert table.score.tolist() == [[1, 0], [0, 1]]
    assert table.cost is not None
    assert table.cost.tolist() == [[0, 0.5], [0, 0.5]]
    assert table.domain is not None
    assert list(table.domain) == ["a", "u"]
    assert report.failures == ()
    assert report.models["units"] == pytest.approx(
        {"score": 0.5, "cost": 1.0, "latency_s": report.models["units"]["latency_s"]}
    )
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_tokens_are_priced_and_responses_kept(tmp_path: Path, upstream: FakeUpstream) -> None:
    pool = Pool(models=(card(upstream, "ok", price_in=1.0, price_out=10.0),))
    out = tmp_path / "out.jsonl"
    collect_quickly(pool, numbered(1), out)
    row = json.loads(out.read_text("utf-8"))
    assert (row["input_tokens"], row["output_tokens"], row["response"]) == (7, 5, TEXT)
    assert row["cost"] == pytest.approx((7 * 1 + 5 * 10) / 1e6)
    assert row["latency_s"] > 0


def test_responses_can_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    collect_quickly(TOOLS, [SUM], out, settings=CollectSettings(keep_responses=False))
    assert "response" not in out.read_text("utf-8")


def test_a_request_says_what_was_set(tmp_path: Path, upstream: FakeUpstream) -> None:
    settings = CollectSettings(system="Be brief.", max_tokens=9, temperature=0.5)
    pool = Pool(models=(card(upstream, "ok"),))
    collect(pool, numbered(1), tmp_path / "out.csv", settings=settings)
    _, body = upstream.requests[0]
    assert body == {
        "model": "ok",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "question 0"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
    }


def test_a_failing_cell_stays_missing_and_is_asked_again(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    out = tmp_path / "out.csv"
    broken = Pool(models=(card(upstream, "ok"), card(upstream, "status-500")))
    first = collect_quickly(broken, numbered(2), out)
    assert {(f.prompt_id, f.model) for f in first.failures} == {
        ("p0", "status-500"),
        ("p1", "status-500"),
    }
    assert "status 500" in first.failures[0].error
    assert first.models["status-500"]["score"] is None
    assert read_outcomes(out).models == ("ok",)
    assert len(upstream.requests) == 2 + 2 * 3  # two further attempts each

    mended = Pool(models=(broken.models[0], ModelCard(name="tool", endpoint="local:units")))
    second = collect_quickly(mended, numbered(2), out)
    assert (second.num_reused, second.failures) == (2, ())
    assert read_outcomes(out).models == ("ok", "tool")
    assert len(upstream.requests) == 8


def test_a_refused_request_is_not_repeated(tmp_path: Path, upstream: FakeUpstream) -> None:
    report = collect_quickly(
        Pool(models=(card(upstream, "status-400"),)), numbered(1), tmp_path / "out.csv"
    )
    assert len(report.failures) == len(upstream.requests) == 1
    assert report.out is None
    assert not (tmp_path / "out.csv").exists()


def test_progress_counts_finished_and_failed_cells(tmp_path: Path, upstream: FakeUpstream) -> None:
    seen: list[tuple[int, int]] = []
    pool = Pool(models=(card(upstream, "ok"), card(upstream, "status-400")))
    collect_quickly(
        pool, numbered(3), tmp_path / "o.csv", progress=lambda n, of: seen.append((n, of))
    )
    assert seen == [(n, 6) for n in range(1, 7)]


def test_changed_settings_reuse_nothing_and_a_changed_reference_everything(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    pool = Pool(models=(card(upstream, "ok"), card(upstream, "status-400")))
    out, items = tmp_path / "out.csv", numbered(2)
    collect_quickly(pool, items, out)
    others = [PromptItem(prompt_id=i.prompt_id, prompt=i.prompt, references=("x",)) for i in items]
    again = collect_quickly(pool, others, out)
    assert (again.num_reused, again.models["ok"]["score"]) == (2, 0)
    warmer = CollectSettings(temperature=1.0)
    assert collect_quickly(pool, items, out, settings=warmer).num_reused == 0


def test_an_existing_table_is_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    collect_quickly(TOOLS, [SUM], out)
    with pytest.raises(InputError, match="exists; choose another name or pass --overwrite"):
        collect_quickly(TOOLS, [SUM], out)
    assert collect_quickly(TOOLS, [SUM, LENGTH], out, overwrite=True).num_prompts == 2


def test_a_disk_that_takes_nothing_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"partial\.jsonl: cannot be written: No space left"):
        collect_quickly(TOOLS, [SUM, LENGTH], tmp_path / "out.csv")


def test_wrong_settings_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="concurrency"):
        CollectSettings(concurrency=0)
    with pytest.raises(UsageError, match="max tokens"):
        CollectSettings(max_tokens=0)
    with pytest.raises(UsageError, match=r"ending in \.parquet"):
        collect(TOOLS, [SUM], tmp_path / "out.xlsx")
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        collect(TOOLS, [SUM], tmp_path / "none" / "out.csv")
    with pytest.raises(UsageError, match="unknown scorer 'exakt'"):
        wrong = PromptItem(prompt_id="a", prompt="x", references=("y",), scorer="exakt")
        collect(TOOLS, [wrong], tmp_path / "out.csv")
    with pytest.raises(InputError, match="has no endpoint"):
        collect(Pool.of(["m"]), [SUM], tmp_path / "out.csv")


def test_a_second_collection_of_the_same_table_asks_nothing(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    pool, out = Pool(models=(card(upstream, "ok"),)), tmp_path / "out.csv"
    refusals = []

    def start_another(done: int, total: int) -> None:
        asked = len(upstream.requests)
        with pytest.raises(InputError, match=r"out\.csv\.partial\.lock: another collection"):
            collect_quickly(pool, numbered(3), out, overwrite=True)
        refusals.append(len(upstream.requests) - asked)

    settings = CollectSettings(concurrency=1)
    collect_quickly(pool, numbered(3), out, settings=settings, progress=start_another)
    assert refusals == [0, 0, 0]
    assert len(upstream.requests) == 3
