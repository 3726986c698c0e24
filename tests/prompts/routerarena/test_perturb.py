from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.fitted import fit_router
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.routerarena.perturb import (
    GENERATORS,
    drop_function_words,
    flip_share,
    paraphrase,
    perturb,
    robustness_of,
    synonym,
    typo,
)
from tests.prompts.routerarena.toy import TEXTS


@pytest.mark.parametrize("kind", GENERATORS)
@given(text=st.text(max_size=200), seed=st.integers(0, 5))
def test_the_same_seed_gives_the_same_wording(kind: str, text: str, seed: int) -> None:
    assert perturb(text, kind, seed=seed) == perturb(text, kind, seed=seed)


@pytest.mark.parametrize("kind", ["paraphrase", "grammar", "typo"])
def test_ordinary_prompts_change(kind: str) -> None:
    changed = [perturb(text, kind, seed=0) != text for text in TEXTS]
    assert sum(changed) >= len(TEXTS) - 1


@given(st.text(alphabet=st.characters(categories=["L", "Z"]), min_size=1, max_size=300))
def test_a_typo_adds_nothing(text: str) -> None:
    changed = typo(text, np.random.default_rng(0))
    assert len(changed) <= len(text)
    assert not set(changed) - set(text)


def test_two_to_five_letters_of_a_hundred_are_hit() -> None:
    text = "abcdefghij " * 500
    changed = typo(text, np.random.default_rng(0))
    dropped = len(text) - len(changed)  # about half of what is hit; the rest is swapped
    assert 0.01 * 5000 < dropped < 0.025 * 5000
    assert typo("ab", np.random.default_rng(0)) in {"ba", "a", "b"}


def test_function_words_go_and_others_stay() -> None:
    text = "the cat of the house is on a mat " * 20
    left = drop_function_words(text, np.random.default_rng(0)).split()
    dropped = len(text.split()) - len(left)
    assert left.count("cat") == left.count("house") == left.count("mat") == 20
    assert 0.3 * 120 < dropped < 0.7 * 120  # about half of six function words of nine


def test_synonyms_keep_the_capital() -> None:
    changed = synonym("Choose " * 50, np.random.default_rng(0))
    assert "Select" in changed and "select" not in changed


def test_a_paraphrase_puts_the_last_sentence_first() -> None:
    rng = np.random.default_rng(0)
    assert paraphrase("One. Two. Three?", rng) == "Three?\nOne.\nTwo."
    assert paraphrase("Only one", rng).endswith("Only one")


def test_a_constant_router_is_robust() -> None:
    found = robustness_of(lambda texts: ["m"] * len(texts), TEXTS)
    assert found.share == 1.0
    assert set(found.by_kind) == set(GENERATORS)
    assert found.num_pairs == len(TEXTS) * len(GENERATORS)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_random_router_over_k_models_keeps_one_in_k(k: int) -> None:
    rng = np.random.default_rng(k)

    def choose(texts: Sequence[str]) -> list[str]:
        return [f"m{n}" for n in rng.integers(k, size=len(texts))]

    texts = [f"{text} {n}" for n in range(100) for text in TEXTS]
    found = robustness_of(choose, texts)
    # 2,400 independent pairs: five standard errors.
    assert found.share == pytest.approx(1 / k, abs=5 * np.sqrt((k - 1) / k**2 / found.num_pairs))


def test_a_fitted_router_of_the_library_can_be_asked() -> None:
    fitted = fit_router("cheapest", read_outcomes("local"))
    assert robustness_of(fitted, TEXTS, seed=1).share == 1.0


def test_names_are_made_canonical_first() -> None:
    assert flip_share(["Small", "m-2025"], ["small ", "m"], {"m-2025": "m"}) == 0.0
    assert flip_share(["small", "large"], ["small", "larger"]) == 0.5  # no resemblance counts


def test_what_is_stored_is_one_minus_the_flips() -> None:
    clean, reworded = ["a", "a", "a", "a"], ["a", "b", "a", "a"]
    names = iter([clean, reworded])
    found = robustness_of(lambda texts: next(names), TEXTS[:4], kinds=["typo"])
    assert found.share == 1 - flip_share(clean, reworded) == 0.75


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UsageError, match="typo"):
        perturb("text", "tyop", seed=0)
    with pytest.raises(InputError, match="at least one text"):
        robustness_of(lambda texts: [], [])
    with pytest.raises(InputError, match="named 1 models for 6 texts"):
        robustness_of(lambda texts: ["m"], TEXTS)
    with pytest.raises(InputError, match="pairs"):
        flip_share([], [])
