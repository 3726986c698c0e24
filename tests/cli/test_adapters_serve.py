"""``crossroads adapters serve`` as a process of its own, behind ``crossroads serve``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from crossroads.cli import cli
from crossroads.core.errors import CrossroadsError
from tests.adapters.saved import save_adapters, save_base

PROMPT = "a b c"


@contextmanager
def process(
    folder: Path, *arguments: str, lines: int
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run a command until its ``lines`` lines are read; yields it, its URL and the lines."""
    started = subprocess.Popen(
        [sys.executable, "-m", "crossroads", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.stdout is not None and started.stderr is not None
    try:
        read = [started.stdout.readline() for _ in range(lines)]
        found = re.search(r"http://[^ \n]+", read[0])
        assert found is not None, started.stderr.read()
        yield started, found[0], read
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        started.stdout.close()
        started.stderr.close()


def test_a_gateway_without_torch_serves_the_adapters_as_one_model(tmp_path: Path) -> None:
    model, adapters = save_base(tmp_path / "base"), save_adapters(tmp_path / "bank")
    serve = ("adapters", "serve", str(adapters), "--model", str(model), "--name", "mine")
    with process(tmp_path, *serve, "--port", "0", lines=2) as (server, direct, said):
        assert said[0].startswith("3 adapters of base, router phatgoose, on http://127.0.0.1:")
        card = said[1].removeprefix("pool.yaml: ")
        (tmp_path / "pool.yaml").write_text(f"models:\n  {card}", "utf-8")
        gateway = ("serve", "--pool", str(tmp_path / "pool.yaml"), "--port", "0")
        with process(tmp_path, *gateway, lines=3) as (front, url, _):
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                _asked_both_ways(client, direct)
            maps = Path(f"/proc/{front.pid}/maps")
            if maps.is_file():
                assert "libtorch" not in maps.read_text("utf-8")
                assert "libtorch" in Path(f"/proc/{server.pid}/maps").read_text("utf-8")
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def _asked_both_ways(client: openai.OpenAI, direct: str) -> None:
    whole = client.chat.completions.create(
        model="mine", messages=[{"role": "user", "content": PROMPT}], max_tokens=5
    )
    assert whole.usage is not None and whole.usage.completion_tokens == 5
    assert whole.model_extra is not None  # where the prompt went is handed on
    assert set(whole.model_extra["crossroads"]["adapters"]) <= {"letters", "words", "lines"}
    stream = client.chat.completions.create(
        model="mine",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=5,
        stream=True,
    )
    said = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content
    with openai.OpenAI(base_url=f"{direct}/v1", api_key="none") as behind:
        own = behind.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": PROMPT}], max_tokens=5
        )
    assert own.choices[0].message.content == whole.choices[0].message.content


def _refused(*arguments: str) -> str:
    with pytest.raises(CrossroadsError) as found:
        CliRunner().invoke(cli, ["adapters", "serve", *arguments], catch_exceptions=False)
    return str(found.value)


def test_what_cannot_be_served_is_told_before_serving(tmp_path: Path) -> None:
    base = str(save_base(tmp_path / "base"))
    adapters = str(save_adapters(tmp_path / "bank"))
    own = ("--model", base, "--port", "0")
    assert "nowhere: no such folder" in _refused(str(tmp_path / "nowhere"), *own)
    assert "unknown adapter router 'fat'" in _refused(adapters, *own, "--router", "fat")
    told = _refused(adapters, *own, "--router", "oracle")
    assert "oracle: does not choose" in told and "as in adapters:letters" in told
    assert "--expert" not in told  # of another command
    assert "x-lora: nobody trained" in _refused(adapters, *own, "--router", "x-lora")
    other = str(save_base(tmp_path / "other", hidden_size=8))
    message = _refused(adapters, "--model", other, "--port", "0")
    assert "expected 8 outputs of the model's layer" in message and "\n" not in message


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    from crossroads.gateway.server import bind

    listener = bind("127.0.0.1", 0)
    port = str(listener.getsockname()[1])
    assert f"port {port} on 127.0.0.1 cannot be used" in _refused(str(tmp_path), "--port", port)
    listener.close()
