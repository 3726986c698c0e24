"""What running a router shows, on routers whose behaviour is plain from their code."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters import insertion
from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Mode, RouteInput, Router, Routing
from crossroads.adapters.routers import build_router
from crossroads.adapters.survey.observed import NAMES, Observation, observe
from tests.adapters.survey.examples import cells


class Given(Router):
    """Weights from a function of the layer's input, in a mode of choice."""

    name: ClassVar[str] = "given"

    def __init__(self, weigh: Any, mode: Mode = "mix") -> None:
        super().__init__()
        self._weigh, self._mode = weigh, mode

    def route(self, given: RouteInput) -> Routing:
        weights_BTHE: Tensor = self._weigh(given)
        return Routing(weights=weights_BTHE, mode=self._mode, normalised=False)


def by_token(given: RouteInput) -> Tensor:
    return 2 + given.x_BTI[..., None, : len(NAMES)].tanh()


def by_sequence(given: RouteInput) -> Tensor:
    return by_token(given)[:, :1]


def by_task(given: RouteInput) -> Tensor:
    assert given.call.task_ids_B is not None
    first_BE = torch.tensor([[3.0, 1, 1, 1, 1, 1], [1, 3, 1, 1, 1, 1]])[given.call.task_ids_B]
    return first_BE[:, None, None]


def first_alone(given: RouteInput) -> Tensor:
    return torch.eye(len(NAMES))[:1, None, None]


def all_at_the_first_token(given: RouteInput) -> Tensor:
    weights_BTHE = torch.zeros(*given.x_BTI.shape[:2], 1, len(NAMES))
    weights_BTHE[..., 0] = 1
    weights_BTHE[:, 0] = 1
    return weights_BTHE


@pytest.mark.parametrize(
    ("weigh", "mode", "expected"),
    [
        (by_token, "mix", ("Step", "Module", "Dense", 6)),
        (by_sequence, "mix", ("Example", "Module", "Dense", 6)),
        (by_sequence, "merge_factors", ("Example", "Module", "Dense", 6)),
        (by_task, "merge_delta", ("Task", "Model", "Dense", 6)),
        (by_task, "merge_factors", ("Task", "Model", "Dense", 6)),
        (first_alone, "mix", ("Task", "Model", "Sparse", 1)),
        (all_at_the_first_token, "mix", ("Step", "Model", "Sparse", 6)),
    ],
)
def test_what_a_router_does_is_seen(
    weigh: Any, mode: Mode, expected: tuple[str, str, str, int]
) -> None:
    for seed in range(3):
        seen = observe(Given(weigh, mode), seed=seed)
        assert seen.is_true
        assert seen.mode == mode
        found = (seen.input_granularity, seen.depth_granularity, seen.expert_selection)
        assert (*found, seen.num_experts) == expected


@pytest.mark.parametrize("mode", ["mix", "merge_delta", "merge_factors"])
def test_outputs_that_are_not_what_the_mode_says_are_seen(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    other: Mode = "mix" if mode == "merge_factors" else "merge_factors"
    real = combine

    def wrong(
        x_BTI: Tensor, bank: ModuleBank, routing: Routing, *more: Any, **named: Any
    ) -> Tensor:
        other_way = Routing(weights=routing.weights, mode=other, normalised=False)
        return real(x_BTI, bank, other_way, *more, **named)

    monkeypatch.setattr(insertion, "combine", wrong)
    seen = observe(Given(by_task, mode))
    assert not seen.is_true
    assert "expert_aggregation" in seen.contradicts(cells(expert_aggregation="Multiple"))


class Trained(Router):
    """One weight an expert that starts where all are alike, or at 0 in a buffer."""

    name: ClassVar[str] = "trained"
    mode: ClassVar[Mode] = "merge_delta"

    def __init__(self, *, in_buffer: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(len(NAMES)))
        self.register_buffer("found", torch.zeros(len(NAMES)))
        self._in_buffer = in_buffer

    def route(self, given: RouteInput) -> Routing:
        weights_E = self.get_buffer("found") if self._in_buffer else self.weights
        return Routing(weights=weights_E[None, None, None], mode=self.mode, normalised=False)


@pytest.mark.parametrize("in_buffer", [True, False])
def test_numbers_that_training_or_search_would_find_are_drawn(in_buffer: bool) -> None:
    router = Trained(in_buffer=in_buffer)
    seen = observe(router)
    assert (seen.num_experts, seen.is_true) == (6, True)
    drawn = router.found if in_buffer else router.weights
    assert len(drawn.unique()) == len(NAMES)


class Merged(Router):
    """One finished adapter a layer: the first expert's."""

    name: ClassVar[str] = "merged"
    mode: ClassVar[Mode] = "merge_delta"

    def prepare(self, bank: AdapterBank) -> None:
        self._made = {name: layer.lora(0) for name, layer in bank.layers.items()}

    def merged(self, bank: ModuleBank) -> LoRA | None:
        return self._made[bank.name]


def test_a_finished_adapter_shows_no_weights() -> None:
    assert observe(Merged()) == Observation(
        mode="merge_delta",
        is_true=True,
        num_experts=None,
        input_granularity="Task",
        depth_granularity=None,
        expert_selection=None,
    )


SEEN = observe(Given(by_token))  # mixes all experts at every token of every layer


@pytest.mark.parametrize(
    ("changes", "axes"),
    [
        ({"expert_selection": "Dense"}, ()),
        ({"expert_selection": "None", "input_granularity": "N/A", "depth_granularity": "N/A"}, ()),
        ({}, ("expert_selection",)),
        (
            {"expert_selection": "Dense", "depth_granularity": "Model", "user_dataset": "Full"},
            ("depth_granularity",),
        ),
        (
            {"expert_selection": "Dense", "input_granularity": "Task"},
            ("input_granularity",),
        ),
        ({"expert_selection": "Dense", "expert_aggregation": "None"}, ("expert_aggregation",)),
        # Merged anew at every token is the same function as mixed.
        ({"expert_selection": "Dense", "expert_aggregation": "Parameter"}, ()),
        (
            {
                "expert_selection": "Dense",
                "expert_aggregation": "Parameter",
                "input_granularity": "Example",
            },
            ("input_granularity", "expert_aggregation"),
        ),
    ],
)
def test_cells_that_were_seen_otherwise_are_named(
    changes: dict[str, str], axes: tuple[str, ...]
) -> None:
    assert SEEN.contradicts(cells(**changes)) == axes


def test_phatgoose_is_seen_as_the_survey_has_it() -> None:
    assert not observe(build_router("phatgoose")).contradicts(cells())


def test_the_same_seed_shows_the_same() -> None:
    assert observe(build_router("phatgoose"), seed=5) == observe(build_router("phatgoose"), seed=5)
