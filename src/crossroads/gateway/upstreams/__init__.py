"""Models behind HTTP(S) endpoints and in this process, asked through keep-alive connections."""

from crossroads.gateway.upstreams.build import (
    Pools,
    build_upstream,
    build_upstreams,
    check_upstream,
)
from crossroads.gateway.upstreams.settings import UpstreamSettings

__all__ = ["Pools", "UpstreamSettings", "build_upstream", "build_upstreams", "check_upstream"]
