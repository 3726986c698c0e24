"""Runs inside an environment that has llmrouter-lib and routellm; driven by throughput.py.

Usage: python peers.py FOLDER, where FOLDER holds data.npz (train, test: unit embeddings; best:
index of the best model per training prompt; models). Reads one JSON request a line on stdin and
answers one JSON object a line on stdout: {"peer": name, "first": row, "count": rows} gives
seconds and choices.

Both peers embed prompts through a hub model or a paid API. Offline there is neither, so both get
the same static embeddings as crossroads; everything else of them runs as published.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import types
from pathlib import Path

os.environ.setdefault("OPENAI_API_KEY", "unused")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1]).resolve()
DATA = np.load(FOLDER / "data.npz", allow_pickle=False)
TEST = DATA["test"].astype(np.float32)


HYPER = {
    "knn": {"n_neighbors": int(DATA["k"]), "metric": "cosine", "weights": "uniform"},
    "svm": {"kernel": "rbf", "C": 1.0, "gamma": "scale"},
    "mlp": {"hidden_layer_sizes": [64, 32], "activation": "relu", "max_iter": 100},
}
CLASSES = {
    "knn": ("KNNRouter", "KNNRouterTrainer"),
    "svm": ("SVMRouter", "SVMRouterTrainer"),
    "mlp": ("MLPRouter", "MLPTrainer"),
}


def llmrouter(kind: str):
    """Fit a router of LLMRouter through its own YAML, files and trainer.

    Returns route functions as published (the model is read from disk for each query) and with the
    model kept in memory, and the seconds of loading and fitting.
    """
    package = f"llmrouter.models.{kind}router"
    module = importlib.import_module(f"{package}.router")
    trainer = importlib.import_module(f"{package}.trainer")
    models = [str(name) for name in DATA["models"]]
    rows = [
        {"query": f"q{i}", "model_name": models[best], "performance": 1.0, "embedding_id": i}
        for i, best in enumerate(DATA["best"])
    ]
    (FOLDER / "routing.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    torch.save(
        {i: torch.from_numpy(e) for i, e in enumerate(DATA["train"])}, FOLDER / "embeddings.pt"
    )
    config = {
        "data_path": {
            "routing_data_train": str(FOLDER / "routing.jsonl"),
            "query_embedding_data": str(FOLDER / "embeddings.pt"),
        },
        "hparam": HYPER[kind],
        "model_path": {
            "ini_model_path": str(FOLDER / f"initial-{kind}.pkl"),
            "save_model_path": str(FOLDER / f"{kind}.pkl"),
            "load_model_path": str(FOLDER / f"{kind}.pkl"),
        },
    }
    (FOLDER / f"{kind}.yaml").write_text(json.dumps(config))
    # The published router calls this with the query text; ours is the row number.
    module.get_longformer_embedding = lambda text: torch.from_numpy(TEST[int(text)])
    start, cpu = time.perf_counter(), time.process_time()
    router = getattr(module, CLASSES[kind][0])(str(FOLDER / f"{kind}.yaml"))
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    getattr(trainer, CLASSES[kind][1])(router).train()
    fit = {
        "load": loaded - start,
        "load_cpu": loaded_cpu - cpu,
        "fit": time.perf_counter() - loaded,
        "fit_cpu": time.process_time() - loaded_cpu,
    }
    names = {name: i for i, name in enumerate(models)}

    def as_published(i: int) -> int:
        return names[router.route_single({"query": str(i)})["model_name"]]

    def in_memory(i: int) -> int:
        if kind == "mlp":
            with torch.no_grad():
                index = int(network(torch.from_numpy(TEST[i : i + 1])).argmax())
            return names[router.idx_to_model[index]]
        model = router.knn_model if kind == "knn" else router.svm_model
        return names[model.predict(TEST[i : i + 1])[0]]

    if kind == "mlp":
        router.load_model_path = str(FOLDER / "mlp.pkl")
        network = router._load_mlp_model()[0]
    return as_published, in_memory, fit


def routellm_mf():
    """RouteLLM's matrix factorisation at its published width; untrained weights, for speed only."""
    from routellm.routers.matrix_factorization import model as module
    from routellm.routers.routers import MatrixFactorizationRouter, RandomRouter

    class Embeddings:
        @staticmethod
        def create(input, model):
            row = types.SimpleNamespace(embedding=TEST[int(input[0])].tolist())
            return types.SimpleNamespace(data=[row])

    module.OPENAI_CLIENT = types.SimpleNamespace(embeddings=Embeddings)
    router = object.__new__(MatrixFactorizationRouter)
    router.model = module.MFModel(
        dim=128, num_models=64, text_dim=TEST.shape[1], num_classes=1, use_proj=True
    ).eval()
    router.strong_model_id = module.MODEL_IDS["gpt-4-1106-preview"]
    router.weak_model_id = module.MODEL_IDS["mixtral-8x7b-instruct-v0.1"]
    pair = types.SimpleNamespace(strong=1, weak=0)
    coin = RandomRouter()
    return (
        lambda i: router.route(str(i), 0.5, pair),
        lambda i: coin.route(str(i), 0.5, pair),
    )


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the peers print
        matrix, coin = routellm_mf()
        peers = {"routellm mf": matrix, "routellm random": coin}
        fits = {}
        for kind in CLASSES:
            published, in_memory, fits[kind] = llmrouter(kind)
            peers[f"llmrouter {kind}, as published"] = published
            peers[f"llmrouter {kind}, model kept in memory"] = in_memory
        print(json.dumps({"ready": list(peers), "llmrouter_fit": fits}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            route = peers[request["peer"]]
            rows = range(request["first"], request["first"] + request["count"])
            wall, cpu = time.perf_counter(), time.process_time()
            choices = [int(route(i)) for i in rows]
            answer = {
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
                "choices": choices,
            }
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
