"""Serves a configuration where no network is, asks it once, and prints what came.

Usage: python -m tests.gateway.chaos.offline CONFIG
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from pathlib import Path
from typing import Any

from tests.gateway.chaos.asking import ask
from tests.gateway.chaos.configured import serving_config


class OutsideError(BaseException):
    """Somebody tried to leave this machine; nothing that handles errors may hide it."""


def _guard(event: str, given: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(given[1], tuple):
        _check(given[1][0])
    elif event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        host = given[0] if event != "socket.sendto" else given[1][0]
        _check(host)


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        is_here = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise OutsideError(name)


def main(path: str) -> None:
    sys.addaudithook(_guard)
    try:
        socket.getaddrinfo("example.org", 80)
        guarded = "let through"
    except OutsideError:
        guarded = "refused"
    with serving_config(Path(path)) as url:
        reply = ask(url, messages=[{"role": "user", "content": "sum number 3"}])
    found = {
        "status": reply.status,
        "model": reply.model,
        "policy": reply.headers.get("x-crossroads-policy"),
        "guarded": guarded,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
