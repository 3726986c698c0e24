"""What a user knows about their case, and how a method of the survey fits each fact of it.

The rules are read off the nine axes; a value of ``Multiple`` fits as soon as one variant would.
The survey sets no number of examples where few end and a data set begins: ``full_from`` does here,
a convention a user may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from crossroads.adapters.survey.inventory import Method
from crossroads.core.errors import InputError, UsageError, unknown_name

Tasks = Literal["known", "new", "both"]
Per = Literal["token", "example", "task"]
Units = Literal["adapters", "models"]

_GENERALIZATION = {"known": "In-Distribution", "new": "Out-of-Distribution", "both": "Multiple"}
_GRANULARITY = {"token": "Step", "example": "Example", "task": "Task"}
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A user's case. A fact left None is unknown, or does not matter, and rules nothing out.

    Raises InputError naming the fact, for values outside these.

    Parameters
    ----------
    private_data : whether the experts' training data must stay with their contributors
    custom_training : whether contributors can do more than ordinary fine-tuning
    target_examples : labelled examples of the target task at hand, >= 0
    target_inputs : whether inputs of the target task are at hand, labelled or not; by default
        whether there are ``target_examples``
    tasks : what it is for: tasks the experts ``known``, ``new`` ones, or ``both``
    per : a decision for every ``token``, every ``example``, or once for a ``task``
    experts : what the experts are, ``adapters`` or whole ``models``
    joint_training : whether experts may be trained anew, together with the router
    full_from : labelled examples from which on they count as a whole data set, >= 1
    """

    private_data: bool | None = None
    custom_training: bool | None = None
    target_examples: int | None = None
    target_inputs: bool | None = None
    tasks: Tasks | None = None
    per: Per | None = None
    experts: Units | None = None
    joint_training: bool = False
    full_from: int = 1000

    def __post_init__(self) -> None:
        for name, values in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise InputError(f"{name}: expected one of {', '.join(values)}, got {value!r}")
        for name, least in _LEAST.items():
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < least):
                raise InputError(f"{name}: expected a whole number >= {least}, got {number!r}")
        for name in _SWITCHES:
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name != "joint_training")):
                raise InputError(f"{name}: expected True or False, got {value!r}")
        if self.target_examples and self.target_inputs is False:
            raise InputError(
                f"target_inputs is False but there are {self.target_examples} target_examples, "
                "whose inputs are at hand; leave one of them out"
            )

    @property
    def has_target_inputs(self) -> bool | None:
        """Whether inputs of the target task are at hand; None where nothing is known of them."""
        if self.target_inputs is None and self.target_examples is not None:
            return self.target_examples > 0
        return self.target_inputs

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts as plain data."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


_CHOICES = {"tasks": get_args(Tasks), "per": get_args(Per), "experts": get_args(Units)}
_LEAST = {"target_examples": 0, "full_from": 1}
_SWITCHES = ("private_data", "custom_training", "target_inputs", "joint_training")
FACTS = tuple(f.name for f in fields(Situation))


def parse_situation(text: str) -> Situation:
    """Return the situation that a text tells: facts separated by commas, dashes for underscores.

    A fact without a value is a yes.

    >>> parse_situation("private-data,target-examples=0,per=token").to_dict()
    {'private_data': True, 'target_examples': 0, 'per': 'token', 'joint_training': False, \
'full_from': 1000}

    Raises UsageError for an unknown fact or value, with the nearest spelling.
    """
    facts: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        key = name.strip().replace("-", "_")
        if key not in FACTS:
            raise unknown_name("fact of a situation", name, (f.replace("_", "-") for f in FACTS))
        if key in facts:
            raise UsageError(f"situation: {name} is given twice; keep one of them")
        facts[key] = _value(key, name, value.strip() if equals else None)
    if not facts:
        known = ", ".join(f.replace("_", "-") for f in FACTS)
        raise UsageError(f"situation: expected facts separated by commas; there are: {known}")
    try:
        return Situation(**facts)
    except InputError as error:
        raise UsageError(f"situation: {error}") from error


