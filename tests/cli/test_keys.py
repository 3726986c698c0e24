"""``crossroads keys``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crossroads.cli.keys import command
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from crossroads.gateway.governance import GovernanceSettings, KeyFile, KeyGovernor, hash_secret
from crossroads.prompts.fitted import fit_router, save_router
from crossroads.prompts.readers import read_outcomes

FIELDS = {
    *("name", "fingerprint", "team", "models", "tags", "residency", "created", "expires"),
    *("disabled", "limits", "budgets"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def run(path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(command, [*arguments, "--file", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def as_json(path: Path, *arguments: str) -> Any:
    return json.loads(run(path, *arguments, "--json").stdout)


def test_a_created_key_is_let_in_by_a_gateway_that_reads_the_file(path: Path) -> None:
    made = as_json(path, "create", "alice", "--model", "auto", "--tag", "x")
    assert made.keys() == {"name", "secret", "file"}
    governor = KeyGovernor(GovernanceSettings(keys_file=str(path)))
    client = governor.identify({b"x-api-key": made["secret"].encode()})
    assert (client.key_id, client.models, client.tags) == ("alice", {"auto"}, {"x"})


def test_the_secret_alone_is_on_stdout_and_nowhere_after(path: Path) -> None:
    created = run(path, "create", "alice")
    secret = created.stdout.strip()
    assert secret.startswith("sk-cr-")
    assert "once" in created.stderr
    assert KeyFile(path).read().keys[0].hash == hash_secret(secret)
    for arguments in (["list"], ["list", "--json"]):
        assert secret not in run(path, *arguments).output


def test_all_options_reach_the_file(path: Path) -> None:
    options = ["--team", "t", "--residency", "eu", "--expires", "2030-01-31", "--pace"]
    options += ["--requests-per-minute", "5", "--tokens-per-minute", "6", "--parallel", "7"]
    run(path, "create", "alice", *options, "--budget", "2.5/30d")
    (row,) = as_json(path, "list")
    assert row.keys() == FIELDS
    assert row["limits"] == {"requests_per_minute": 5, "tokens_per_minute": 6, "parallel": 7}
    assert row["budgets"] == [{"usd": 2.5, "per": "30d", "pace": True}]
    assert (row["team"], row["residency"]) == ("t", ["eu"])
    assert row["expires"].startswith("2030-01-31T00:00:00")


def test_the_table_in_a_pipe_has_one_line_for_each_key(path: Path) -> None:
    run(path, "create", "alice", "--budget", "20/month", "--requests-per-minute", "5")
    run(path, "create", "bob")
    lines = run(path, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "alice", "bob"]
    assert "20 USD/month" in lines[1]


def test_rotating_and_revoking_end_a_secret(path: Path) -> None:
    first = as_json(path, "create", "alice")["secret"]
    second = as_json(path, "rotate", "alice")["secret"]
    assert first != second
    assert KeyFile(path).read().keys[0].hash == hash_secret(second)
    assert as_json(path, "revoke", "alice") == {"name": "alice", "file": str(path)}
    assert KeyFile(path).read().keys == ()


def test_a_budgets_period_is_always_listed(path: Path) -> None:
    run(path, "create", "alice", "--budget", "20/month")
    assert as_json(path, "list")[0]["budgets"] == [{"usd": 20.0, "per": "month"}]


def test_the_last_key_can_be_revoked_and_the_empty_file_listed(path: Path) -> None:
    run(path, "create", "alice")
    run(path, "revoke", "alice")
    assert "crossroads keys create NAME" in run(path, "list").stdout
    assert as_json(path, "list") == []


def test_a_team_that_no_other_key_has_is_warned_of(path: Path) -> None:
    first = run(path, "create", "alice", "--team", "research")
    assert "warning: no other key here has the team 'research'" in first.stderr
    assert "warning" not in run(path, "create", "bob", "--team", "research").stderr
    assert "warning" not in run(path, "create", "carol").stderr


def test_a_team_that_the_configuration_lacks_is_refused(path: Path) -> None:
    config = path.with_name("gateway.yaml")
    config.write_text("governance: {teams: {research: {}}}\n")
    named = ["--config", str(config), "--team"]
    with pytest.raises(InputError, match="unknown team 'reserch'; did you mean 'research'") as told:
        run(path, "create", "alice", *named, "reserch")
    assert str(config) in str(told.value)
    assert not path.exists()
    assert "warning" not in run(path, "create", "alice", *named, "research").stderr
    config.write_text("port: 0\n")
    with pytest.raises(InputError, match=r"no team 'research'; add it to governance\.teams"):
        run(path, "create", "bob", *named, "research")


def test_a_model_that_the_configuration_lacks_is_refused(path: Path) -> None:
    pool = path.with_name("pool.yaml")
    pool.write_text("name: two\nmodels: [{name: small}, {name: 'qwen:7b'}]\n")
    config = path.with_name("gateway.yaml")
    config.write_text(
        f"pool: {pool}\npolicies: {{best: {{kind: split, weights: {{small: 1}}, default: true}}}}\n"
    )
    named = ["create", "alice", "--config", str(config), "--model"]
    with pytest.raises(InputError, match="unknown model or policy 'smal'; did you mean 'small'"):
        run(path, *named, "small", "--model", "smal")
    with pytest.raises(InputError, match="unknown model or policy 'small:tradeoff:5'"):
        run(path, *named, "small:tradeoff:5")
    assert not path.exists()
    for n, name in enumerate(["small", "qwen:7b", "best", "auto", "best:tradeoff:5"]):
        run(path, "create", f"key-{n}", "--config", str(config), "--model", name)
    run(path, "create", "unchecked", "--model", "nope")


def test_a_model_of_a_router_alone_is_known(path: Path) -> None:
    router = path.with_name("router")
    save_router(fit_router("best-single", read_outcomes("local")), router)
    config = path.with_name("gateway.yaml")
    config.write_text(f"router: {router}\n")
    run(path, "create", "alice", "--config", str(config), "--model", "smollm2", "--model", "auto")
    with pytest.raises(InputError, match="unknown model or policy 'nope'"):
        run(path, "create", "bob", "--config", str(config), "--model", "nope")


def test_a_wrong_entry_is_told_and_the_others_are_listed(path: Path) -> None:
    run(path, "create", "alice")
    path.write_text(path.read_text() + "- {name: bad, limts: {}}\n")
    found = run(path, "list")
    assert "alice" in found.stdout
    assert "key 'bad' is refused: unknown field 'limts'" in found.stderr
    run(path, "revoke", "alice")
    assert run(path, "list").stdout == ""


@pytest.mark.parametrize("action", ["rotate", "revoke"])
def test_a_key_that_is_not_there_is_failed_work(path: Path, action: str) -> None:
    run(path, "create", "alice")
    with pytest.raises(InputError, match="unknown key 'nobody'; Known: alice") as caught:
        run(path, action, "nobody")
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_no_folder_is_made_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "typo" / "keys.yaml"
    with pytest.raises(InputError, match=r"there is no folder .*typo; make it, or correct --file"):
        run(path, "create", "alice")
    assert not path.parent.exists()


def test_a_limit_of_nothing_is_wrong_usage(path: Path) -> None:
    arguments = ["create", "alice", "--parallel", "0", "--file", str(path)]
    assert CliRunner().invoke(command, arguments).exit_code == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "problem"),
    [
        (["create", "a b"], InputError, "name"),
        (["create", "a", "--budget", "20"], UsageError, "USD/PERIOD"),
        (["create", "a", "--budget", "x/day"], UsageError, "USD/PERIOD"),
        (["create", "a", "--budget", "1/year"], UsageError, "--budget: expected hour, day"),
        (["create", "a", "--pace"], UsageError, "--budget"),
        (["create", "a", "--expires", "soon"], UsageError, "--expires: expected a date"),
        (["create", "a", "--expires", "2020-01-31"], UsageError, "2020-01-31 is past"),
        (["create", "a", "--expires", "2020-01-31T10:00:00Z"], UsageError, "is past"),
        (["list"], InputError, "no such file; correct --file, or make one: crossroads keys create"),
        (["list", "--json"], InputError, "no such file"),
        (["rotate", "nobody"], InputError, "no such file"),
        (["revoke", "nobody"], InputError, "no such file"),
    ],
)
def test_what_is_asked_for_wrongly_is_told_in_one_line(
    path: Path, arguments: list[str], kind: type[CrossroadsError], problem: str
) -> None:
    with pytest.raises(kind, match=problem) as caught:
        run(path, *arguments)
    assert "\n" not in str(caught.value)
    assert not path.exists()
