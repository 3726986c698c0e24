"""The HTTP front: limits for connections, and two implementations of HTTP/1.1 to choose from."""

from crossroads.gateway.serving.protocols import http_protocol
from crossroads.gateway.serving.settings import FrontSettings

__all__ = ["FrontSettings", "http_protocol"]
