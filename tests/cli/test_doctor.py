from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from crossroads.cli import doctor
from crossroads.cli.doctor import command, run_checks
from crossroads.core.errors import UnavailableError
from crossroads.datasets.paths import VARIABLE


def by_name() -> dict[str, doctor.Check]:
    return {check.name: check for check in run_checks()}


def test_doctor_ends_with_code_0_where_the_needed_parts_work() -> None:
    call = [sys.executable, "-m", "crossroads", "doctor", "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["python"].count(".") == 2
    parts = {check["name"]: check for check in found["checks"]}
    assert parts["embedded table"]["detail"] == "12032 prompts x 29 models"
    assert parts["encoder static"]["status"] == "ok"
    for check in found["checks"]:
        assert set(check) == {"name", "status", "detail", "remedy"}
        assert check["status"] in {"ok", "missing"}


def test_text_is_one_line_a_part() -> None:
    run = CliRunner().invoke(command, [])
    assert run.exit_code == 0
    assert len(run.stdout.splitlines()) == 1 + len(run_checks())


def test_a_missing_extra_gives_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = by_name()
    for extra in doctor.EXTRAS:
        check = found[f"extra {extra}"]
        assert check.status == "missing"
        assert check.remedy == f"pip install 'crossroads[{extra}]'"


def test_a_needed_part_that_fails_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise UnavailableError("encoder gone; run: pip install wordllama")

    monkeypatch.setattr(doctor, "_encoder", missing)
    run = CliRunner().invoke(command, ["--json"])
    assert run.exit_code == 1
    found = json.loads(run.stdout)
    assert found["ok"] is False
    failed = [check for check in found["checks"] if check["status"] == "failed"]
    assert [(f["name"], f["detail"], f["remedy"]) for f in failed] == [
        ("encoder static", "encoder gone", "run: pip install wordllama")
    ]
    assert CliRunner().invoke(command, []).exit_code == 1


def test_a_missing_data_folder_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere at all")
    check = by_name()["data folder"]
    assert check.status == "missing"
    assert "'/nowhere at all' is no folder" in check.detail
    assert VARIABLE in check.remedy


def test_a_taken_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(doctor, "PORT", other.getsockname()[1])
        check = by_name()[f"port {doctor.PORT}"]
    assert check.status == "missing"
    assert "taken" in check.detail
    assert "--port" in check.remedy
