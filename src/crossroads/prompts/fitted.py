"""A fitted router: what decides where a prompt goes, with all it needs to decide again elsewhere.

``fit_router`` learns from an outcome table and measures the result on prompts held out,
``save_router`` and ``load_router`` keep it in a folder (no pickle), and
``FittedRouter`` decides.

The predicted cost of a decision is the chosen model's mean cost per call over the prompts it was
fitted on: the length of the prompt at hand is not considered.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from crossroads import __version__
from crossroads.core.calibration.region import check_level
from crossroads.core.decision import Decision
from crossroads.core.errors import InputError, UsageError
from crossroads.core.progress import Progress
from crossroads.models.encoders import Encoder, get_encoder
from crossroads.prompts.artefact import read_artefact, write_artefact
from crossroads.prompts.budget import SpendCurve, decide, spend_curve
from crossroads.prompts.checking import checked_embeddings, checked_seed, checked_texts
from crossroads.prompts.decide import Argmax, Budget, DecisionRule, parse_rule
from crossroads.prompts.explain import lead, reason
from crossroads.prompts.features import queries, table_features, training_set
from crossroads.prompts.measuring import known_costs, measure
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool, describe
from crossroads.prompts.route_verification import (
    Routed,
    RouteVerifier,
    calibration_split,
    fit_route_verifier,
)
from crossroads.prompts.router import PromptRouter, Queries, column_means
from crossroads.prompts.routers import build_router, router_class
from crossroads.prompts.verification import Method, check_method

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_VERIFIER = "verifier."  # begins the names of its arrays in an artefact

_LEAST_RECORDED = 50  # prompts whose recorded costs say more than the models' mean costs


@dataclass(frozen=True, kw_only=True)
class FittedRouter:
    """A router with its pool, encoder, costs and default rule.

    Attributes
    ----------
    router : fitted, K models
    pool : their cards, in the router's order
    encoder : name of the text encoder it was fitted with
    mean_cost : float64 (K,), USD per call; NaN = unknown
    rule : default decision rule, as text
    metrics : measured on held-out prompts, see ``fit_router``
    provenance : table, prompts, seed, versions, date
    verifier : says which choices can be trusted; None where the router was not calibrated
    spend : what the rule ``budget:USD`` is calibrated by; None where costs are unknown or equal
    """

    router: PromptRouter
    pool: Pool
    encoder: str
    mean_cost: Float64
    rule: str = Argmax.rule
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verifier: RouteVerifier | None = None
    spend: SpendCurve | None = None

    @cached_property
    def models(self) -> tuple[str, ...]:
        return self.pool.names

    def decide(
        self,
        prompts: Sequence[str] | Float32,
        *,
        rule: str | DecisionRule | None = None,
        seed: int = 0,
    ) -> list[Decision]:
        """Decide where N prompts go: texts, or embeddings (N, D) by the router's encoder.

        Characters that are no Unicode (lone surrogates) are replaced. Raises UsageError for an
        unknown rule, one that weighs costs where they are unknown, or a seed outside [0, 2^63);
        InputError for prompts that are neither texts nor finite embeddings of the right width.
        """
        start = time.perf_counter()
        chosen_rule = self._rule(rule)
        seed = checked_seed(seed)
        asked = self._queries(prompts)
        if len(asked) == 0:
            return []
        quality = self.router.predict(asked)
        cost = self._known_cost
        choice, propensity = decide(chosen_rule, quality, cost, asked, seed=seed)
        details = self._details(asked, choice, str(chosen_rule))
        shared: dict[str, Any] = {
            "rule": str(chosen_rule),
            "router": self.router.name,
            "version": f"{__version__}/{self.router.version}",
            "seconds": (time.perf_counter() - start) / len(quality),
            "seed": seed,
        }
        rows, costs, choices = quality.tolist(), cost.tolist(), choice.tolist()
        return [
            Decision(
                **shared,
                **self._choice(rows[n], k),
                reason=reason(chosen_rule, self.models, rows[n], costs, k),
                confidence=lead(chosen_rule, rows[n], costs, k),
                propensity=float(propensity[n]),
                details=details[n],
            )
            for n, k in enumerate(choices)
        ]

    def route(
        self, prompt: str, *, rule: str | DecisionRule | None = None, seed: int = 0
    ) -> Decision:
        """Decide where one prompt goes."""
        return self.decide([prompt], rule=rule, seed=seed)[0]

    def _queries(self, prompts: Sequence[str] | Float32) -> Queries:
        if isinstance(prompts, np.ndarray) and prompts.dtype.kind not in "OU":
            dim = self._encoder.dim if self._needs_embeddings else None
            rows = checked_embeddings(prompts, encoder=self.encoder, dim=dim)
            return Queries(embeddings=rows)
        texts = checked_texts(prompts)
        column = np.array(texts, dtype=object)
        if not self._needs_embeddings:
            return Queries(embeddings=np.zeros((len(texts), 1), dtype=np.float32), texts=column)
        return Queries(embeddings=self._encoder.encode(texts), texts=column)

    @property
    def _needs_embeddings(self) -> bool:
        return self.router.needs_embeddings or self.verifier is not None

    @cached_property
    def _encoder(self) -> Encoder:
        return get_encoder(self.encoder)

    @cached_property
    def _known_cost(self) -> Float64:
        return known_costs(self.mean_cost)

    def _rule(self, rule: str | DecisionRule | None) -> DecisionRule:
        if rule is None:
            rule = self.rule
        parsed = parse_rule(rule) if isinstance(rule, str) else rule
        if isinstance(parsed, type) or not callable(getattr(parsed, "choose", None)):
            raise UsageError(
                f"decision rule: expected text such as 'argmax', or a rule, got {parsed!r:.40}"
            )
        unknown = ~np.isfinite(self.mean_cost)
        if unknown.any() and not isinstance(parsed, Argmax):
            missing = [name for name, gone in zip(self.models, unknown, strict=True) if gone]
            raise UsageError(
                f"decision rule {str(parsed)!r} weighs costs, but the cost of {missing[0]!r} is "
                "unknown; fit on a table with costs, or with token counts and a priced pool "
                "(--pool), or use argmax"
            )
        if isinstance(parsed, Budget) and self.spend is not None:
            return self.spend.rule(parsed.usd)
        return parsed

    def _details(self, asked: Queries, choice: Ints, rule: str) -> list[dict[str, Any]]:
        """Return the details of each decision: the verifier's answer, where there is one."""
        if self.verifier is None:
            return [{} for _ in choice]
        chosen = [self.models[k] for k in choice]
        answers = self.verifier.judge(asked.embeddings, chosen, rule)
        return [{"verification": answer} for answer in answers]

    def _choice(self, quality_K: list[float], choice: int) -> dict[str, Any]:
        """Return the fields of a decision that say what was chosen."""
        cost = float(self.mean_cost[choice])
        return {
            "chosen": (self.models[choice],),
            "scores": dict(zip(self.models, quality_K, strict=True)),
            "predicted_quality": min(max(quality_K[choice], 0.0), 1.0),
            "predicted_cost_usd": cost if math.isfinite(cost) else None,
        }


