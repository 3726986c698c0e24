"""Virtual keys: secrets, their hashes, and who a request comes from.

A secret is 256 random bits, so its SHA-256 cannot be turned back by guessing. A slow password hash
(bcrypt, Argon2) protects secrets that people choose; here it would cost every request milliseconds
and add nothing. The hash finds the key in a table, which leaks nothing about other secrets, and is
then compared in constant time.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from crossroads.core.errors import InputError
from crossroads.gateway.call import Client
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance.settings import KeySettings

PREFIX = "sk-cr-"

_SECRET_BYTES = 32
_SHOWN = 6  # hexadecimal digits of a hash by which a person tells two keys apart


def new_secret() -> str:
    """Return a new secret: ``sk-cr-`` and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """Return what is kept of a secret: ``sha256:`` and 64 hexadecimal digits."""
    return f"sha256:{sha256(secret.encode()).hexdigest()}"


def fingerprint(key: KeySettings) -> str:
    """Return a few digits of the key's hash, to tell keys apart."""
    return digest_of(key).hex()[:_SHOWN]


@dataclass(frozen=True, slots=True)
class Known:
    """A key as requests meet it.

    Attributes
    ----------
    settings : of the key
    digest : SHA-256 of its secret
    client : who asks with it
    expires : Unix seconds; None for never
    """

    settings: KeySettings
    digest: bytes
    client: Client
    expires: float | None


class Keyring:
    """Finds the key of a request.

    ``time`` is Unix seconds, as the governor's clock has it. Raises InputError for two keys of one
    name or one secret.
    """

    def __init__(self, keys: Iterable[KeySettings]) -> None:
        self._known: dict[bytes, Known] = {}
        self.names: dict[str, Known] = {}
        for key in keys:
            known = _known(key)
            if key.name in self.names:
                raise InputError(f"key {key.name!r} is given twice; rename one")
            if known.digest in self._known:
                other = self._known[known.digest].settings.name
                raise InputError(f"keys {other!r} and {key.name!r} have one secret; rotate one")
            self._known[known.digest] = self.names[key.name] = known

    def __len__(self) -> int:
        return len(self._known)

    def find(self, headers: Mapping[bytes, bytes], now: float) -> Client:
        """Return who asks, by ``authorization: Bearer`` or ``x-api-key``. Raises ApiError 401."""
        secret = _secret_of(headers)
        if secret is None:
            raise _refused(f"No API key; send the header {_way_of(headers)}.")
        digest = sha256(secret).digest()
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise _refused(f"Wrong API key; send the header {_way_of(headers)}.")
        if known.settings.disabled:
            raise _refused("This API key is disabled; ask for a new one.")
        if known.expires is not None and now >= known.expires:
            raise _refused("This API key has expired; ask for a new one.", code="expired_api_key")
        return known.client


def _secret_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    given = headers.get(b"authorization")
    if given is not None and given[:7].lower() == b"bearer ":
        return given[7:].strip() or None
    return headers.get(b"x-api-key") or None


def _way_of(headers: Mapping[bytes, bytes]) -> str:
    """Return how this client sends a key: Anthropic's clients have a header of their own."""
    is_bearer = b"authorization" in headers
    is_anthropic = b"x-api-key" in headers or b"anthropic-version" in headers
    return "'x-api-key: KEY'" if is_anthropic and not is_bearer else "'Authorization: Bearer KEY'"


def _refused(message: str, *, code: str = "invalid_api_key") -> ApiError:
    challenge = (b"www-authenticate", b"Bearer")
    return ApiError(message, status=401, code=code, headers=[challenge])


def digest_of(key: KeySettings) -> bytes:
    """Return the SHA-256 of the key's secret."""
    if key.secret is not None:
        return sha256(key.secret.encode()).digest()
    return bytes.fromhex((key.hash or "").removeprefix("sha256:"))


def _known(key: KeySettings) -> Known:
    client = Client(
        key_id=key.name,
        team=key.team or "",
        models=None if key.models is None else frozenset(key.models),
        tags=frozenset(key.tags),
        residency=frozenset(key.residency),
    )
    expires = None if key.expires is None else key.expires.timestamp()
    return Known(settings=key, digest=digest_of(key), client=client, expires=expires)
