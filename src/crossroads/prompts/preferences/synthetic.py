"""Synthetic conversations with the policy of every user turn, from templates and real prompts.

A dialogue is a run of spans, each about one subject; a span is one or two user turns, the second
a new question of the subject or a bare follow-up. The policies on offer are drawn anew for
every few dialogues, with natural or made-up names, so that a model must read the descriptions. In
a share of dialogues the asked subject is on no policy, or the last turn says thanks: ``other``.

Differs from the paper: its 43,000 conversations are written and checked by language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy
from crossroads.prompts.preferences.subjects import FAMILY, subject_policy

Prompts = Mapping[str, Sequence[str]]  # questions by subject


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Sentences around the real prompts; training and test use different ones."""

    requests: tuple[str, ...]
    followups: tuple[str, ...]
    thanks: tuple[str, ...]
    actions: Mapping[str, tuple[str, tuple[str, ...]]]  # name -> (description, requests)


TRAIN_WORDING = Wording(
    requests=("{q}", "{q}", "{q}", "Question: {q}", "I am stuck on this one.\n{q}",
              "Can you help? {q}", "Next: {q}", "Another thing. {q}"),
    followups=("Why is that?", "Can you say more?", "Are you sure?", "And the others are wrong?",
               "I do not get it.", "How did you find that?"),
    thanks=("Thanks, that is all.", "Thank you!", "Great, got it.", "Perfect, thanks a lot.",
            "That answers it, thank you.", "Okay, all clear now."),
    actions={
        "explain": ("explain step by step", ("Explain step by step: {q}", "Walk me through: {q}")),
        "summarize": ("shorten a text", ("Summarize this: {q}", "Give me the gist of: {q}")),
        "translate": ("translate a text", ("Translate into French: {q}", "Into Spanish: {q}")),
        "quiz": ("write new exam questions", ("Write a similar exam question: {q}",)),
        "check": ("check an answer", ("I answered B, is that right? {q}", "Grade me: C. {q}")),
    },
)  # fmt: skip
TEST_WORDING = Wording(
    requests=("{q}", "{q}", "{q}", "Please answer: {q}", "Here is something else: {q}",
              "What would you say to this? {q}"),
    followups=("How come?", "Could you go on?", "Is that certain?", "What about the rest?"),
    thanks=("Many thanks, I am done.", "Thanks for the help!", "Wonderful, that was it.",
            "Cheers, nothing else."),
    actions=TRAIN_WORDING.actions,
)  # fmt: skip
_REPLIES = ("I would say: {a}", "The best answer is: {a}", "{a}", "Most likely {a}")
_NEUTRAL_TEXT = """
amber birch cedar delta ember falcon garnet harbor indigo juniper kestrel lotus maple nectar
onyx pearl quartz raven sable topaz umber violet willow zephyr
"""
_NEUTRAL = _NEUTRAL_TEXT.split()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Policies on offer, the turns from user to user, and the route of every user turn."""

    policies: tuple[Policy, ...]
    turns: tuple[Turn, ...]
    routes: tuple[str, ...]

    @property
    def num_user_turns(self) -> int:
        return len(self.routes)

    def until(self, user_turn: int) -> tuple[tuple[Turn, ...], str]:
        """Return the conversation up to a user turn (0 the first) and the route of that turn."""
        return self.turns[: 2 * user_turn + 1], self.routes[user_turn]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is drawn.

    Attributes
    ----------
    num_policies : least and most on offer
    num_spans : drawn from these, all alike
    most_chars : of one question, about four times its tokens
    absent : chance that the last span's subject is on no policy
    settled : chance that the last user turn says thanks
    continued : chance that a span has a second user turn, half of them bare follow-ups
    fine : chance that policies state an action as well as a domain
    neutral : chance that names say nothing (``amber``) instead of naming the subject
    """

    wording: Wording = TRAIN_WORDING
    num_policies: tuple[int, int] = (3, 5)
    num_spans: tuple[int, ...] = (1, 1, 1, 2)
    most_chars: int = 140
    absent: float = 0.14
    settled: float = 0.06
    continued: float = 0.1
    fine: float = 0.2
    neutral: float = 0.7


SINGLE_TURN = Recipe(
    wording=TEST_WORDING, num_policies=(5, 5), num_spans=(1,), most_chars=320, absent=0.2,
    settled=0.0, continued=0.0, fine=0.0, neutral=0.0,
)  # fmt: skip
DRIFT = replace(SINGLE_TURN, num_spans=(2, 3), absent=0.2, settled=0.3, continued=0.5)


def draw_policies(
    recipe: Recipe, subjects: Sequence[str], rng: np.random.Generator
) -> tuple[Policy, ...]:
    """Return coarse policies of distinct subjects in random order."""
    least, most = recipe.num_policies
    count = min(int(rng.integers(least, most + 1)), len(subjects) - 1)
    chosen = rng.choice(len(subjects), size=count, replace=False)
    return tuple(subject_policy(subjects[i]) for i in chosen)


