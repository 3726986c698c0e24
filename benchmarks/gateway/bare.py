"""The floor to compare with: a bare ASGI pass-through, uvicorn and aiohttp, no feature at all.

python benchmarks/gateway/bare.py --port N --upstream http://127.0.0.1:M/v1
"""

from __future__ import annotations

import argparse
from typing import Any

import aiohttp
import uvicorn

CHUNK = 1 << 16


class PassThrough:
    """Sends every body to the upstream and relays what comes back."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        body = (await receive())["body"]
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            kind = response.headers["content-type"].encode()
            head = [(b"content-type", kind)]
            if response.content_length is not None:
                head.append((b"content-length", str(response.content_length).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": head})
            async for portion in response.content.iter_any():
                await send({"type": "http.response.body", "body": portion, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    given = parser.parse_args()
    uvicorn.run(
        PassThrough(given.upstream),
        port=given.port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
