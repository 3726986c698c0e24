"""The prompt a language model reads to name a route, in two parts.

The head holds the rules and the routes and is the same for every conversation, so that a scorer
computes it once; the tail holds the conversation and ends where the route's name begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import Policy

_HEAD = """<|im_start|>system
Name the route whose description fits the user's latest request. If none fits or the request \
is settled: {{"route":"other"}}.<|im_end|>
<|im_start|>user
<routes>
[{routes}]
</routes>
"""
_TAIL = """<conversation>
[{turns}]
</conversation><|im_end|>
<|im_start|>assistant
{{"route":\""""
ANSWER_END = '"}'


def head(policies: Sequence[Policy]) -> str:
    """Return the rules and the routes, in the order given."""
    routes = ",\n".join(
        _json({"name": policy.name, "description": policy.description}) for policy in policies
    )
    return _HEAD.format(routes=routes)


def tail(turns: Sequence[Turn]) -> str:
    """Return the conversation and the beginning of the answer."""
    said = ",\n".join(_json({"role": turn.role, "content": turn.content}) for turn in turns)
    return _TAIL.format(turns=said)


def name_text(name: str) -> str:
    """Return what follows the prompt when the route is ``name``."""
    return _json(name)[1:-1] + ANSWER_END


def _json(value: object) -> str:
    """Write JSON on one line; a chat's control words in a text lose their meaning."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<|", "<\\u007c")
