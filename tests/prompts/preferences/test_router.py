from __future__ import annotations

from collections.abc import Sequence

from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy, Preferences
from crossroads.prompts.preferences.router import PreferenceRouter

PREFERENCES = Preferences.parse(
    {
        "default": "small",
        "policies": [
            {"name": "code", "description": "programs", "model": "big"},
            {"name": "law", "description": "contracts", "model": "wise"},
        ],
    }
)


class ByFirstWord:
    """A back end that answers the first word of the last turn."""

    name, version = "by-first-word", "1"

    def __init__(self) -> None:
        self.read: list[Sequence[Turn]] = []

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        self.read.append(turns)
        names = [*(policy.name for policy in policies), OTHER]
        route = turns[-1].content.split()[0]
        return RouteChoice(route=route, scores={name: float(name == route) for name in names})


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


def test_the_decision_names_policy_and_model() -> None:
    decision = PreferenceRouter(PREFERENCES, ByFirstWord()).decide(ask("law please"))
    assert decision.model == "wise"
    assert decision.details == {"route": "law"}
    assert decision.reason == "policy 'law' fits the latest request (by-first-word): wise serves it"
    assert decision.confidence == 1.0


def test_other_goes_to_the_default() -> None:
    decision = PreferenceRouter(PREFERENCES, ByFirstWord()).decide(ask("other things"))
    assert decision.model == "small"
    assert "no policy fits" in decision.reason
    assert decision.confidence == 0  # although the back end is certain that none fits


def test_swapping_the_mapping_changes_the_model_and_never_the_route() -> None:
    router = PreferenceRouter(PREFERENCES, ByFirstWord())
    before = router.decide(ask("code it"))
    router.preferences = PREFERENCES.remapped({"code": "bigger"})
    after = router.decide(ask("code it"))
    assert (before.model, after.model) == ("big", "bigger")
    assert before.details == after.details
    assert before.scores == after.scores


def test_with_one_model_nothing_is_asked() -> None:
    backend = ByFirstWord()
    one = PREFERENCES.remapped({"code": "m", "law": "m"})
    assert PreferenceRouter(one, backend).decide(ask("code it")).model == "small"
    assert backend.read == []


def test_a_request_brings_its_own_policies_for_itself_alone() -> None:
    router = PreferenceRouter(PREFERENCES, ByFirstWord())
    own = Preferences.parse(
        [
            {"name": "poetry", "description": "verse", "model": "bard"},
            {"name": "code", "description": "programs", "model": "other-model"},
        ],
        default="small",
    )
    assert router.decide(ask("poetry now"), override=own).model == "bard"
    assert router.decide(ask("code now")).model == "big"


def test_the_back_end_reads_spoken_turns_only() -> None:
    backend = ByFirstWord()
    PreferenceRouter(PREFERENCES, backend).decide(ask("code it"))
    assert backend.read == [[Turn("user", "code it")]]
