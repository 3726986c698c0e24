from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers import parse_scorer
from crossroads.prompts.scorers.code import _source, code, extract_code, run_program

FENCED = "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nUse it:\n```python\nf(1)\n```\n"
FORGED = """\
import os, sys
def forge():
    frame = sys._getframe()
    while "verdict" not in frame.f_locals:
        frame = frame.f_back
    verdict, receive = frame.f_locals["verdict"], frame.f_locals["receive"]
    {before}
    os.write(verdict, b".")
    os.write(verdict, receive())
    os._exit(0)
"""
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


def test_a_folder_that_holds_too_much_in_small_files_scores_zero() -> None:
    fill = "for n in range({}):\n    open(str(n), 'wb').write(bytes(1000000))"
    assert code(fill.format(3), ["pass"]) == 1
    assert code(fill.format(30), ["pass"]) == 0


def kernel_without_landlock() -> str:
    source, sought = _source(), "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444"
    assert sought in source
    return source.replace(sought, sought.replace("444", "9999"))


def kernel_whose_landlock_knows_no_truncation() -> str:
    source, sought = _source(), "(3, TRUNCATE), "
    assert sought in source
    return source.replace(sought, "")


@pytest.mark.skipif(not HAS_FILTER, reason="Landlock and the kernel's filter are Linux' own")
@pytest.mark.parametrize(
    "kernel", [_source, kernel_without_landlock, kernel_whose_landlock_knows_no_truncation]
)
@pytest.mark.parametrize(
    "harm",
    [
        "shutil.rmtree(folder)",
        "os.remove(file)",
        "open(file, 'w').write('mine')",
        "open(file, 'a').write('mine')",
        "os.truncate(file, 0)",
        "os.open(file, os.O_RDONLY | os.O_TRUNC)",
        "os.rename(file, file + '2')",
        "os.rename(file, 'here')",
        "os.link(file, 'here'); open('here', 'w').write('mine')",
        "os.symlink(file, 'here'); open('here', 'w').write('mine')",
        "open(folder + '/another', 'w')",
        "os.mkdir(folder + '/another')",
        "os.open(folder, os.O_TMPFILE | os.O_RDWR)",
        "os.chmod(file, 0)",
        "os.chown(file, 65534, 65534)",
        "os.utime(file, (0, 0))",
        "os.setxattr(file, 'user.x', b'x')",
    ],
)
def test_the_users_files_are_neither_changed_nor_removed(
    harm: str, kernel: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossroads.prompts.scorers.code._source", kernel)
    file = tmp_path / "thesis"
    file.write_text("years of work", "utf-8")
    before = (file.stat(), tmp_path.stat())
    program = (
        f"import os, shutil\nfile, folder = {str(file)!r}, {str(tmp_path)!r}\n"
        f"try:\n    {harm}\n    refused = False\nexcept OSError:\n    refused = True\n"
    )
    assert run_program(program, "assert refused and open(file).read() == 'years of work'") == 1
    after = (file.stat(), tmp_path.stat())
    assert [(s.st_mtime_ns, s.st_mode, s.st_uid, s.st_size, s.st_nlink) for s in before] == [
        (s.st_mtime_ns, s.st_mode, s.st_uid, s.st_size, s.st_nlink) for s in after
    ]


@pytest.mark.skipif(not HAS_FILTER, reason="the kernel's filter is Linux' own")
def test_without_landlock_programs_run_and_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.prompts.scorers.code._source", kernel_without_landlock)
    assert run_program("import decimal, fractions", "assert open('/dev/null').read() == ''") == 1
    assert run_program("open('x', 'w')", "pass") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux' own")
def test_capabilities_are_dropped() -> None:
    status = "found = [line.split()[1] for line in open('/proc/self/status') if 'CapEff' in line]"
    assert run_program(status, "assert [int(c, 16) for c in found] == [0]") == 1


@pytest.mark.parametrize(
    "program",
    [
        FORGED.format(before="os.write(verdict, b'.'); receive()") + "forge()",
        FORGED.format(before="pass") + "def f(x):\n    forge()",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "import os, sys\nsys._getframe(1).f_globals['compile'] = lambda *a: 'pass'",
        "import os\nfor pipe in range(3, 10):\n    try:\n        os.write(pipe, b'.' * 64)\n"
        "    except OSError:\n        pass\n",
    ],
)
def test_a_forged_verdict_scores_zero(program: str) -> None:
    assert run_program(program, "assert f(1) == 7\nassert f(2) == 8\n") == 0


def test_an_object_that_equals_everything_is_not_detected() -> None:
    program = "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()"
    assert run_program(program, "assert f(1) == 7") == 1


def test_the_tests_and_the_token_are_unknown_while_the_program_loads() -> None:
    program = (
        "import gc, sys\nframe, known = sys._getframe(), []\n"
        "while frame:\n    known.append(repr(frame.f_locals))\n    frame = frame.f_back\n"
        "secret = 'f(20' + '26)'\nseen = any(secret in text for text in known)\n"
        "def f(x):\n    return 1\n"
    )
    assert run_program(program, "f(2026)\nassert not seen") == 1


def test_a_program_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.prompts.scorers.code._START_SECONDS", 0.5)
    program = (
        "import os, time\nfor pipe in range(3, 10):\n    try:\n        os.write(pipe, b'.')\n"
        "    except OSError:\n        pass\ntime.sleep(3600)"
    )
    assert run_program(program, "#" * (1 << 20), seconds=0.1) == 0


def test_a_program_is_taken_whole_its_fences_included() -> None:
    program = 'TEXT = """\n```python\nx = 1\n```\n"""\n\n\ndef f():\n    return TEXT.count("```")\n'
    assert run_program(program, "assert f() == 2") == 1
    assert code(program, ["assert f() == 2"]) == 0


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
