from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from crossroads.gateway.admin import AdminServer, AdminSources, build_admin
from crossroads.gateway.server import bind
from tests.gateway.admin.serving import serving


def test_it_answers_on_a_real_socket_until_closed() -> None:
    with serving(AdminSources()) as url:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            assert response.read() == b'{"status":"ok"}'
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{url}/api/models", timeout=5)
        error.value.close()
        assert error.value.code == 404
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5)


def test_it_leaves_the_signals_to_the_gateway() -> None:
    import signal

    async def run() -> bool:
        before = signal.getsignal(signal.SIGTERM)
        listener = bind("127.0.0.1", 0)
        server = AdminServer(build_admin(AdminSources()), listener)
        await server.start()
        during = signal.getsignal(signal.SIGTERM)
        await server.close()
        return before is during

    assert asyncio.run(run())


def test_a_configuration_that_names_the_settings_loads_no_web_framework() -> None:
    code = (
        "import sys, crossroads.gateway.admin.settings, crossroads.gateway.telemetry\n"
        "print(sorted({'starlette', 'jinja2', 'prometheus_client', 'opentelemetry'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
