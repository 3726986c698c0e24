"""What does SDM verification admit, on known ground, on shifted ground and on noise? How fast?

Three parts, 3 seeds, written to `benchmarks/results/prompts-sdm.json`:

- shift: a classifier of topics accepted by softmax, temperature, conformal sets and SDM;
- cascade: the weak model's answer kept where a verifier accepts it, replayed on RouteLLM's tables;
- speed: fitting, and one verdict.

    python benchmarks/prompts/sdm.py
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

from crossroads.core.calibration import IndexCalibration, SdmSettings, unanimous
from crossroads.core.calibration.baselines import (
    ConformalSets,
    accept_by_probability,
    fit_temperature,
    softmax_of,
)
from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.datasets.paths import data_folder
from crossroads.datasets.routellm import STRONG, WEAK
from crossroads.prompts import Queries, build_router, read_outcomes, training_set
from crossroads.prompts.claims.sdm import (
    LEVEL,
    SEEDS,
    admitted_figures,
    draw,
    fit_topics,
    load_topics,
    noise,
)
from crossroads.prompts.features import table_features
from crossroads.prompts.metrics import apgr
from crossroads.prompts.verification import Verifier

SETTINGS = SdmSettings()
LEVELS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
RESULT = Path(__file__).parents[1] / "results" / "prompts-sdm.json"


def surest(confidence: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the ``count`` largest: a threshold chosen with hindsight."""
    kept = np.zeros(len(confidence), dtype=bool)
    kept[np.argsort(-confidence, kind="stable")[:count]] = True
    return kept


def shift(seed: int) -> dict[str, Any]:
    """Return set -> method -> figures; sets without a topic have shares only."""
    topics = load_topics()
    drawn = draw(topics, seed)
    estimators = fit_topics(topics, drawn, seed, SETTINGS)
    best, held = estimators[0], estimators[0].calibration
    index = IndexCalibration.fit(estimators)
    temperature = fit_temperature(held.logit, held.label)
    rng = np.random.default_rng(seed)
    sets = {
        name: ConformalSets.fit(softmax_of(held.logit), held.label, LEVEL, rng, penalty=penalty)
        for name, penalty in (("APS", 0.0), ("RAPS", 0.1))
    }
    others = np.flatnonzero(drawn.topic < 0)
    asked = {
        "known subjects": (topics.embeddings[drawn.test], drawn.topic[drawn.test]),
        "unseen subjects": (topics.embeddings[drawn.unseen], drawn.topic[drawn.unseen]),
        "neither topic": (topics.embeddings[others], None),
        "noise": (noise(topics.embeddings.shape[1], seed), None),
    }
    figures: dict[str, Any] = {}
    for where, (x, label) in asked.items():
        found = best.estimate(x)
        soft = softmax_of(found.logit)
        admitted = {
            "softmax": accept_by_probability(soft, LEVEL),
            "temperature": accept_by_probability(softmax_of(found.logit / temperature), LEVEL),
            **{name: s.accepts(soft, rng) for name, s in sets.items()},
            "sdm, without band": best.region.admits(found.effective, found.probability),
            "sdm": found.admitted,
            "sdm, all restarts agree": unanimous([e.estimate(x) for e in estimators]),
            "index": index.estimate(x).admitted,
            "softmax, as many as sdm": surest(soft.max(axis=1), int(found.admitted.sum())),
        }
        figures[where] = {
            method: {"admitted": float(a.mean())}
            if label is None
            else admitted_figures(a, found.prediction, label)
            for method, a in admitted.items()
        }
    return figures


def cascade(seed: int) -> dict[str, Any]:
    """Return the frontier of keeping the weak answer where accepted, else asking the strong."""
    table = read_outcomes(str(data_folder("routellm_mmlu_gsm8k")))
    features = table_features(table)
    weak, strong = (table.score[:, table.models.index(m)] for m in (WEAK, STRONG))
    train, test = table.split_by_hash(seed)
    verifier = Verifier.fit(
        features[train],
        weak[train] > 0.5,
        accepting=1,
        groups=table.prompt_hash[train],
        settings=SETTINGS,
        seed=seed,
    )
    found = verifier.estimators[0].estimate(features[test])
    soft = softmax_of(found.logit)[:, 1]
    router = build_router("knn").fit(training_set(table, train, features), seed=seed)
    estimate = router.predict(Queries(embeddings=features[test]))
    gain = estimate[:, table.models.index(STRONG)] - estimate[:, table.models.index(WEAK)]

    def kept(accept: np.ndarray) -> dict[str, float]:
        quality = float(np.where(accept, weak[test], strong[test]).mean())
        share = float(accept.mean())
        mix = share * weak[test].mean() + (1 - share) * strong[test].mean()
        return {"to_weak": share, "quality": quality, "random_mix": float(mix)}

    def routed(share: float) -> np.ndarray:
        rank = np.argsort(np.argsort(gain, kind="stable"), kind="stable")
        return rank < round(share * len(gain))

    frontier = []
    for level in LEVELS:
        sdm = verifier.at_level(level).accepts(features[test])
        frontier.append(
            {
                "level": level,
                "sdm": kept(sdm),
                "softmax": kept(soft >= level),
                "knn, as many as sdm": kept(routed(float(sdm.mean()))),
                "knn, as many as softmax": kept(routed(float((soft >= level).mean()))),
            }
        )
    preferences = {
        "softmax": -soft,
        "sdm": -found.probability[:, 1],
        "knn": gain,
    }
    return {
        "weak": float(weak[test].mean()),
        "strong": float(strong[test].mean()),
        "apgr": {n: apgr(weak[test], strong[test], p) for n, p in preferences.items()},
        "frontier": frontier,
    }


def speed() -> dict[str, float]:
    """Return the CPU time of one restart on the pool, and of one verdict with 3 exemplars."""
    topics = load_topics()
    drawn = draw(topics, 0)
    start = time.process_time()
    verifier = Verifier.fit(
        topics.embeddings[drawn.pool], drawn.topic[drawn.pool], settings=SdmSettings(restarts=1)
    )
    fitted = time.process_time() - start
    times = []
    for row in drawn.test:
        x = topics.embeddings[row : row + 1]
        start = time.process_time()
        verifier.verify(x)
        times.append(time.process_time() - start)
    return {
        "rows": verifier.num_rows,
        "fit_cpu_seconds_a_restart": fitted,
        "verdict_cpu_us": 1e6 * statistics.median(times),
    }


def main() -> None:
    result = {
        "level": LEVEL,
        "seeds": list(SEEDS),
        "data": load_topics().data,
        "machine": machine(),
        "speed": speed(),
        "shift": [shift(seed) for seed in SEEDS],
        "cascade": [cascade(seed) for seed in SEEDS],
    }
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print(RESULT.name)


if __name__ == "__main__":
    main()
