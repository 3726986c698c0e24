from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.collect import (
    CollectReport,
    CollectSettings,
    PartialFile,
    PromptItem,
    collect,
    read_prompts,
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


@pytest.mark.slow
def test_a_killed_collection_loses_nothing_and_continues(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    pool = tmp_path / "pool.yaml"
    pool.write_text(f"models: [{{name: slow-0.05, endpoint: '{upstream.url}'}}]", "utf-8")
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt_id": f"p{n}", "prompt": f"q {n}", "reference": TEXT} for n in range(40)]
    prompts.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    partial = tmp_path / "out.csv.partial.jsonl"
    command = [sys.executable, "-m", "crossroads", "collect", "--pool", str(pool)]
    command += ["--prompts", str(prompts), "--out", str(tmp_path / "out.csv")]
    process = subprocess.Popen([*command, "--concurrency", "2"], stdout=subprocess.DEVNULL)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished, asked = partial.read_bytes().count(b"\n"), len(upstream.requests)
    assert 10 <= finished < 40
    with partial.open("ab") as file:
        file.write(b'{"cell": "torn')

    ended = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
    report = json.loads(ended.stdout)
    assert (report["num_cells"], report["num_reused"]) == (40, finished)
    assert len(upstream.requests) - asked == 40 - finished
    assert len(read_outcomes(tmp_path / "out.csv")) == 40
    assert not partial.exists()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "p.jsonl")
    partial.append({"cell": "a"})
    partial.path.write_bytes(b"oops\n" + partial.path.read_bytes())
    with pytest.raises(InputError, match="line 1 is damaged; delete that line"):
        partial.read()


def test_a_torn_last_line_is_cut_off_so_that_the_next_one_is_whole(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "p.jsonl")
    assert partial.read() == {}
    partial.append({"cell": "a"})
    with partial.path.open("ab") as file:
        file.write(b'{"cell": "b"')
    assert set(partial.read()) == {"a"}
    partial.append({"cell": "c"})
    assert set(partial.read()) == {"a", "c"}


def test_a_disk_that_takes_nothing_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"partial\.jsonl: cannot be written: No space left"):
        collect_quickly(TOOLS, [SUM, LENGTH], tmp_path / "out.csv")


def test_prompts_come_from_json_lines_and_csv_alike(tmp_path: Path) -> None:
    lines = [
        {
            "prompt_id": "a",
            "prompt": "x?",
            "reference": ["1", "2"],
            "scorer": "numeric",
            "split": "train",
        },
        {"prompt_id": 7, "prompt": "y,?", "reference": "z", "domain": "d", "split": "test"},
    ]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, lines)), "utf-8")
    csv = (
        "prompt_id,prompt,reference,scorer,domain,split\n"
        'a,x?,1 | 2,numeric,,train\n7,"y,?",z,,d,test\n'
    )
    (tmp_path / "p.csv").write_text(csv, "utf-8")
    expected = [
        PromptItem(
            prompt_id="a", prompt="x?", references=("1", "2"), scorer="numeric", split="train"
        ),
        PromptItem(prompt_id="7", prompt="y,?", references=("z",), domain="d", split="test"),
    ]
    assert read_prompts(tmp_path / "p.jsonl") == expected
    assert read_prompts(tmp_path / "p.csv") == expected


@pytest.mark.parametrize(
    ("given", "domain"), [(7, "7"), (0, "0"), (1.5, "1.5"), ("", None), (None, None), ("d", "d")]
)
def test_a_domain_is_text_and_numbers_become_theirs(
    tmp_path: Path, given: Any, domain: str | None
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**GOOD, "domain": given}), "utf-8")
    assert read_prompts(path)[0].domain == domain


GOOD = {"prompt_id": "a", "prompt": "x", "reference": "y"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.jsonl", "", "holds no prompt"),
        ("p.jsonl", "{", "row 1: not JSON"),
        ("p.jsonl", "[1]", "row 1: expected an object"),
        (
            "p.jsonl",
            json.dumps({**GOOD, "prompt": ""}),
            "row 1: column 'prompt' is missing or empty",
        ),
        ("p.jsonl", json.dumps({"prompt_id": 1, "prompt": "x"}), "column 'reference' is missing"),
        ("p.jsonl", json.dumps({**GOOD, "scorer": "exct"}), "column 'scorer': .*mean 'exact'"),
        (
            "p.jsonl",
            json.dumps({**GOOD, "domain": ["a", "b"]}),
            r"row 1: column 'domain': expected text, got \['a', 'b'\]",
        ),
        ("p.jsonl", json.dumps({**GOOD, "domain": True}), "column 'domain': expected text"),
        (
            "p.jsonl",
            json.dumps({**GOOD, "split": "dev"}),
            "row 1: column 'split': expected 'train', 'test' or nothing, got 'dev'",
        ),
        ("p.jsonl", json.dumps({**GOOD, "split": 0}), "column 'split': expected 'train'"),
        ("p.jsonl", json.dumps({**GOOD, "split": ["test"]}), "column 'split': expected 'train'"),
        (
            "p.csv",
            "prompt_id,prompt,reference,split\na,b,c,test\nd,e,f,\n",
            "row 2: column 'split' is empty while other rows have one",
        ),
        ("p.jsonl", "\n".join([json.dumps(GOOD)] * 2), "row 2: prompt_id 'a' occurs twice"),
        ("p.csv", "prompt_id,prompt\na,b\n", "row 1: column 'reference' is missing"),
        ("p.txt", "x", r"expected a \.jsonl or \.csv file"),
    ],
)
def test_wrong_prompts_are_named_by_file_row_and_column(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=told) as wrong:
        read_prompts(path)
    assert name in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_prompts_that_are_no_text_are_told_so(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "none.csv")


def test_wrong_settings_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="concurrency"):
        CollectSettings(concurrency=0)
    with pytest.raises(UsageError, match="max tokens"):
        CollectSettings(max_tokens=0)
    with pytest.raises(UsageError, match=r"ending in \.parquet"):
        collect(TOOLS, [SUM], tmp_path / "out.xlsx")
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        collect(TOOLS, [SUM], tmp_path / "none" / "out.csv")
    with pytest.raises(InputError, match="has no endpoint"):
        collect(Pool.of(["m"]), [SUM], tmp_path / "out.csv")
