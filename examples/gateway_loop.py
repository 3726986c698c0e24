"""Serve a router that explores, tell it how good its answers were, and judge the next one.

REPLAYED: nothing is asked here. The models' outcomes were measured earlier and are played back
from the table that ships with the package, so what is estimated can be compared with the truth.
"""

import json
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.gateway.evaluation import FixedModel, RouterCandidate, off_policy
from crossroads.gateway.evaluation.source import read_log
from crossroads.prompts import fit_router, load_router, read_outcomes, read_pool, save_router

ROUNDS = 2  # over the same prompts: chance falls differently each time


class Replay(BaseHTTPRequestHandler):
    """Answers as a model whose score on a prompt is known: with that score."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    scores: dict[tuple[str, str], float]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        score = self.scores[asked["model"], asked["messages"][-1]["content"]]
        message = {"role": "assistant", "content": f"{score:g}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
        body = json.dumps({"id": "replayed", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def replayed(scores: dict[tuple[str, str], float]) -> Iterator[str]:
    """Play the table back behind OpenAI's API; yield the endpoint."""
    Replay.scores = scores
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """Run ``crossroads serve`` in a folder; yield its URL."""
    command = [sys.executable, "-m", "crossroads", "serve", "--config", "gateway.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[3]
        finally:
            server.terminate()  # every row is written before it ends
            server.communicate()


def post(url: str, body: dict[str, Any]) -> tuple[Any, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read()), response.headers


def main() -> None:
    table, pool = read_outcomes("local"), read_pool("local")
    texts = [str(text) for text in table.texts]
    scores = {
        (model, text): float(table.score[row, column])
        for column, model in enumerate(table.models)
        for row, text in enumerate(texts)
    }
    rows = np.random.default_rng(0).permutation(len(texts))
    known, fresh = rows[:100], rows[100:]
    with tempfile.TemporaryDirectory() as temporary, replayed(scores) as endpoint:
        folder = Path(temporary)
        # The next router is a better one, and nobody knows yet.
        served = fit_router("category", table.take(known), pool=pool)
        save_router(served, folder / "served")
        save_router(fit_router("auto", table.take(known), pool=pool), folder / "next")
        cards = [
            {"name": card.name, "endpoint": endpoint, "price_in": card.price_in,
             "price_out": card.price_out}
            for card in pool
        ]  # fmt: skip
        (folder / "pool.json").write_text(json.dumps({"name": "replayed", "models": cards}))
        config = {
            "pool": "pool.json",
            "port": 0,
            "policies": {
                "auto": {
                    "kind": "learned",
                    "router": "served",
                    "explore": {"epsilon": 0.3, "margin": 1.0},
                }
            },
            "ledger": {"url": "sqlite:calls.db", "keep": ["text"]},
            "telemetry": {"logs": None},
            "admin": None,
        }
        (folder / "gateway.yaml").write_text(json.dumps(config))  # JSON is YAML, too
        with gateway(folder) as url:
            for row in list(fresh) * ROUNDS:
                messages = [{"role": "user", "content": texts[row]}]
                answer, headers = post(
                    f"{url}/v1/chat/completions", {"model": "auto", "messages": messages}
                )
                score = float(answer["choices"][0]["message"]["content"])
                post(
                    f"{url}/v1/feedback",
                    {"decision_id": headers["x-crossroads-decision-id"], "score": score},
                )
        log = read_log(f"sqlite:{folder / 'calls.db'}")
        following = load_router(folder / "next")
        truth = {model: float(table.score[fresh, k].mean()) for k, model in enumerate(table.models)}
        chosen = following.decide([texts[row] for row in fresh])
        truth["next"] = float(
            np.mean([scores[d.model, texts[row]] for d, row in zip(chosen, fresh, strict=True)])
        )
        candidates = {model: FixedModel(model) for model in table.models}
        candidates["next"] = RouterCandidate(following)
        for name, candidate in candidates.items():
            found = off_policy(log, candidate)
            estimate, served = found.value["dr"], found.served
            print(
                f"{name:12} estimated {estimate.value:.3f} ({estimate.low:.3f} to "
                f"{estimate.high:.3f}), replayed {truth[name]:.3f}"
            )
        print(f"{'served':12} earned    {served.value:.3f} over {found.num_calls} judged calls")


if __name__ == "__main__":
    main()
