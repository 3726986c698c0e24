from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from crossroads.cli import main

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
    assert said in body["findings"][0]["message"]
    assert "\n" not in body["findings"][0]["message"]


def test_a_key_of_an_upstream_that_is_not_set_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {**POOL["models"][0], "api_key": "${NOT_SET_ANYWHERE}"}  # type: ignore[dict-item]
    code, out, _ = run(capsys, write(tmp_path, {**POOL, "models": [first, POOL["models"][1]]}))
    assert code == 1
    assert out.startswith("error: models.small: ")
    assert "NOT_SET_ANYWHERE" in out


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
