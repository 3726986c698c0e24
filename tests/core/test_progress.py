from __future__ import annotations

import pytest

from crossroads.core import progress
from crossroads.core.progress import progress_bar


def test_off_a_terminal_a_line_is_written_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 61.0, 90.0, 125.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress_bar("work") as moved:
        for done in range(1, 5):
            moved(done, 4)
    assert capsys.readouterr().err == "work: 2 of 4, 61 s\nwork: 4 of 4, 125 s\n"


def test_what_is_not_to_be_shown_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with progress_bar("work", show=False) as moved:
        moved(1, 2)
    assert capsys.readouterr().err == ""
