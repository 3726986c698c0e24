"""Policies decide for ``auto`` over real sockets."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.app import Gateway
from crossroads.gateway.build import Lasting, build
from crossroads.gateway.config import read_config
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.telemetry import GatewayTelemetry
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.serving import QUIET, serving

CODE = "Why does my Python function raise an index error in this loop?"
TRIP = "Which hotels near the airport in Lisbon should I book for my trip?"
CONFIG = """
pool: {pool}
preferences:
  default: norole
  policies:
    - {{name: coder's desk, description: "programming questions, errors in code", model: ok}}
    - {{name: travel, description: "flights, hotels, trips and places to visit", model: usage}}
"""


def write_config(folder: Path, upstream: FakeUpstream, text: str = CONFIG) -> Path:
    models = [{"name": name, "endpoint": upstream.url} for name in ("ok", "usage", "norole")]
    pool = folder / "pool.yaml"
    pool.write_text(json.dumps({"name": "fake", "models": models}), "utf-8")
    path = folder / "serve.yaml"
    path.write_text(text.format(pool=pool), "utf-8")
    return path


def gateway(path: Path) -> Gateway:
    lasting = Lasting(surfaces=build_surfaces(), telemetry=GatewayTelemetry(QUIET))
    return Gateway(build(read_config(path), lasting).services)


@pytest.fixture(scope="module")
def url(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = write_config(tmp_path_factory.mktemp("serve"), upstream)
    with serving(gateway(path)) as running:
        yield running


def ask(url: str, *texts: str, **fields: Any) -> tuple[str, str]:
    """Return the answering model and the reason."""
    messages = [{"role": "user", "content": text} for text in texts]
    body = {"model": "auto", "messages": messages, **fields}  # fields may replace the messages
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "text/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        found = response.headers
        return found["x-crossroads-model"], found["x-crossroads-reason"]


def test_a_request_goes_to_the_model_of_its_policy_and_the_reason_names_it(url: str) -> None:
    assert ask(url, CODE) == (
        "ok",
        """policy "coder's desk" fits the latest request (matcher): ok serves it""",
    )
    assert ask(url, TRIP)[0] == "usage"


def test_the_latest_intent_wins_and_thanks_go_to_the_default(url: str) -> None:
    assert ask(url, CODE, TRIP)[0] == "usage"
    assert ask(url, CODE, "Thanks!")[0] == "norole"


def test_a_request_may_bring_its_own_policies_which_stay_here(
    url: str, upstream: FakeUpstream
) -> None:
    own = [
        {"name": "bugs", "description": "programming questions, errors in code", "model": "usage"},
        {"name": "trips", "description": "hotels and flights", "model": "ok"},
    ]
    assert ask(url, CODE, routing_preferences=own)[0] == "usage"
    assert "routing_preferences" not in upstream.requests[-1][1]
    assert ask(url, CODE)[0] == "ok"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([], "expected a list of policies"),
        ([{"name": "a", "description": "b", "model": "gpt"}], "model 'gpt' does not exist"),
    ],
)
def test_malformed_policies_of_a_request_are_answered_with_400(
    url: str, own: Any, message: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, CODE, routing_preferences=own)
    assert caught.value.code == 400
    assert message in caught.value.read().decode()


@pytest.mark.parametrize("role", [["user"], {"user": True}, 1])
def test_a_message_whose_role_is_no_text_is_not_routed_by(url: str, role: Any) -> None:
    odd = {"role": role, "content": TRIP}
    assert ask(url, messages=[odd])[0] == "norole"
    assert ask(url, messages=[{"role": "user", "content": CODE}, odd])[0] == "ok"


def test_auto_is_listed_and_a_named_model_goes_past_the_policies(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=20) as response:
        assert json.load(response)["data"][0]["id"] == "auto"
    assert ask(url, CODE, model="usage") == ("usage", "the request names the model")


def test_a_policy_for_a_model_the_pool_lacks_is_refused(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = write_config(tmp_path, upstream, CONFIG.replace("model: usage", "model: gpt"))
    with pytest.raises(InputError, match=r"policies\.auto\.policies: unknown model 'gpt'"):
        gateway(path)


def test_wrong_sections_are_named(upstream: FakeUpstream, tmp_path: Path) -> None:
    path = write_config(tmp_path, upstream, CONFIG + "  backend: matchr\n")
    with pytest.raises(UsageError, match="did you mean 'matcher'"):
        gateway(path)
    path = write_config(tmp_path, upstream, "pool: {pool}\npreferences: {{default: ok}}\n")
    with pytest.raises(InputError, match="policies"):
        read_config(path)
    path = write_config(tmp_path, upstream, CONFIG.replace("  default:", "  defualt:"))
    with pytest.raises(InputError, match="unknown field 'defualt'; did you mean 'default'"):
        read_config(path)


def test_an_option_of_another_back_end_is_named_with_the_remedy(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    text = CONFIG + "  backend: scorer\n  options: {{encoder: static}}\n"
    with pytest.raises(UsageError) as wrong:
        gateway(write_config(tmp_path, upstream, text))
    assert str(wrong.value) == (
        "option 'encoder' is not one of scorer; it takes dtype, is_calibrated; "
        "remove it from preferences.options"
    )
