"""Loaders on small folders of the same layout; the real ones are in test_outcome_sets.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.datasets.layouts import LAYOUTS, recognise
from crossroads.prompts.readers import read_outcomes


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(gzip.compress(text.encode()))


def json_lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def mmlu_pro(folder: Path) -> None:
    def question(n: int, answer: str) -> dict[str, object]:
        options = ["yes", "no", "maybe", "never"]
        return {
            "id": n,
            "question": f"is it {n}?",
            "options": options,
            "answer": answer,
            "category": "law",
            "src": "ori_mmlu-law",
        }

    put(folder, "questions-1.jsonl.gz", json_lines(question(7, "A")))
    put(folder, "questions-2.jsonl.gz", json_lines(question(9, "B")))
    put(folder, "predictions.csv.gz", "id,gemma-7b,Yi-6B\n7,A,-\n9,,B\n")
    put(folder, "output_chars.csv.gz", "id,gemma-7b,Yi-6B\n7,40,0\n9,,8\n")


def routellm(folder: Path) -> None:
    put(
        folder,
        "mmlu_responses.csv.gz",
        'subject,prompt,mixtral_8x7b_correct,gpt4_1106_correct,contaminated\nlaw,"a,\nb",0,1,0\n',
    )
    put(
        folder,
        "gsm8k_responses.csv.gz",
        "prompt,mixtral_8x7b_correct,gpt4_1106_correct,contaminated\n2+2,1,1,0\n",
    )


def routerarena(folder: Path) -> None:
    columns = "global_index,source_dataset,metric,prompt"
    for short in ("haiku", "gemini"):
        columns += f",{short}_score,{short}_cost_usd,{short}_in_tok,{short}_out_tok"
    put(
        folder,
        "sub10_two_models.csv.gz",
        f"{columns}\nA_1,A,m,,-0.03,0.001,10,20,1,0.002,11,22\nB_1,B,m,text,0.5,0,1,2,0.25,0,3,4\n",
    )


def zeroeval(folder: Path) -> None:
    put(
        folder,
        "prompts.jsonl.gz",
        json_lines(
            {"id": "gsm-0", "task": "gsm", "prompt": "1+1", "gold": "2", "prompt_chars": 400}
        ),
    )
    models = "gpt-4o-mini-2024-07-18,unpriced-model"
    put(folder, "correct.csv.gz", f"id,{models}\ngsm-0,1,0\n")
    put(folder, "output_chars.csv.gz", f"id,{models}\ngsm-0,80,90\n")


MAKERS = {
    "mmlu_pro_outcomes": mmlu_pro,
    "routellm_mmlu_gsm8k": routellm,
    "routerarena": routerarena,
    "zeroeval_outcomes": zeroeval,
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_folder_is_recognised_by_its_files_whatever_its_name(
    layout: object, tmp_path: Path
) -> None:
    MAKERS[layout.name](tmp_path)  # type: ignore[attr-defined]
    assert recognise(tmp_path) is layout


def test_an_unknown_folder_names_the_known_layouts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"routerarena: sub10_two_models\.csv\.gz"):
        recognise(tmp_path)


def test_mmlu_pro_counts_unread_letters_as_wrong_and_leaves_out_what_was_not_run(
    tmp_path: Path,
) -> None:
    mmlu_pro(tmp_path)
    rows = recognise(tmp_path).load(tmp_path).to_pylist()
    assert [(r["prompt_id"], r["model"], r["score"]) for r in rows] == [
        ("7", "gemma-7b", 1.0),
        ("7", "Yi-6B", 0.0),
        ("9", "Yi-6B", 1.0),
    ]
    asked = len("is it 7?") + len("yesnomaybenever")
    assert rows[0]["input_tokens"] == asked / 4
    assert rows[0]["output_tokens"] == 10
    assert (rows[0]["domain"], rows[0]["chance"]) == ("law", 0.25)


def test_routellm_joins_both_tables_and_costs_the_share_of_strong_calls(tmp_path: Path) -> None:
    routellm(tmp_path)
    table = read_outcomes(tmp_path)
    assert table.prompt_ids.tolist() == ["mmlu-00000", "gsm8k-0000"]
    assert table.domain is not None
    assert table.domain.tolist() == ["law", "gsm8k"]
    assert table.cost is not None
    assert table.cost.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert table.chance is not None
    assert table.chance.tolist() == [0.25, 0.0]
    assert table.texts is not None
    assert table.texts[0] == "a,\nb"


def test_routerarena_keeps_measured_costs_and_reads_scores_below_zero_as_zero(
    tmp_path: Path,
) -> None:
    routerarena(tmp_path)
    table = read_outcomes(tmp_path)
    assert table.score.tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert table.cost is not None
    assert table.cost[0].tolist() == [0.001, 0.002]
    assert table.texts is not None
    assert table.texts.tolist() == ["", "text"]


def test_zeroeval_is_reduced_to_its_pool_unless_models_are_chosen(tmp_path: Path) -> None:
    zeroeval(tmp_path)
    table = read_outcomes(tmp_path, models=["gpt-4o-mini-2024-07-18"])
    assert table.input_tokens is not None
    assert table.input_tokens.tolist() == [[100.0]]
    assert table.cost is not None
    assert table.cost[0, 0] == pytest.approx((100 * 0.15 + 20 * 0.6) / 1e6)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_damaged_folder_is_refused_on_one_line(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        with pytest.raises(InputError) as caught:
            read_outcomes(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        path.write_bytes(good)


def test_files_of_different_prompts_are_refused(tmp_path: Path) -> None:
    zeroeval(tmp_path)
    put(tmp_path, "correct.csv.gz", "id,gpt-4o-mini-2024-07-18\ngsm-9,1\n")
    with pytest.raises(InputError, match="different prompts"):
        read_outcomes(tmp_path)
    mmlu = tmp_path / "mmlu"
    mmlu.mkdir()
    mmlu_pro(mmlu)
    put(mmlu, "questions-2.jsonl.gz", "")
    with pytest.raises(InputError, match="question 9 has answers but no text"):
        read_outcomes(mmlu)
