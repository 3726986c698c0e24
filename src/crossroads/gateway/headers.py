"""Response headers that say who answered, why, at what cost, and where the time went."""

from __future__ import annotations

import re
import time

from crossroads.gateway.call import Call, Phases
from crossroads.gateway.contracts import Choice, Kept, Tally
from crossroads.gateway.errors import Headers
from crossroads.prompts.preferences.policies import OTHER
from crossroads.prompts.preferences.router import ROUTER as PREFERENCES

_LONGEST = 300  # characters of a text
_UNSAFE = re.compile(r"[^\x20-\x7e]+")


def choice_headers(call: Call, choice: Choice) -> Headers:
    """Return what is known before anybody answers; it comes with failures, too."""
    headers = choice.headers
    if headers is None:
        headers = choice.headers = _told(choice)
    return [(b"x-crossroads-decision-id", call.id.encode()), *headers]


def _told(choice: Choice) -> Headers:
    """Return the headers of a choice, whichever call it is for."""
    decision = choice.decision
    values = [
        (b"x-crossroads-model", one_line(choice.model)),
        (b"x-crossroads-policy", one_line(_policy(choice))),
        (b"x-crossroads-reason", one_line(choice.reason)),
    ]
    if choice.propensity != 1.0:
        values.append((b"x-crossroads-propensity", b"%.6f" % choice.propensity))
    if decision is not None:
        by_policy = decision.router == PREFERENCES  # says who should answer, not how well
        if not (by_policy and decision.details.get("route") == OTHER):
            values.append((b"x-crossroads-confidence", b"%.4f" % decision.confidence))
        if not by_policy:
            quality = b"%.4f" % decision.predicted_quality
            values.append((b"x-crossroads-predicted-quality", quality))
        if decision.predicted_cost_usd is not None:
            cost = _plain(decision.predicted_cost_usd)
            values.append((b"x-crossroads-predicted-cost-usd", cost))
    if choice.labels:
        labels = ", ".join(f"{name}={value}" for name, value in choice.labels.items())
        values.append((b"x-crossroads-labels", one_line(labels)))
    return values


def answer_headers(call: Call, tally: Tally, cost_usd: float | None) -> Headers:
    """Return what is known when the answer (or a stream's first event) is there."""
    values = [(b"x-crossroads-attempts", b"%d" % len(tally.attempts))]
    if tally.num_fallbacks:
        values.append((b"x-crossroads-fallbacks", b"%d" % tally.num_fallbacks))
    if tally.verdict is not None:
        accepted = "accepted" if tally.verdict.get("accepted") else "escalated"
        verdict = one_line(f"{accepted}: {tally.verdict.get('reason', '')}")
        values.append((b"x-crossroads-verdict", verdict))
    if cost_usd is not None:
        values.append((b"x-crossroads-cost-usd", _plain(cost_usd)))
    return [*values, *phase_headers(call.phases)]


def cache_headers(call: Call, kept: Kept) -> Headers:
    """Return the headers of an answer from a cache."""
    return [
        (b"x-crossroads-decision-id", call.id.encode()),
        (b"x-crossroads-model", one_line(kept.model)),
        (b"x-crossroads-cache", kept.kind.encode()),
        (b"x-crossroads-similarity", b"%.4f" % kept.similarity),
        (b"age", b"%d" % kept.age_s),
        (b"x-crossroads-cost-usd", b"0"),
        *phase_headers(call.phases),
    ]


def phase_headers(phases: Phases) -> Headers:
    """Return the total so far, the gateway's own part of it, and the split (milliseconds)."""
    total = (time.perf_counter() - phases.started) * 1e3
    queue, route = phases.queue * 1e3, phases.route * 1e3
    connect, upstream = phases.connect * 1e3, phases.upstream * 1e3
    relay = total - queue - route - connect - upstream
    if relay < 0:
        relay = 0.0
    return [
        (b"openai-processing-ms", b"%.0f" % total),
        (b"x-crossroads-overhead-ms", b"%.3f" % (queue + route + relay)),
        (
            b"server-timing",
            b"queue;dur=%.3f, route;dur=%.3f, connect;dur=%.3f, upstream;dur=%.3f, relay;dur=%.3f"
            % (queue, route, connect, upstream, relay),
        ),
    ]


def _policy(choice: Choice) -> str:
    """Name the policy, and what within it decided."""
    decision = choice.decision
    if decision is None:
        return choice.policy
    if decision.router != PREFERENCES:
        return f"{choice.policy} {decision.router} {decision.rule}"
    route = decision.details.get("route")
    return f"{choice.policy} {PREFERENCES} {'default' if route == OTHER else route}"


def _plain(value: float) -> bytes:
    """Write a small number without an exponent."""
    return (b"%.12f" % value).rstrip(b"0").rstrip(b".")


def one_line(text: str) -> bytes:
    """Return text that is safe in a header: printable ASCII on one line."""
    if text.isascii() and text.isprintable():
        return text[:_LONGEST].encode()
    folded = _UNSAFE.sub(" ", text.encode("ascii", "replace").decode("ascii"))
    return " ".join(folded.split())[:_LONGEST].encode()
