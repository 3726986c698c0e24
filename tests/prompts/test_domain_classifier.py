from __future__ import annotations

import numpy as np

from crossroads.prompts.domain_classifier import DomainClassifier, domain_codes
from crossroads.prompts.router import Queries
from crossroads.prompts.stacking import grouped_folds
from crossroads.prompts.view import PromptReader
from tests.prompts.routers.tables import change, outcomes


def test_domains_are_numbered_by_frequency() -> None:
    code, count = domain_codes(np.array(["b", "a", "b", None, "b", "a"], dtype=object))
    assert count == 3
    assert code.tolist() == [0, 1, 0, 2, 0, 1]


def test_rare_domains_beyond_the_most_become_one() -> None:
    names = np.array([f"d{n:03d}" for n in range(100)] * 2 + ["d000"], dtype=object)
    code, count = domain_codes(names)
    assert count == 64
    assert code.max() == 63
    assert (code == 63).sum() == 2 * 37
    assert code[0] == 0


def learned(**changes: object) -> tuple[float, float, DomainClassifier]:
    """Accuracy out of fold and on unseen prompts."""
    data, unseen = (change(outcomes(200, num_domains=4, seed=s), **changes) for s in (0, 1))
    reader = PromptReader()
    view = reader.fit(data)
    code, count = domain_codes(data.domains)
    name_of = {int(c): d for c, d in zip(code, data.domains, strict=True)}
    fold = grouped_folds(data.embeddings, 4, np.random.default_rng(0))
    classifier = DomainClassifier()
    held_out = classifier.fit_held_out(view, code, count, fold)
    np.testing.assert_allclose(held_out.sum(axis=1), 1.0)
    asked = reader.read(Queries(embeddings=unseen.embeddings, texts=unseen.texts))
    found = [name_of[int(c)] for c in classifier.probabilities(asked).argmax(axis=1)]
    right = np.array(found, dtype=object) == unseen.domains
    return float((held_out.argmax(axis=1) == code).mean()), float(right.mean()), classifier


def test_it_learns_domains_from_embeddings() -> None:
    held_out, unseen, _ = learned(texts=None)
    assert min(held_out, unseen) > 0.85


def test_it_learns_domains_from_words_where_embeddings_say_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    held_out, unseen, _ = learned(embeddings=noise)
    assert min(held_out, unseen) > 0.85


def test_held_out_probabilities_are_honest_about_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 64)).astype(np.float32)
    data = change(outcomes(200, num_domains=4), embeddings=noise, texts=None)
    view = PromptReader().fit(data)
    code, count = domain_codes(data.domains)
    fold = grouped_folds(noise, 4, rng)
    held_out = DomainClassifier().fit_held_out(view, code, count, fold)
    assert (held_out.argmax(axis=1) == code).mean() < 0.45  # chance is about 0.25


def test_its_state_rebuilds_it() -> None:
    _, _, classifier = learned()
    data = outcomes(30, num_domains=4)
    view = PromptReader().fit(data)
    again = DomainClassifier.restore(classifier.state())
    np.testing.assert_array_equal(again.probabilities(view), classifier.probabilities(view))
