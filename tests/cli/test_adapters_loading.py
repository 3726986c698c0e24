from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossroads.adapters.collection.shipped import shipped_folder
from crossroads.cli.adapters import loading
from crossroads.cli.adapters.loading import adapters_folder, neural, told_when_long
from crossroads.core.errors import InputError, MissingExtraError


def test_a_missing_library_is_told_with_the_extra_to_install() -> None:
    with (
        pytest.raises(MissingExtraError, match=r"nowhere_at_all is not .*crossroads\[neural\]"),
        neural(),
    ):
        import nowhere_at_all  # type: ignore[import-not-found]  # noqa: F401


def test_defects_of_our_own_imports_are_not_hidden() -> None:
    with pytest.raises(ImportError, match="crossroads") as found, neural():
        import crossroads.nowhere  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(found.value, MissingExtraError)


@pytest.mark.parametrize("command", ["route", "compare", "export", "serve"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom crossroads.cli import main\n"
        f"try: main(['adapters', {command!r}, '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_shipped_names_the_packages_own_adapters_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adapters_folder(Path("shipped")) == shipped_folder()
    Path("shipped").mkdir()
    assert adapters_folder(Path("shipped")) == Path("shipped")
    with pytest.raises(InputError, match=r"nowhere: no such folder; .* the word shipped"):
        adapters_folder(Path("nowhere"))


def test_only_what_takes_long_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with told_when_long("short"):
        pass
    monkeypatch.setattr(loading, "_SHORT_S", 0.0)
    with told_when_long("long"):
        deadline = time.monotonic() + 30
        while not (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == "long ...\n"
