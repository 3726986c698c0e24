"""Static files of the dashboard, read once and kept compressed."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    compressed: bytes
    media_type: str
    etag: str


class Assets:
    """Answers ``/static/{name}``; browsers ask each time but get a body only when it changed."""

    def __init__(self) -> None:
        self._assets: dict[str, _Asset] = {}
        for path in (files("crossroads.gateway.admin") / "static").iterdir():
            media_type = _TYPES.get("." + path.name.rpartition(".")[2])
            if media_type is not None:
                content = path.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
                compressed = gzip.compress(content, mtime=0)
                self._assets[path.name] = _Asset(content, compressed, media_type, etag)

    async def answer(self, request: Request) -> Response:
        asset = self._assets.get(request.path_params["name"])
        if asset is None:
            return Response("not found\n", 404)
        headers = {"etag": asset.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(asset.compressed, headers=headers, media_type=asset.media_type)
        return Response(asset.content, headers=headers, media_type=asset.media_type)
