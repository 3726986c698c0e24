from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.collect import PromptItem, read_prompts


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


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_json_line(tmp_path: Path, mark: str) -> None:
    path, prompts = tmp_path / "p.jsonl", [f"one{mark}two", "three"]
    rows = [{**GOOD, "prompt_id": prompt, "prompt": prompt} for prompt in prompts]
    for end in ("\n", "\r\n"):
        text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes(text.encode())
        assert [item.prompt for item in read_prompts(path)] == prompts


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
