"""Which requests are the same: what a key is made of, and what a client may forbid.

Two requests are the same when everything that can change the answer is: the model or policy asked,
messages, parameters, tools, tags, and who may share. Whether the answer is streamed does not
change it, nor does the end user's name or session. A request in another dialect than ``chat``
shares answers with ``chat`` where it says nothing that ``chat`` has no word for; otherwise it is
compared as sent.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from crossroads.gateway.call import Call, Client, Dialect

READ, KEEP = 1, 2
_BOTH = READ | KEEP

_SIZE = 20  # bytes of a key
_CONTROL = "crossroads"  # field of a request with the gateway's own options
# Headers that policies go by; what rules go by besides is named in the configuration.
HEADERS = (
    b"x-crossroads-policy",
    b"x-crossroads-tags",
    b"x-crossroads-residency",
)
# Fields that say how an answer is delivered or who is behind it, not what it is.
_ASIDE = frozenset(
    {"stream", "stream_options", "user", "safety_identifier", "prompt_cache_key", _CONTROL}
)
# The answer also depends on what is outside of the request.
_OUTSIDE = ("previous_response_id", "conversation", "background", "web_search_options")
_SHARED: Mapping[Dialect, frozenset[str]] = {
    "completions": frozenset({"prompt", "max_tokens", "temperature", "top_p", "stop", "seed"}),
    "messages": frozenset(
        {"messages", "system", "max_tokens", "temperature", "top_p", "stop_sequences", "metadata"}
    ),
    "responses": frozenset(
        {"input", "instructions", "max_output_tokens", "temperature", "top_p", "metadata", "store"}
    ),
}
_EVERYWHERE = _ASIDE | {"model"}
_TOKENS = re.compile(
    r"""
    [^\W\d_]+ (?: ' [^\W\d_]+ )?              # a word
    | \d+ (?: [.,:/] \d+ )*                    # a number, date or time
    | (?<! [a-z]{2} ) - | - (?! [a-z]{2} )     # a minus; not the hyphen between two words
    | [+<>=!]= | && | \|\| | [+*/%<>=^~|&\#$]
    | [\u00a2-\u00a5\u00ac\u00b1\u00d7\u00f7]  # currencies and signs of Latin-1
    | [\u20a0-\u20cf\u2190-\u22ff]             # currencies; arrows and mathematical operators
    """,
    re.VERBOSE,
)
_NEGATIONS = frozenset(
    {
        *("not", "no", "none", "never", "nor", "neither", "nothing", "nobody", "nowhere"),
        *("without", "except", "unless", "least", "most", "cannot"),
    }
)
_SHORT_NEGATIONS = frozenset(  # n't, as typed in a hurry
    f"{verb}nt"
    for verb in (
        *("ai", "are", "ca", "could", "did", "do", "does", "had", "has", "have", "is", "must"),
        *("need", "should", "was", "were", "wo", "would"),
    )
)
# Apostrophes and hyphens as telephones and word processors write them.
_PLAIN_SIGNS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u00b4", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
)


def permissions(call: Call, sampling: str) -> int:
    """Return what may be done for this call: ``READ``, ``KEEP``, both or 0.

    ``Cache-Control: no-store`` and ``crossroads: {cache: false}`` forbid both, ``no-cache`` to
    read. ``sampling`` is the setting: which temperatures repeat their answers.
    """
    allowed = _BOTH
    control = call.headers.get(b"cache-control")
    if control is not None:
        control = control.lower()
        if b"no-store" in control:
            return 0
        if b"no-cache" in control:
            allowed = KEEP
    body = call.body
    own = body.get(_CONTROL)
    if own is not None and isinstance(own, dict) and own.get("cache") is False:
        return 0
    if sampling != "any" and call.dialect != "embeddings":
        temperature = body.get("temperature")
        if temperature is None:
            if sampling == "none":
                return 0
        elif temperature != 0:
            return 0
    for source in (body,) if call.native is None else (body, call.native):
        for name in _OUTSIDE:
            if source.get(name):
                return 0
    return allowed


def scope_of(client: Client, scope: str) -> bytes:
    """Return what separates the answers of one client from those of others."""
    owners = {"key": ["", client.key_id], "team": [client.team, ""], "all": ["", ""]}
    # A key without a team is a team of its own, even where it has some team's name.
    owner = owners["key" if scope == "team" and not client.team else scope]
    rights = None if client.models is None else sorted(client.models)
    return orjson.dumps([owner, rights, sorted(client.tags), sorted(client.residency)])


def exact_key(call: Call, scope: bytes, names: Sequence[bytes] = HEADERS) -> bytes | None:
    """Return the key of a call; None where it cannot be written as JSON.

    ``names`` are the headers that make a difference, in lower case.
    """
    return _digest(call, scope, names, _request(call))


def semantic_key(call: Call, scope: bytes, names: Sequence[bytes] = HEADERS) -> bytes | None:
    """Return the key of everything but the wording of the last message.

    Numbers, signs, operators and English negations of that message are in the key: texts that
    differ in them are close in wording and far apart in meaning. None where the last message is not
    a user's plain text.
    """
    request = _request(call)
    messages = request.get("messages")
    if request is call.native or not isinstance(messages, list) or not messages:
        return None
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    text = last.get("content")
    if not isinstance(text, str):
        return None
    rest = {**last, "content": _facts(text)}
    return _digest(call, scope, names, {**request, "messages": [*messages[:-1], rest]})


def _facts(text: str) -> list[str]:
    """Return what no other wording may change, in order."""
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_PLAIN_SIGNS))
    facts = []
    for token in _TOKENS.findall(text):
        if token in _NEGATIONS or not token[0].isalpha():
            facts.append(token)
        elif token.endswith("n't") or token in _SHORT_NEGATIONS:
            facts.append("n't")
    return facts


def _digest(
    call: Call, scope: bytes, names: Sequence[bytes], request: Mapping[str, Any]
) -> bytes | None:
    kept = {name: value for name, value in request.items() if name not in _ASIDE}
    own = call.body.get(_CONTROL)
    if isinstance(own, dict):
        kept[_CONTROL] = {name: value for name, value in own.items() if name != "cache"}
    try:
        data = orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a number beyond 64 bits, a broken surrogate
        return None
    lane = b"chat" if request is not call.native and "messages" in kept else call.dialect.encode()
    parts = [scope, call.model.encode("utf-8", "replace")]
    headers = call.headers
    parts += [b"%b:%b" % (name, headers[name]) for name in names if name in headers]
    digest = hashlib.blake2b(data, digest_size=_SIZE, key=lane)
    for part in parts:  # lengths, so that no two lists of parts are the same bytes
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _request(call: Call) -> Mapping[str, Any]:
    """Return the request that is compared: in ``chat``, or as sent where that says more."""
    native = call.native
    if native is None:
        return call.body
    shared = _SHARED.get(call.dialect)
    if shared is None or not native.keys() <= (shared | _EVERYWHERE):
        return native
    return call.body if _is_plain(native) else native


def _is_plain(native: Mapping[str, Any]) -> bool:
    """Whether every text of the request is a string, which every dialect has a word for."""
    for name in ("prompt", "system", "instructions"):
        if not isinstance(native.get(name, ""), str):
            return False
    given = native.get("messages", native.get("input", ""))
    if isinstance(given, str):
        return True
    return isinstance(given, list) and all(
        isinstance(entry, dict)
        and entry.keys() <= {"role", "content"}
        and isinstance(entry.get("content"), str)
        for entry in given
    )
