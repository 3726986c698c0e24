from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import KeySettings, fingerprint, hash_secret, new_secret
from crossroads.gateway.governance.keys import Keyring

SECRET = new_secret()
KEY = KeySettings(
    name="alice", hash=hash_secret(SECRET), models=("auto",), tags=("x",), residency=("eu",)
)
RING = Keyring([KEY])


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {secret}".encode()}


def test_a_secret_has_256_random_bits_and_its_hash_is_sha256() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert SECRET.startswith("sk-cr-")
    assert len(SECRET) == len("sk-cr-") + 43  # 256 bits in base 64
    assert hash_secret("abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "headers",
    [
        bearer(SECRET),
        {b"authorization": f"bearer  {SECRET}".encode()},
        {b"x-api-key": SECRET.encode()},
        {b"x-api-key": SECRET.encode(), b"authorization": b"Basic Zm9v"},
    ],
)
def test_a_key_is_known_by_either_header(headers: dict[bytes, bytes]) -> None:
    client = RING.find(headers, 0.0)
    assert client.key_id == "alice"
    assert client.models == {"auto"}
    assert client.tags == {"x"}
    assert client.residency == {"eu"}


@given(st.binary(max_size=80), st.sampled_from([b"authorization", b"x-api-key"]))
def test_no_other_bytes_are_let_in(value: bytes, name: bytes) -> None:
    for given_value in (value, b"Bearer " + value):
        if SECRET.encode() not in given_value:
            with pytest.raises(ApiError) as caught:
                RING.find({name: given_value}, 0.0)
            assert caught.value.status == 401
            assert (b"www-authenticate", b"Bearer") in caught.value.headers


def test_a_missing_key_is_told_from_a_wrong_one() -> None:
    for headers, message in (({}, "No API key"), (bearer("x"), "Wrong API key")):
        with pytest.raises(ApiError, match=message):
            RING.find(headers, 0.0)


@pytest.mark.parametrize(
    ("headers", "header"),
    [
        ({}, "'Authorization: Bearer KEY'"),
        ({b"x-api-key": b"x"}, "'x-api-key: KEY'"),
        ({b"anthropic-version": b"2023-06-01"}, "'x-api-key: KEY'"),
        ({b"anthropic-version": b"2023-06-01", **bearer("x")}, "'Authorization: Bearer KEY'"),
    ],
)
def test_who_is_refused_is_told_of_the_header_its_client_sends(
    headers: dict[bytes, bytes], header: str
) -> None:
    with pytest.raises(ApiError, match=f"send the header {header}"):
        RING.find(headers, 0.0)


def test_an_expired_key_is_refused_from_its_second_on() -> None:
    key = KeySettings.model_validate({**KEY.model_dump(), "expires": "2030-01-01T00:00:00Z"})
    assert key.expires is not None
    ring, end = Keyring([key]), key.expires.timestamp()
    assert ring.find(bearer(SECRET), end - 0.001).key_id == "alice"
    with pytest.raises(ApiError, match="expired"):
        ring.find(bearer(SECRET), end)


def test_a_disabled_key_is_refused() -> None:
    with pytest.raises(ApiError, match="disabled"):
        Keyring([KEY.model_copy(update={"disabled": True})]).find(bearer(SECRET), 0.0)


def test_two_keys_of_one_name_or_one_secret_are_refused() -> None:
    with pytest.raises(InputError, match="given twice"):
        Keyring([KEY, KEY])
    with pytest.raises(InputError, match="one secret"):
        Keyring([KEY, KEY.model_copy(update={"name": "bob"})])


def test_a_fingerprint_shows_little_of_the_hash() -> None:
    assert KEY.hash is not None
    assert KEY.hash.startswith(f"sha256:{fingerprint(KEY)}")
    assert len(fingerprint(KEY)) == 6
