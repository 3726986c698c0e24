"""Shared counts in Redis or Valkey: for workers and replicas on any number of hosts.

One script does a whole exchange, so it is atomic and costs one round trip. Time is the server's;
a step of its clock forward cannot refill a bucket by more than the worker saw pass, and one
backward changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, cast

from crossroads.gateway.governance.accounts import MS_PER_S
from crossroads.gateway.governance.stores.base import Answer, Ask, StoreError
from crossroads.gateway.remote import connect_redis, failures, unavailable

_PREFIX = "{crossroads}:"  # the braces keep all keys in one slot of a cluster
_WORKERS = f"{_PREFIX}workers"
_NUM_NUMBERS = 5  # of an answer
_ACCOUNTS = 64  # a script, so that other clients of the server wait no more than some milliseconds
_SWAP = """
if redis.call('GET', KEYS[1]) == (ARGV[1] == '1' and ARGV[2]) then
  redis.call('SET', KEYS[1], ARGV[3])
  return 1
end
return 0
"""


class RedisStore:
    """Implements ``Store``. Raises InputError for a wrong URL, MissingExtraError without redis."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = connect_redis(url)
        self._failures = failures()
        script = resources.files(__package__).joinpath("exchange.lua").read_text("utf-8")
        self._exchange = self._client.register_script(script)
        self._swap = self._client.register_script(_SWAP)

    async def exchange(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        answers = []
        for i in range(0, max(1, len(asks)), _ACCOUNTS):
            answers += await self._exchange_some(worker, ttl_ms, asks[i : i + _ACCOUNTS])
        return answers

    async def _exchange_some(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        keys = [_WORKERS]
        numbers: list[str | int] = [worker, ttl_ms]
        for ask in asks:
            account = ask.account
            keys += [f"{_PREFIX}account:{account.name}", f"{_PREFIX}leases:{account.name}"]
            numbers += [account.limit, account.period_s * MS_PER_S, account.keep_s * MS_PER_S]
            numbers += [ask.seq, ask.used, ask.give, ask.calls, ask.need, ask.block, ask.since_ms]
        flat = cast(list[int], await self._call(self._exchange, keys, numbers))
        return [Answer(*flat[i : i + _NUM_NUMBERS]) for i in range(0, len(flat), _NUM_NUMBERS)]

    async def read(self, name: str) -> bytes | None:
        try:
            return cast("bytes | None", await self._client.get(f"{_PREFIX}document:{name}"))
        except self._failures as error:
            raise StoreError(str(unavailable(self._url, error))) from error

    async def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        given: list[str | bytes] = ["0" if old is None else "1", old or b"", new]
        return bool(await self._call(self._swap, [f"{_PREFIX}document:{name}"], given))

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, script: Any, keys: list[str], arguments: Sequence[Any]) -> Any:
        try:
            return await script(keys=keys, args=arguments)
        except self._failures as error:
            raise StoreError(str(unavailable(self._url, error))) from error
