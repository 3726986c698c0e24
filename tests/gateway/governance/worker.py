"""One worker process: reads orders from stdin, answers on stdout, both a JSON object a line.

``{"num": n, "usd": x, "settle": y}`` asks for n calls at once, reserving x each; those granted are
settled at y, or kept where that is null. ``{"describe": true}`` shows the first budget.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from crossroads.gateway.contracts import Grant, Usage
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import GovernanceSettings, KeyGovernor
from tests.gateway.governance.asking import granted


async def _run(given: dict[str, Any]) -> None:
    governor = KeyGovernor(GovernanceSettings.model_validate(given))
    await governor.start()
    kept: list[Grant] = []
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            if "num" in order:
                answer = await _ask(governor, order, kept)
            elif order.get("release"):
                for grant in kept:
                    grant.release()
                kept.clear()
                answer = {}
            else:
                answer = {"health": governor.health(), **governor.describe()}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        await governor.close()


async def _ask(governor: KeyGovernor, order: dict[str, Any], kept: list[Grant]) -> dict[str, Any]:
    async def one() -> int:
        try:
            grant = await granted(governor)
            if order.get("usd") is not None:
                await grant.reserve(order["usd"])
        except ApiError as error:
            return error.status
        if order.get("settle") is None:
            kept.append(grant)
        else:
            grant.settle(Usage(1, 1), order["settle"])
        return 200

    statuses = await asyncio.gather(*(one() for _ in range(order["num"])))
    return {str(status): statuses.count(status) for status in set(statuses)}


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.argv[1])))
