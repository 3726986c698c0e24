"""The defaults that papers and released code state: a change of one is a change of the method."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from crossroads.moe.routers import build_router, known_settings, router_class

NOISY = {"noise_std": 1.0, "noise_scale": "per_expert", "balance": 0.0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "switch": {"k": 1, "balance": 0.01, "f_norm": "picks", "noise_std": 0.0},
    "top2": {"k": 2, "counted": "first", "threshold": 0.2, "balance": 0.01},
    "random": {"balance": 0.0, "k_end": None},
    "sigmoid": {"renorm": None},
    "loss-free": {"scores": "sigmoid", "rate": 1e-3, "balance": 0.0},
    "softmax-tc": {**NOISY, "k": 1, "importance": 0.005, "load": 0.005, "renorm": None},
    "sinkhorn-tc": {**NOISY, "eps": 1.0, "iters": 20, "combine": "softmax", "eval_plan": True},
    "softmax-ec": {"cf": 1.0},
    "sinkhorn-ec": {"cf": 1.0, "eps": 1.0, "iters": 20},
    "sparse-ec": {"cf": 1.0, "gamma": 1.0, "inner_lr": 1e-2, "inner_iters": 20},
    "soft": {"cf": 1.0, "scale_init": 1.0},
    "vqmoe": {
        "k": 1,
        "contribution": 0.05,
        "commit": 0.25,
        "beta": 0.08,
        "branches": "both",
        "codebook": "l2",
        "balance": 0.01,
    },
    "hyper": {"hidden": 64, "k_schedule": "linear", "balance": 0.0, "noise_std": 0.0},
    "attention": {"k": 2, "balance": 0.0, "noise_std": 0.0},
    "da-moe": {"k_max": None, "importance": "received", "balance": 0.01, "renorm": None},
    "omni": {"k": 1, "share": "all", "noise_std": 0.1, "noise_scale": "absolute", "balance": 0.01},
    "promoe": {
        "k": 1,
        "score": "identity",
        "choice": "token",
        "rcl": 1.0,
        "tau": 0.07,
        "balance": 0.0,
    },
    "top-p": {"p": 0.4, "entropy": 1e-4, "balance": 0.01, "f_norm": "tokens", "k_max": None},
    "adamoe": {"balance": 1e-3, "anneal": "linear_to_zero", "n_null": None, "noise_std": 0.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_start_at_their_published_values(name: str) -> None:
    known = known_settings(router_class(name))
    assert {setting: known[setting] for setting in PUBLISHED[name]} == PUBLISHED[name]


def test_weights_are_divided_by_their_sum_where_papers_do() -> None:
    divided = {name for name in PUBLISHED if getattr(build_router(name, 8, 8), "renorm", False)}
    assert divided == {"top2", "hyper", "attention", "adamoe"}


def test_expert_choice_draws_noise_except_by_the_sparse_plan() -> None:
    names = ("softmax-ec", "sinkhorn-ec", "sparse-ec")
    assert [build_router(name, 8, 8).noise_std for name in names] == [1.0, 1.0, 0.0]


def test_hyper_grows_from_half_to_all_experts_and_is_judged_with_two() -> None:
    made = build_router("hyper", 8, 16)
    assert (made.k_min, made.k_max, made.k_eval) == (8, 16, 2)
