"""``crossroads replay``: by a configuration and by a router."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.ledgers import run_main, write_ledger

POOL = """
name: two
models:
  - {name: small, endpoint: "http://127.0.0.1:9/v1"}
  - {name: large, endpoint: "http://127.0.0.1:9/v1"}
"""
CONFIG = """
pool: {pool}
ledger: null
policies:
  auto: {{kind: split, weights: {{small: {small}, large: {large}}}}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_ledger(tmp_path_factory.mktemp("ledger") / "l.db")


def config(folder: Path, *, small: float, large: float) -> Path:
    pool = folder / "pool.yaml"
    pool.write_text(POOL)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(pool=pool, small=small, large=large))
    return path


def test_a_configuration_decides_the_ledger_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, small=1, large=1)
    arguments = ["--ledger", url, "--config", path, "--json"]
    code, out, err = run_main(capsys, "replay", *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["same"] + found["changed"] == 300
    assert 50 < found["changed"] < 250
    assert list(found["reasons"]) == ["another version of the policy"]
    assert run_main(capsys, "replay", *arguments)[1] == out  # it draws the same again


def test_the_difference_in_cost_and_the_moves_are_told(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, small=1, large=0.000001)
    code, out, _ = run_main(capsys, "replay", "--ledger", url, "--config", path)
    assert code == 0
    assert "large -> small: " in out
    assert "small -> large" not in out
    assert "expected cost: -" in out


def test_a_router_decides_the_ledger_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, router = tmp_path / "o.parquet", tmp_path / "router"
    run_main(capsys, "ledger", "export", "--ledger", url, "--out", outcomes)
    run_main(capsys, "fit", "best-single", "--outcomes", outcomes, "--out", router)
    arguments = ["--ledger", url, "--router", router, "--json"]
    code, out, err = run_main(capsys, "replay", *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert [(move["from"], move["to"]) for move in found["moves"]] == [("small", "large")]
    assert found["cost_usd"] == pytest.approx(0.009 * found["changed"])


def test_a_configuration_without_models_is_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("port: 1\n", "utf-8")
    code, _, err = run_main(capsys, "replay", "--ledger", url, "--config", config)
    assert code == 1
    assert "names no models to decide among; add 'pool: pool.yaml'" in err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "either --config F or --router DIR"),
        (["--config", "a", "--router", "b"], "either --config F or --router DIR"),
        (["--config", "a", "--rule", "argmax"], "--rule needs --router"),
        (["--router", "a", "--rule", "argmx"], "unknown decision rule 'argmx'"),
    ],
)
def test_wrong_calls_are_refused(
    url: str, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_main(capsys, "replay", "--ledger", url, *arguments)
    assert code == 2
    assert problem in err
