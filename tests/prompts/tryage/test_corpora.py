from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.tryage.corpora import (
    DOMAINS,
    held_out_prompts,
    load_corpora,
    make_corpus,
)
from tests.prompts.tryage.samples import corpora, texts


def test_no_document_is_on_both_sides() -> None:
    for corpus in corpora():
        names = [document.name for document in corpus.documents]
        assert len(set(names)) == len(names) == 40
        assert 0 < len(corpus.held_out) < 40
        trained_on = corpus.training_bytes().tobytes().decode()
        assert not any(document.text in trained_on for document in corpus.held_out)


def test_the_side_depends_on_the_text_alone() -> None:
    given = texts("letters")
    renamed = [(f"other/{name}", text) for name, text in reversed(given)]
    sides = [
        {document.text: document.is_held_out for document in make_corpus("x", named).documents}
        for named in (given, renamed)
    ]
    assert sides[0] == sides[1]


def test_a_paragraph_met_before_is_dropped() -> None:
    shared = "Permission is hereby granted, free of charge, to anybody who asks for it politely."
    given = [(name, f"{shared}\n\n{text}") for name, text in texts("letters")]
    corpus = make_corpus("x", given)
    assert sum(shared in document.text for document in corpus.documents) == 1


def test_the_digest_changes_with_the_texts() -> None:
    given = texts("letters")
    before = make_corpus("x", given).digest()
    assert make_corpus("x", given).digest() == before
    given[0] = ("letters-0", given[0][1] + " more")
    assert make_corpus("x", given).digest() != before


def test_too_little_text_is_refused_with_what_to_add() -> None:
    with pytest.raises(InputError, match=r"domain 'tables': 0 characters .* add numpy and scipy"):
        make_corpus("tables", [])
    with pytest.raises(InputError, match="needed 60000 and 8; add more documents"):
        make_corpus("mine", texts("letters", num_documents=4))


def test_an_unknown_domain_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown domain 'licenses'; did you mean 'licences'"):
        load_corpora(["licenses"])


def test_prompts_are_pieces_of_held_out_documents() -> None:
    found = held_out_prompts(corpora(), per_domain=20, length=64)
    assert found.pieces.shape == (40, 64)
    held_out = {f"{c.domain}/{d.name}": d.text for c in corpora() for d in c.held_out}
    for text, piece, document in zip(found.texts, found.pieces, found.document, strict=True):
        assert text in held_out[document]
        assert piece.tobytes().decode() == text


def test_documents_take_turns_in_giving_prompts() -> None:
    corpus = corpora()[0]
    found = held_out_prompts([corpus], per_domain=2 * len(corpus.held_out), length=64)
    _, counts = np.unique(found.document.astype(str), return_counts=True)
    assert (counts == 2).all()


def test_a_domain_with_fewer_pieces_gives_all_it_has() -> None:
    corpus = corpora()[0]
    found = held_out_prompts([corpus], per_domain=10**6, length=64)
    assert len(found) == sum(len(d.text) // 64 for d in corpus.held_out)


@pytest.mark.parametrize("seed", range(3))
def test_a_split_parts_no_document(seed: int) -> None:
    found = held_out_prompts(corpora(), per_domain=60, length=64)
    train, test = found.split(seed)
    assert sorted([*train, *test]) == list(range(len(found)))
    assert not set(found.document[train]) & set(found.document[test])
    assert set(found.domain[test]) == set(found.domain[train]) == {"letters", "digits"}


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="expected per_domain and length >= 1, got 0, 64"):
        held_out_prompts(corpora(), per_domain=0, length=64)


@pytest.mark.slow
def test_this_machine_has_all_six_kinds_of_text() -> None:
    found = load_corpora()
    assert tuple(corpus.domain for corpus in found) == DOMAINS
    prompts = held_out_prompts(found, per_domain=30, length=128)
    assert len(prompts) == 180