def _value(key: str, name: str, text: str | None) -> Any:
    if key in _SWITCHES:
        if text is not None and text.lower() not in _WORDS:
            raise UsageError(f"situation: {name}: expected yes or no, got {text!r}")
        return True if text is None else _WORDS[text.lower()]
    if text is None:
        hint = "|".join(_CHOICES.get(key, ("NUMBER",)))
        raise UsageError(f"situation: {name} takes a value; write {name}={hint}")
    if key in _CHOICES:
        if text.lower() not in _CHOICES[key]:
            raise unknown_name(f"value of {name}", text, _CHOICES[key])
        return text.lower()
    if not text.isascii() or not text.isdigit():
        least = _LEAST[key]
        raise UsageError(f"situation: {name}: expected a whole number >= {least}, got {text!r}")
    return int(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """How a method stands to one fact of a situation.

    Attributes
    ----------
    fact : of the situation
    fits : whether the method can be used in spite of it
    varies : whether that depends on the variant: an axis says ``Multiple``
    why : one phrase
    """

    fact: str
    fits: bool
    varies: bool = False
    why: str


def findings(method: Method, case: Situation) -> tuple[Finding, ...]:
    """Return how a method stands to each known fact that could rule a method out."""
    return tuple(
        finding for judge in _JUDGES for finding in judge(method, case) if finding is not None
    )


def _joint(method: Method, case: Situation) -> Iterator[Finding]:
    if method.kind == "joint":
        why = "trains its experts anew, together with the router: existing experts are of no use"
        yield Finding(fact="joint_training", fits=case.joint_training, why=why)


def _experts(method: Method, case: Situation) -> Iterator[Finding]:
    if case.experts is not None:
        fits = method.experts in {case.experts, "either"}
        routed = "adapters or models" if method.experts == "either" else method.experts
        yield Finding(fact="experts", fits=fits, why=f"routes among {routed}")


def _privacy(method: Method, case: Situation) -> Iterator[Finding]:
    if not case.private_data:
        return
    cells = method.cells
    if cells.expert_data == "Shared" or cells.routing_dataset == "Expert":
        why = "whoever builds the router must see the experts' training data"
        yield Finding(fact="private_data", fits=False, why=why)
        return
    varies = "Multiple" in {cells.expert_data, cells.routing_dataset}
    why = "a variant leaves" if varies else "leaves"
    why += " the experts' data with their contributors"
    yield Finding(fact="private_data", fits=True, varies=varies, why=why)


def _training(method: Method, case: Situation) -> Iterator[Finding]:
    if case.custom_training is not False or method.kind == "joint":
        return
    why = {
        "Standard": "takes experts as ordinary fine-tuning leaves them",
        "Multiple": "a variant takes experts as ordinary fine-tuning leaves them",
        "Custom": "contributors must add something: a gate, statistics, embeddings, a set form",
    }
    value = method.cells.expert_training
    varies = value == "Multiple"
    yield Finding(fact="custom_training", fits=value != "Custom", varies=varies, why=why[value])


def _target_data(method: Method, case: Situation) -> Iterator[Finding]:
    """Judge labelled examples and mere inputs as one: who brings the first has the second."""
    if case.target_examples is None and case.target_inputs is None:
        return
    lacks = _lacks(method, case)
    cells = method.cells
    varies = not lacks and "Multiple" in {cells.user_dataset, cells.routing_dataset}
    why = f"needs {lacks}" if lacks else _asks(method, varies)
    yield Finding(fact="target_data", fits=not lacks, varies=varies, why=why)


def _lacks(method: Method, case: Situation) -> str:
    """Return what data of the target task a method needs beyond what there is; empty for none."""
    examples = case.target_examples
    label = method.cells.user_dataset
    if examples is not None:
        if label == "Few-Shot" and examples == 0:
            return "a few labelled examples"
        if label == "Full" and examples < case.full_from:
            return f"a labelled data set ({case.full_from} examples or more)"
    if method.cells.routing_dataset == "Target" and not case.has_target_inputs:
        return "inputs of the target task, labelled or not"
    return ""


def _asks(method: Method, varies: bool) -> str:
    label = method.cells.user_dataset
    if label in {"Few-Shot", "Full"}:
        return "asks for a few labelled examples" if label == "Few-Shot" else "asks for a data set"
    if varies:
        return "asks for target data in some variants only"
    if method.cells.routing_dataset == "Target":
        return "asks for inputs of the target task, not for labels"
    return "asks for no target data"


def _tasks(method: Method, case: Situation) -> Iterator[Finding]:
    if case.tasks is None:
        return
    value = method.cells.generalization
    meant = {
        "In-Distribution": "meant for the tasks of its experts",
        "Out-of-Distribution": "meant for tasks no expert was trained on",
        "Multiple": "meant for known and for new tasks",
    }
    fits = value in {_GENERALIZATION[case.tasks], "Multiple"}
    yield Finding(fact="tasks", fits=fits, why=meant[value])


def _per(method: Method, case: Situation) -> Iterator[Finding]:
    if case.per is None:
        return
    value = method.cells.input_granularity
    decides: Mapping[str, str] = {
        "Step": "decides for every token",
        "Example": "decides once for an example",
        "Task": "decides once for a task",
        "N/A": "decides by something else than the input",
    }
    yield Finding(fact="per", fits=value == _GRANULARITY[case.per], why=decides[value])


_JUDGES = (_joint, _experts, _privacy, _training, _target_data, _tasks, _per)