def fit_router(
    spec: str,
    table: OutcomeTable,
    *,
    pool: Pool | None = None,
    encoder: str = "static",
    rule: str = Argmax.rule,
    calibrate: Method | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> FittedRouter:
    """Fit a router (``knn``, ``knn:k=20``, ``auto``) on an outcome table.

    It is first fitted on 70 % of the prompts and measured on the rest, then fitted again on all of
    them. Where the table has a ``split`` column, it is fitted on the rows marked ``train`` only,
    measured on the others, and kept as it is.

    With ``calibrate``, 40 % of the training prompts are kept from the router and teach a verifier
    which of its choices are right, at ``level`` (``crossroads.prompts.route_verification``). The
    verifier is measured on the held-out prompts, and the router is kept as it is: fitted again, it
    would make choices that nobody calibrated.

    ``metrics`` are those of the held-out prompts under ``rule``: ``quality`` and ``cost_usd`` per
    call of the choices; ``best_single``, the model best in training, with its quality and cost;
    ``gain`` over it with a 95 % interval (bootstrap over prompts, paired). Prompts for which the
    chosen or the best single model was not run are not counted. ``match_rule`` is the cheapest
    trade-off as good as the best single model on the ``match_num_test`` held-out prompts that every
    model answered at a known cost, with its quality there, ``match_quality``, and its cost as a
    multiple of that model's, ``match_cost_ratio``; absent without costs, or where none is as good.

    Where costs are known, the spend at every trade-off is kept, by the estimates and recorded costs
    of prompts the router has not learnt from, so that a rule ``budget:USD`` can be met on average.
    With such a ``rule``, as with ``calibrate``, these are training prompts kept for it, the figures
    are of other prompts, and the router is not fitted again: its spend would no longer be the
    calibrated one.

    Raises UsageError for an unknown router, setting, rule or calibration, a router that needs
    hindsight, or a seed outside [0, 2^63); InputError where the table cannot be learnt from.
    """
    seed = checked_seed(seed)
    if calibrate is not None:
        check_method(calibrate)
        check_level(level)
    router = build_router(spec)
    if router.hindsight:
        raise UsageError(
            f"router {router.name!r} decides with hindsight: it is a bound for the arena and "
            "cannot be fitted to serve; choose another one"
        )
    pool = (pool or Pool.of(table.models)).subset(table.models)
    if not table.has_costs and pool.has_prices:
        table = table.with_prices(pool)
    table = table.take(np.flatnonzero(np.isfinite(table.score).any(axis=1)))
    if router.needs_embeddings or calibrate is not None:
        features = table_features(table, encoder, progress)
    else:
        features = np.zeros((len(table), 1), dtype=np.float32)
    train, test = table.split_by_hash(seed)
    is_set_apart = calibrate is not None or str(rule).partition(":")[0] == Budget.rule
    held = test
    if is_set_apart:
        train, held = calibration_split(table, train, seed)

    def fit(router: PromptRouter, rows: Ints) -> FittedRouter:
        data = training_set(table, rows, features)
        known = np.isfinite(data.costs).any(axis=0)
        fitted = FittedRouter(
            router=router,
            pool=pool,
            encoder=encoder,
            mean_cost=np.where(known, column_means(data.costs), np.nan),
            rule=rule,
        )
        fitted._rule(None)  # complain before fitting
        router.fit(data, seed=seed)
        return fitted

    final = fit(router, train)
    estimate = router.predict(queries(table, held, features))
    spent = None if table.cost is None else table.cost[held]
    final = dataclasses.replace(final, spend=_spend(estimate, final.mean_cost, spent))
    spend = final.spend
    chosen_rule = final._rule(None)
    metrics = measure(
        router,
        chosen_rule,
        final.mean_cost,
        table,
        train=train,
        test=test,
        features=features,
        seed=seed,
    )
    num_fitted, verifier = len(train), None
    if calibrate is not None:
        asked = Routed(
            router=router,
            rule=chosen_rule,
            cost=known_costs(final.mean_cost),
            table=table,
            features=features,
        )
        verifier, found = fit_route_verifier(
            asked,
            calibration=held,
            test=test,
            fallback=metrics["best_single"],
            method=calibrate,
            level=level,
            seed=seed,
            progress=progress,
        )
        metrics["verification"] = found
    elif table.split is None and not is_set_apart:
        final = fit(build_router(spec), np.arange(len(table)))
        num_fitted = len(table)
    return dataclasses.replace(
        final,
        rule=str(rule),
        metrics=metrics,
        provenance={**_provenance(table, seed), "num_fitted": num_fitted},
        verifier=verifier,
        spend=spend,
    )


def _spend(
    estimate_NK: Float64, mean_cost_K: Float64, spent_NK: Float64 | None
) -> SpendCurve | None:
    """Return the spend of each trade-off: recorded where that is known of enough prompts."""
    if not np.isfinite(mean_cost_K).all() or mean_cost_K.max() <= mean_cost_K.min():
        return None
    if spent_NK is not None:
        known = np.isfinite(spent_NK).all(axis=1)
        if known.sum() >= _LEAST_RECORDED:
            return spend_curve(estimate_NK[known], mean_cost_K, spent_NK=spent_NK[known])
    return spend_curve(estimate_NK, mean_cost_K)


def _provenance(table: OutcomeTable, seed: int) -> dict[str, Any]:
    return {
        "source": table.source,
        "num_prompts": len(table),
        "num_models": len(table.models),
        "seed": seed,
        "crossroads": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def save_router(fitted: FittedRouter, folder: str | Path) -> None:
    """Write the router to a folder, whole or not at all (``crossroads.prompts.artefact``).

    API keys are kept only where they name an environment variable (``${MY_KEY}``).
    """
    router = fitted.router
    encoder = fitted._encoder.version if fitted._needs_embeddings else None
    arrays = router.state()
    header = {
        "router": {
            "name": router.name,
            "version": router.version,
            "models": list(router.models),
            "settings": router.settings,
        },
        "encoder": {"name": fitted.encoder, "version": encoder},
        "rule": fitted.rule,
        "mean_cost_usd": [c if np.isfinite(c) else None for c in fitted.mean_cost.tolist()],
        "pool": _without_secrets(fitted.pool).model_dump(mode="json", exclude_defaults=True),
        "metrics": dict(fitted.metrics),
        "provenance": dict(fitted.provenance),
    }
    if fitted.spend is not None:
        header["spend_curve"] = fitted.spend.to_rows()
    if fitted.verifier is not None:
        header["verifier"], more = fitted.verifier.state()
        arrays |= {f"{_VERIFIER}{name}": array for name, array in more.items()}
    version = 1 if fitted.verifier is None else 2
    write_artefact(folder, header, arrays, format_version=version)


def load_router(folder: str | Path) -> FittedRouter:
    """Read a router that ``save_router`` wrote, and load its encoder.

    Raises InputError for a missing, damaged or too new folder, UsageError where the router is not
    installed, MissingExtraError or UnavailableError where its encoder is not.
    """
    header, arrays = read_artefact(folder)
    try:
        fitted = _rebuild(header, arrays)
        encoder = header["encoder"]["version"]
    except ValidationError as error:
        raise InputError(f"{folder}: pool: {describe(error)}; fit the router again") from error
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise _incomplete(folder, error) from error
    except ValueError as error:
        if isinstance(error, InputError | UsageError):
            raise
        raise _incomplete(folder, error) from error
    if fitted._needs_embeddings and fitted._encoder.version != encoder:
        raise InputError(
            f"{folder}: fitted with encoder {fitted.encoder} {encoder}, "
            f"this installation has {fitted._encoder.version}; fit the router again"
        )
    return fitted


def _rebuild(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> FittedRouter:
    facts = header["router"]
    cls = router_class(facts["name"])
    if facts["version"] != cls.version:
        raise InputError(
            f"router {cls.name!r} was saved as version {facts['version']}, this crossroads has "
            f"version {cls.version}; fit it again, or use the crossroads that wrote it"
        )
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in facts["settings"].items()
    }
    models = tuple(facts["models"])
    pool = Pool.model_validate(header["pool"])
    parse_rule(header["rule"])
    cost = [_saved_cost(usd) for usd in header["mean_cost_usd"]]
    if pool.names != models or len(cost) != len(models):
        raise ValueError("pool, costs and models disagree")
    for key, value, kind in (
        ("metrics", header["metrics"], dict),
        ("provenance", header["provenance"], dict),
        ("encoder", header["encoder"]["name"], str),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{key} is {value!r:.20}")
    own = {name: array for name, array in arrays.items() if not name.startswith(_VERIFIER)}
    more = {name.removeprefix(_VERIFIER): arrays[name] for name in arrays.keys() - own.keys()}
    facts, spend = header.get("verifier"), header.get("spend_curve")  # absent from older ones
    return FittedRouter(
        router=cls.restore(models=models, settings=settings, arrays=own),
        verifier=None if facts is None else RouteVerifier.restore(facts, more),
        spend=None if spend is None else SpendCurve.from_rows(spend),
        pool=pool,
        encoder=header["encoder"]["name"],
        mean_cost=np.array(cost),
        rule=header["rule"],
        metrics=header["metrics"],
        provenance=header["provenance"],
    )


def _saved_cost(usd: Any) -> float:
    if usd is None:
        return float("nan")
    if isinstance(usd, bool | str) or not 0 <= float(usd) < float("inf"):
        raise ValueError(f"a mean cost of {usd!r:.20}")
    return float(usd)


def _incomplete(folder: str | Path, error: Exception) -> InputError:
    problem = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError(f"{folder}: incomplete or altered ({problem:.100}); fit the router again")


def _without_secrets(pool: Pool) -> Pool:
    cards = [
        card
        if card.api_key is None or re.fullmatch(r"\$\{\w+\}", card.api_key)
        else card.model_copy(update={"api_key": None})
        for card in pool
    ]
    return pool.model_copy(update={"models": tuple(cards)})
