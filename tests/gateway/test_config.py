from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.config import ServeConfig, read_config
from crossroads.gateway.problems import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_safe() -> None:
    config = read_config(None)
    assert (config.host, config.port, config.api_key) == ("127.0.0.1", 8080, None)
    assert config.limits.body_bytes == 8 * 2**20
    assert not config.is_exposed


def test_a_file_is_read_and_options_go_before_it(tmp_path: Path) -> None:
    path = write(tmp_path, "pool: local\nport: 9000\nrule: argmax\ntimeouts: {idle: 3}\n")
    config = read_config(path, {"port": 0, "rule": "tradeoff:2", "host": None})
    assert (config.pool, config.port, config.rule) == ("local", 0, "tradeoff:2")
    assert config.timeouts.idle == 3
    assert config.timeouts.total == 600
    assert config.host == "127.0.0.1"


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "# nothing yet\n")) == ServeConfig()


def test_a_reference_that_leads_nowhere_is_named_with_its_place_in_a_list(tmp_path: Path) -> None:
    keys = "[{name: a, secret: only-for-this-test}, {name: b, secret: '${NOT_SET_ANYWHERE}'}]"
    path = write(tmp_path, f"governance: {{keys: {keys}}}\n")
    with pytest.raises(InputError, match=r"governance\.keys\[1\]\.secret: .*NOT_SET_ANYWHERE"):
        read_config(path)


def test_references_to_the_environment_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    path = write(tmp_path, "api_key: ${MY_KEY}\nhost: 0.0.0.0\nrouter: runs/${MY_KEY}/x\n")
    config = read_config(path)
    assert config.api_key == "s3cret"
    assert config.router == "runs/s3cret/x"


def test_a_missing_variable_is_named_with_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    path = write(tmp_path, "api_key: ${NO_SUCH_KEY}\n")
    with pytest.raises(InputError, match=r"serve\.yaml: api_key: .* NO_SUCH_KEY is not set"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: eighty\n", "port: .*got 'eighty'"),
        ("port: 70000\n", "port: .*65535"),
        ("prot: 80\n", "unknown field 'prot'; did you mean 'port'"),
        ("limits: {bodybytes: 8}\n", "limits: unknown field 'bodybytes'; did you mean"),
        (
            "preferences: {defualt: a, policies: [{name: b}]}\n",
            "preferences: unknown field 'defualt'; did you mean 'default'",
        ),
        ("timeouts: {idle: 0}\n", r"timeouts\.idle: expected more than 0, got 0"),
        ("limits: {body_bytes: -1}\n", r"limits\.body_bytes"),
        ("http: fsat\n", "http: expected 'standard' or 'fast', got 'fsat'"),
        ("port: 1\npool: p\nport: 2\n", "field 'port' is given twice, in lines 1 and 3"),
        ("limits: {body_bytes: 1, body_bytes: 2}\n", "'body_bytes' is given twice"),
        ("rule: cheapest\n", "rule: unknown decision rule 'cheapest'"),
        ("host: 0.0.0.0\n", "set an API key"),
        ("- a\n- b\n", "expected fields such as"),
        ("name: p\nmodels: []\n", r"is a pool of models; name it .*'pool: .*serve\.yaml'"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_field(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=told) as wrong:
        read_config(path)
    assert str(path) in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_missing_file_is_named_with_the_folder_it_was_looked_up_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"config 'none\.yaml': no such file in ") as wrong:
        read_config("none.yaml")
    assert str(tmp_path) in str(wrong.value)


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the YAML file in it"):
        read_config(tmp_path)


def test_a_mapping_that_is_merged_may_be_overridden(tmp_path: Path) -> None:
    text = "timeouts: &a {idle: 3, total: 4}\nfailures: {continuation: {fields: {m: *a}}}\n"
    text += "policies:\n  s: {kind: split, weights: &w {a: 1}}\n"
    text += "  t: {kind: split, weights: {<<: *w, a: 2}}\n"
    config = read_config(write(tmp_path, text))
    assert config.policies["t"].weights == {"a": 2}  # type: ignore[union-attr]


def test_every_wrong_field_is_there_and_the_first_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "port: eighty\nworkers: 0\nprot: 1\n")
    with pytest.raises(ConfigError) as wrong:
        read_config(path)
    assert [problem.place for problem in wrong.value.problems] == ["", "port", "workers"]
    assert f"and 2 more; crossroads check-config {path} names them" in str(wrong.value)


@pytest.mark.parametrize("name", ["", "a\nb", "a\x7f"])
def test_a_policy_that_no_header_could_name_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"policies": {name: {"kind": "split", "weights": {"m": 1}}}}))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"config {path}: policies.")
    assert "\n" not in str(caught.value)


def test_an_unknown_rule_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="did you mean 'argmax'"):
        read_config(None, {"rule": "argmaxx"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert not read_config(None, {"host": host}).is_exposed


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
@pytest.mark.parametrize("key", [None, ""])
def test_another_address_needs_a_key(host: str, key: str | None) -> None:
    options: dict[str, Any] = {"host": host, "api_key": key}
    with pytest.raises(UsageError, match="reachable from other machines; set an API key"):
        read_config(None, options)
    assert read_config(None, {**options, "api_key": "k"}).is_exposed


def test_the_schema_can_be_exported() -> None:
    schema = ServeConfig.model_json_schema()
    assert set(schema["properties"]) == set(ServeConfig.model_fields)
    assert schema["additionalProperties"] is False
