from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.logs import lm_eval, read_logs
from crossroads.prompts.readers import read_outcomes
from tests.prompts.logs.written import lm_eval_sample, write_lm_eval


def test_a_log_becomes_a_table(tmp_path: Path) -> None:
    samples = [lm_eval_sample(0, exact_match=1.0), lm_eval_sample(1, exact_match=0.0)]
    table = read_outcomes(write_lm_eval(tmp_path, samples))
    assert table.prompt_ids.tolist() == ["sums/0", "sums/1"]
    assert table.models == ("acme/small",)
    assert table.score.tolist() == [[1], [0]]
    assert table.texts is not None
    assert table.texts.tolist() == ["How much is 0 + 1?", "How much is 1 + 1?"]
    assert table.cost is None and table.input_tokens is None and table.chance is None
    assert table.source == "logs of lm-evaluation-harness (sums: exact_match)"


def test_without_a_summary_the_folder_names_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "acme__small"
    path = write_lm_eval(folder, [lm_eval_sample(0, acc=1.0)], model=None)
    assert lm_eval.read_log(path).model == "acme/small"


def test_a_filter_is_chosen_by_name_and_the_first_by_default(tmp_path: Path) -> None:
    samples = [
        lm_eval_sample(0, "strict-match", exact_match=0.0),
        lm_eval_sample(0, "flexible-extract", exact_match=1.0),
    ]
    path = write_lm_eval(tmp_path, samples)
    assert read_logs([path]).score.tolist() == [[0]]
    table = read_logs([path], filter_name="flexible-extract")
    assert table.score.tolist() == [[1]]
    assert "exact_match, flexible-extract" in table.source
    with pytest.raises(InputError, match="no filter 'x'; it has: strict-match, flexible-extract"):
        read_logs([path], filter_name="x")


def test_a_metric_is_chosen_by_name_and_the_first_share_by_default(tmp_path: Path) -> None:
    samples = [lm_eval_sample(0, perplexity=3.0, acc=1.0, acc_norm=False)]
    path = write_lm_eval(tmp_path, samples)
    assert lm_eval.read_log(path).metric == "acc"
    assert read_logs([path], metric="acc_norm").score.tolist() == [[0]]
    with pytest.raises(InputError, match="no metric 'f1'; it has: perplexity, acc, acc_norm"):
        read_logs([path], metric="f1")
    with pytest.raises(InputError, match=r"'perplexity': expected a number in \[0, 1\], got 3\.0"):
        read_logs([path], metric="perplexity")


def test_a_metric_that_should_be_low_is_no_score(tmp_path: Path) -> None:
    path = write_lm_eval(
        tmp_path, [lm_eval_sample(0, error_rate=0.5)], lower_is_better="error_rate"
    )
    with pytest.raises(InputError, match="'error_rate' is better when lower"):
        read_logs([path], metric="error_rate")
    with pytest.raises(InputError, match="no metric is a number"):
        read_logs([path])


def test_a_nan_is_no_score(tmp_path: Path) -> None:
    samples = [lm_eval_sample(0, acc=math.nan), lm_eval_sample(1, acc=1.0)]
    table = read_logs([write_lm_eval(tmp_path, samples)])
    assert np.isnan(table.score[0, 0])
    assert table.score[1, 0] == 1


def test_ranked_options_have_a_chance(tmp_path: Path) -> None:
    options = {f"gen_args_{n}": {"arg_0": "Which?", "arg_1": f" {n}"} for n in range(4)}
    sample = {**lm_eval_sample(0, acc=1.0), "arguments": options, "doc": {"stem": "x"}}
    table = read_logs([write_lm_eval(tmp_path, [sample])])
    assert table.chance is not None and table.chance.tolist() == [0.25]
    assert table.texts is not None and table.texts.tolist() == ["Which?"]


def test_the_older_form_without_names_of_metrics_is_read(tmp_path: Path) -> None:
    sample = {
        **{"doc_id": 0, "doc": {}, "target": "x", "resps": [["x"]], "filtered_resps": ["x"]},
        **{"arguments": [["Say x:", {}]], "exact_match": 1.0},
    }
    path = tmp_path / "samples_words.jsonl"
    path.write_text(json.dumps(sample) + "\n", "utf-8")
    log = lm_eval.read_log(path)
    assert (log.task, log.metric, log.samples[0].prompt) == ("words", "exact_match", "Say x:")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, [lm_eval_sample(0, acc=1.0)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"doc_id": 1, "doc"')
    with pytest.raises(InputError, match=r"line 2: not JSON"):
        read_logs([path])
    path.write_text('{"doc_id": null}\n', "utf-8")
    with pytest.raises(InputError, match=r"line 1: expected a sample with a 'doc_id'"):
        read_logs([path])


def test_a_table_of_that_name_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "samples_mine.jsonl"
    path.write_text('{"prompt_id": "1", "model": "m", "score": 1}\n', "utf-8")
    assert not lm_eval.is_log(path)
    assert read_outcomes(path).models == ("m",)
