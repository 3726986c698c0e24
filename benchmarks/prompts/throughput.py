"""How many prompts a second does one core route, one at a time and in batches?

Every router of the package; LLMRouter's kNN, SVM and MLP and RouteLLM where an environment has
them:

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install llmrouter-lib==0.4.0 && peers/bin/pip install routellm==0.2.0
    python benchmarks/prompts/throughput.py --peers peers/bin/python

All get the same table (`mmlu-pro:served`), the same embeddings and never the same prompt twice.
Runs of ours and of a peer alternate; the figure is the median over rounds. One thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ[name] = "false" if name.startswith("TOK") else "1"

import numpy as np

from crossroads.core.provenance import machine
from crossroads.models.encoders import get_encoder
from crossroads.prompts import Queries, build_router, read_outcomes, router_names, training_set
from crossroads.prompts.decide import Argmax
from crossroads.prompts.features import table_features

ROUNDS = 5
ROWS = 200  # prompts a round and router
COUNTERPART = {
    **{f"llmrouter {kind}, as published": kind for kind in ("knn", "svm", "mlp")},
    **{f"llmrouter {kind}, model kept in memory": kind for kind in ("knn", "svm", "mlp")},
    "routellm mf": "matrix-factorization",
    "routellm random": "random",
}
RESULT = Path(__file__).parents[1] / "results" / "prompts-throughput.json"


def clocked(function, *arguments) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = function(*arguments)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, value


class Peers:
    """The other environment: one process, one request a line."""

    def __init__(self, python: str, folder: Path) -> None:
        script = str(Path(__file__).with_name("peers.py"))
        self._process = subprocess.Popen(
            [python, script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peers' environment ended early; run peers.py by hand to see why")
        return json.loads(line)

    def route(self, peer: str, first: int, count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps({"peer": peer, "first": first, "count": count}), file=self._process.stdin)
        self._process.stdin.flush()
        return self._read()


def median_us(times: list[dict[str, float]], count: int) -> dict[str, float]:
    return {
        f"{clock}_us": round(statistics.median(t[clock] for t in times) / count * 1e6, 2)
        for clock in ("wall", "cpu")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="Python of an environment with llmrouter-lib and routellm")
    parser.add_argument("--k", type=int, default=50)
    options = parser.parse_args()

    table = read_outcomes("mmlu-pro:served")
    features = table_features(table, "static")
    train, test = table.split_by_hash(seed=0)
    data = training_set(table, train, features)
    cost = data.mean_costs()
    test = test[table.complete[test]]
    score_NK, e_ND = table.score[test], features[test]

    def ours(router, first: int) -> list[int]:
        rule, chosen = Argmax(), []
        for i in range(first, first + ROWS):
            quality = router.predict(Queries(embeddings=e_ND[i : i + 1]))
            chosen.append(int(rule.choose(quality, cost)[0]))
        return chosen

    fits, routers = {}, {}
    for name in router_names():
        router = build_router(f"knn:k={options.k}" if name == "knn" else name)
        if not router.hindsight:
            fits[name], routers[name] = clocked(router.fit, data)
    singles: dict[str, list] = {name: [] for name in routers}
    batches: dict[str, list] = {name: [] for name in routers}
    peer_times: dict[str, list] = {}
    peer_scores: dict[str, list] = {}
    peers = None
    with tempfile.TemporaryDirectory() as folder:
        if options.peers:
            best = np.nan_to_num(data.scores, nan=-1).argmax(axis=1)
            np.savez(
                Path(folder) / "data.npz",
                train=data.embeddings,
                test=e_ND,
                best=best,
                models=np.array(table.models),
                k=options.k,
            )
            peers = Peers(options.peers, Path(folder))
            peer_times = {name: [] for name in peers.ready["ready"]}
            peer_scores = {name: [] for name in peer_times}
        for round_number in range(ROUNDS):
            first = round_number * ROWS
            for name, router in routers.items():
                singles[name].append(clocked(ours, router, first)[0])
                rows = slice(first, first + ROWS)
                batches[name].append(clocked(router.predict, Queries(embeddings=e_ND[rows]))[0])
            for name in peer_times:
                answer = peers.route(name, first, ROWS)
                peer_times[name].append(answer)
                if name.startswith("llmrouter"):
                    picked = score_NK[np.arange(first, first + ROWS), answer["choices"]]
                    peer_scores[name].append(float(picked.mean()))

    words = " ".join(f"word{i} routing experts question" for i in range(25)).split()
    encoder = get_encoder("static")
    texts = [" ".join(np.random.default_rng(i).permutation(words)) for i in range(2 * ROWS)]
    encode_single = clocked(lambda: [encoder.encode([text]) for text in texts[:ROWS]])[0]
    encode_batch = clocked(encoder.encode, texts[ROWS:])[0]

    result: dict[str, Any] = {
        "question": "prompts routed per second on one core",
        "machine": machine(),
        "table": table.source,
        "train_prompts": len(train),
        "models": len(table.models),
        "rounds": ROUNDS,
        "prompts_per_round": ROWS,
        "encoder_100_words": {
            "single": median_us([encode_single], ROWS),
            "batch": median_us([encode_batch], ROWS),
        },
        "crossroads": {
            name: {
                "fit_seconds": round(fits[name]["wall"], 3),
                "fit_cpu_seconds": round(fits[name]["cpu"], 3),
                "single": median_us(singles[name], ROWS),
                "batch": median_us(batches[name], ROWS),
            }
            for name in routers
        },
        "peers": {
            name: {
                "single": median_us(times, ROWS),
                **({"quality": round(float(np.mean(q)), 4)} if (q := peer_scores[name]) else {}),
            }
            for name, times in peer_times.items()
        },
    }
    judged = np.arange(ROUNDS * ROWS)
    for name, router in routers.items():
        chosen = Argmax().choose(router.predict(Queries(embeddings=e_ND[judged])), cost)
        result["crossroads"][name]["quality"] = round(float(score_NK[judged, chosen].mean()), 4)
    if peers is not None:
        result["llmrouter_fit_seconds"] = peers.ready["llmrouter_fit"]
        ours_us = {name: row["single"]["cpu_us"] for name, row in result["crossroads"].items()}
        result["cpu_ratio_to_ours"] = {
            name: round(peer["single"]["cpu_us"] / ours_us[COUNTERPART[name]], 2)
            for name, peer in result["peers"].items()
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(main())
