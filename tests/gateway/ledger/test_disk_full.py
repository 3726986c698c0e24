"""A disk that is really full: a small file system in memory, where mounting one is allowed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossroads.gateway.ledger import LedgerReader, LedgerSettings, open_ledger
from tests.gateway.ledger.records import record
from tests.gateway.ledger.test_writer import wait_until

MIB = 1 << 20
ROWS = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if done.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(
    small_disk: Path,
) -> None:
    url = f"sqlite:{small_disk}/l.db"
    ledger = open_ledger(LedgerSettings(url=url, flush_ms=5, batch=20, keep=("text",)))
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (7 * MIB))
    for n in range(ROWS):
        ledger.append(record(f"dec_{n}", prompt="x" * 4_000))
    wait_until(lambda: ledger.health()["journal_error"] is not None)
    health = ledger.health()
    assert health["state"] == "degraded"
    assert "full" in health["error"]
    assert "No space left" in health["journal_error"]
    assert health["lost"] == 0
    filler.unlink()
    wait_until(lambda: ledger.health()["state"] == "ok" and not ledger.health()["queued"])
    ledger.close()
    with LedgerReader(url) as reader:
        assert len({each.decision_id for each in reader.records()}) == ROWS
    assert [path.suffix for path in small_disk.glob("*.jsonl")] == []