def draw_dialogues(
    prompts: Prompts,
    recipe: Recipe,
    rng: np.random.Generator,
    count: int,
    *,
    policies: tuple[Policy, ...] | None = None,
) -> list[Dialogue]:
    """Return dialogues over subjects of ``prompts`` that share one route set.

    ``policies`` fixes it (coarse, named by subject); by default it is drawn.
    """
    if policies is None:
        policies = draw_policies(recipe, list(prompts), rng)
    action = str(rng.choice(list(recipe.wording.actions))) if rng.random() < recipe.fine else None
    offered = _with_action(policies, action, recipe.wording, rng)
    new_names = _names(recipe, [policy.name for policy in offered], rng)
    route_of = {
        coarse.name: new_names[fine.name] for coarse, fine in zip(policies, offered, strict=False)
    }
    renamed = tuple(replace(policy, name=new_names[policy.name]) for policy in offered)
    return [_dialogue(prompts, recipe, action, renamed, route_of, rng=rng) for _ in range(count)]


def _dialogue(
    prompts: Prompts,
    recipe: Recipe,
    action: str | None,
    policies: tuple[Policy, ...],
    route_of: Mapping[str, str],
    *,
    rng: np.random.Generator,
) -> Dialogue:
    turns: list[Turn] = []
    routes: list[str] = []
    for subject in _spans(recipe, list(prompts), list(route_of), rng):
        for text, reply in _span(prompts[subject], recipe, action, rng):
            turns += [Turn("user", text), Turn("assistant", reply)]
            routes.append(route_of.get(subject, OTHER))
    if rng.random() < recipe.settled:
        turns.append(Turn("user", str(rng.choice(recipe.wording.thanks))))
        routes.append(OTHER)
    else:
        turns.pop()  # the last reply: the dialogue ends with the user
    return Dialogue(policies=policies, turns=tuple(turns), routes=tuple(routes))


def question_text(prompt: str, most_chars: int) -> str:
    """Return an exam question without its ``Answer:``, cut at ``most_chars`` characters."""
    return prompt.removesuffix("Answer:").strip()[:most_chars]


def _spans(
    recipe: Recipe, subjects: Sequence[str], offered: Sequence[str], rng: np.random.Generator
) -> list[str]:
    spans = [str(rng.choice(offered)) for _ in range(int(rng.choice(recipe.num_spans)))]
    taken = {FAMILY[subject] for subject in offered}
    foreign = [subject for subject in subjects if FAMILY[subject] not in taken]
    if foreign and rng.random() < recipe.absent:
        spans[-1] = str(rng.choice(foreign))
    return spans


def _span(
    questions: Sequence[str], recipe: Recipe, action: str | None, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Return the user's texts of one span, each with the assistant's reply."""
    wording = recipe.wording
    frames = wording.requests if action is None else wording.actions[action][1]

    def ask() -> tuple[str, str]:
        question = str(rng.choice(questions))
        text = question_text(question, recipe.most_chars)
        return str(rng.choice(frames)).format(q=text), _reply(question, rng)

    said = [ask()]
    if rng.random() < recipe.continued:
        is_bare = rng.random() < 0.5
        followup = (str(rng.choice(wording.followups)), said[0][1])
        said.append(followup if is_bare else ask())
    return said


def _reply(question: str, rng: np.random.Generator) -> str:
    """Return one of the question's own options: what is asked counts, not what is true."""
    options = [line[3:] for line in question.splitlines() if line[1:3] == ". "]
    answer = str(rng.choice(options)) if options else "It depends."
    return str(rng.choice(_REPLIES)).format(a=answer[:40])


def _with_action(
    policies: tuple[Policy, ...], action: str | None, wording: Wording, rng: np.random.Generator
) -> list[Policy]:
    """Return the policies narrowed to an action, and a rival: the first with another action."""
    if action is None:
        return list(policies)
    rival = str(rng.choice([name for name in wording.actions if name != action]))
    fine = [_narrow(policy, action, wording) for policy in policies]
    return [*fine, _narrow(policies[0], rival, wording)]


def _narrow(policy: Policy, action: str, wording: Wording) -> Policy:
    return Policy(
        name=f"{action}_{policy.name}",
        description=f"{wording.actions[action][0]}; {policy.description}",
    )


def _names(recipe: Recipe, names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Return new names: neutral words, or the subject's own in one of several spellings."""
    if rng.random() < recipe.neutral:
        words = rng.choice(_NEUTRAL, size=len(names), replace=False)
        return {name: str(word) for name, word in zip(names, words, strict=True)}
    return {name: name for name in names}
