from __future__ import annotations

from tests.core.http.conftest import Run, run

__all__ = ["Run", "run"]
