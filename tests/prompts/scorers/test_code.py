from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers import parse_scorer
from crossroads.prompts.scorers.code import code, extract_code

FENCED = "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nUse it:\n```python\nf(1)\n```\n"
HAS_FILTER = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@pytest.mark.parametrize(
    ("answer", "tests", "score"),
    [
        (FENCED, ["assert f(1) == 2"], 1),
        (FENCED, ["assert f(1) == 2", "assert f(1) == 3"], 0),
        ("def f(x): return x", ["assert f(1) == 1"], 1),
        ("def f(x): return", ["assert f(1) == 1"], 0),
        ("I do not know.", ["assert True"], 0),
        ("import sys; sys.exit(0)", ["assert False"], 0),
        ("import os; os._exit(0)", ["assert False"], 0),
        ("print('x' * 100000)", ["assert True"], 1),
        ("import math", ["assert math.pi > 3"], 1),
    ],
)
def test_code_scores_when_all_tests_pass(answer: str, tests: list[str], score: float) -> None:
    assert code(answer, tests) == score


@pytest.mark.slow
def test_an_endless_loop_ends() -> None:
    assert code("while True: pass", ["pass"], seconds=1) == 0


def test_a_sleeper_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.prompts.scorers.code._START_SECONDS", 0.2)
    assert code("import time; time.sleep(3600)", ["pass"], seconds=0.1) == 0


def test_a_memory_bomb_scores_zero() -> None:
    assert code("x = [0] * 10**10", ["pass"]) == 0


def test_large_files_are_refused_and_small_ones_stay_in_a_folder_of_their_own() -> None:
    assert code("open('x', 'w').write('a' * (1 << 22))", ["pass"]) == 0
    before = set(Path.cwd().iterdir())
    answer = "import os\nempty = os.listdir('.') == []\nopen('left-behind', 'w').write('a')"
    assert code(answer, ["assert empty and os.listdir('.') == ['left-behind']"]) == 1
    assert set(Path.cwd().iterdir()) == before


def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    assert code("import os", ["assert 'MY_KEY' not in os.environ"]) == 1


@pytest.mark.skipif(not HAS_FILTER, reason="the kernel's filter is Linux' own")
@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "os.execv('/bin/true', ['true'])",
        "socket.socket()",
        "socket.socketpair()",
        "os.kill(os.getppid(), 0)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))",
    ],
)
def test_processes_sockets_and_signals_are_refused(attempt: str) -> None:
    answer = (
        "import os, resource, socket, subprocess\n"
        f"try:\n    {attempt}\n    refused = False\n"
        "except (OSError, ValueError):\n    refused = True\n"
    )
    assert code(answer, ["assert refused"]) == 1


@pytest.mark.skipif(not HAS_FILTER, reason="the kernel's filter is Linux' own")
def test_a_fork_bomb_starts_nothing() -> None:
    answer = "import os\nwhile True:\n    os.fork()"
    assert code(answer, ["pass"]) == 0


def test_a_flood_of_output_is_not_listened_to() -> None:
    flood = (
        "import os\n"
        "while True:\n"
        "    for pipe in range(3, 10):\n"
        "        try:\n            os.write(pipe, b'x' * 65536)\n"
        "        except OSError:\n            pass\n"
    )
    assert code(flood, ["pass"]) == 0


def test_threads_work() -> None:
    answer = "import threading\nt = threading.Thread(target=lambda: None)\nt.start()\nt.join()"
    assert code(answer, ["assert not t.is_alive()"]) == 1


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (FENCED, "def f(x):\n    return x + 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```bash\npip install everything you like\n```\n```py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1", "x = 1"),
    ],
)
def test_the_code_of_an_answer(answer: str, found: str) -> None:
    assert extract_code(answer) == found


@pytest.mark.parametrize("scorer", ["code:0", "code:-1", "code:x", "code:nan", "code:1e9"])
def test_seconds_are_bounded(scorer: str) -> None:
    with pytest.raises(UsageError, match="expected code:SECONDS"):
        parse_scorer(scorer)
