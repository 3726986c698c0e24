"""URLs of servers and proxies, and whom to trust."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.core.http.dial import parse_endpoint, tls_context


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://host/v1", "/v1/chat/completions"),
        ("http://host:8080/v1/", "/v1/chat/completions"),
        ("https://host", "/chat/completions"),
        ("https://host/a/b?api-version=3", "/a/b/chat/completions?api-version=3"),
    ],
)
def test_parts_of_an_api_are_below_its_endpoint(url: str, line: str) -> None:
    assert parse_endpoint(url, where="model 'm'").path_of("chat/completions") == line


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://host/v1", "host"),
        ("http://host:80/v1", "host"),
        ("https://host:80/v1", "host:80"),
        ("http://[::1]:8000/v1", "[::1]:8000"),
    ],
)
def test_the_host_header_has_a_port_only_where_it_is_unusual(url: str, authority: str) -> None:
    assert parse_endpoint(url, where="model 'm'").target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        *("host/v1", "ftp://host/v1", "file:///etc/passwd", "http:///v1", "http://host:99999/v1"),
        *("ftp://user:secret-word@host/v1", "user:secret-word@host"),
        *("http://user:secret-word@host/v1", "http://host/v1#x", "http://host/a b", "unix:/x"),
        *("http://host/v1\r\nx: y", "http://h\u00f6st/v1", "http://[::1/v1", "gopher://host"),
    ],
)
def test_an_endpoint_that_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="model 'm': endpoint") as refused:
        parse_endpoint(url, where="model 'm'")
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize(
    "proxy", ["host:3128", "https://host:3128", "socks5://host:1", "http://host/path", "http://"]
)
def test_a_proxy_that_is_none_is_refused(proxy: str) -> None:
    with pytest.raises(InputError, match="proxy is not http://host:port"):
        parse_endpoint("https://host/v1", where="model 'm'", proxy=proxy)


def test_an_authority_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; give a PEM file"):
        tls_context(str(tmp_path / "none.pem"))
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    with pytest.raises(InputError, match="give a PEM file"):
        tls_context(str(empty))


def test_credentials_of_a_proxy_are_not_shown() -> None:
    base = parse_endpoint("http://host/v1", where="m", proxy="http://me:secret-word@proxy:1")
    assert "secret" not in repr(base)
    assert "Basic" not in repr(base)
