"""The admin server: a JSON API and a dashboard on a port of its own."""

from crossroads.gateway.admin.app import build_admin
from crossroads.gateway.admin.server import AdminServer
from crossroads.gateway.admin.settings import AdminSettings
from crossroads.gateway.admin.sources import AdminSources, Reply

__all__ = ["AdminServer", "AdminSettings", "AdminSources", "Reply", "build_admin"]
