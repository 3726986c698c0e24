"""One request from its bytes to its answer: the only place that knows every room.

Whatever happens, three things hold: the client gets an answer, or an error in the shape of the API
it called, and nothing cut off looks complete; what was set aside for the call is settled or given
back; and a call that was parsed leaves one record.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing

from crossroads.gateway.call import Call, Phases
from crossroads.gateway.contracts import Choice, Grant, Kept, Record, Surface, Tally, Usage
from crossroads.gateway.engine.answers import read_answer
from crossroads.gateway.errors import ApiError, Headers, from_expert, internal_error, stopping
from crossroads.gateway.exchange import ClientGoneError, Exchange
from crossroads.gateway.headers import answer_headers, cache_headers, choice_headers, one_line
from crossroads.gateway.pulse import Pulse
from crossroads.gateway.services import Services
from crossroads.prompts.experts.base import ExpertError, chunks_of

GONE = 499  # status in records, by custom, of a client that left; nobody is sent it


class Run:
    """One call in progress.

    Parameters
    ----------
    services : the snapshot it runs on
    exchange, surface : where it came from
    call : parsed
    started_at : Unix seconds
    """

    def __init__(
        self, services: Services, exchange: Exchange, surface: Surface, call: Call
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._surface = surface
        self._call = call
        self._started_at = time.time() - call.phases.total
        self._grant: Grant | None = None
        self._choice: Choice | None = None
        self._kept: Kept | None = None
        self._tally = Tally()
        self._status = 0
        self._error = ""

    @property
    def is_whole(self) -> bool:
        """Whether the client was sent a whole answer."""
        return self._tally.is_complete and self._exchange.status == 200 and self._exchange.is_over

    async def answer(self) -> None:
        """Answer the call, whatever becomes of it."""
        self._services.telemetry.begin(self._call)
        try:
            with self._exchange.watch():
                await self._admit_and_answer()
            self._status = self._exchange.status
        except ApiError as error:
            await self._fail(error)
        except ExpertError as error:
            await self._fail(from_expert(error))
        except ClientGoneError:
            self._status, self._error = GONE, "client_gone"
        except asyncio.CancelledError:  # at the end of the drain
            self._status, self._error = 503, "server_stopping"
            raise
        except BaseException:
            self._status, self._error = 500, "internal_error"
            raise
        finally:
            self._close()

    async def _admit_and_answer(self) -> None:
        call, services = self._call, self._services
        phases = call.phases
        clock = time.perf_counter
        began = clock()
        if services.prepare is not None and call.dialect == "responses":
            await services.prepare(call)  # first: limits go by the whole conversation
        self._grant = grant = await services.governor.admit(call)
        phases.queue += clock() - began
        self._exchange.more_headers = limits = grant.headers()
        if services.cache is not None:
            self._kept = await services.cache.get(call)
            if self._kept is not None:
                await self._replay(self._kept)
                return
        began = clock()
        self._choice = choice = await services.policies.choose(call, cost_price=grant.cost_price)
        phases.route += clock() - began
        self._exchange.more_headers = [*limits, *choice_headers(call, choice)]
        if grant.is_metered:
            await grant.reserve(self._most(choice))
        relay = self._stream if call.is_stream else self._complete
        await relay(choice)

    async def _complete(self, choice: Choice) -> None:
        call, tally = self._call, self._tally
        answer = await self._services.engine.complete(call, choice, tally)
        body = self._surface.render(call, tally.model, tally.dialect, answer)
        self._name_model(tally.model)
        headers = answer_headers(call, tally, self._spent()[1])
        await self._exchange.send_json(body, headers=headers)

    async def _stream(self, choice: Choice) -> None:
        call, tally, exchange = self._call, self._tally, self._exchange
        async with aclosing(self._services.engine.stream(call, choice, tally)) as events:
            # The first events come before the head, so that a call that fails at once is answered
            # with a status and not with a broken stream.
            first = await anext(events, None)
            writer = self._surface.writer(call, tally.model, tally.dialect)
            self._name_model(tally.model)
            await exchange.start_events(answer_headers(call, tally, None))
            try:
                if first is not None:
                    await exchange.send_part(writer.feed(first))
                with Pulse(exchange, call.dialect, self._services.ping_s):
                    async for batch in events:
                        data = writer.feed(batch)
                        if data:
                            await exchange.send_part(data)
            except ExpertError as error:
                self._error = error.code or "upstream_error"
                await exchange.end(writer.fail(from_expert(error)))
                return
            except asyncio.CancelledError:
                if not exchange.is_gone:  # the server stops, and has waited long enough
                    await exchange.end(writer.fail(stopping()))
                raise
            except Exception:
                # The client is told; the application logs what it was.
                await exchange.end(writer.fail(internal_error()))
                raise
        await exchange.end(writer.end())

    async def _replay(self, kept: Kept) -> None:
        """Answer from a cache, in the form that was asked for."""
        call, surface, exchange = self._call, self._surface, self._exchange
        headers = cache_headers(call, kept)
        self._tally.model = kept.model
        self._tally.is_complete = True
        if not call.is_stream:
            body = surface.render(call, kept.model, kept.dialect, kept.answer)
            await exchange.send_json(body, headers=headers)
            return
        writer = surface.writer(call, kept.model, "chat")
        await exchange.start_events(headers)
        await exchange.send_part(writer.feed(list(chunks_of(kept.answer, include_usage=True))))
        await exchange.end(writer.end())

    async def _fail(self, error: ApiError) -> None:
        self._status, self._error = error.status, error.code or error.type
        exchange, surface = self._exchange, self._surface
        body = surface.error(error, exchange.request_id.decode())
        await exchange.send_json(body, status=surface.status(error), headers=error.headers)

    def _name_model(self, model: str) -> None:
        """Correct the header of a choice that another model answered in place of."""
        choice = self._choice
        if choice is not None and choice.model != model:
            name = b"x-crossroads-model"
            headers: Headers = [pair for pair in self._exchange.more_headers if pair[0] != name]
            self._exchange.more_headers = [*headers, (name, one_line(model))]

    def _most(self, choice: Choice) -> float:
        """Return what the call may cost, whoever of those chosen answers; in USD."""
        most = self._upper(choice.model)
        for model in choice.fallbacks:
            most = max(most, self._upper(model))
        if choice.hedge_after is not None or self._services.is_hedging:
            most *= 2  # the loser is paid for what it produced
        if choice.escalate_to:  # the answer that is refused is paid, too
            most += max(self._upper(model) for model in choice.escalate_to)
        judged = None if choice.check is None else choice.check.most(self._call)
        if judged is not None:
            judge, usage = judged
            most += self._services.prices.cost(judge, usage)
        return most

    def _upper(self, model: str) -> float:
        """Return what one model's answer costs at most, all its choices together."""
        call, upper = self._call, self._services.prices.upper
        whole = upper(model, call.input_tokens, call.max_output_tokens)
        if call.num_choices == 1:
            return whole
        asked = upper(model, call.input_tokens, 0)
        return asked + call.num_choices * (whole - asked)

    def _spent(self) -> tuple[Usage | None, float]:
        """Return the tokens of all attempts that produced something, and what they cost in USD.

        None where no attempt did.
        """
        num_spent = inputs = outputs = 0
        usd = 0.0
        cost = self._services.prices.cost
        for attempt in self._tally.attempts:
            usage = attempt.usage
            if usage is not None:
                num_spent += 1
                usd += cost(attempt.model, usage)
                inputs += usage.input_tokens
                outputs += usage.output_tokens
        return (Usage(inputs, outputs) if num_spent else None), usd

    def _close(self) -> None:
        """Settle, remember, tell."""
        services, tally, grant = self._services, self._tally, self._grant
        spent, cost = self._spent()
        if grant is not None:
            if spent is None:
                grant.release()
            else:
                grant.settle(spent, cost)
        if services.cache is not None and self._kept is None and tally.is_complete:
            services.cache.put(self._call, tally)
        record = self._record(cost)
        if services.ledger is not None:
            services.ledger.append(record)
        services.telemetry.end(record)

    def _record(self, cost: float) -> Record:
        call, tally, choice, kept = self._call, self._tally, self._choice, self._kept
        # Set one by one: with so many keywords a call takes nearly twice as long.
        record = Record(decision_id=call.id, request_id=call.request_id, time=self._started_at)
        client = call.client
        record.key_id, record.team = client.key_id, client.team
        record.dialect, record.asked, record.is_stream = call.dialect, call.model, call.is_stream
        record.session = call.session
        record.status, record.error = self._status, self._error
        record.model, record.finish = tally.model, tally.finish or ""
        # An answer may be whole and still not have reached its client.
        record.is_complete = tally.is_complete and self._status != GONE
        record.verdict = tally.verdict
        record.attempts = [(a.model, a.status, a.code, a.seconds) for a in tally.attempts]
        usage = tally.usage
        if usage is not None:
            record.input_tokens, record.output_tokens = usage.input_tokens, usage.output_tokens
            record.is_usage_estimated = usage.is_estimated
        record.cost_usd = cost
        _time(record, call.phases)
        if kept is not None:
            record.cache = kept.kind
            record.saved_usd = self._saved(kept)
        if choice is not None:
            _describe(record, choice)
        if tally.writers:
            record.labels = {**record.labels, "continued": ", ".join(tally.writers)}
        self._keep_content(record)
        return record

    def _saved(self, kept: Kept) -> float:
        """Return what the answer of a cache would have cost."""
        found = read_answer(kept.dialect, kept.answer)
        if found is None or found.usage is None:
            return 0.0
        return self._services.prices.cost(kept.model, found.usage)

    def _keep_content(self, record: Record) -> None:
        """Keep texts where the user asked for it, and always a mark that tells prompts apart."""
        keeping, choice = self._services.keeping, self._choice
        text = self._call.text
        record.features_hash = hashlib.blake2b(
            text.encode("utf-8", "surrogatepass"), digest_size=8
        ).hexdigest()
        if keeping.text:
            record.prompt = text
        if keeping.answers:
            record.answer = self._tally.text
        if keeping.features and choice is not None:
            record.features = choice.features


def _time(record: Record, phases: Phases) -> None:
    """Add where the time went, in milliseconds."""
    total = (time.perf_counter() - phases.started) * 1e3
    queue, route = phases.queue * 1e3, phases.route * 1e3
    connect, upstream = phases.connect * 1e3, phases.upstream * 1e3
    relay = total - queue - route - connect - upstream
    record.queue_ms, record.route_ms, record.connect_ms = queue, route, connect
    record.upstream_ms, record.relay_ms, record.total_ms = upstream, max(0.0, relay), total
    if phases.first_token is not None:
        record.first_token_ms = phases.first_token * 1e3


def _describe(record: Record, choice: Choice) -> None:
    """Add what the policy decided to a record."""
    record.policy, record.version = choice.policy, choice.version
    record.reason, record.chosen = choice.reason, choice.model
    record.propensity, record.probabilities = choice.propensity, choice.probabilities
    record.is_explored, record.labels = choice.is_explored, choice.labels
    decision = choice.decision
    if decision is not None:
        record.rule, record.scores = decision.rule, decision.scores
        record.confidence = decision.confidence
        record.predicted_quality = decision.predicted_quality
        record.predicted_cost_usd = decision.predicted_cost_usd
        record.costs = choice.costs
