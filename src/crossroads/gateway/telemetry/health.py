"""One answer to "is it well?" out of what the parts say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Status = Literal["ok", "degraded", "failing"]
HealthCheck = Callable[[], Mapping[str, Any]]
"""Returns plain data with ``status`` (or ``state``): ok, degraded or failing; ok without."""

SEVERITY: dict[str, int] = {"ok": 0, "degraded": 1, "failing": 2}


def compose_health(checks: Mapping[str, HealthCheck]) -> dict[str, Any]:
    """Return ``{"status": worst of the parts, "parts": {name: what it says}}``.

    A check that raises counts as failing, with the error's type; a status nobody knows counts as
    degraded, so that a misspelling is seen. Never raises.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, check in checks.items():
        try:
            part = dict(check())
        except Exception as error:  # noqa: BLE001 - a broken check is a finding, not a crash
            part = {"status": "failing", "reason": f"its check raised {type(error).__name__}"}
        state = part.get("state")
        if part.setdefault("status", state if state in SEVERITY else "ok") not in SEVERITY:
            part = {**part, "status": "degraded", "reason": f"unknown status {part['status']!r}"}
        parts[name] = part
    worst = max((part["status"] for part in parts.values()), key=SEVERITY.__getitem__, default="ok")
    return {"status": worst, "parts": parts}
