"""A real PostgreSQL in a temporary folder, that can be killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PLACES = "/usr/lib/postgresql/*/bin"
_START_S = 30.0
_USER = "postgres"  # the server refuses to be root's


def missing_postgres() -> str:
    """Return why PostgreSQL cannot be started here, "" where it can."""
    if _program("initdb") is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0 and not _has_user():
        return f"PostgreSQL refuses to run as root, and there is no user {_USER!r}"
    return ""


class PostgresServer:
    """Listens on a free port of 127.0.0.1; the database is empty. Use it as a context."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="crossroads-postgres-"))
        self._data = self.folder / "data"
        self._as = {"user": _USER, "group": _USER} if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        if self._as:
            os.chown(self.folder, pwd.getpwnam(_USER).pw_uid, -1)
        subprocess.run(
            [_found("initdb"), "-D", self._data, "-U", "crossroads", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as,  # type: ignore[call-overload]
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"postgresql://crossroads@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start, or start again after ``kill``; returns when it takes connections."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                self._spawn()
            if self._is_ready():
                return
            time.sleep(0.05)
        log = (self.folder / "log").read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"PostgreSQL did not start within {_START_S:g} s: {log}")

    def kill(self) -> None:
        """Kill the server and its children as ``kill -9`` does."""
        process, self._process = self._process, None
        if process is None:
            return
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pids = [process.pid]
        with suppress(OSError):
            pids += [int(pid) for pid in children.read_text().split()]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def _spawn(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",  # a killed server keeps what the system has
            "shared_buffers": "16MB",
            "max_connections": "20",
        }
        options = [part for pair in settings.items() for part in ("-c", "=".join(pair))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_found("postgres"), "-D", self._data, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as,  # type: ignore[call-overload]
            )

    def _is_ready(self) -> bool:
        check = [_found("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(check, check=False).returncode == 0


def _has_user() -> bool:
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return False
    return True


def _program(name: str) -> str | None:
    places = sorted(Path("/").glob(_PLACES.lstrip("/")), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ["PATH"]]))


def _found(name: str) -> str:
    path = _program(name)
    assert path is not None, missing_postgres()
    return path
