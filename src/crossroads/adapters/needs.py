"""What a router must be given beyond the adapters: routers are compared with their equals.

The groups follow the MoErging survey's axes: a router that was fitted on examples of the task, or
is told the task, is not ranked beside one that knows neither. One that learns here is grouped by
the rows it is taught with, whatever its paper took.
"""

from __future__ import annotations

from typing import Literal

from crossroads.adapters.contract import Router

Group = Literal["reference", "adapters", "contributors", "task", "examples", "shared data"]

GROUPS: dict[Group, str] = {
    "reference": "no routing: the base model alone, or the expert told from outside",
    "adapters": "reads the adapters alone",
    "contributors": "needs what contributors add to their adapters: gates, statistics, embeddings",
    "task": "is told the task of every prompt",
    "examples": "is fitted on labelled examples of the tasks in view",
    "shared data": "is trained on rows of the experts' tasks in one place, or on a general corpus",
}
"""Every group with what it means, in the order they are shown."""


def group_of(router: Router | type[Router]) -> Group:
    """Return the group of a router, from what it learns of, its axes, side data, facts of a call.

    A router that declares no axes is grouped by the rest.
    """
    if router.call_data & {"experts", "labels_B"}:
        return "reference"
    if "task_ids_B" in router.call_data:
        return "task"
    if router.learns and not router.artifacts:  # else from each expert's own rows
        return "examples" if router.by_task else "shared data"
    return _by_axes(router)


def _by_axes(router: Router | type[Router]) -> Group:
    cells = router.cells
    if cells is not None:
        if cells.user_dataset != "Zero-Shot" or cells.routing_dataset == "Target":
            return "examples"
        if cells.expert_data != "Private" or cells.routing_dataset != "None":
            return "shared data"
    if router.artifacts or "embedding_BG" in router.call_data:
        return "contributors"
    return "adapters" if cells is None or cells.expert_training == "Standard" else "contributors"


def needs_of(router: Router | type[Router]) -> tuple[str, ...]:
    """Return what a router asks for by name: side data of the experts, facts of a call."""
    facts = {
        "experts": "the expert's name",
        "labels_B": "the expert's number",
        "task_ids_B": "the task's number",
        "embedding_BG": "the prompt's embedding",
        "scalings": "weights from outside",
    }
    asked = [facts.get(name, name) for name in sorted(router.call_data)]
    kinds = sorted(router.artifacts)
    if "embedding_BG" in router.call_data:  # prompts are compared with what experts bring
        kinds.append("embeddings")
    return tuple([f"{kind} of every expert" for kind in kinds] + asked)
