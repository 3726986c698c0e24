"""The nine axes by which "A Survey on Model MoErging" (arXiv 2408.07057, 2024) tells methods apart.

MoErging is routing among experts that others trained. Two axes say how experts are made (expert
design), five how inputs find them (routing design), two what the result is for (application
design). ``Cells`` is one method's place on all nine; a router states its own as a class attribute.

This module imports neither torch nor any other room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from crossroads.core.errors import InputError, unknown_name

ExpertTraining = Literal["Standard", "Custom", "Multiple"]
ExpertData = Literal["Private", "Shared", "Multiple"]
RoutingDataset = Literal["None", "Expert", "Target", "General", "Multiple"]
InputGranularity = Literal["Step", "Example", "Task", "N/A"]
DepthGranularity = Literal["Module", "Model", "N/A"]
ExpertSelection = Literal["Sparse", "Dense", "None"]
ExpertAggregation = Literal["Output", "Parameter", "None", "Multiple"]
Generalization = Literal["In-Distribution", "Out-of-Distribution", "Multiple"]
UserDataset = Literal["Zero-Shot", "Few-Shot", "Full", "Multiple"]

Design = Literal["expert design", "routing design", "application design"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis of the scheme.

    Attributes
    ----------
    name : the field of ``Cells``
    design : the part of a method it describes
    question : what it asks of a method
    values : legal values in the survey's order, each with what it means
    """

    name: str
    design: Design
    question: str
    values: Mapping[str, str]

    @property
    def option(self) -> str:
        """The name on the command line: dashes for underscores."""
        return self.name.replace("_", "-")

    def spelled(self, value: str) -> str:
        """Return the legal value that ``value`` spells, whatever case and dashes.

        >>> AXES["expert_data"].spelled("private")
        'Private'

        Raises UsageError with the nearest spelling.
        """
        by_spelling = {_plain(legal): legal for legal in self.values}
        if _plain(value) not in by_spelling:
            raise unknown_name(f"value of {self.name}", value, self.values)
        return by_spelling[_plain(value)]


def _plain(value: str) -> str:
    return value.lower().replace("_", "-").replace(" ", "-")


_MULTIPLE = "several of the others, by variant or by choice"

AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(
            name="expert_training",
            design="expert design",
            question="What must a contributor do beyond ordinary fine-tuning?",
            values={
                "Standard": "nothing: any adapter or model will do",
                "Custom": "more: a gate, statistics, embeddings, a set form of adapter",
                "Multiple": _MULTIPLE,
            },
        ),
        Axis(
            name="expert_data",
            design="expert design",
            question="Does the data an expert was trained on leave its contributor?",
            values={
                "Private": "no: only parameters and small artefacts do",
                "Shared": "yes: whoever builds the router sees it",
                "Multiple": _MULTIPLE,
            },
        ),
        Axis(
            name="routing_dataset",
            design="routing design",
            question="On what data is the router built?",
            values={
                "None": "on none",
                "Expert": "on the experts' training data",
                "Target": "on data of the task in view",
                "General": "on a general corpus",
                "Multiple": _MULTIPLE,
            },
        ),
        Axis(
            name="input_granularity",
            design="routing design",
            question="For what part of the input is a decision made?",
            values={
                "Step": "for each token or decoding step",
                "Example": "for each example",
                "Task": "for a whole task",
                "N/A": "for none: something else than the input decides",
            },
        ),
        Axis(
            name="depth_granularity",
            design="routing design",
            question="For what part of the network is a decision made?",
            values={
                "Module": "for each module or layer apart",
                "Model": "once for the whole model",
                "N/A": "for none",
            },
        ),
        Axis(
            name="expert_selection",
            design="routing design",
            question="How many experts take part in a decision?",
            values={
                "Sparse": "a chosen few",
                "Dense": "all, with weights",
                "None": "all there are; nothing is selected",
            },
        ),
        Axis(
            name="expert_aggregation",
            design="routing design",
            question="How do the experts that take part become one?",
            values={
                "Output": "their outputs are mixed",
                "Parameter": "their parameters are merged",
                "None": "one expert answers; there is nothing to aggregate",
                "Multiple": _MULTIPLE,
            },
        ),
        Axis(
            name="generalization",
            design="application design",
            question="For which tasks is it meant?",
            values={
                "In-Distribution": "the tasks of the experts",
                "Out-of-Distribution": "tasks no expert was trained on",
                "Multiple": "both",
            },
        ),
        Axis(
            name="user_dataset",
            design="application design",
            question="How much labelled data must the user bring?",
            values={
                "Zero-Shot": "none",
                "Few-Shot": "a few examples",
                "Full": "a whole data set",
                "Multiple": _MULTIPLE,
            },
        ),
    )
}
"""The axes by name, in the survey's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """A method's value on each axis; the meanings are those of ``AXES``.

    Raises InputError naming the axis, the value and the legal ones.
    """

    expert_training: ExpertTraining
    expert_data: ExpertData
    routing_dataset: RoutingDataset
    input_granularity: InputGranularity
    depth_granularity: DepthGranularity
    expert_selection: ExpertSelection
    expert_aggregation: ExpertAggregation
    generalization: Generalization
    user_dataset: UserDataset

    def __post_init__(self) -> None:
        for name, axis in AXES.items():
            value = getattr(self, name)
            if value not in tuple(axis.values):  # a value of any type, hashable or not
                raise InputError(f"{name}: expected one of {', '.join(axis.values)}, got {value!r}")

    def to_dict(self) -> dict[str, str]:
        """Return plain data for JSON, in the order of the axes."""
        return asdict(self)

    def differences(self, other: Cells) -> dict[str, tuple[str, str]]:
        """Return both values of every axis on which two methods differ, by axis."""
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in AXES
            if getattr(self, name) != getattr(other, name)
        }


def combining_modes(cells: Cells) -> frozenset[str]:
    """Return the modes (``crossroads.adapters.contract.Mode``) in which a method may combine.

    Output is ``mix``; Parameter is a merge, by deltas or by factors. Merging deltas anew at every
    token is the same function as mixing outputs, and is run as ``mix``: so that mode agrees with
    Parameter where the input granularity is Step. None (a single expert) and Multiple allow all.
    """
    merges = {"merge_delta", "merge_factors"}
    if cells.expert_aggregation == "Output":
        return frozenset({"mix"})
    if cells.expert_aggregation == "Parameter" and cells.input_granularity != "Step":
        return frozenset(merges)
    return frozenset({"mix", *merges})
