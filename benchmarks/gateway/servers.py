"""The servers under comparison, each a process of its own that is started, measured and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
LITELLM_MODEL = "model-0"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True)
class Server:
    """A running server: its process, its port and how long it took to be ready."""

    pid: int
    port: int
    ready_s: float

    def cpu_s(self) -> float:
        """Processor time of the process and all its descendants so far, user and system."""
        return sum(_cpu_s(pid) for pid in (self.pid, *descendants(self.pid)))

    def rss_mib(self) -> float:
        """Resident memory of the process and all its descendants."""
        return sum(_rss_kib(pid) for pid in (self.pid, *descendants(self.pid))) / 1024


def descendants(pid: int) -> list[int]:
    """Return the processes below one, at any depth."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    health: str,
    log: Path,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 120,
) -> Iterator[Server]:
    """Run a server, on one core where ``core`` is given, until the block ends."""
    began = time.perf_counter()
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pinned, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
        )
    try:
        _await(process, f"http://127.0.0.1:{port}{health}", log, patience_s)
        yield Server(pid=process.pid, port=port, ready_s=time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended at once:\n{log.read_text('utf-8', 'replace')}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"no answer from {url} within {patience_s:g} s; see {log}")


def stub(folder: Path, *options: str, core: int | None = None):  # type: ignore[no-untyped-def]
    """The upstream of all of them."""
    port = free_port()
    command = [sys.executable, str(HERE / "stub.py"), "--port", str(port), *options]
    return running(command, port=port, health="/", log=folder / "stub.log", core=core)


def bare(folder: Path, upstream: int, *, core: int | None = None):  # type: ignore[no-untyped-def]
    """uvicorn and aiohttp, nothing else."""
    port = free_port()
    url = f"http://127.0.0.1:{upstream}/v1"
    command = [sys.executable, str(HERE / "bare.py"), "--port", str(port), "--upstream", url]
    log = folder / "bare.log"
    return running(command, port=port, health="/none", log=log, core=core)


def litellm(folder: Path, upstream: int, program: str, *, core: int | None = None):  # type: ignore[no-untyped-def]
    """LiteLLM's proxy with one worker: no keys, no database, no callbacks."""
    port = free_port()
    entry = {
        "model_name": LITELLM_MODEL,
        "litellm_params": {
            "model": "openai/stub",
            "api_base": f"http://127.0.0.1:{upstream}/v1",
            "api_key": "none",
        },
    }
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [entry]}))
    return running(
        [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
        port=port,
        health="/health/liveliness",
        log=folder / "litellm.log",
        core=core,
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # fetch nothing
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys
            "LITELLM_LOG": "ERROR",
            "NO_PROXY": "*",
        },
    )


def crossroads(  # type: ignore[no-untyped-def]
    folder: Path,
    name: str,
    config: Mapping[str, object],
    *,
    core: int | None = None,
    options: Sequence[str] = (),
):
    """This gateway with a configuration."""
    port = free_port()
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    command = [sys.executable, "-m", "crossroads", "serve", "--config", str(path)]
    return running(
        [*command, "--port", str(port), *options],
        port=port,
        health="/health/ready",
        log=folder / f"{name}.log",
        core=core,
    )


def pin(core: int, pid: int | None = None) -> None:
    """Keep a process on one core, with all its threads; by default this one."""
    for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
