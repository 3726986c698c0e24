from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from crossroads.cli import main
from crossroads.gateway.governance import KeyFile

POOL = {
    "name": "p",
    "models": [
        {"name": "small", "endpoint": "http://127.0.0.1:9/v1", "price_in": 1},
        {"name": "large", "endpoint": "http://127.0.0.1:9/v1", "price_in": 2},
    ],
}


def write(folder: Path, pool: dict[str, Any] = POOL, **fields: Any) -> str:
    (folder / "pool.yaml").write_text(yaml.safe_dump(pool), "utf-8")
    settings = {"pool": str(folder / "pool.yaml"), "ledger": None, **fields}
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check-config", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_good_configuration_is_fit_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, write(tmp_path))
    assert (code, err) == (0, "")
    assert out.endswith("is fit to serve\n")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prot": 1}, "unknown field 'prot'; did you mean 'port'"),
        ({"policies": {"a": {"kind": "split", "weights": {"smal": 1}}}}, "did you mean 'small'"),
        ({"fallbacks": {"small": ["none"]}}, "'none'"),
        ({"failures": {"retries": -1}}, "failures.retries"),
        ({"governance": {"prices_file": "missing.yaml"}}, "missing.yaml"),
        ({"router": "nowhere"}, "nowhere"),
        ({"host": "0.0.0.0"}, "set an API key"),
        ({"api_key": "${NOT_SET_ANYWHERE}"}, "NOT_SET_ANYWHERE"),
    ],
)
def test_what_a_first_request_could_meet_is_found_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], said: str
) -> None:
    code, out, _ = run(capsys, write(tmp_path, **fields), "--json")
    body = json.loads(out)
    assert (code, body["ok"]) == (1, False)
    assert said in "{place}: {message}".format(**body["findings"][0])
    assert "\n" not in body["findings"][0]["message"]


def test_a_key_of_an_upstream_that_is_not_set_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {**POOL["models"][0], "api_key": "${NOT_SET_ANYWHERE}"}  # type: ignore[dict-item]
    code, out, _ = run(capsys, write(tmp_path, {**POOL, "models": [first, POOL["models"][1]]}))
    assert code == 1
    assert out.startswith("error: models.small: ")
    assert "NOT_SET_ANYWHERE" in out


def test_every_mistake_is_a_line_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = {"a": {"kind": "split", "weights": {}}, "b": {"kind": "spilt"}}
    code, out, _ = run(capsys, write(tmp_path, policies=policies, workers=0))
    assert code == 1
    assert out.splitlines() == [
        "error: workers: expected at least 1, got 0",
        "error: policies.a.weights: is empty; fill it in",
        "error: policies.b: unknown kind 'spilt'; did you mean 'split'? Known: canary, cascade, "
        "learned, preferences, rules, shadow, split, sticky",
    ]


@pytest.mark.parametrize(
    "fields", [{"router": "nowhere"}, {"governance": {"prices_file": "nowhere.yaml"}}]
)
def test_the_folder_that_paths_start_at_is_told_where_one_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    code, out, _ = run(capsys, write(tmp_path, **fields))
    assert code == 1
    assert out.endswith(f"relative paths start at the working folder, {Path.cwd()}\n")
    assert "relative paths" not in run(capsys, write(tmp_path, port=-1))[1]


def warnings_of(capsys: pytest.CaptureFixture[str], path: str) -> dict[str, str]:
    code, out, _ = run(capsys, path, "--json")
    body = json.loads(out)
    assert code == 0
    assert {found["level"] for found in body["findings"]} <= {"warning"}
    return {found["place"]: found["message"] for found in body["findings"]}


def test_what_several_workers_do_not_share_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warnings_of(capsys, write(tmp_path, cache={"exact": True})) == {}
    told = warnings_of(capsys, write(tmp_path, cache={"exact": True}, workers=2))
    assert told.keys() == {"responses.store", "cache.store", "idempotency"}
    assert "previous_response_id" in told["responses.store"]
    assert "nothing shares them" in told["idempotency"]
    store = "redis://h"
    shared: dict[str, Any] = {"cache": {"exact": True, "store": store}}
    shared["responses"] = {"store": store}
    assert warnings_of(capsys, write(tmp_path, workers=2, idempotency=None, **shared)) == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_budget_that_a_restart_fills_again_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    budgets = [{"usd": 5, "per": "day"}, {"usd": 9}, {"usd": 1, "per": "hour"}]
    governance: dict[str, Any] = {"teams": {"t": {"budgets": budgets}}}
    rest: dict[str, Any] = {
        **{"workers": workers, "idempotency": None, "responses": {"store": "none"}}
    }
    code, out, _ = run(capsys, write(tmp_path, governance=governance, **rest))
    assert code == 0
    lines = [line for line in out.splitlines() if "anew after every restart" in line]
    assert [line.partition(" can")[0] for line in lines] == [
        "warning: governance.teams.t.budgets: 5 USD per day",
        "warning: governance.teams.t.budgets: 9 USD per month",
    ]
    governance["store"] = f"sqlite:{tmp_path / 'limits.db'}"
    assert warnings_of(capsys, write(tmp_path, governance=governance, **rest)) == {}


def test_a_key_for_what_there_is_not_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.yaml"
    KeyFile(file).create("bob", models=("large:tradeoff:1", "nine"))
    one = {"name": "a", "secret": "only-for-this-test", "models": ["smal", "large"]}
    governance = {"keys": [one], "keys_file": str(file)}
    told = warnings_of(capsys, write(tmp_path, governance=governance))
    assert told.keys() == {"governance.keys[0].models", "governance.keys_file: key 'bob'.models"}
    assert (
        "unknown model or policy 'smal'; did you mean 'small'" in told["governance.keys[0].models"]
    )


def test_a_missing_file_of_keys_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.yaml"
    told = warnings_of(capsys, write(tmp_path, governance={"keys_file": str(file)}))
    assert "nobody can get in" in told["governance.keys_file"]
    assert f"crossroads keys create NAME --file {file}" in told["governance.keys_file"]
    told = warnings_of(capsys, write(tmp_path, governance={"keys_file": str(file)}, api_key="k"))
    assert "its keys cannot get in" in told["governance.keys_file"]


def test_a_library_that_a_model_needs_and_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossroads.gateway.upstreams.litellm._is_installed", lambda: False)
    model = {"name": "m", "api": "litellm", "upstream_model": "a/b", "price_in": 1}
    code, out, _ = run(capsys, write(tmp_path, {"name": "p", "models": [model]}))
    assert code == 1
    assert out == (
        "error: models.m: litellm is not installed; run: pip install 'crossroads[litellm]'\n"
    )


def test_models_without_a_price_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = {"name": "free", "endpoint": "http://127.0.0.1:9/v1"}
    code, out, _ = run(capsys, write(tmp_path, {"name": "p", "models": [free]}))
    assert code == 0
    assert out.startswith("warning: pool: no price for free")


def test_a_probe_finds_an_upstream_that_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, write(tmp_path), "--probe")
    assert code == 1
    assert "127.0.0.1:9 cannot be reached" in out


def test_the_schema_accepts_what_the_reader_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--schema")
    schema = json.loads(out)
    assert code == 0
    good = {"pool": "p.yaml", "policies": {"a": {"kind": "split", "weights": {"small": 1}}}}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prot": 1}, schema)


def test_no_file_and_a_missing_file_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys)[0] == 2
    code, out, _ = run(capsys, str(tmp_path / "none.yaml"))
    assert code == 1
    assert "no such file" in out
